"""Laplace's approximation for Gaussian fields: exact where the operator is linear, the mode's conditions where it is not."""

from __future__ import annotations

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Gaussian, NumericalError, Operator, Poisson, Problem, Streams
from invdiff.operators.pde import NavierStokes2D
from invdiff.operators.pointwise import Exponential
from invdiff.operators.regrid import Every
from invdiff.priors import GaussianField, GaussianPrior, Matern
from invdiff.samplers import Laplace

F64 = torch.float64
GRID = (1, 6, 6)
FIELD = GaussianField(GRID, Matern(1.5), mean=0.2, std=0.8, length=2.0, boundary=("periodic", "neumann"))


def covariance(field=FIELD):
    """Dense C."""
    n = field.spectrum.numel()
    return field.covariance(torch.eye(n, dtype=F64).reshape(n, *field.shape)).reshape(n, n)


def mode(sampler, problem, field=FIELD, **options):
    """The iterate before the draws are made."""
    seen = []
    sampler(problem, field, 1, seed=0, callback=lambda facts: seen.append(facts["x"]), **options)
    return seen[-2]


def test_a_linear_operator_has_its_exact_posterior():
    operator = Every(GRID, 2)
    truth = FIELD.sample(Streams(3, 1), F64)
    sigma = torch.linspace(0.05, 0.4, 9, dtype=F64).reshape(1, 3, 3)
    problem = Problem.simulate(operator, Gaussian(sigma), truth[0], seed=1)
    mean, _ = FIELD.posterior_draws(problem, 1, seed=0)
    torch.testing.assert_close(mode(Laplace(steps=2), problem)[0], mean, rtol=1e-9, atol=1e-9)

    n = 20_000
    draws = Laplace(steps=1)(problem, FIELD, n, seed=5).x.flatten(1)
    h = operator(torch.eye(36, dtype=F64).reshape(36, *GRID)).reshape(36, 9).mT
    c, noise = covariance(), sigma.flatten().square().diag()
    exact = c - c @ h.mT @ torch.linalg.solve(h @ c @ h.mT + noise, h @ c)
    z = (draws.mean(0) - mean.flatten()) / (exact.diagonal() / n).sqrt()
    assert float(z.abs().max()) < 4.5
    # relative error of a covariance from n draws is about sqrt(2 / n) = 0.01
    assert float((torch.cov(draws.mT) - exact).norm() / exact.norm()) < 0.05


def test_the_mode_of_an_exponential_and_the_curvature_there():
    """Stationarity of the objective, and draws with the covariance of Laplace's approximation."""
    operator, sigma = Exponential(GRID), 0.3
    problem = Problem.simulate(operator, Gaussian(sigma), FIELD.sample(Streams(4, 1), F64)[0], seed=2)
    x = mode(Laplace(steps=20, chords=2), problem)
    residual = (operator(x) - problem.y) * operator(x) / sigma**2
    inverse = torch.linalg.inv(covariance())
    gradient = residual.flatten() + inverse @ (x - FIELD.mean).flatten()
    assert float(gradient.norm() / residual.norm()) < 1e-6

    n = 20_000
    draws = Laplace(steps=20, chords=2)(problem, FIELD, n, seed=6).x.flatten(1)
    exact = torch.linalg.inv(inverse + (operator(x).flatten() / sigma).square().diag())
    assert float((torch.cov(draws.mT) - exact).norm() / exact.norm()) < 0.05
    z = (draws.mean(0) - x.flatten()) / (exact.diagonal() / n).sqrt()
    assert float(z.abs().max()) < 4.5


def test_the_objective_never_grows_and_a_guess_is_a_start():
    size = (16, 16)
    field = GaussianField((1, *size), Matern(3.0), std=2.0, length=2.0, boundary="periodic", zero_mean=True)
    flow = Every((1, *size), 2) @ NavierStokes2D(size, 0.01, time=0.5, steps=16, memory="full")
    problem = Problem.simulate(flow, Gaussian(1e-2), field.sample(Streams(1, 1), F64)[0], seed=0)
    sampler = Laplace(steps=6, start="guess")
    samples = sampler(problem, field, 2, seed=0)
    values = [info["objective"] for info in samples.info]
    assert values == sorted(values, reverse=True)
    assert float(problem.chi2(mode(sampler, problem, field))[0]) < 1.5
    # of the law, to which no guess adds a mean
    assert float(samples.x.mean((1, 2, 3)).abs().max()) < 1e-10
    with pytest.raises(CapabilityError, match="no guess"):
        sampler(Problem(Exponential(GRID), Gaussian(1.0), torch.ones(1, *GRID, dtype=F64)), FIELD, seed=0)


class Narrow(Operator):
    """Not defined anywhere but at 5."""

    def __init__(self):
        super().__init__(GRID, GRID)

    def forward(self, x):
        if not bool((x == 5.0).all()):
            raise NumericalError("Narrow: x is not 5")
        return x


def test_what_it_can_not_do():
    y = torch.ones(1, *GRID, dtype=F64)
    with pytest.raises(CapabilityError, match="expected as prior a Gaussian field"):
        Laplace()(Problem(Exponential(GRID), Gaussian(1.0), y), GaussianPrior(torch.zeros(GRID), torch.eye(36)), seed=0)
    with pytest.raises(CapabilityError, match="Gaussian"):
        Laplace()(Problem(Exponential(GRID), Poisson(20.0), y), FIELD, seed=0)
    large = (1, 70, 70)
    field = GaussianField(large, Matern(1.5))
    with pytest.raises(CapabilityError, match="at most 4096 real measurements"):
        Laplace()(Problem(Exponential(large), Gaussian(1.0), torch.ones(1, *large)), field, seed=0)
    for wrong in ({"start": "zero"}, {"inflations": ()}, {"inflations": (0.5,)}, {"chords": -1}):
        with pytest.raises(ConfigError, match="Laplace"):
            Laplace(**wrong)
    wide = GaussianField(GRID, Matern(9.0), std=1e6, length=9.0)
    with pytest.raises(NumericalError, match="noise is too small"):
        Laplace()(Problem(Every(GRID, 1), Gaussian(1e-9), y), wide, seed=0)
    with pytest.raises(NumericalError, match="Narrow"):
        Laplace()(Problem(Narrow(), Gaussian(1.0), y), FIELD, seed=0)
