"""FPS-SMC: one particle against its closed form, many against Kalman's filter along random paths, and how often data count."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from invdiff.core import Gaussian, Karras, Matrix, Problem, Streams
from invdiff.metrics import z_cov, z_mean
from invdiff.priors import GaussianPrior
from invdiff.samplers.fps import FPS

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

    def transitions(self, sampler):
        """r, c and the affine rule m = k u + shift of each step."""
        grid, eye = sampler.grid(sampler.steps, 1e-3, 1e3).tolist(), torch.eye(len(self.mean), dtype=F64)
        for s, t in pairwise(grid):
            c = sampler.eta * t * math.sqrt(1 - (t / s) ** 2)
            r = math.sqrt(t * t - c * c) / s
            big = self.cov @ torch.linalg.inv(self.cov + s * s * eye)
            yield r, c, big + r * (eye - big), (1 - r) * (eye - big) @ self.mean

    def update(self, centre, spread):
        """The gain of a measurement of the coefficients that are seen, and what is left of their spread."""
        rows = torch.eye(len(self.mean), dtype=F64)[self.b.isfinite()]
        noise = torch.diag(self.b[self.b.isfinite()].square())
        gain = spread @ rows.T @ torch.linalg.inv(rows @ spread @ rows.T + noise) @ rows
        return gain, spread - gain @ spread

    def gaussian(self, centre, spread):
        return GaussianPrior(self.vh.T @ centre, self.vh.T @ (0.5 * (spread + spread.T)) @ self.vh, sigma_max=1e3)

    def along_the_path(self, sampler, filtered):
        """The law over random paths: of one particle, or of a draw of the Kalman filter's last state."""
        size = len(self.mean)
        eye, zero = torch.eye(size, dtype=F64), torch.zeros(size, size, dtype=F64)
        s = float(sampler.grid(sampler.steps, 1e-3, 1e3)[0])
        first, left = self.update(self.mean, s * s * eye)
        # of (u, y): the mean, and the covariance that comes from the path and, of one particle, from its own noise
        centre = torch.cat((self.mean + first @ (self.data - self.mean), self.data))
        spread = s * s * torch.cat((first, eye)) @ torch.cat((first, eye)).T
        own = torch.cat((torch.cat((left, zero)), torch.zeros(2 * size, size, dtype=F64)), 1)
        left, spread = (left, spread) if filtered else (zero, spread + own)
        for r, c, k, shift in self.transitions(sampler):
            predicted = k @ left @ k.T + c * c * eye
            gain, left = self.update(None, predicted) if filtered else self.update(None, c * c * eye)
            keep = eye - gain
            rule = torch.cat((torch.cat((keep @ k, r * gain), 1), torch.cat((zero, r * eye), 1)))
            along = c * torch.cat((gain, eye))
            data = (1 - r) * self.data
            centre = rule @ centre + torch.cat((keep @ shift + gain @ data, data))
            spread = rule @ spread @ rule.T + along @ along.T
            if not filtered:
                spread[:size, :size] += left
                left = zero
        return self.gaussian(centre[:size], spread[:size, :size] + left)


def worst(draws, exact):
    return max(z_mean(draws, exact), z_cov(draws, exact))


@pytest.mark.parametrize(("d", "m"), [(8, 4), (12, 7)])
@pytest.mark.parametrize("sigma_y", [0.03, 0.3, 3.0])
@pytest.mark.parametrize("options", [{}, {"eta": 0.5}])
def test_one_particle_follows_its_recursion(d, m, sigma_y, options):
    toy, sampler = Toy.of(d, m, sigma_y), FPS(particles=1, grid=GRID, steps=12, **options)
    assert worst(sampler(toy.problem, toy.prior, n=2000, seed=4).x, toy.along_the_path(sampler, False)) < 5


@pytest.mark.parametrize(
    ("d", "m", "sigma_y", "particles", "n", "options"),
    [
        (8, 4, 0.3, 512, 300, {}),
        (8, 4, 500.0, 64, 800, {}),
        (12, 7, 3.0, 128, 400, {}),
        (12, 7, 3.0, 256, 200, {"eta": 0.7}),
    ],
)
def test_many_particles_follow_the_filter(d, m, sigma_y, particles, n, options):
    toy, sampler = Toy.of(d, m, sigma_y), FPS(particles=particles, grid=GRID, steps=16, **options)
    draws = sampler(toy.problem, toy.prior, n=n, seed=5, batch=100).x
    assert worst(draws, toy.along_the_path(sampler, True)) < 5


def test_the_bias_falls_with_the_number_of_particles():
    toy, z = Toy.of(12, 7, 3.0), []
    for count, n in ((1, 1000), (8, 1000), (128, 400)):
        sampler = FPS(particles=count, grid=GRID, steps=16)
        z.append(worst(sampler(toy.problem, toy.prior, n=n, seed=5).x, toy.along_the_path(sampler, True)))
    assert z[0] > 15 and z[1] < 0.7 * z[0] and z[2] < 5


def test_the_data_count_as_often_as_there_are_levels_below_their_noise():
    """The variance of what is measured over the posterior's, by the closed form: the finer the grid, the less."""
    toy, ratio = Toy.of(8, 4, 1.0), []
    exact = toy.prior.posterior(toy.problem)
    rows = toy.vh[:4]
    for steps in (25, 50, 100, 200):
        law = toy.along_the_path(FPS(grid=GRID, steps=steps), True)
        ratio.append(float(torch.trace(rows @ law.cov @ rows.T) / torch.trace(rows @ exact.cov @ rows.T)))
    assert all(fine < 0.85 * coarse for coarse, fine in pairwise(ratio)) and ratio[-1] < 0.3


class Forgetful(FPS):
    """A planted fault: the particles are not weighted."""

    def propose(self, *arguments):
        new = super().propose(*arguments)
        return new._replace(log_weight=torch.zeros_like(new.log_weight))


class Renoised(FPS):
    """A planted fault: the transition of the paper, c = eta sigma', here of a share just below one."""

    def _fresh(self, at):
        return 0.99 * self.eta * at.sigma_next


@pytest.mark.parametrize(("fault", "particles", "steps", "n"), [(Forgetful, 128, 16, 400), (Renoised, 1, 100, 1000)])
def test_faults_are_seen(fault, particles, steps, n):
    toy, sampler = Toy.of(12, 7, 3.0), fault(particles=particles, grid=GRID, steps=steps)
    assert worst(sampler(toy.problem, toy.prior, n=n, seed=5).x, toy.along_the_path(sampler, particles > 1)) > 10


def test_what_it_says():
    toy = Toy.of(8, 4, 0.3)
    assert FPS().kind == "point" and "at every level" in FPS().caveats[0]
    samples = FPS(particles=4, steps=6)(toy.problem, toy.prior, n=5, seed=1)
    assert samples.network_calls == 4 * 6 and samples.network_vjps == 0
