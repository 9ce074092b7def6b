"""TMPD: exact where the covariance of the measurement is diagonal, elsewhere the law that its equation implies.

The guided denoiser of a Gaussian prior is affine in x. Its matrix is written here from the equation; the law
of ancestral draws follows level by level. Draws are held to laws by z-scores below 5.
"""

from itertools import pairwise

import pytest
import torch

from invdiff.core import CapabilityError, Gaussian, Karras, Matrix, Poisson, Problem, Streams
from invdiff.core.algebra import dense, flatten_real
from invdiff.guidance import tmpd
from invdiff.guidance.tmpd import TMPD
from invdiff.metrics import z_cov, z_mean
from invdiff.operators.restoration import Mask
from invdiff.priors import GaussianPrior
from invdiff.samplers import Ancestral, Guided, Heun
from invdiff.validation.cases import Case, coloured, complex_valued, composed
from invdiff.validation.laboratory import moments

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def inpainting(d, sigma, seed=0):
    """Independent pixels of unequal variance, every second one measured."""
    prior = GaussianPrior(randn(d, seed=seed), torch.logspace(-1.0, 0.5, d, dtype=F64), sigma_max=1000.0)
    operator = Mask(torch.arange(d) % 2 == 0, (d,))
    return Case.of("inpainting", Problem.simulate(operator, Gaussian(sigma), prior.sample(Streams(seed)), seed), prior)


def permuted(d, sigma, seed=0):
    """Scaled and permuted pixels."""
    prior = GaussianPrior(randn(d, seed=seed), torch.logspace(-1.0, 0.5, d, dtype=F64), sigma_max=1000.0)
    matrix = torch.diag(torch.linspace(0.3, 2.0, d, dtype=F64))[torch.arange(d - 1, 0, -2)]
    return Case.of("permuted", Problem.simulate(Matrix(matrix), Gaussian(sigma), prior.sample(Streams(seed)), seed), prior)


def worst(draws, case):
    found = moments(draws, case)
    return max(abs(found[key]) for key in ("z_mean", "z_cov", "z_spread"))


def guided(case, sigma, *, diagonal=True):
    """(G, h) of D_y = G x + h from the equation; without `diagonal` the exact C = sigma^2 A J A^T + Sigma_y."""
    operator, prior = case.problem.operator, case.prior
    a, y = dense(operator, F64, torch.device("cpu")), flatten_real(case.problem.y, operator.out_complex)[0]
    eye = torch.eye(len(prior.cov), dtype=F64)
    jacobian = prior.cov @ torch.linalg.inv(prior.cov + sigma**2 * eye)
    gram = sigma**2 * a @ jacobian @ a.T
    variance = case.problem.noise.sigma**2 * torch.eye(len(a), dtype=F64)
    c = variance + (torch.diag(gram.sum(1).clamp_min(0.0)) if diagonal else gram)
    gain = sigma**2 * jacobian.T @ a.T @ torch.linalg.inv(c)
    left = eye - gain @ a
    return left @ jacobian, left @ (eye - jacobian) @ prior.mean + gain @ y


def law(case, grid, *, diagonal=True):
    """Mean and covariance of ancestral draws."""
    mean, cov = case.prior.mean, grid[0] ** 2 * torch.eye(len(case.prior.mean), dtype=F64)
    for s, t in pairwise(grid):
        keep, (linear, constant) = (t / s) ** 2, guided(case, s, diagonal=diagonal)
        linear = keep * torch.eye(len(mean), dtype=F64) + (1 - keep) * linear
        mean = linear @ mean + (1 - keep) * constant
        cov = linear @ cov @ linear.T + t**2 * (1 - keep) * torch.eye(len(mean), dtype=F64)
    return GaussianPrior(mean, 0.5 * (cov + cov.T))


@pytest.mark.parametrize("sigma", [0.03, 0.3, 1.0])
@pytest.mark.parametrize("d", [8, 16])
@pytest.mark.parametrize("make", [inpainting, permuted])
def test_exact_where_the_measurements_are_independent(make, d, sigma):
    case = make(d, sigma)
    draws = Guided(TMPD(), Heun(), Karras(0.005, 300.0), steps=60)(case.problem, case.prior, n=1000, seed=3).x
    assert worst(draws, case) < 5


@pytest.mark.parametrize("make", [coloured, complex_valued, composed])
def test_the_denoiser_is_the_equation(make):
    case, x = make(), 3.0 * randn(5, 8)
    for sigma in (0.05, 1.0, 30.0):
        linear, constant = guided(case, sigma)
        found = TMPD()(case.prior, case.problem)(x, torch.full((5,), sigma, dtype=F64))
        torch.testing.assert_close(found, x @ linear.T + constant, rtol=0, atol=1e-8)


def test_draws_of_a_coloured_prior_follow_the_equation_and_not_the_posterior():
    """The same steps with the whole C have another law, of three quarters of the variance."""
    case, grid = coloured(2, sigma=0.03), Karras(0.02, 100.0)
    sampler = Guided(TMPD(), Ancestral(), grid, steps=100)
    draws = sampler(case.problem, case.prior, n=2000, seed=1).x
    levels = grid(100, 1e-3, 1000.0).tolist()
    own, whole = law(case, levels), law(case, levels, diagonal=False)
    assert z_mean(draws, own) < 5 and z_cov(draws, own) < 5
    assert max(z_mean(draws, whole), z_cov(draws, whole)) > 20
    assert float(own.cov.trace() / whole.cov.trace()) == pytest.approx(1.33, abs=0.01)


def test_the_test_sees_a_covariance_that_is_left_out(monkeypatch):
    """C = Sigma_y, as if x0 were known at every level."""
    monkeypatch.setattr(tmpd, "_divided", lambda residual, _, variance: residual / variance)
    case = inpainting(8, 0.5)
    draws = Guided(TMPD(), Heun(), Karras(0.005, 300.0), steps=60)(case.problem, case.prior, n=1000, seed=3).x
    assert worst(draws, case) > 20


def test_the_noise_must_be_gaussian_and_may_differ():
    prior, operator = inpainting(8, 0.3).prior, Matrix(torch.eye(8, dtype=F64))
    with pytest.raises(CapabilityError, match=r"problem.gaussian\(\)"):
        Guided(TMPD(), steps=4)(Problem(operator, Poisson(10.0), torch.ones(8, dtype=F64)), prior, seed=0)
    sigma = torch.linspace(0.1, 1.0, 8, dtype=F64)
    case = Case.of("unequal", Problem.simulate(operator, Gaussian(sigma), prior.sample(Streams(1)), 1), prior)
    draws = Guided(TMPD(), Heun(), Karras(0.005, 300.0), steps=60)(case.problem, prior, n=1000, seed=2).x
    assert worst(draws, case) < 5
