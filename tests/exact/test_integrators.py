"""Churn against the reverse diffusion of a Gaussian: each step is a x + b z, so that its law is known without a draw."""

import copy
import math
from itertools import pairwise

import pytest
import torch

from invdiff.core import ConfigError
from invdiff.priors import GaussianPrior
from invdiff.samplers import DDIM, Ancestral, Churn, Euler, Heun
from invdiff.samplers.integrators import RFSolver

F64 = torch.float64
TAU, SIGMA = 0.7, 2.0
PRIOR = GaussianPrior(torch.zeros(1, dtype=F64), torch.full((1,), TAU**2, dtype=F64), sigma_min=1e-4, sigma_max=100.0)


def law(integrator, mean, variance, steps):
    """Of x at 0 where x at SIGMA has that mean and variance, in steps of equal ratio down to 1e-3 and one to 0."""
    levels = [SIGMA * (1e-3 / SIGMA) ** (k / steps) for k in range(steps + 1)] + [0.0]
    one, zero = torch.ones(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64)
    for now, then in pairwise(levels):
        a = float(integrator.step(PRIOR, one, now, then, lambda: zero))
        b = float(integrator.step(PRIOR, zero, now, then, lambda: one))
        mean, variance = a * mean, a * a * variance + b * b
    return mean, variance


def orders(errors):
    return [math.log2(a / b) for a, b in pairwise(errors)]


def test_the_law_of_draws_is_kept_to_second_order():
    """N(0, TAU^2 + SIGMA^2) becomes N(0, TAU^2); the ancestral rule is of first order."""
    errors = {
        name: [abs(law(rule, 0.0, TAU**2 + SIGMA**2, n)[1] - TAU**2) for n in (40, 80, 160)]
        for name, rule in (("churn", Churn()), ("ancestral", Ancestral()))
    }
    assert min(orders(errors["churn"])) > 1.7
    assert max(orders(errors["ancestral"])) < 1.2
    assert errors["churn"][0] < 0.2 * errors["ancestral"][0]


def test_the_law_given_one_noisy_value_is_the_reverse_diffusion():
    """N(x TAU^2 / (TAU^2 + SIGMA^2), TAU^2 SIGMA^2 / (TAU^2 + SIGMA^2)), at least to first order."""
    exact = 3.0 * TAU**2 / (TAU**2 + SIGMA**2), TAU**2 * SIGMA**2 / (TAU**2 + SIGMA**2)
    found = [law(Churn(), 3.0, 0.0, n) for n in (100, 200, 400)]
    for k in (0, 1):
        errors = [abs(f[k] - exact[k]) / exact[k] for f in found]
        assert min(orders(errors)) > 0.9
        # what is of first order cancels
        assert abs(2.0 * found[2][k] - found[1][k] - exact[k]) < 2e-3 * exact[k]


def test_without_noise_it_is_heun_and_the_highest_level_is_kept():
    assert law(Churn(share=0.0), 1.0, 1.0, 6) == law(Heun(), 1.0, 1.0, 6)
    low = GaussianPrior(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64), sigma_min=1e-4, sigma_max=SIGMA)
    x = torch.ones(3, 1, dtype=F64)
    assert torch.equal(Churn().step(low, x, SIGMA, 1.0, lambda: x), Heun().step(low, x, SIGMA, 1.0, lambda: x))
    with pytest.raises(ConfigError, match="share >= 0"):
        Churn(share=-1.0)


