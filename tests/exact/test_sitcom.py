"""Optimising the network's input: the closed form of every level for a Gaussian prior, the law of the draws, the stop rule."""

import math
from itertools import pairwise

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Denoiser, Gaussian, Karras, Matrix, Operator, Poisson, Problem, Streams
from invdiff.metrics import z_cov, z_mean
from invdiff.priors import GaussianPrior
from invdiff.samplers.sitcom import SITCOM
from invdiff.validation.cases import coloured, complex_valued, white

F64 = torch.float64
EYE = torch.eye(8, dtype=F64)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def affine(case, sigma, lam):
    """D(v*, sigma) = offset + factor x, of the least squares in the module's docstring."""
    mean, cov, a = case.prior.mean, case.prior.cov, case.problem.operator.matrix
    s = cov @ torch.linalg.inv(cov + sigma**2 * EYE)
    gain = torch.linalg.solve(s @ a.T @ a @ s + lam / (1.0 + sigma**2) * EYE, s @ a.T)
    # v* = x + gain (y - A (mean + S (x - mean)))
    factor = s @ (EYE - gain @ a @ s)
    offset = mean - s @ mean + s @ gain @ (case.problem.y[0] - a @ (mean - s @ mean))
    return offset, factor


@pytest.mark.parametrize(("sigma", "lam"), [(0.1, 1.0), (0.1, 0.1), (1.0, 0.1), (10.0, 0.01)])
def test_many_steps_reach_the_closed_form(sigma, lam):
    case = coloured(1)
    x = case.prior.mean + math.sqrt(1.0 + sigma**2) * randn(3, 8)
    sampler = SITCOM(inner=1000, lr=0.01, lam=lam, stop=0.0)
    offset, factor = affine(case, sigma, lam)
    fitted = sampler.fit(case.problem, case.prior, x, sigma)
    torch.testing.assert_close(fitted, offset + x @ factor.T, rtol=0, atol=2e-3)
    wrong, slope = affine(case, sigma, 3.0 * lam)
    assert float((fitted - wrong - x @ slope.T).abs().max()) > 2e-2


def test_the_draws_have_the_law_of_the_closed_form():
    """x' = D(v*) + sigma' z is affine, so that mean and covariance go down the levels; no posterior has them."""
    case, grid = coloured(1), Karras(0.1, 10.0)
    sampler = SITCOM(inner=400, lr=0.02, lam=0.5, stop=0.0, grid=grid, steps=4)
    found = sampler(case.problem, case.prior, 500, seed=1)

    def law(lam):
        levels = grid(4, 1e-3, 1000.0).tolist()
        mean, cov = case.prior.mean, levels[0] ** 2 * EYE
        for sigma, sigma_next in pairwise(levels):
            offset, factor = affine(case, sigma, lam)
            mean, cov = offset + factor @ mean, factor @ cov @ factor.T + sigma_next**2 * EYE
        return GaussianPrior(mean, 0.5 * (cov + cov.T))

    assert z_mean(found.x, law(0.5)) < 5 and z_cov(found.x, law(0.5)) < 5
    assert z_mean(found.x, law(5.0)) > 10
    assert z_mean(found.x, case.exact) > 5 and z_cov(found.x, case.exact) > 5
    assert found.kind == "point" and (found.network_calls, found.network_vjps) == (4 * 401, 4 * 400)


def test_a_step_is_the_papers_in_variance_preserving_form():
    """Adam on |y - A D|^2 + lam |v_t - x_t|^2 in v_t = v / sqrt(1 + sigma^2), by torch's optimiser."""
    case, sigma, lam = coloured(2), 2.5, 0.7
    alpha = 1.0 / math.sqrt(1.0 + sigma**2)
    x = case.prior.mean + 2.0 * randn(3, 8)
    fitted = SITCOM(inner=6, lr=0.03, lam=lam, stop=0.0).fit(case.problem, case.prior, x, sigma)
    v = (alpha * x).requires_grad_()
    adam = torch.optim.Adam([v], lr=0.03)
    levels = torch.full((3,), sigma, dtype=F64)
    for _ in range(6):
        adam.zero_grad()
        residual = case.problem.y - case.problem.operator(case.prior(v / alpha, levels))
        (residual.square().sum() + lam * (v - alpha * x).square().sum()).backward()
        adam.step()
    torch.testing.assert_close(fitted, case.prior(v / alpha, levels).detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [white, coloured, complex_valued])
