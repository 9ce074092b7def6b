"""DDRM against the law that its recursion gives every singular direction of a Gaussian prior, and its known bias."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Karras, Matrix, Poisson, Problem, Streams, ViewAsComplex
from invdiff.core.spectrum import Decomposed
from invdiff.metrics import z_cov, z_mean
from invdiff.operators import ParallelBeamCT, gaussian_blur
from invdiff.priors import GaussianPrior
from invdiff.samplers.ddrm import DDRM
from invdiff.validation.cases import composed, white

F64 = torch.float64
GRID = Karras(0.02, 100.0)


def normal(*shape, seed=0, dtype=F64):
    return Streams(seed).normal(0, shape, dtype=dtype)[0]


def known(sampler, a, ybar, mean, variance, sigma_y):
    """Means and variances of the draws along the right singular vectors, one at a time, from the equations of the paper.

    The start and every step are those of the docstring for a prior N(m, l) of the coefficient; in plain numbers.
    """
    grid = sampler.grid(sampler.steps, 1e-3, 1e3).tolist()
    eta, eta_b, means, variances = sampler.eta, sampler.eta_b, [], []
    for a_i, y_i, m, v in zip(a.tolist(), ybar.tolist(), mean.tolist(), variance.tolist(), strict=True):
        b = sigma_y / a_i if a_i else math.inf
        centre, spread = (y_i, grid[0] ** 2 - b**2) if b <= grid[0] else (m, grid[0] ** 2)
        for s, t in pairwise(grid):
            g = v / (v + s * s)
            if b <= t:
                k, c, var = (1 - eta_b) * g, (1 - eta_b) * (1 - g) * m + eta_b * y_i, t * t - (eta_b * b) ** 2
            elif a_i:
                q = math.sqrt(1 - eta**2) * t / b
                k, c, var = (1 - q) * g, (1 - q) * (1 - g) * m + q * y_i, (eta * t) ** 2
            else:
                r = math.sqrt(1 - eta**2) * t / s
                k, c, var = g + r * (1 - g), (1 - r) * (1 - g) * m, (eta * t) ** 2
            centre, spread = k * centre + c, k * k * spread + var
        means.append(centre)
        variances.append(spread)
    return torch.tensor(means, dtype=F64), torch.tensor(variances, dtype=F64)


def diagonal_case(d, m, sigma_y):
    """A prior whose covariance has the right singular vectors of A; the case, and its law by `known`."""
    matrix = normal(m, d, seed=d)
    u, a, vh = torch.linalg.svd(matrix)
    mean, variance = normal(d, seed=1), torch.logspace(-1.0, 1.0, d, dtype=F64)
    prior = GaussianPrior(vh.T @ mean, (vh.T * variance) @ vh, sigma_min=1e-3, sigma_max=1e3)
    problem = Problem.simulate(Matrix(matrix), Gaussian(sigma_y), prior.sample(Streams(3)), 3)
    ybar = torch.cat(((problem.y[0] @ u) / a, torch.zeros(d - m, dtype=F64)))
    a = torch.cat((a, torch.zeros(d - m, dtype=F64)))

    def law(sampler):
        centre, spread = known(sampler, a, ybar, mean, variance, sigma_y)
        return GaussianPrior(vh.T @ centre, (vh.T * spread) @ vh, sigma_max=1e3)

    return problem, prior, law


@pytest.mark.parametrize(("d", "m"), [(8, 4), (12, 7)])
@pytest.mark.parametrize("sigma_y", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("options", [{}, {"eta": 0.3, "eta_b": 0.6}])
def test_draws_follow_the_recursion(d, m, sigma_y, options):
    """Mean and covariance of 2,000 draws; the levels cross every b_i, so that all three rules act."""
    problem, prior, law = diagonal_case(d, m, sigma_y)
    sampler = DDRM(grid=GRID, **options)
    draws, exact = sampler(problem, prior, n=2000, seed=4).x, law(sampler)
    assert z_mean(draws, exact) < 5 and z_cov(draws, exact) < 5


def test_noise_worse_than_the_first_level_starts_from_the_prior():
    problem, prior, law = diagonal_case(8, 4, 500.0)
    sampler = DDRM(grid=GRID, steps=6)
    draws = sampler(problem, prior, n=2000, seed=4).x
    assert z_mean(draws, law(sampler)) < 5 and z_cov(draws, law(sampler)) < 5


@pytest.mark.parametrize("change", [{"eta": 0.0}, {"eta_b": 0.5}, {"sigma": 0.6}])
def test_the_comparison_sees_another_rule(change):
    problem, prior, law = diagonal_case(8, 4, 0.3)
    sampler = DDRM(grid=GRID)
    if "sigma" in change:
        other, run = replace(problem, noise=Gaussian(change["sigma"])), sampler
    else:
        other, run = problem, replace(sampler, **change)
    draws = run(other, prior, n=50_000, seed=4).x
    assert max(z_mean(draws, law(sampler)), z_cov(draws, law(sampler))) > 20


def test_the_known_bias():
    """Prior N(0, I), 200 steps: the null space keeps 0.74 of its variance, the data their errors and hardly any of theirs."""
    rows = []
    for seed in range(3):
        case = white(seed)
        matrix, sigma_y = case.problem.operator.matrix, float(case.problem.noise.sigma)
        u, a, vh = torch.linalg.svd(matrix)
        ybar, zero = torch.cat((case.problem.y[0] @ u / a, torch.zeros(4, dtype=F64))), torch.zeros(4, dtype=F64)
        mean, variance = known(
            DDRM(grid=GRID, steps=200), torch.cat((a, zero)), ybar, torch.zeros(8, dtype=F64), torch.ones(8, dtype=F64), sigma_y
        )
        exact = vh @ case.exact.mean
        ratio = variance / (vh @ case.exact.cov @ vh.T).diagonal()
        rows.append(torch.stack([(mean - exact).norm() / exact.norm(), ratio[:4].mean(), ratio[4:].mean()]))
    error, observed, null = torch.stack(rows).mean(0).tolist()
    assert null == pytest.approx(0.74, abs=0.02) and observed < 0.3 and error > 0.5


def test_complex_and_decomposed_operators():
    """A complex operator through its real parts is the real matrix that it stands for; so is one that was decomposed."""
    matrix = normal(3, 4, dtype=torch.complex128)
    prior = GaussianPrior(normal(8, seed=1), torch.eye(8, dtype=F64), sigma_max=1e3)
    real = torch.cat((torch.cat((matrix.real, -matrix.imag), 1), torch.cat((matrix.imag, matrix.real), 1)))
    x = prior.sample(Streams(0))
    problem = Problem.simulate(Matrix(matrix) @ ViewAsComplex((4,)), Gaussian(0.2), x, 1)
    twin = Problem(Matrix(real), Gaussian(0.2), torch.cat((problem.y.real, problem.y.imag), 1))
    u, a, vh = torch.linalg.svd(real)
    zero = torch.zeros(2, dtype=F64)
    sampler, ybar = DDRM(grid=GRID), torch.cat((twin.y[0] @ u / a, zero))
    mean, variance = known(sampler, torch.cat((a, zero)), ybar, vh @ prior.mean, torch.ones(8, dtype=F64), 0.2)
    exact = GaussianPrior(vh.T @ mean, (vh.T * variance) @ vh)
    for one in (problem, twin, replace(twin, operator=Decomposed(twin.operator))):
        draws = sampler(one, prior, n=2000, seed=2).x
        assert z_mean(draws, exact) < 5 and z_cov(draws, exact) < 5
    case = composed()
    with pytest.raises(CapabilityError, match="DDRM needs spectral of the operator; _LinearComposition offers"):
        sampler(case.problem, case.prior, seed=0)
    decomposed = replace(case.problem, operator=Decomposed(case.problem.operator))
    assert bool(torch.isfinite(sampler(decomposed, case.prior, n=2, seed=0).x).all())


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_draws_do_not_depend_on_chunks(dtype):
    operator = gaussian_blur(5, 6, sigma=0.5)
    prior = GaussianPrior(torch.zeros(1, 5, 6, dtype=dtype), torch.eye(30, dtype=dtype))
    problem = Problem.simulate(operator, Gaussian(0.1), normal(1, 5, 6).to(dtype), 0)
    sampler = DDRM(steps=6)
    whole, parts = (sampler(problem, prior, n=5, seed=1, batch=b).x for b in (None, 2))
    assert whole.dtype == dtype
    torch.testing.assert_close(parts, whole)


def test_what_it_refuses():
    prior = GaussianPrior(torch.zeros(1, 6, 6, dtype=F64), torch.eye(36, dtype=F64))
    operator = ParallelBeamCT(6, 4)
    problem = Problem.simulate(operator, Gaussian(0.1), torch.zeros(1, 6, 6, dtype=F64))
    with pytest.raises(CapabilityError, match="needs spectral of the operator; ParallelBeamCT offers"):
        DDRM()(problem, prior, seed=0)
    blurred = gaussian_blur(6, 6, sigma=0.5)
    counts = Problem.simulate(blurred, Poisson(10.0, 1.0), torch.ones(1, 6, 6, dtype=F64))
    with pytest.raises(CapabilityError, match=r"problem.gaussian\(\)"):
        DDRM()(counts, prior, seed=0)
    for options in ({"eta": 1.1}, {"eta_b": -0.1}):
        with pytest.raises(ConfigError, match=r"eta and eta_b in \[0, 1\]"):
            DDRM(**options)
    assert DDRM().kind == "point"