def test_chains_start_about_the_centre_of_the_prior():
    """A prior about 7.5 on 400 pixels, up to 20 standard deviations: the mean of a draw has no way of knowing it otherwise."""
    from invdiff.core import Problem
    from invdiff.priors import Affine, GaussianField, Matern
    from invdiff.samplers import Guided

    prior = Affine(GaussianField((1, 20, 20), Matern(1.5), std=1.0, length=6.0, sigma_max=10.0), shift=7.5)
    plain = GaussianField((1, 20, 20), Matern(1.5), mean=7.5, std=1.0, length=6.0, sigma_max=10.0)
    assert float(prior.origin) == plain.origin == 7.5
    lost = type("Lost", (GaussianField,), {"origin": 0.0})((1, 20, 20), Matern(1.5), mean=7.5, length=6.0, sigma_max=10.0)
    problem = Problem.unmeasured((1, 20, 20))
    means = [float(Guided(steps=20)(problem, p, 64, seed=0).x.mean()) for p in (prior, lost)]
    assert abs(means[0] - 7.5) < 0.4
    # from pure noise about zero the same law is missed
    assert means[1] < 6.8


def test_rf_solver_is_the_flows_own_second_order_step():
    """X = (1 - tau) x, velocity v = (X - D) / tau, and X' = X + d v + d^2 / 2 (v_m - v) / (d / 2), d = tau' - tau."""
    mean = torch.tensor([0.4, -1.0, 2.0], dtype=F64)
    prior = GaussianPrior(mean, torch.tensor([0.1, 1.0, 3.0], dtype=F64), sigma_min=1e-4, sigma_max=100.0)

    def velocity(flow, tau):
        sigma = tau / (1.0 - tau)
        return (flow - prior(flow / (1.0 - tau), torch.full((len(flow),), sigma, dtype=F64))) / tau

    x = torch.tensor([[1.0, -3.0, 0.5], [0.0, 7.0, -2.0]], dtype=F64)
    for sigma, then in ((80.0, 30.0), (2.0, 1.5), (0.1, 0.02)):
        tau, tau_then = sigma / (1.0 + sigma), then / (1.0 + then)
        d, flow = tau_then - tau, (1.0 - tau) * x
        v = velocity(flow, tau)
        derivative = (velocity(flow + 0.5 * d * v, tau + 0.5 * d) - v) / (0.5 * d)
        wanted = (flow + d * v + 0.5 * d * d * derivative) / (1.0 - tau_then)
        torch.testing.assert_close(RFSolver().step(prior, x, sigma, then, lambda: x), wanted, rtol=1e-11, atol=1e-11)
        # the float32 step loses no more than its rounding, at high levels too
        single = RFSolver().step(copy.deepcopy(prior).float(), x.float(), sigma, then, lambda: x)
        torch.testing.assert_close(single.double(), wanted, rtol=1e-6, atol=1e-6)
    # in other units, the same
    other = GaussianPrior(255.0 * mean, 255.0**2 * prior.variances, sigma_min=1e-2, sigma_max=3e4)
    scaled = RFSolver(255.0).step(other, 255.0 * x, 255.0 * 2.0, 255.0 * 1.5, lambda: x)
    torch.testing.assert_close(scaled, 255.0 * RFSolver().step(prior, x, 2.0, 1.5, lambda: x), rtol=1e-12, atol=1e-12)
    with pytest.raises(ConfigError, match="unit > 0"):
        RFSolver(0.0)


def test_declared_orders_of_the_rules_of_one_step():
    """Of the moments, from one point, for those with noise; orders of the deterministic ones are in test_linear_multistep."""
    found = {type(r).__name__: (r.order, r.keeps) for r in (Euler(), Heun(), DDIM(), Ancestral(), Churn(), RFSolver())}
    assert {k for k, v in found.items() if v == (2, 0)} == {"Heun", "RFSolver"}
    assert {k for k, v in found.items() if v == (1, 0)} == {"Euler", "DDIM", "Ancestral", "Churn"}


def test_a_rule_of_one_step_advances_by_it():
    x, past = torch.ones(3, 1, dtype=F64), torch.zeros(0)
    for rule in (Euler(), Heun(), Churn(), RFSolver()):
        found, kept = rule.advance(PRIOR, x, past, [SIGMA, 1.0, 0.5, 0.0], 1, lambda: x)
        assert torch.equal(found, rule.step(PRIOR, x, 1.0, 0.5, lambda: x)) and kept is past
