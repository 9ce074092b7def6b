"""Problems whose posterior is known in closed form; `laboratory` says what they are for."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Gaussian, Matrix, Problem, Streams, ViewAsComplex
from ..core.speckle import LogIntensity
from ..operators.restoration import Identity
from ..operators.speckled import Speckled
from ..priors import GaussianField, GaussianMixture, GaussianPrior, Matern, SpeckledPrior
from ..priors.consistency import Consistency
from .case import F64, Case, Quadrature, measurement, normal

__all__ = [
    "Case",
    "coloured",
    "complex_valued",
    "composed",
    "despeckling",
    "field",
    "mixture",
    "speckle",
    "white",
]


def _noise_level(seed: int, operator: Matrix) -> float:
    share = float(Streams(seed).uniform(0, (1,), "noise level", F64))
    return share * float(torch.linalg.matrix_norm(operator.matrix, 2))


def white(seed: int = 0, d: int = 8, m: int = 4, sigma: float | None = None) -> Case:
    """Prior N(0, I): the one on which PiGDM is exact. The noise level is U(0, 1) max a_i where none is given."""
    prior = GaussianPrior(torch.zeros(d, dtype=F64), torch.ones(d, dtype=F64), sigma_max=1000.0)
    operator = Matrix(measurement(seed, m, d))
    noise = Gaussian(_noise_level(seed, operator) if sigma is None else sigma)
    problem = Problem.simulate(operator, noise, normal(seed + 100, d), seed)
    return Case.of("white", problem, prior)


def _coloured_prior(seed: int, d: int) -> GaussianPrior:
    basis = torch.linalg.qr(normal(seed, d, d)).Q
    variances = torch.logspace(-1.5, 0.5, d, dtype=F64)
    return GaussianPrior(normal(seed + 1, d), (basis * variances) @ basis.T, sigma_max=1000.0)


def coloured(seed: int = 0, d: int = 8, m: int = 4, sigma: float = 0.1) -> Case:
    """Prior N(m, C) with standard deviations from 0.18 to 1.8."""
    prior = _coloured_prior(seed, d)
    problem = Problem.simulate(Matrix(measurement(seed, m, d)), Gaussian(sigma), prior.sample(Streams(seed)), seed)
    return Case.of("coloured", problem, prior)


def complex_valued(seed: int = 0, d: int = 8, m: int = 2, sigma: float = 0.1) -> Case:
    """A complex measurement of d / 2 complex unknowns."""
    prior = _coloured_prior(seed, d)
    matrix = torch.complex(measurement(seed, m, d // 2), measurement(seed + 1, m, d // 2))
    operator = Matrix(matrix) @ ViewAsComplex((d // 2,))
    return Case.of("complex", Problem.simulate(operator, Gaussian(sigma), prior.sample(Streams(seed)), seed), prior)


def composed(seed: int = 0, d: int = 8, m: int = 4, sigma: float = 0.1) -> Case:
    """Coefficients of a synthesis that is neither square nor orthogonal."""
    prior = _coloured_prior(seed, d)
    synthesis = Matrix(normal(seed + 2, 2 * d, d) / d**0.5)
    x = synthesis(prior.sample(Streams(seed)))
    problem = Problem.simulate(Matrix(measurement(seed, m, 2 * d)), Gaussian(sigma), x, seed)
    return Case.of("composed", problem.through(synthesis), prior)


def mixture(seed: int = 0, d: int = 8, m: int = 1, sigma: float | None = None) -> Case:
    """The mixture suite of MCGdiff: means (8 i, 8 j, 8 i, ...), i, j = -2 .. 2, random weights; noise as of `white`."""
    grid = 8.0 * torch.cartesian_prod(*[torch.arange(-2.0, 3.0, dtype=F64)] * 2)
    prior = GaussianMixture(normal(seed, 25).square(), grid.repeat(1, d // 2), sigma_max=1e4)
    operator = Matrix(measurement(seed, m, d))
    noise = Gaussian(_noise_level(seed, operator) if sigma is None else sigma)
    problem = Problem.simulate(operator, noise, prior.sample(Streams(seed + 7)), seed)
    return Case.of(f"mixture dy={m}", problem, prior)


def field(seed: int = 0, d: int = 8, m: int = 4, sigma: float = 0.1) -> Case:
    """A Gaussian field on a line, mean 0.3, which knows its covariance by a spectrum alone."""
    law = GaussianField((1, d), Matern(1.5), mean=0.3, length=1.5, sigma_max=1000.0)
    covariance = law.covariance(torch.eye(d, dtype=F64).reshape(d, 1, d)).reshape(d, d)
    twin = GaussianPrior(torch.full((1, d), 0.3, dtype=F64), covariance, sigma_max=1000.0)
    problem = Problem.simulate(Matrix(measurement(seed, m, d), (1, d)), Gaussian(sigma), twin.sample(Streams(seed)), seed)
    return Case("field", problem, law, twin.posterior(problem))


class LogPosterior:
    """p(u | z) of single pixels of log-intensity z, of L looks, u ~ N(m, s^2), by quadrature.

    Args:
        z: (N,). looks: L. mean, std: m and s. size: H, W of the image, N pixels.
    """

    def __init__(self, z: Tensor, looks: float, mean: float, std: float, size: tuple[int, int]) -> None:
        u, self.size = torch.linspace(mean - 12.0 * std, mean + 12.0 * std, 20_001, dtype=F64), size
        self.law = Quadrature(u, -looks * (u + (z[:, None] - u).exp()) - 0.5 * ((u - mean) / std) ** 2)

    def sample(self, streams: Streams) -> Tensor:
        """Independent draws, (n, 1, H, W)."""
        return self.law.sample(streams).reshape(-1, 1, *self.size)


class PixelPosterior:
    """p(u, a, b | y) of single speckled pixels, y = d e^{u/2} (a + j b) / sqrt 2 + noise, u ~ N(m, s^2), by quadrature in u.

    Args:
        gains: d, complex, (N,). y: (N,) complex. sigma: of each real component. mean, std: m and s.
        size: H, W of the image, N pixels.
    """

    def __init__(self, gains: Tensor, y: Tensor, sigma: float, mean: float, std: float, size: tuple[int, int]) -> None:
        self.gains, self.y, self.sigma, self.size = gains, y, sigma, size
        u = torch.linspace(mean - 12.0 * std, mean + 12.0 * std, 20_001, dtype=F64)
        variance = gains.abs().square()[:, None] * u.exp() + 2.0 * sigma**2
        self.law = Quadrature(u, -y.abs().square()[:, None] / variance - 0.5 * ((u - mean) / std) ** 2 - variance.log())

    def sample(self, streams: Streams) -> Tensor:
        """Independent draws, (n, 3, H, W)."""
        n, u = len(self.y), self.law.sample(streams)
        scale = self.gains * (0.5 * u).exp()
        gain = scale.conj() / (scale.abs().square() + 2.0 * self.sigma**2)
        left = (1.0 - (gain * scale).real).clamp_min(0.0).sqrt()
        # E|z|^2 = 1, and a + j b = sqrt(2) z
        z = gain * self.y + 0.5**0.5 * left * streams.normal(0, (n,), "speckle", torch.complex128)
        return torch.stack((u, 2.0**0.5 * z.real, 2.0**0.5 * z.imag), 1).reshape(-1, 3, *self.size)


def speckle(seed: int = 0, d: int = 4, sigma: float = 0.3) -> Case:
    """Log-reflectivity of mean 0.5 and standard deviation 1.2 of independent pixels, behind speckle and complex gains."""
    gains, size = 1.0 + torch.complex(normal(seed, d), normal(seed + 1, d)), (2, d // 2)
    prior = SpeckledPrior(GaussianPrior(torch.full((1, *size), 0.5, dtype=F64), 1.44 * torch.eye(d, dtype=F64), sigma_min=1e-3))
    speckled, operator = Speckled(size), Matrix(gains.diag(), (1, *size))
    truth = torch.cat((0.5 + 1.2 * normal(seed + 2, 1, *size), normal(seed + 3, 2, *size)))[None]
    problem = Problem.simulate(operator, Gaussian(sigma), speckled(truth)[0], seed)
    exact = PixelPosterior(gains, problem.y[0], sigma, 0.5, 1.2, size)
    return Case("speckle", problem.through(speckled), prior, exact)


def despeckling(seed: int = 0, d: int = 4, looks: float | None = None) -> Case:
    """The same law of log-reflectivity, of which log-intensities of 1, 4 and 4.4 looks (by the seed, or given) are measured."""
    looks, size = (1.0, 4.0, 4.4)[seed % 3] if looks is None else looks, (2, d // 2)
    prior = GaussianPrior(torch.full((1, *size), 0.5, dtype=F64), 1.44 * torch.eye(d, dtype=F64), sigma_min=1e-3)
    truth = 0.5 + 1.2 * normal(seed, 1, *size)
    problem = Problem.simulate(Identity((1, *size)), LogIntensity(looks), truth, seed)
    return Case("despeckling", problem, prior, LogPosterior(problem.y.flatten(), looks, 0.5, 1.2, size))


class GaussianConsistency(Consistency):
    """The consistency function of N(m, C): in C's eigenbasis x - m is multiplied by sqrt((l + low^2) / (l + sigma^2))."""

    def __init__(self, mean: Tensor, cov: Tensor, *, sigma_min: float, sigma_max: float) -> None:
        super().__init__(tuple(mean.shape), sigma_min, sigma_max)
        self.mean, (self.values, self.basis) = mean, torch.linalg.eigh(cov)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """f(x, sigma)."""
        factor = ((self.values + self.sigma_min**2) / (self.values + sigma[:, None] ** 2)).sqrt()
        return self.mean + (factor * ((x - self.mean) @ self.basis)) @ self.basis.T


def consistency(seed: int = 0, d: int = 8, low: float = 0.05) -> Case:
    """Nothing is measured: draws of N(m, C) by its consistency function, which leaves the noise sigma_min = low."""
    law = _coloured_prior(seed, d)
    function = GaussianConsistency(law.mean, law.cov, sigma_min=low, sigma_max=1000.0)
    exact = GaussianPrior(law.mean, law.cov + low**2 * torch.eye(d, dtype=F64))
    return Case("consistency", Problem.unmeasured((d,), dtype=F64), function, exact)
