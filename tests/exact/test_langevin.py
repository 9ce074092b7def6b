"""Langevin samplers on Gaussians: the law of every iterate is known, with the bias of the step."""

import math

import pytest
import torch
from numpy.polynomial import chebyshev as series

from invdiff.core import ConfigError, Karras
from invdiff.metrics import z_cov, z_mean
from invdiff.priors import GaussianPrior
from invdiff.samplers.guided import levels
from invdiff.samplers.langevin import ALD, SKROCK, ULA, chebyshev
from invdiff.validation import cases

F64 = torch.float64


def precision(case, sigma, added=0.0):
    """Q and m of g(x) = -Q (x - m), in the coordinates of the unknown."""
    prior, matrix = case.prior, case.problem.operator.matrix
    smoothed = torch.linalg.inv(prior.cov + sigma**2 * torch.eye(len(prior.mean), dtype=F64))
    variance = case.problem.noise.sigma**2 + added
    q = smoothed + matrix.T @ matrix / variance
    return q, torch.linalg.solve(q, smoothed @ prior.mean + matrix.T @ case.problem.y[0] / variance)


def chain(q, m, mean, cov, steps, a, b, h):
    """Mean and covariance after so many steps of x' = m + A (x - m) + B sqrt(2 h) z, for functions a, b of p = -h q."""
    values, basis = torch.linalg.eigh(q)
    big_a, big_b = (basis @ torch.diag(f(-h * values)) @ basis.T for f in (a, b))
    for _ in range(steps):
        mean, cov = m + big_a @ (mean - m), big_a @ cov @ big_a + 2.0 * h * big_b @ big_b
    return mean, cov


def ula_law():
    return lambda p: 1.0 + p, torch.ones_like


def skrock_law(stages, eta):
    """A and B by their Chebyshev polynomials, T of the first and U = T' / S of the second kind."""
    t = [0.0] * stages + [1.0]
    slope = series.chebder(t)
    w0 = 1.0 + eta / stages**2
    w1 = float(series.chebval(w0, t) / series.chebval(w0, slope))

    def value(p, c):
        return torch.as_tensor(series.chebval((w0 + w1 * p).numpy(), c)) / float(series.chebval(w0, c))

    return lambda p: value(p, t), lambda p: value(p, slope) * (1.0 + 0.5 * w1 * p)


def agree(x, mean, cov):
    exact = GaussianPrior(mean, 0.5 * (cov + cov.T))
    return max(z_mean(x, exact), z_cov(x, exact))


