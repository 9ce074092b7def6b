"""DDSMC: one particle against its closed form, many against the posterior of the prior that the transitions make."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch

from invdiff.core import Gaussian, Karras, Matrix, Problem, Streams, ViewAsComplex
from invdiff.metrics import z_cov, z_mean
from invdiff.priors import GaussianPrior
from invdiff.samplers.ddsmc import DDSMC
from invdiff.validation.cases import coloured

F64 = torch.float64
GRID = Karras(0.02, 100.0)


def normal(*shape, seed=0, dtype=F64):
    return Streams(seed).normal(0, shape, dtype=dtype)[0]


@dataclass(frozen=True)
class Toy:
    """A prior N(m, l) of the coefficients in the basis vh of A, and the measurement there, b = sigma_y / a."""

    problem: Problem
    prior: GaussianPrior
    vh: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    data: torch.Tensor
    b2: torch.Tensor

    @classmethod
    def of(cls, d, m, sigma_y):
        matrix = normal(m, d, seed=d)
        u, a, vh = torch.linalg.svd(matrix)
        mean, variance = normal(d, seed=1), torch.logspace(-1.0, 1.0, d, dtype=F64)
        prior = GaussianPrior(vh.T @ mean, (vh.T * variance) @ vh, sigma_min=1e-3, sigma_max=1e3)
        problem = Problem.simulate(Matrix(matrix), Gaussian(sigma_y), prior.sample(Streams(3)), 3)
        data = torch.cat(((problem.y[0] @ u) / a, torch.zeros(d - m, dtype=F64)))
        b2 = torch.cat((sigma_y / a, torch.full((d - m,), math.inf, dtype=F64))).square()
        return cls(problem, prior, vh, mean, variance, data, b2)

    def law(self, sampler, guided):
        """The draws of one particle from the equations of the docstring; without the data those of the chain's own prior."""
        grid = sampler.grid(sampler.steps, 1e-3, 1e3).tolist()
        centre, spread = self.mean, torch.full_like(self.mean, grid[0] ** 2)
        for s, t in pairwise(grid):
            big = self.variance / (self.variance + s * s)
            if t == 0.0:
                f, gain, w2 = 1.0, torch.zeros_like(big), torch.zeros_like(big)
            else:
                f = (s * s - t * t) / (sampler.eta * t * t + s * s - t * t)
                s2 = min(s * s * sampler.data_std**2 / (s * s + sampler.data_std**2), t * t / f)
                gain = s2 / (s2 + self.b2) if guided else torch.zeros_like(big)
                w2 = f * t * t - f * f * s2 * gain
            k = f * (1 - gain) * big + 1 - f
            centre = k * centre + f * ((1 - gain) * (1 - big) * self.mean + gain * self.data)
            spread = k * k * spread + w2
        return centre, spread

    def posterior(self, sampler):
        """That of the prior which the transitions make, with the likelihood of the data."""
        centre, spread = self.law(sampler, False)
        gain = spread / (spread + self.b2)
        return self.image(centre + gain * (self.data - centre), (1 - gain) * spread)

    def image(self, centre, spread):
        return GaussianPrior(self.vh.T @ centre, (self.vh.T * spread) @ self.vh, sigma_max=1e3)


def worst(draws, exact):
    return max(z_mean(draws, exact), z_cov(draws, exact))


@pytest.mark.parametrize(("d", "m"), [(8, 4), (12, 7)])
@pytest.mark.parametrize("sigma_y", [0.03, 0.3, 3.0])
@pytest.mark.parametrize("options", [{}, {"eta": 0.0}, {"eta": 0.5, "data_std": 3.0}])
def test_one_particle_follows_its_recursion(d, m, sigma_y, options):
    toy = Toy.of(d, m, sigma_y)
    sampler = DDSMC(particles=1, grid=GRID, steps=12, **options)
    draws = sampler(toy.problem, toy.prior, n=2000, seed=4).x
    assert worst(draws, toy.image(*toy.law(sampler, True))) < 5


@pytest.mark.parametrize(("d", "m", "sigma_y"), [(8, 4, 0.3), (8, 4, 1.0), (8, 4, 3.0), (12, 7, 1.0)])
def test_many_particles_sample_the_posterior_of_the_chain(d, m, sigma_y):
    """500 draws, 64 particles each; the bias that N leaves is below the Monte-Carlo error of the draws."""
    toy, sampler = Toy.of(d, m, sigma_y), DDSMC(particles=64, grid=GRID, steps=16)
    draws, exact = sampler(toy.problem, toy.prior, n=500, seed=5).x, toy.posterior(sampler)
    assert worst(draws, exact) < 5