@pytest.mark.parametrize("stop", [1.0, 2.0])
def test_every_item_reaches_the_noise(make, stop):
    """And none goes on much beyond: the residual of an item that took a step ends just below the bound."""
    case, sigma = make(1), 0.5
    problem = case.problem
    x = case.prior.mean + 3.0 * randn(40, 8)
    sampler = SITCOM(inner=2000, lr=0.01, lam=0.0, stop=stop)
    levels = torch.full((40,), sigma, dtype=F64)
    before, after = problem.chi2(case.prior(x, levels)), problem.chi2(sampler.fit(problem, case.prior, x, sigma))
    assert float(after.max()) <= stop**2 * (1.0 + 1e-9)
    moved = before > stop**2
    assert int(moved.sum()) > 10 and float(after[moved].min()) > 0.5 * stop**2
    # what is explained already is not touched
    torch.testing.assert_close(after[~moved], before[~moved], rtol=0, atol=0)
    final = SITCOM(inner=500, lr=0.02, lam=0.0, stop=stop, grid=Karras(0.05, 10.0), steps=4)(problem, case.prior, 4, seed=0)
    assert float(problem.chi2(final.x).max()) <= stop**2 * (1.0 + 1e-9)
    assert final.info[-1]["chi2"] == pytest.approx(float(problem.chi2(final.x).mean()))


def test_an_item_stops_for_itself():
    """Its result and its cost are those that it has alone."""
    case = coloured(1)
    x = case.prior.mean + 3.0 * randn(6, 8)
    sampler = SITCOM(inner=60, lr=0.02)
    together = sampler.fit(case.problem, case.prior, x, 0.5)
    alone = torch.cat([sampler.fit(case.problem, case.prior, one, 0.5) for one in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    whole, parts = (
        SITCOM(inner=60, lr=0.03, lam=0.0, grid=Karras(0.1, 10.0), steps=4)(case.problem, case.prior, 6, seed=0, batch=b)
        for b in (None, 1)
    )
    torch.testing.assert_close(whole.x, parts.x, rtol=0, atol=1e-8)
    assert whole.network_vjps == parts.network_vjps < 4 * 60
    assert whole.network_calls == parts.network_calls


class Squares(Operator):
    def __init__(self):
        super().__init__((1, 2, 2), (1, 2, 2))

    def forward(self, x):
        return x.square()


def test_an_operator_that_is_not_linear():
    prior = GaussianPrior(torch.ones(1, 2, 2, dtype=F64), 0.3 * torch.ones(1, 2, 2, dtype=F64))
    problem = Problem.simulate(Squares(), Gaussian(0.05), prior.sample(Streams(3)), seed=1)
    found = SITCOM(inner=300, lr=0.02, grid=Karras(0.02, 3.0), steps=6, lam=0.0)(problem, prior, 3, seed=0)
    assert float(problem.chi2(found.x).max()) <= 1.0 + 1e-9


class Blind(Denoiser):
    def forward(self, x, sigma):
        return 0.5 * x.detach()


def test_what_it_cannot_do_is_an_error():
    for make, words in (
        (lambda: SITCOM(inner=0), "inner >= 1"),
        (lambda: SITCOM(lr=0.0), "lr > 0"),
        (lambda: SITCOM(lam=-1.0), "lam >= 0"),
        (lambda: SITCOM(stop=-1.0), "stop >= 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            make()
    case = white(0)
    with pytest.raises(CapabilityError, match="carries no gradient"):
        SITCOM()(case.problem, Blind((8,)), seed=0)
    with pytest.raises(CapabilityError, match=r"problem\.gaussian\(\)"):
        SITCOM()(Problem(case.problem.operator, Poisson(5.0), case.problem.y.abs()), case.prior, seed=0)
    uneven = Problem(Matrix(randn(2, 8)), Gaussian(torch.tensor([0.1, 0.2])), torch.zeros(1, 2, dtype=F64))
    with pytest.raises(CapabilityError, match="one noise level"):
        SITCOM()(uneven, case.prior, seed=0)
