"""Repelling particles of RED-diff: the moments they promise, the spread they end with, and none without repulsion."""

import math

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, Karras, Matrix, Poisson, Problem, Streams
from invdiff.priors import GaussianPrior
from invdiff.samplers import REDDiff
from invdiff.samplers.reddiff_particles import REDDiffParticles, linear_flow, rbf_kernel
from invdiff.validation import moments
from invdiff.validation.cases import coloured, complex_valued, composed, white

F64 = torch.float64
LEVELS, NEAR = Karras(sigma_max=3.0, sigma_min=0.005), Karras(sigma_max=1.0, sigma_min=0.005)


def blank(d):
    """Nothing measured of N(0, I_d)."""
    return Problem.unmeasured((d,), dtype=F64), GaussianPrior(
        torch.zeros(d, dtype=F64), torch.eye(d, dtype=F64), sigma_min=1e-3
    )


def spread(sampler, d, n=6):
    """Mean variance of an unknown about the mean of a draw's particles, (n,), of N(0, I_d)."""
    problem, prior = blank(d)
    state, streams = sampler.init(problem, prior, Streams(0, n)), Streams(0, n)
    for _ in range(sampler.steps):
        state = sampler.step(problem, prior, state, streams)
    return state.particles.var(1, unbiased=False).mean(1)


@pytest.mark.parametrize(
    ("case", "particles", "steps"),
    [
        (white(1), 12, 300),
        (coloured(0, d=4, m=2, sigma=0.3), 8, 300),
        (coloured(1, d=4, m=2, sigma=1.0), 6, 300),
        pytest.param(coloured(0), 16, 1000, marks=pytest.mark.slow),
        pytest.param(complex_valued(0), 16, 1000, marks=pytest.mark.slow),
        pytest.param(composed(1), 16, 1000, marks=pytest.mark.slow),
    ],
    ids=lambda v: getattr(v, "name", None),
)
def test_the_linear_kernel_has_the_moments_of_gaussian_posteriors(case, particles, steps):
    sampler = REDDiffParticles(particles, grid=LEVELS, steps=steps)
    assert sampler.kind == "posterior" and "mean and covariance" in sampler.caveats[0]
    draws = sampler(case.problem, case.prior, n=200, seed=1).x
    found = moments(draws, case)
    assert max(found["z_mean"], found["z_cov"], abs(found["z_spread"])) < 5, found
    # the leverage of a particle among K about their mean is at most 1 - 1 / K, which Gaussian draws do not know. 5 % are
    # for what the steps leave of the covariance
    apart = case.exact._rotate((draws - case.exact.mean).flatten(1)).square() / case.exact.variances
    assert float(apart.sum(1).max()) < 1.05 * (particles - 1)


def test_the_test_sees_particles_that_repel_too_little_or_not_at_all():
    case, options = white(1), {"grid": LEVELS, "steps": 200, "lr": 0.2}
    for strength, low, high in ((0.0, 0.0, 0.02), (0.5, 0.45, 0.55)):
        draws = REDDiffParticles(12, strength=strength, **options)(case.problem, case.prior, n=100, seed=1).x
        found = moments(draws, case)
        assert found["z_spread"] < -8
        assert low <= found["observed"] < high and low <= found["null"] < high
    one = REDDiffParticles(1, **options)
    draws = one(case.problem, case.prior, n=4, seed=1).x
    assert one.kind == "point" and float((draws - case.exact.mean).abs().max()) < 0.02


def test_every_particle_of_a_draw_counts_the_same():
    """Of one draw alone, all particles together have the posterior's covariance."""
    case, streams = coloured(1, d=4, m=2, sigma=0.5), Streams(3, 2)
    sampler = REDDiffParticles(6, grid=LEVELS, steps=300)
    state = sampler.init(case.problem, case.prior, streams)
    for _ in range(sampler.steps):
        state = sampler.step(case.problem, case.prior, state, streams)
    apart = state.particles - case.exact.mean
    torch.testing.assert_close(apart.mT @ apart / 6, case.exact.cov.expand(2, -1, -1), rtol=0, atol=2e-3)
    assert torch.equal(state.x, state.particles[:, 0])


@pytest.mark.parametrize(("count", "d"), [(2, 1), (4, 3), (9, 8)])
def test_radial_kernels_collapse_as_their_simplex_says(count, d):
    stein, density = math.log(count) / d, math.log(count) * (count - 1) / (d * (2 * count - 1))
    options = {"init_from": "zeros", "grid": NEAR, "steps": 150, "lr": 0.2}
    for repulsion, strength, expected in (("rbf", 1.0, stein), ("density", 1.0, density), ("rbf", 2.0, 2.0 * stein)):
        found = spread(REDDiffParticles(count, repulsion, strength, **options), d)
        torch.testing.assert_close(found, torch.full_like(found, expected), rtol=5e-3, atol=0)