@pytest.mark.parametrize("sigma_y", [0.1, 0.4, 2.0])
def test_a_prior_that_couples_the_coefficients(sigma_y):
    """The law of the chain in the eigenbasis of the prior, as a prior of its own: its posterior in closed form."""
    case, sampler = coloured(sigma=sigma_y), DDSMC(particles=128, grid=GRID, steps=16)
    prior, grid = case.prior, sampler.grid(16, 1e-3, 1e3).tolist()
    centre, spread = prior.basis.T @ prior.mean, torch.full((8,), grid[0] ** 2, dtype=F64)
    origin = centre
    for s, t in pairwise(grid):
        f, big = 1 - (t / s) ** 2, prior.variances / (prior.variances + s * s)
        k = f * big + 1 - f
        centre, spread = k * centre + f * (1 - big) * origin, k * k * spread + f * t * t
    chain = GaussianPrior(prior.basis @ centre, (prior.basis * spread) @ prior.basis.T)
    draws = sampler(case.problem, prior, n=400, seed=5).x
    assert worst(draws, chain.posterior(case.problem)) < 5


def test_the_proposal_has_no_part_in_the_limit():
    """Another width of the proposal, resampling at every level; with half of eta, the law of that chain."""
    toy = Toy.of(8, 4, 1.0)
    for options in ({"data_std": 0.5}, {"data_std": 3.0, "resample": 1.0}, {"eta": 0.5}):
        sampler = DDSMC(particles=64, grid=GRID, steps=16, **options)
        draws = sampler(toy.problem, toy.prior, n=400, seed=6).x
        assert worst(draws, toy.posterior(sampler)) < 5


def test_the_bias_falls_with_the_number_of_particles():
    """The mean, where the proposal draws too strongly to the data: 19 standard errors of 2,000 draws with one particle."""
    toy, z = Toy.of(8, 4, 3.0), []
    for count, n in ((1, 2000), (8, 2000), (64, 800)):
        sampler = DDSMC(particles=count, grid=GRID, steps=16, data_std=3.0)
        z.append(z_mean(sampler(toy.problem, toy.prior, n=n, seed=5).x, toy.posterior(sampler)))
    assert z[0] > 15 and 5 < z[1] < 0.6 * z[0] and z[2] < 5


class Unweighted(DDSMC):
    """A planted fault: the weights lack the densities of the proposal."""

    def propose(self, problem, prior, x, seen, history, at, noise):
        new = super().propose(problem, prior, x, seen, history, at, noise)
        return new._replace(log_weight=-seen[1])


def test_wrong_weights_are_seen():
    toy = Toy.of(8, 4, 3.0)
    sampler = Unweighted(particles=64, grid=GRID, steps=16, data_std=3.0)
    draws = sampler(toy.problem, toy.prior, n=800, seed=5).x
    assert worst(draws, toy.posterior(sampler)) > 10


def test_complex_measurements_are_those_of_the_real_matrix():
    matrix = normal(3, 4, dtype=torch.complex128)
    real = torch.cat((torch.cat((matrix.real, -matrix.imag), 1), torch.cat((matrix.imag, matrix.real), 1)))
    prior = GaussianPrior(normal(8, seed=1), torch.eye(8, dtype=F64), sigma_max=1e3)
    problem = Problem.simulate(Matrix(matrix) @ ViewAsComplex((4,)), Gaussian(0.5), prior.sample(Streams(0)), 1)
    sampler = DDSMC(particles=64, grid=GRID, steps=16)
    toy = Toy.of(8, 6, 0.5)
    u, a, vh = torch.linalg.svd(real)
    data = torch.cat((torch.cat((problem.y.real, problem.y.imag), 1)[0] @ u / a, torch.zeros(2, dtype=F64)))
    b2 = torch.cat((0.5 / a, torch.full((2,), math.inf, dtype=F64))).square()
    toy = replace(toy, vh=vh, mean=vh @ prior.mean, variance=torch.ones(8, dtype=F64), data=data, b2=b2)
    assert worst(sampler(problem, prior, n=500, seed=2).x, toy.posterior(sampler)) < 5
