"""Twisted diffusion: exact on Gaussians and mixtures, for every twist, and on a non-linear problem; faults are rejected."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Denoiser, Gaussian, Karras, Matrix, NumericalError, Operator, Problem
from invdiff.priors import GaussianPrior
from invdiff.samplers.particles import Proposed
from invdiff.samplers.tds import TDS
from invdiff.validation import cases
from invdiff.validation.laboratory import distances, moments

F64 = torch.float64
GRID = Karras(sigma_max=100.0, sigma_min=0.02)


@dataclass(frozen=True)
class Repeated(TDS):
    """A planted fault: the twist of the step before is not taken off the weight, so that the data count several times."""

    def propose(self, problem, prior, x, seen, history, at, noise):
        new = super().propose(problem, prior, x, seen, history, at, noise)
        return Proposed(new.x, new.log_weight + seen[0], new.history)


class Cubic(Operator):
    """x + x^3 / 3 of a single value."""

    def __init__(self):
        super().__init__((1,), (1,))

    def forward(self, x):
        return x + x**3 / 3.0


def worst(x, case):
    row = moments(x, case)
    return max(abs(row[key]) for key in ("z_mean", "z_cov", "z_spread"))


GAUSSIANS = {
    "white": cases.white,
    "white, d = 16": lambda: cases.white(2, d=16, m=3),
    "coloured, sigma = 0.03": lambda: cases.coloured(sigma=0.03),
    "coloured, sigma = 0.5": lambda: cases.coloured(sigma=0.5),
    "complex": cases.complex_valued,
    "composed": cases.composed,
}


@pytest.mark.parametrize("name", GAUSSIANS)
def test_the_moment_twist_samples_gaussian_posteriors_with_few_particles(name):
    """1,000 draws, 5 standard errors; the step bias of order 2 is one or two of them in the spread."""
    case = GAUSSIANS[name]()
    x = TDS(particles=4, grid=GRID, steps=60)(case.problem, case.prior, 1000, seed=0).x
    assert worst(x, case) < 5.0


@pytest.mark.parametrize("twist", ["pigdm", "dps"])
def test_every_twist_has_the_same_limit(twist):
    case = cases.white()
    x = TDS(twist=twist, particles=32, grid=GRID, steps=40)(case.problem, case.prior, 400, seed=0).x
    assert worst(x, case) < 5.0


def test_weights_that_count_the_data_twice_are_rejected():
    case = cases.coloured(sigma=0.5)
    x = Repeated(particles=16, grid=GRID, steps=40)(case.problem, case.prior, 500, seed=0).x
    assert worst(x, case) > 20.0


def test_the_chain_of_first_order_loses_the_variance_that_the_second_keeps():
    """What `laboratory` knows of the ancestral rule at 50 levels: 0.82 in the complement of the rows of A."""
    case = cases.white(1)
    null = {}
    for order in (1, 2):
        sampler = TDS(order=order, particles=2, grid=GRID, steps=50)
        null[order] = moments(sampler(case.problem, case.prior, 1000, seed=1).x, case)["null"]
    # four directions, 1,000 draws: five standard errors are 0.11
    assert null[1] == pytest.approx(0.82, abs=0.09) and null[2] == pytest.approx(1.01, abs=0.11)


@pytest.mark.slow
@pytest.mark.parametrize("m", [1, 2, 4])
def test_mixtures_keep_the_weights_of_their_modes(m):
    """Sliced Wasserstein distance to exact draws over that between exact draws, which varies by a fifth itself."""
    case = cases.mixture(1, 8, m)
    grid = Karras(sigma_max=300.0, sigma_min=0.02)
    ratio = {}
    for particles in (1, 8):
        x = TDS(particles=particles, grid=grid, steps=50)(case.problem, case.prior, 1000, seed=1).x
        ratio[particles] = distances(x, case)["ratio"]
    # one guided particle does not know how often its mode is right
    assert ratio[8] < 1.5 and ratio[1] > 2.0


@pytest.mark.parametrize(("twist", "particles"), [("moment", 16), ("dps", 128)])
def test_a_nonlinear_posterior_by_quadrature(twist, particles):
    prior = GaussianPrior(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64), sigma_max=100.0)
    problem = Problem(Cubic(), Gaussian(0.5), torch.tensor([1.5], dtype=F64))
    u = torch.linspace(-6.0, 6.0, 4001, dtype=F64)[:, None]
    density = (prior.log_prob(u) + problem.log_likelihood(u)).softmax(0)
    mean = float((density * u[:, 0]).sum())
    variance = float((density * (u[:, 0] - mean) ** 2).sum())
    x = TDS(twist=twist, particles=particles, grid=GRID, steps=40)(problem, prior, 500, seed=0).x
    assert float(x.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / 500))
    assert float(x.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / 500))


def test_without_a_measurement_draws_are_those_of_the_prior():
    prior = cases.coloured().prior
    problem = Problem.unmeasured((8,), dtype=F64)
    x = TDS(particles=2, grid=GRID, steps=60)(problem, prior, 1000, seed=0).x
    assert worst(x, cases.Case("prior", problem, prior, prior)) < 5.0


@pytest.mark.parametrize(("twist", "products"), [("moment", 4), ("pigdm", 1), ("dps", 1)])
def test_costs_and_chunks(twist, products):
    case = cases.white()
    sampler = TDS(twist=twist, particles=5, grid=GRID, steps=6)
    whole = sampler(case.problem, case.prior, 3, seed=0)
    assert (whole.network_calls, whole.network_vjps) == (5 * 6, products * 5 * 6)
    parts = replace(sampler, chunk=4)(case.problem, case.prior, 3, seed=0, batch=2)
    torch.testing.assert_close(parts.x, whole.x, rtol=1e-9, atol=1e-9)


def test_a_derivative_that_is_not_finite_stops_the_run():
    class Breaks(Denoiser):
        def forward(self, x, sigma):
            return torch.where(sigma[:, None] < 10.0, torch.sqrt((x - x).abs()), 0.5 * x)

    problem = Problem(Matrix(torch.eye(8, dtype=F64)[:2]), Gaussian(0.3), torch.zeros(2, dtype=F64))
    prior = Breaks((8,), 0.02, 100.0)
    with pytest.raises(NumericalError, match=r"TDS: values that are not finite after step \d of 6 in draws \[0, 1\]"):
        TDS(particles=3, grid=GRID, steps=6)(problem, prior, 2, seed=0)


def test_what_a_twist_needs_is_said_before_the_run():
    prior = GaussianPrior(torch.zeros(80, dtype=F64), torch.ones(80, dtype=F64))
    many = Problem(Matrix(torch.eye(80, dtype=F64)), Gaussian(0.3), torch.zeros(80, dtype=F64))
    with pytest.raises(CapabilityError, match='at most 64 real measurements, Matrix has 80: use twist="pigdm"'):
        TDS(steps=3)(many, prior, seed=0)
    levels = Problem(many.operator, Gaussian(torch.linspace(0.1, 0.3, 80, dtype=F64)), many.y)
    with pytest.raises(CapabilityError, match="TDS with the pigdm twist needs one noise level"):
        TDS(twist="pigdm", steps=3)(levels, prior, seed=0)
    assert TDS(twist="dps", particles=2, steps=3)(levels, prior, seed=0).x.shape == (1, 80)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"twist": "none"}, 'twist to be "moment"'), ({"order": 3}, "order 1 or 2"), ({"data_std": 0.0}, "data_std > 0")],
)
def test_options_out_of_range_are_errors(options, words):
    with pytest.raises(ConfigError, match=words):
        TDS(**options)
