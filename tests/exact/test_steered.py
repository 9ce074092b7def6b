"""Energies of Steered Diffusion on Gaussian priors: their step in closed form, their windows, and losses of networks."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from invdiff.core import ConfigError, Karras, ShapeError, Streams
from invdiff.metrics import z_cov, z_mean
from invdiff.priors import GaussianPrior
from invdiff.samplers import Energy, Steered
from invdiff.samplers.guided import Level
from invdiff.validation.cases import coloured

F64 = torch.float64
EDM = Karras(0.02, 100.0)


def randn(*shape, seed=0):
    return Streams(seed).normal(0, shape, "test", F64)[0]


def linear(matrix):
    layer = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=F64)
    layer.weight.data = matrix
    return layer


CASE = coloured(0)
H1, H2, T1, T2 = randn(3, 8, seed=1), randn(2, 8, seed=2), randn(3, seed=3), randn(2, seed=4)


def quadratics(w1, w2, **window):
    return Energy(linear(H1), T1, w1, **window), Energy(linear(H2), T2, w2)


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_step_of_two_energies_is_their_closed_form(repeats):
    case, k = CASE, 20
    grid = EDM(60, case.prior.sigma_min, case.prior.sigma_max).tolist()
    s, t = grid[k : k + 2]
    sampler = Steered(None, quadratics(0.1, 0.3), repeats, grid=EDM, steps=60)
    start, streams, level = randn(3, 8, seed=7), Streams(4, 3), torch.full((3,), s, dtype=F64)
    jacobian = case.prior.cov @ torch.linalg.inv(case.prior.cov + s * s * torch.eye(8, dtype=F64))
    x = start
    for r in range(repeats):
        if r:
            x = x + math.sqrt(s * s - t * t) * streams.normal(k + 1, (8,), f"renoise {r}", F64)
        d = case.prior(x, level)
        slope = 0.1 * (d @ H1.T - T1) @ H1 + 0.3 * (d @ H2.T - T2) @ H2
        x0, keep = d - s * slope @ jacobian, (t / s) ** 2
        x = keep * x + (1 - keep) * x0 + t * math.sqrt(1 - keep) * streams.normal(k + 1, (8,), f"step {r}", F64)
    found = sampler.step(case.problem, case.prior, Level(k, start, s), streams).x
    torch.testing.assert_close(found, x, rtol=0, atol=1e-11)


def law(weights, repeats=1, released=False, steps=60):
    """Of draws with both energies, of the prior of CASE: every step is affine, x' = M x + b + noise."""
    prior, eye = CASE.prior, torch.eye(8, dtype=F64)
    hessian = weights[0] * H1.T @ H1 + weights[1] * H2.T @ H2
    target = weights[0] * T1 @ H1 + weights[1] * T2 @ H2
    grid = EDM(steps, prior.sigma_min, prior.sigma_max).tolist()
    mean, cov = prior.origin, grid[0] ** 2 * eye
    for s, t in pairwise(grid):
        jacobian, keep = prior.cov @ torch.linalg.inv(prior.cov + s * s * eye), (t / s) ** 2
        shrink = eye - s * jacobian @ hessian
        step = keep * eye + (1 - keep) * shrink @ jacobian
        shift = (1 - keep) * (shrink @ (prior.mean - jacobian @ prior.mean) + s * jacobian @ target)
        for r in range(repeats):
            # beta in place of its root, in variance-preserving form
            added = (s * s - t * t) * ((s * s - t * t) / (1 + s * s) if released else 1.0)
            cov = cov + (added * eye if r else 0.0)
            mean, cov = step @ mean + shift, step @ cov @ step.T + t * t * (1 - keep) * eye
    return GaussianPrior(mean, 0.5 * (cov + cov.T))


@pytest.mark.parametrize("repeats", [1, 3])
def test_draws_have_the_law_of_their_affine_steps(repeats):
    draws = Steered(None, quadratics(0.05, 0.1), repeats, grid=EDM, steps=60)(CASE.problem, CASE.prior, n=1000, seed=2).x
    exact = law((0.05, 0.1), repeats)
    assert z_mean(draws, exact) < 5 and z_cov(draws, exact) < 5
    assert z_mean(draws, law((0.05, 0.0), repeats)) > 8 and z_mean(draws, law((0.1, 0.1), repeats)) > 8
    if repeats > 1:
        assert z_cov(draws, law((0.05, 0.1), repeats, released=True)) > 8