def test_fewer_particles_than_unknowns_have_as_many_directions():
    options = {"init_from": "zeros", "grid": NEAR, "steps": 150, "strength": 1.0}
    found = spread(REDDiffParticles(4, **options), 8)
    torch.testing.assert_close(found, torch.full_like(found, 3 / 8), rtol=5e-3, atol=0)


def test_the_flows_are_their_sums():
    """Written out for every pair, with the kernels' gradients by autograd."""
    x, s = Streams(0).normal(0, (2, 2, 5, 3), "test", F64)[0]
    mean, gamma = x.mean(1, keepdim=True), 0.7

    def sums(kernel, wide, c):
        out = torch.zeros_like(wide)
        for i in range(5):
            for j in range(5):
                at = wide[c, j].clone().requires_grad_()
                k = kernel(at, wide[c, i], c)
                out[c, i] += (k.detach() * s[c, j] + gamma * torch.autograd.grad(k, at)[0]) / 5
        return out[c]

    def linear(a, b, c):
        return 1.0 + (a - mean[c, 0]) @ (b - mean[c, 0])

    def radial(a, b, c):
        pairs = torch.pdist(x[c]).square().sort().values
        return torch.exp(-(a - b).square().sum() / (0.5 * (pairs[4] + pairs[5]) / math.log(5)))

    for c in (0, 1):
        torch.testing.assert_close(linear_flow(x, s, gamma)[c], sums(linear, x, c), rtol=0, atol=1e-12)
        torch.testing.assert_close(REDDiffParticles(5, "rbf", gamma).flow(x, s)[c], sums(radial, x, c), rtol=0, atol=1e-12)
        wanted = []
        for i in range(5):
            at = x[c, i].clone().requires_grad_()
            total = torch.stack([radial(at, x[c, j], c) for j in range(5)]).sum().log()
            wanted.append(s[c, i] - gamma * torch.autograd.grad(total, at)[0])
        found = REDDiffParticles(5, "density", gamma).flow(x, s)[c]
        torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-12)


def test_features_repel_through_their_derivative():
    x, s = Streams(1).normal(0, (2, 3, 4, 5), "test", F64)[0]
    matrix = Streams(2).normal(0, (2, 5), "test", F64)[0]
    features = torch.nn.Linear(5, 2, bias=False, dtype=F64)
    features.weight.data = matrix
    found = REDDiffParticles(4, "density", features=features).flow(x, s) - s
    plain = REDDiffParticles(4, "density").flow(x @ matrix.T, torch.zeros(3, 4, 2, dtype=F64))
    torch.testing.assert_close(found, plain @ matrix, rtol=0, atol=1e-12)
    assert features.weight.grad is None and not found.requires_grad


def test_the_width_is_the_median_of_each_draw():
    f = torch.tensor([[[0.0], [1.0], [3.0]], [[0.0], [2.0], [6.0]]], dtype=F64)
    kernel, h = rbf_kernel(f)
    torch.testing.assert_close(h.flatten(), torch.tensor([4.0, 16.0], dtype=F64) / math.log(3))
    torch.testing.assert_close(kernel[0], kernel[1])
    assert bool(torch.isfinite(rbf_kernel(torch.zeros(1, 3, 2))[0]).all())


def test_what_is_wrong_is_named():
    case = white(0)
    with pytest.raises(ConfigError, match="more particles than the 8 unknowns, got 8"):
        REDDiffParticles(8)(case.problem, case.prior, seed=0)
    for options, words in (
        ({"particles": 0}, "particles >= 1"),
        ({"spread": 0.0}, "spread > 0"),
        ({"repulsion": "cubic"}, "linear, rbf, density"),
        ({"features": torch.nn.Identity()}, 'for repulsion "density"'),
        ({"lr": 0.0}, "lr > 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            REDDiffParticles(**options)
    counts = Problem(Matrix(torch.eye(8, dtype=F64)), Poisson(10.0), torch.ones(8, dtype=F64))
    with pytest.raises(CapabilityError, match=r"problem.gaussian\(\)"):
        REDDiffParticles()(counts, case.prior, seed=0)
    assert REDDiffParticles(init_from="zeros").needs == REDDiff(init_from="zeros").needs == {"vjp"}
    assert isinstance(case.problem.noise, Gaussian)