def problem_of(size, noise):
    return cases.coloured(0, d=size, m=size // 2, sigma=noise)


@pytest.mark.parametrize(("size", "noise"), [(8, 0.1), (8, 0.5), (4, 0.2)])
@pytest.mark.parametrize("name", ["ula", "skrock"])
def test_every_iterate_has_the_known_law(name, size, noise):
    case, sigma = problem_of(size, noise), 0.1
    q, m = precision(case, sigma)
    longest = float(torch.linalg.eigvalsh(q).max())
    if name == "ula":
        sampler, law = ULA(sigma=sigma, step_size=1.5 / longest, steps=25), ula_law()
    else:
        h = 0.9 * (4.5**2 * (2.0 - 4.0 * 0.05 / 3.0) - 1.5) / longest
        sampler, law = SKROCK(sigma=sigma, step_size=h, stages=5, steps=6), skrock_law(5, 0.05)
    x = sampler(case.problem, case.prior, 4000, seed=0).x
    start = case.prior.mean, sigma**2 * torch.eye(size, dtype=F64)
    assert agree(x, *chain(q, m, *start, sampler.steps, *law, sampler.step_size)) < 5.0
    # one step fewer is another law
    assert agree(x, *chain(q, m, *start, 1, *law, sampler.step_size)) > 20.0


@pytest.mark.parametrize("name", ["ula", "skrock"])
def test_the_stationary_variance_is_that_of_the_closed_form(name):
    """In a problem without slow directions, to which the chain has converged; against the posterior's, which is another."""
    prior = GaussianPrior(torch.zeros(3, dtype=F64), torch.tensor([0.5, 1.0, 2.0], dtype=F64), sigma_max=10.0)
    case = cases.Case.of("three", cases.coloured(0, d=3, m=3, sigma=0.4).problem, prior)
    q, m = precision(case, 0.05)
    values, basis = torch.linalg.eigh(q)
    if name == "ula":
        h = 1.2 / float(values.max())
        sampler, variance = ULA(sigma=0.05, step_size=h, steps=60), 1.0 / (values * (1.0 - 0.5 * h * values))
    else:
        h, (a, b) = 3.2 / float(values.max()), skrock_law(7, 0.05)
        p = -h * values
        sampler, variance = SKROCK(sigma=0.05, step_size=h, stages=7, steps=40), 2 * h * b(p) ** 2 / (1 - a(p) ** 2)
    assert float(chain_memory(sampler, values)) < 0.02
    x = sampler(case.problem, prior, 8000, seed=1).x
    assert agree(x, m, (basis * variance) @ basis.T) < 5.0
    assert agree(x, m, torch.linalg.inv(q)) > 8.0


def chain_memory(sampler, values):
    """|A|^steps of the slowest direction."""
    a = ula_law()[0] if isinstance(sampler, ULA) else skrock_law(sampler.stages, sampler.eta)[0]
    return a(-sampler.step_size * values).abs().max() ** sampler.steps


def test_the_bias_of_skrock_is_small_where_the_step_is():
    a, b = skrock_law(10, 0.05)
    p = torch.tensor([-0.1, -1.0, -5.0], dtype=F64)
    share = -2.0 * p * b(p) ** 2 / (1.0 - a(p) ** 2)
    torch.testing.assert_close(share, torch.tensor([0.998, 0.976, 0.047], dtype=F64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("stages", [2, 5, 15])
def test_skrock_is_stable_up_to_its_limit(stages):
    w0, w1, t = chebyshev(stages, 0.05)
    a, _ = skrock_law(stages, 0.05)
    limit = (stages - 0.5) ** 2 * (2.0 - 4.0 * 0.05 / 3.0) - 1.5
    p = -torch.linspace(1e-6, 1.0, 500, dtype=F64) * limit
    assert float(a(p).abs().max()) < 1.0
    assert t[-1] == pytest.approx(math.cosh(stages * math.acosh(w0))) and w1 > 0


@pytest.mark.parametrize(("gamma", "noise"), [(1.0, 0.1), (0.5, 0.5)])
def test_annealed_langevin_follows_its_recursion(gamma, noise):
    case, grid = problem_of(8, noise), Karras(sigma_max=20.0, sigma_min=0.05)
    sampler = ALD(inner=3, step_size=0.2, gamma=gamma, grid=grid, steps=30)
    x = sampler(case.problem, case.prior, 4000, seed=2).x
    mean, cov = case.prior.mean, 20.0**2 * torch.eye(8, dtype=F64)
    for sigma in levels(grid, 30, case.prior)[:-1]:
        q, m = precision(case, sigma, (gamma * sigma) ** 2)
        mean, cov = chain(q, m, mean, cov, 3, *ula_law(), 0.2 * sigma**2)
    assert agree(x, mean, cov) < 5.0
    fewer = ALD(inner=1, step_size=0.2, gamma=gamma, grid=grid, steps=30)(case.problem, case.prior, 4000, seed=2).x
    assert agree(fewer, mean, cov) > 10.0


def test_more_annealed_steps_come_nearer_to_the_posterior():
    case, grid = problem_of(8, 0.5), Karras(sigma_max=20.0, sigma_min=0.02)
    error = []
    for steps in (20, 200):
        x = ALD(inner=5, step_size=0.1, grid=grid, steps=steps)(case.problem, case.prior, 300, seed=0).x
        error.append(float((x.mean(0) - case.exact.mean).norm() / case.exact.mean.norm()))
    assert error[1] < 0.5 * error[0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ULA(step_size=0.0), "ULA: expected step_size > 0"),
        (lambda: ULA(sigma=-1.0), "sigma > 0"),
        (lambda: SKROCK(stages=1), "stages >= 2, got 1"),
        (lambda: SKROCK(eta=0.0), "eta > 0"),
        (lambda: ALD(inner=0), "inner >= 1"),
        (lambda: ALD(gamma=-1.0), "gamma >= 0"),
    ],
)
def test_options_out_of_range_are_errors(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_a_level_outside_of_the_prior_is_an_error():
    case = problem_of(4, 0.1)
    with pytest.raises(ConfigError, match=r"ULA: expected sigma inside the prior's \[0.001, 1000\], got 1e-05"):
        ULA(sigma=1e-5)(case.problem, case.prior, seed=0)


def test_costs():
    case = problem_of(4, 0.1)
    assert SKROCK(stages=7, step_size=1e-4, steps=3)(case.problem, case.prior, 2, seed=0).network_calls == 7 * 3
    assert ALD(inner=4, steps=3)(case.problem, case.prior, 2, seed=0).network_calls == 4 * 3
