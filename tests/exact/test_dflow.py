"""Optimising the noise of a flow: the closed forms that a Gaussian prior has, and the policies for its derivative."""

from __future__ import annotations

import pytest
import torch

from invdiff.core import CapabilityError, Gaussian, Karras, Matrix, Poisson, Problem, Streams
from invdiff.priors import GaussianPrior
from invdiff.samplers import DDIM, OBELM, DFlow, Euler, Graded, Heun

F64, D = torch.float64, 6


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def case():
    """A Gaussian prior of standard deviations near 1, three measurements of it, and the exact posterior."""
    a = randn(D, D, seed=1)
    prior = GaussianPrior(randn(D, seed=2), a @ a.T / D + 0.5 * torch.eye(D), sigma_min=0.01, sigma_max=100.0)
    problem = Problem.simulate(Matrix(randn(3, D, seed=3)), Gaussian(0.5), prior.sample(Streams(9, 1)), seed=5)
    return prior, problem, prior.posterior(problem)


def affine(sampler, problem, prior):
    """The flow as x0 = c + F z, column by column."""
    with torch.no_grad():
        c = sampler.decode(problem, prior, torch.zeros(1, D, dtype=F64), Streams(0))[0]
        columns = sampler.decode(problem, prior, torch.eye(D, dtype=F64), Streams(0, D)) - c
    return c, columns.T


def ridge(sampler, problem, prior):
    """The closed-form minimiser for R = |z|^2 / 2, sigma_y = 0.5."""
    c, f = affine(sampler, problem, prior)
    m, r = problem.operator.matrix @ f, problem.y[0] - problem.operator(c[None])[0]
    return torch.linalg.solve(m.T @ m / 0.25 + sampler.lam * torch.eye(D, dtype=F64), m.T @ r / 0.25)


@pytest.mark.parametrize("flow", [OBELM(), Graded(), Euler(), Heun()])
@pytest.mark.parametrize("lam", [1.0, 0.1])
def test_the_minimiser_for_a_gaussian_prior_is_a_ridge_regression(case, flow, lam):
    """(F^T A^T A F / sigma_y^2 + lam) z = F^T A^T (y - A c) / sigma_y^2 for the flow as it is, five steps of it."""
    prior, problem, _ = case
    sampler = DFlow(flow=flow, flow_steps=5, lam=lam, regulariser="gaussian", memory="full")

    def slope(z):
        z = z[None].clone().requires_grad_()
        objective = sampler.misfit(problem, sampler.decode(problem, prior, z, Streams(0))) + lam * sampler.penalty(z)
        return float(torch.autograd.grad(objective.sum(), z)[0].norm())

    z = ridge(sampler, problem, prior)
    assert slope(z) < 1e-10 * slope(1.1 * z + 1.0)


def test_adam_finds_the_minimiser(case):
    prior, problem, _ = case
    sampler = DFlow(flow=Euler(), flow_steps=3, regulariser="gaussian", lr=0.05, memory="full", steps=250)
    c, f = affine(sampler, problem, prior)
    z = ridge(sampler, problem, prior)
    found = sampler(problem, prior, n=2, seed=0)
    torch.testing.assert_close(found.x, (c + f @ z).expand(2, -1), rtol=1e-3, atol=1e-3)
    assert found.kind == "point"
    misfit = 2.0 * (problem.operator((c + f @ z)[None]) - problem.y).square().sum()
    assert found.info[-1]["misfit"] == pytest.approx(float(misfit), rel=1e-2)


def test_with_the_exact_flow_it_is_the_posterior_mean(case):
    """60 levels from 1000, which leaves out |mean| / 1000; five of Euler's are another flow with another minimiser."""
    prior, problem, exact = case
    prior = GaussianPrior(prior.mean, prior.cov, sigma_min=0.01, sigma_max=1000.0)

    def error(flow, flow_steps):
        sampler = DFlow(flow=flow, flow_steps=flow_steps, regulariser="gaussian")
        c, f = affine(sampler, problem, prior)
        return float((c + f @ ridge(sampler, problem, prior) - exact.mean).norm() / exact.mean.norm())

    assert error(Heun(), 60) < 3e-3
    assert error(OBELM(), 60) < 3e-3
    assert error(Euler(), 5) > 3e-2


def test_the_chi_regulariser_holds_the_length_of_the_noise(case):
    """Without a measurement z ends at |z| = sqrt(d - 1), in the direction it started in."""
    prior, _, _ = case
    problem, streams = Problem.unmeasured((D,), F64), Streams(1, 3)
    sampler = DFlow(flow=Euler(), flow_steps=2, regulariser="chi", lr=0.05, memory="full", steps=200)
    state = sampler.init(problem, prior, streams)
    while state.step < sampler.steps:
        state = sampler.step(problem, prior, state, streams)
    torch.testing.assert_close(state.z.norm(dim=1), torch.full((3,), (D - 1) ** 0.5, dtype=F64), rtol=1e-5, atol=1e-5)


def test_without_a_regulariser_the_measurement_is_explained(case):
    prior, problem, _ = case
    sampler = DFlow(flow=Euler(), flow_steps=3, regulariser="none", lr=0.05, memory="full", steps=250)
    info = sampler(problem, prior, n=2, seed=0).info
    assert info[0]["misfit"] > 1.0 and info[-1]["misfit"] < 1e-3 * info[0]["misfit"]


@pytest.mark.parametrize("memory", ["checkpoint(step)", "checkpoint(block)", "revolve(2)", "invertible", "offload"])
def test_every_policy_takes_the_same_path(case, memory):
    prior, problem, _ = case

    def run(memory):
        grid = Karras(sigma_min=0.1, sigma_max=10.0)
        return DFlow(flow=Graded(), flow_steps=6, memory=memory, grid=grid, steps=20)(problem, prior, n=2, seed=0).x

    torch.testing.assert_close(run(memory), run("full"), rtol=1e-9, atol=1e-9)


def test_the_noise_of_a_stochastic_flow_is_held(case):
    """DDIM(1) draws fresh noise; it is the same in every call and differs between draws, so that x0 is a function of z."""
    prior, problem, _ = case
    sampler, z = DFlow(flow=DDIM(1.0), flow_steps=4), randn(1, D).expand(2, -1)
    a, b = (sampler.decode(problem, prior, z, Streams(0, 2)) for _ in range(2))
    assert torch.equal(a, b) and float((a[0] - a[1]).abs().max()) > 0.1


def test_what_it_cannot_do_is_an_error(case):
    prior, problem, _ = case
    with pytest.raises(CapabilityError, match="can't be undone"):
        DFlow(flow=Heun(), memory="invertible", steps=2)(problem, prior, seed=0)
    counts = Problem(problem.operator, Poisson(20.0, 5.0), problem.y.abs())
    with pytest.raises(CapabilityError, match=r"problem\.gaussian\(\)"):
        DFlow(steps=2)(counts, prior, seed=0)