def test_an_energy_outside_of_its_window_is_not_there():
    """Bit for bit, and its network is not called; inside, it is."""
    calls = []

    def never(x):
        calls.append(len(x))
        return x.square().sum(1)

    case, options = CASE, {"grid": EDM, "steps": 12}
    grid = EDM(12, case.prior.sigma_min, case.prior.sigma_max).tolist()
    plain = Steered("pinv", **options)(case.problem, case.prior, n=2, seed=0).x
    for window in ({"first": 12}, {"sigma_low": 200.0}, {"sigma_high": 0.01}, {"first": 3, "last": 5, "sigma_high": grid[6]}):
        off = Steered("pinv", (Energy(never, **window),), **options)(case.problem, case.prior, n=2, seed=0)
        assert torch.equal(off.x, plain) and off.network_vjps == 0 and not calls
    by_step = {"first": 3, "last": 5}
    by_level = {"sigma_low": grid[5], "sigma_high": grid[3]}
    inside = [Steered("pinv", (Energy(never, weight=0.1, **w),), **options) for w in (by_step, by_level)]
    draws = [sampler(case.problem, case.prior, n=2, seed=0) for sampler in inside]
    assert torch.equal(draws[0].x, draws[1].x) and not torch.equal(draws[0].x, plain)
    assert draws[0].network_vjps == 3 and calls == 6 * [2]


def test_energies_share_one_product_with_the_network():
    run = Steered(None, quadratics(0.1, 0.2), grid=EDM, steps=5)(CASE.problem, CASE.prior, n=2, seed=0)
    assert (run.network_calls, run.network_vjps) == (5, 5)


def test_a_classifier_that_is_sure_of_the_other_class_pulls_like_a_linear_energy():
    """-log p of logits (<a, x> - 60, 0) has the gradient -(1 - p) a, and p < 1e-15 here; its draws are those of -<a, x>, whose
    mean is moved in closed form. A classifier of no opinion pulls half as much."""
    prior, a, weight = GaussianPrior(torch.zeros(8, dtype=F64), CASE.prior.cov, sigma_max=1000.0), randn(8, seed=5), 0.02

    def classifier(bias):
        net = linear(torch.stack((a, torch.zeros(8, dtype=F64))))
        net.bias = torch.nn.Parameter(torch.tensor([bias, 0.0], dtype=F64))
        return Energy(lambda x: F.cross_entropy(net(x), x.new_zeros(len(x), dtype=torch.long), reduction="none"), weight=weight)

    nothing = Energy(torch.sum, weight=0.0, first=60)

    def draws(energy=nothing):
        return Steered(None, (energy,), grid=EDM, steps=60)(CASE.problem, prior, n=4, seed=3).x

    plain, straight = draws(), draws(Energy(lambda x: -(x @ a), weight=weight))
    eye, moved = torch.eye(8, dtype=F64), torch.zeros(8, dtype=F64)
    for s, t in pairwise(EDM(60, prior.sigma_min, prior.sigma_max).tolist()):
        jacobian, keep = prior.cov @ torch.linalg.inv(prior.cov + s * s * eye), (t / s) ** 2
        moved = (keep * eye + (1 - keep) * jacobian) @ moved + (1 - keep) * s * weight * jacobian @ a
    torch.testing.assert_close(straight - plain, moved.expand(4, -1), rtol=0, atol=1e-10)
    # p <= exp(<a, x> - 60)
    torch.testing.assert_close(draws(classifier(-60.0)), straight, rtol=0, atol=1e-12)
    neutral = (draws(classifier(0.0)) - plain) @ a / (moved @ a)
    assert 0.1 < float(neutral.mean()) < 0.9


def test_a_network_of_two_layers_is_followed_by_its_gradient():
    torch_net = torch.nn.Sequential(linear(randn(4, 8, seed=6)), torch.nn.Tanh(), linear(randn(1, 4, seed=8)))
    energy = Energy(torch_net, torch.tensor([0.5], dtype=F64), 0.7)
    x = randn(3, 8, seed=9)
    leaf = x.clone().requires_grad_()
    value = 0.7 * 0.5 * (torch_net(leaf)[:, 0] - 0.5).square().sum()
    torch.testing.assert_close(energy.gradient(x), torch.autograd.grad(value, leaf)[0], rtol=0, atol=1e-14)
    assert all(p.grad is None for p in torch_net.parameters())


@pytest.mark.parametrize(
    "window", [{"sigma_low": 2.0, "sigma_high": 1.0}, {"first": -1}, {"first": 4, "last": 3}, {"sigma_low": -1.0}]
)
def test_empty_windows_are_errors(window):
    with pytest.raises(ConfigError, match="sigma_low <= sigma_high and 0 <= first <= last"):
        Energy(linear(H1), T1, **window)


def test_an_energy_is_one_value_for_each_item():
    with pytest.raises(ShapeError, match=r"one value for each of 2 items, got \(\)"):
        Energy(torch.sum).gradient(randn(2, 8))
    with pytest.raises(ShapeError, match=r"one value for each of 2 items, got \(2, 3\)"):
        Energy(linear(H1)).gradient(randn(2, 8))
