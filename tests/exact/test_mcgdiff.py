"""MCGdiff: one particle against its closed form, many against the law of the chain given its observations."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from invdiff.core import Gaussian, Karras, Matrix, Problem, Streams
from invdiff.metrics import z_cov, z_mean
from invdiff.priors import GaussianPrior
from invdiff.samplers.mcgdiff import MCGdiff

F64 = torch.float64
GRID = Karras(0.02, 100.0)


def normal(*shape, seed=0):
    return Streams(seed).normal(0, shape, dtype=F64)[0]


@dataclass(frozen=True)
class Toy:
    """A prior N(m, C) of the coefficients in the basis vh of A, which it couples, and their measurement, b = sigma_y / a."""

    problem: Problem
    prior: GaussianPrior
    vh: torch.Tensor
    mean: torch.Tensor
    cov: torch.Tensor
    data: torch.Tensor
    b: torch.Tensor

    @classmethod
    def of(cls, d, m, sigma_y):
        matrix = normal(m, d, seed=d)
        u, a, vh = torch.linalg.svd(matrix)
        basis = torch.linalg.qr(normal(d, d, seed=2)).Q
        mean, cov = normal(d, seed=1), (basis * torch.logspace(-1.0, 1.0, d, dtype=F64)) @ basis.T
        prior = GaussianPrior(vh.T @ mean, vh.T @ cov @ vh, sigma_min=1e-3, sigma_max=1e3)
        problem = Problem.simulate(Matrix(matrix), Gaussian(sigma_y), prior.sample(Streams(3)), 3)
        data = torch.cat(((problem.y[0] @ u) / a, torch.zeros(d - m, dtype=F64)))
        b = torch.cat((sigma_y / a, torch.full((d - m,), math.inf, dtype=F64)))
        return cls(problem, prior, vh, mean, cov, data, b)

    def law(self, sampler, guided):
        """The draws of one particle by the equations of the docstring; or of many: the chain given its observations."""
        grid, eye = sampler.grid(sampler.steps, 1e-3, 1e3).tolist(), torch.eye(len(self.mean), dtype=F64)
        centre, spread = self.mean, grid[0] ** 2 * eye

        def seen(s):
            return (s * s - self.b.square()).abs() + sampler.kappa * self.b.square()

        def update(now, centre, spread, at):
            rows = eye[now]
            gain = spread @ rows.T @ torch.linalg.inv(rows @ spread @ rows.T + torch.diag(seen(at)[now]))
            return centre + gain @ (self.data - centre)[now], (eye - gain @ rows) @ spread

        everywhere = self.b.isfinite()
        centre, spread = update(everywhere if guided else everywhere & (self.b >= grid[0]), centre, spread, grid[0])
        for s, t in pairwise(grid):
            big = self.cov @ torch.linalg.inv(self.cov + s * s * eye)
            c2 = (sampler.eta * t) ** 2 * (1 - (t / s) ** 2)
            r = math.sqrt(t * t - c2) / s
            k, shift, fresh = big + r * (eye - big), (1 - r) * (eye - big) @ self.mean, c2 * eye
            if guided:
                gain = torch.where(self.b < s, c2 / (c2 + seen(t)), 0.0)
                k, shift, fresh = (1 - gain)[:, None] * k, (1 - gain) * shift + gain * self.data, (c2 * (1 - gain)).diag()
            centre, spread = k @ centre + shift, k @ spread @ k.T + fresh
            if not guided:
                centre, spread = update((self.b < s) & (self.b >= t), centre, spread, t)
        spread = 0.5 * (spread + spread.T)
        return GaussianPrior(self.vh.T @ centre, self.vh.T @ spread @ self.vh, sigma_max=1e3)


def worst(draws, exact):
    return max(z_mean(draws, exact), z_cov(draws, exact))


@pytest.mark.parametrize(("d", "m"), [(8, 4), (12, 7)])
@pytest.mark.parametrize("sigma_y", [0.03, 0.3, 3.0])
@pytest.mark.parametrize("options", [{}, {"eta": 0.5, "kappa": 0.1}])
def test_one_particle_follows_its_recursion(d, m, sigma_y, options):
    toy, sampler = Toy.of(d, m, sigma_y), MCGdiff(particles=1, grid=GRID, steps=12, **options)
    assert worst(sampler(toy.problem, toy.prior, n=2000, seed=4).x, toy.law(sampler, True)) < 5


@pytest.mark.parametrize(
    ("d", "m", "sigma_y", "particles", "n"),
    [(8, 4, 0.3, 512, 300), (8, 4, 1.0, 256, 400), (8, 4, 500.0, 64, 800), (12, 7, 3.0, 64, 800)],
)
def test_many_particles_sample_the_chain_given_its_observations(d, m, sigma_y, particles, n):
    """The noise of 500 is above the first level, that of 0.3 crosses many; with one particle the first has 124 errors."""
    toy, sampler = Toy.of(d, m, sigma_y), MCGdiff(particles=particles, grid=GRID, steps=16)
    assert worst(sampler(toy.problem, toy.prior, n=n, seed=5).x, toy.law(sampler, False)) < 5


def test_noise_below_the_last_level_is_seen_at_the_end():
    toy, sampler = Toy.of(8, 4, 0.3), MCGdiff(particles=512, grid=Karras(0.3, 100.0), steps=12)
    assert bool((toy.b[:4] < 0.3).all())
    assert worst(sampler(toy.problem, toy.prior, n=300, seed=5).x, toy.law(sampler, False)) < 5


def test_with_short_steps_it_is_the_posterior():
    """The law of the chain tends to the exact posterior: the largest error of a mean or a variance in units of the variance."""
    toy, errors = Toy.of(8, 4, 0.3), []
    for steps in (50, 200, 800):
        law, exact = toy.law(MCGdiff(grid=Karras(0.002, 100.0), steps=steps), False), toy.prior.posterior(toy.problem)
        scale = (toy.vh @ exact.cov @ toy.vh.T).diagonal()
        variance = ((toy.vh @ law.cov @ toy.vh.T).diagonal() / scale - 1).abs().max()
        mean = ((toy.vh @ (law.mean - exact.mean)).square() / scale).max()
        errors.append(float(torch.maximum(variance, mean)))
    assert errors[1] < 0.4 * errors[0] and errors[2] < 0.4 * errors[1] and errors[2] < 0.05


def test_the_bias_falls_with_the_number_of_particles():
    toy, z = Toy.of(8, 4, 3.0), []
    for count, n in ((1, 2000), (8, 2000), (64, 800)):
        sampler = MCGdiff(particles=count, grid=GRID, steps=16)
        z.append(worst(sampler(toy.problem, toy.prior, n=n, seed=5).x, toy.law(sampler, False)))
    assert z[0] > 15 and z[1] < 0.6 * z[0] and z[2] < 5


class Forgetful(MCGdiff):
    """A planted fault: the particles are not weighted."""

    def look(self, problem, prior, x, at):
        log, seen = super().look(problem, prior, x, at)
        return torch.zeros_like(log), seen


def test_missing_weights_are_seen():
    toy, sampler = Toy.of(8, 4, 3.0), Forgetful(particles=64, grid=GRID, steps=16)
    assert worst(sampler(toy.problem, toy.prior, n=800, seed=5).x, toy.law(sampler, False)) > 10
