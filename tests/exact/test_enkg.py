"""Ensemble Kalman guidance: one update by its statistics, large ensembles by their closed form, the collapse, black boxes."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Karras, Matrix, Poisson, Problem, Streams, ViewAsComplex
from invdiff.metrics import z_cov, z_mean
from invdiff.operators.blackbox import BlackBox
from invdiff.priors import GaussianPrior
from invdiff.samplers import Euler, Guided
from invdiff.samplers.enkg import EnKG, kalman_update
from invdiff.validation import cases
from invdiff.validation.laboratory import moments

F64 = torch.float64
GRID = Karras(0.02, 20.0)


def normal(*shape, seed=0):
    return Streams(seed).normal(0, shape, dtype=F64)[0]


@pytest.mark.parametrize(("count", "d", "m"), [(5, 8, 3), (40, 6, 9)])
def test_an_update_is_a_step_by_empirical_covariances(count, d, m):
    """One by one of three ensembles: u - gamma / |C| Cov(u, G) (G - y), with the covariance of torch.cov."""
    u, y, gamma = 3.0 * normal(3, count, d) + 1.0, normal(m, seed=2), 0.7
    g = torch.tanh(u @ normal(d, m, seed=1))
    new = kalman_update(u, g, y, gamma)
    for b in range(3):
        cov = torch.cov(torch.cat((u[b], g[b]), 1).T, correction=0)
        c = torch.stack([(g[b] - y) @ (one - g[b].mean(0)) / count for one in g[b]], 1)
        step = (cov[:d, d:] @ (g[b] - y).T).T
        torch.testing.assert_close(new[b], u[b] - gamma / torch.linalg.matrix_norm(c) * step)


@pytest.mark.parametrize(("count", "spread"), [(1, 1.0), (4, 0.0)])
def test_an_ensemble_without_spread_stays(count, spread):
    u = normal(1, 3) + spread * normal(2, count, 3, seed=3)
    assert torch.equal(kalman_update(u, u, normal(3, seed=1), 2.0), u)


def test_one_particle_is_the_ode_of_the_prior():
    case = cases.coloured()
    ours = EnKG(particles=1, grid=GRID, steps=12)(case.problem, case.prior, n=3, seed=4)
    ode = Guided(integrator=Euler(), grid=GRID, steps=12)(case.problem, case.prior, n=3, seed=4)
    torch.testing.assert_close(ours.x, ode.x, rtol=1e-12, atol=1e-12)


def law(sampler, case, fault=1.0):
    """The recursion of the docstring, for a real or complex linear operator."""
    prior, size, sigma_y = case.prior, len(case.prior.mean), float(case.problem.noise.sigma)
    eye, covariance = torch.eye(size, dtype=F64), case.prior.cov

    def real(v):
        return torch.cat((v.real, v.imag), 1) if v.is_complex() else v

    a, y = real(case.problem.operator(eye)).T / sigma_y, real(case.problem.y)[0] / sigma_y
    grid = sampler.grid(sampler.steps, prior.sigma_min, prior.sigma_max).tolist()

    def euler(s, t):
        k = covariance @ torch.linalg.inv(covariance + s * s * eye)
        return k + t / s * (eye - k), (1 - t / s) * (eye - k) @ prior.mean

    mean, cov = prior.mean.clone(), grid[0] ** 2 * eye
    for k, (s, t) in enumerate(pairwise(grid)):
        phi, shift = eye, torch.zeros(size, dtype=F64)
        for pair in pairwise(sampler.inner(k, prior)):
            one, more = euler(*pair)
            phi, shift = one @ phi, one @ shift + more
        h, offset = a @ phi, a @ shift - y
        for _ in range(sampler.updates if sampler.guided(k) else 0):
            r, p = h @ mean + offset, h @ cov @ h.T
            gain = fault * sampler.gamma / float((p.square().sum() + r @ p @ r).sqrt()) * cov @ h.T
            mean, cov = mean - gain @ r, (eye - gain @ h) @ cov @ (eye - gain @ h).T
        one, more = euler(s, t)
        mean, cov = one @ mean + more, one @ cov @ one.T
    return GaussianPrior(mean, 0.5 * (cov + cov.T), sigma_max=1e3)


def worst(draws, exact):
    return max(z_mean(draws, exact), z_cov(draws, exact))


LIMITS = {
    "white": (cases.white(), {}),
    "coloured, d = 12": (cases.coloured(d=12, m=5), {"ode_steps": 1, "updates": 1, "gamma": 0.5}),
    "coloured, more noise": (cases.coloured(sigma=1.0), {"gamma": 0.3}),
    "complex": (cases.complex_valued(), {"gamma": 0.3, "start": 0.0, "end": 0.0}),
}


@pytest.mark.parametrize("name", LIMITS)
def test_large_ensembles_follow_the_closed_form(name):
    """And not that of an update which is longer by a fifth."""
    case, options = LIMITS[name]
    sampler = EnKG(**{"particles": 160, "gamma": 0.2, "ode_steps": 3, "grid": GRID, "steps": 10} | options)
    draws = sampler(case.problem, case.prior, n=400, seed=1, batch=50).x
    assert worst(draws, law(sampler, case)) < 5
    assert worst(draws, law(sampler, case, 1.2)) > 7


def test_the_bias_falls_with_the_number_of_particles():
    case, z = cases.white(), []
    for count in (4, 16, 128):
        sampler = EnKG(particles=count, gamma=0.2, ode_steps=1, grid=GRID, steps=10)
        z.append(worst(sampler(case.problem, case.prior, n=400, seed=1, batch=100).x, law(sampler, case)))
    assert z[0] > 20 and z[1] < 0.6 * z[0] and z[2] < 5


def test_it_collapses_where_the_data_are():
    """The variance over the exact one in the row space of A and in its complement; a posterior has one in both."""
    case = cases.white()
    sampler = EnKG(particles=64, ode_steps=3, grid=GRID, steps=20)
    row = moments(sampler(case.problem, case.prior, n=300, seed=0, batch=100).x, case)
    assert row["observed"] < 0.02 and 0.7 < row["null"] < 5.0 and row["mean_error"] > 0.5
    gentle = replace(sampler, gamma=0.2)
    assert row["observed"] < moments(gentle(case.problem, case.prior, n=300, seed=0).x, case)["observed"] < 0.3


def test_one_level_of_noise_drops_out_but_not_its_pattern():
    case, y = cases.white(), cases.white().problem.y
    sampler = EnKG(particles=8, grid=GRID, steps=6)

    def draws(sigma):
        return sampler(Problem(case.problem.operator, Gaussian(sigma), y), case.prior, n=2, seed=0).x

    torch.testing.assert_close(draws(0.1), draws(3.0), rtol=1e-9, atol=1e-9)
    other = draws(torch.tensor([0.1, 0.1, 3.0, 3.0], dtype=F64))
    assert float((other - draws(0.1)).abs().max()) > 0.05


def test_a_black_box_without_a_derivative():
    """A sign and two rounded values: draws move to the data, at the cost that is documented."""

    def measure(x):
        return np.stack((np.sign(x[:, 0]), np.round(x[:, 1], 1), np.round(np.arctan(x[:, 2:].sum(1)), 1)), 1)

    operator = BlackBox(measure, (4,), (3,), batched=True)
    problem = Problem(operator, Gaussian(0.1), torch.tensor([1.0, -0.8, 1.1], dtype=F64))
    prior = GaussianPrior(torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64), sigma_min=0.02, sigma_max=20.0)
    sampler = EnKG(particles=64, gamma=0.3, ode_steps=4, steps=30)
    samples = sampler(problem, prior, n=40, seed=0)
    free = prior.sample(Streams(1, 1000))
    assert samples.kind == "point"
    assert float(problem.chi2(samples.x).mean()) < 0.1 * float(problem.chi2(free).mean())
    guided = sum(sampler.guided(k) for k in range(30))
    inner = sum(len(sampler.inner(k, prior)) - 1 for k in range(30) if sampler.guided(k))
    assert guided == 24 and samples.operator_calls == 64 * 2 * guided
    assert samples.network_calls == 64 * (30 + 2 * inner) and samples.network_vjps == 0


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_draws_do_not_depend_on_the_batch_nor_on_chunks(dtype):
    case = cases.complex_valued()
    operator = Matrix(torch.complex(normal(2, 4), normal(2, 4, seed=1)).to(torch.promote_types(dtype, torch.complex64)))
    prior = GaussianPrior(torch.zeros(8, dtype=dtype), case.prior.cov.to(dtype), sigma_min=0.02, sigma_max=20.0)
    problem = Problem.simulate(operator @ ViewAsComplex((4,)), Gaussian(0.5), torch.ones(8, dtype=dtype))
    sampler = EnKG(particles=6, gamma=0.2, steps=6)
    whole = sampler(problem, prior, n=5, seed=1).x
    assert whole.dtype == dtype
    for other in (sampler(problem, prior, n=5, seed=1, batch=2), replace(sampler, chunk=4)(problem, prior, n=5, seed=1)):
        torch.testing.assert_close(other.x, whole, rtol=1e-3 if dtype == torch.float32 else 1e-9, atol=1e-4)


def test_what_it_refuses():
    case = cases.white()
    problem = Problem(case.problem.operator, Poisson(10.0, 5.0), case.problem.y.abs())
    with pytest.raises(CapabilityError, match=r"problem.gaussian\(\)"):
        EnKG()(problem, case.prior, seed=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"particles": 0}, "particles, updates, ode_steps and chunk >= 1"),
        ({"chunk": 0}, "chunk >= 1"),
        ({"gamma": 0.0}, "gamma > 0"),
        ({"gamma": math.inf}, "gamma > 0"),
        ({"start": 0.6, "end": 0.6}, r"start \+ end <= 1, got 0.6 and 0.6"),
        ({"start": -0.1}, "start, end >= 0"),
    ],
)
def test_options_out_of_range_are_errors(options, words):
    with pytest.raises(ConfigError, match=f"EnKG: expected .*{words}"):
        EnKG(**options)
