"""Gaussian priors: the denoiser and the posterior under a linear operator are exact.

    x ~ N(m, C),    D(x, sigma) = m + C (C + sigma^2 I)^-1 (x - m)
    y = A x + n:    x | y ~ N(m + K (y - A m), C - K A C),    K = C A^T (A C A^T + Sigma)^-1

`GaussianPrior` holds C by its eigenvectors (small unknowns, any covariance); `StationaryGaussian` by its power spectrum
(images and fields on a periodic grid). What is true of them is what every sampler is held to.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import (
    CapabilityError,
    ConfigError,
    Denoiser,
    Gaussian,
    LinearOperator,
    NumericalError,
    Problem,
    ShapeError,
    Streams,
    cg,
    expand,
)
from ..core.algebra import dense, flatten_real

__all__ = ["GaussianPrior", "StationaryGaussian", "linear_gaussian"]


def linear_gaussian(problem: Problem, who: str) -> tuple[LinearOperator, Tensor]:
    """The operator and sigma of a problem that is linear with Gaussian noise; a CapabilityError otherwise."""
    if not isinstance(problem.operator, LinearOperator) or not isinstance(problem.noise, Gaussian):
        raise CapabilityError(
            f"{who}: the posterior is known for linear operators with Gaussian noise, not for "
            f"{type(problem.operator).__name__} with "
            f"{type(problem.noise).__name__}"
        )
    return problem.operator, problem.noise.sigma


class GaussianPrior(Denoiser):
    """N(mean, cov) on tensors of a given shape.

    Args:
        mean: (*shape).
        cov: covariance of the flattened unknown, (N, N), symmetric positive semi-definite; or its diagonal, (*shape).
        sigma_min, sigma_max: noise levels that samplers may use; the denoiser is exact at all of them.

    Raises:
        ShapeError: mean and cov disagree.
        NumericalError: cov has a negative eigenvalue.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor

    def __init__(self, mean: Tensor, cov: Tensor, *, sigma_min: float = 1e-3, sigma_max: float = 100.0) -> None:
        super().__init__(tuple(mean.shape), sigma_min, sigma_max)
        size = mean.numel()
        if cov.shape == mean.shape and cov.ndim != 2:
            variances, basis = cov.reshape(-1), torch.empty(0, dtype=mean.dtype)
        elif cov.shape == (size, size):
            variances, basis = torch.linalg.eigh(cov)
        else:
            raise ShapeError(
                f"GaussianPrior: expected cov of shape ({size}, {size}) or {tuple(mean.shape)}, got {tuple(cov.shape)}"
            )
        if bool((variances < -1e-8 * variances.abs().max()).any()):
            raise NumericalError(f"GaussianPrior: the covariance has the negative eigenvalue {float(variances.min()):.3g}")
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.register_buffer("variances", variances.clamp_min(0.0))

    def _rotate(self, x: Tensor, back: bool = False) -> Tensor:
        if self.basis.numel() == 0:
            return x
        return x @ (self.basis.T if back else self.basis)

    @property
    def cov(self) -> Tensor:
        """The covariance of the flattened unknown, (N, N)."""
        if self.basis.numel() == 0:
            return torch.diag(self.variances)
        return (self.basis * self.variances) @ self.basis.T

    @property
    def std(self) -> Tensor:
        """Standard deviation of each element, (*shape)."""
        return self.cov.diagonal().clamp_min(0.0).sqrt().reshape(self.shape)  # type: ignore[arg-type]

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The exact posterior mean of x0."""
        z = self._rotate((x - self.mean).flatten(1))
        z = z * (self.variances / (self.variances + sigma[:, None] ** 2))
        return self.mean + self._rotate(z, back=True).reshape(x.shape)

    def sample(self, streams: Streams) -> Tensor:
        """Exact draws, (draws, *shape)."""
        z = streams.normal(0, (self.mean.numel(),), "prior", self.mean.dtype, self.mean.device)
        return self.mean + self._rotate(z * self.variances.sqrt(), back=True).reshape(-1, *self.mean.shape)

    def posterior(self, problem: Problem) -> GaussianPrior:
        """The exact posterior of a linear problem with Gaussian noise."""
        operator, sigma = linear_gaussian(problem, "GaussianPrior.posterior")
        matrix = dense(operator, self.mean.dtype, self.mean.device)
        variance = flatten_real(sigma.to(self.mean.dtype).expand(1, *operator.out_shape), operator.out_complex)[0] ** 2
        ca = self.cov @ matrix.T
        gain = torch.linalg.solve(matrix @ ca + torch.diag(variance), ca.T).T
        misfit = flatten_real(problem.y - operator(self.mean[None]), operator.out_complex)[0]
        cov = self.cov - gain @ ca.T
        mean = self.mean + (gain @ misfit).reshape(self.mean.shape)
        return GaussianPrior(mean, 0.5 * (cov + cov.T), sigma_min=self.sigma_min, sigma_max=self.sigma_max)


class StationaryGaussian(Denoiser):
    """A stationary Gaussian random field on a periodic grid of any size, with the power spectrum

        P(k) = scale^2 / (1 + (|k| length)^2)^decay,   k in cycles per pixel

    normalised so that the standard deviation of a pixel is `std`; channels are independent.

    Args:
        shape: (C, *spatial).
        mean: value of the mean, in data units.
        std: standard deviation of a pixel, in data units.
        length: pixels beyond which neighbours decorrelate.
        decay: half the power of the decay; 1.5 gives photographs' 1/|k|^2 ... 1/|k|^3 in two dimensions.
    """

    spectrum: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        mean: float = 0.0,
        std: float = 1.0,
        length: float = 8.0,
        decay: float = 1.5,
        sigma_min: float = 1e-3,
        sigma_max: float = 100.0,
    ) -> None:
        super().__init__(tuple(shape), sigma_min, sigma_max)
        if not (std > 0 and length > 0 and decay > 0):
            raise ConfigError(f"StationaryGaussian: expected std, length, decay > 0, got {std}, {length}, {decay}")
        axes = torch.meshgrid(*[torch.fft.fftfreq(n, dtype=torch.float64) for n in shape[1:]], indexing="ij")
        squared = torch.stack([a * a for a in axes]).sum(0)
        spectrum = (1.0 + (2.0 * math.pi * length) ** 2 * squared) ** -decay
        self.mean = float(mean)
        self.register_buffer("spectrum", std**2 * spectrum / spectrum.mean(), persistent=False)

    def _filter(self, x: Tensor, weight: Tensor) -> Tensor:
        dims = tuple(range(2, x.ndim))
        return torch.fft.ifftn(torch.fft.fftn(x, dim=dims) * weight, dim=dims).real.to(x.dtype)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The exact posterior mean of x0 (the Wiener filter)."""
        spectrum = self.spectrum.to(x.dtype)
        weight = spectrum / (spectrum + expand(sigma, x) ** 2)
        return self.mean + self._filter(x - self.mean, weight)

    def covariance(self, x: Tensor) -> Tensor:
        """C x for deviations from the mean, (B, *shape)."""
        return self._filter(x, self.spectrum.to(x.dtype))

    def sample(self, streams: Streams, dtype: torch.dtype = torch.float32, purpose: str = "prior") -> Tensor:
        """Exact draws, (draws, *shape)."""
        z = streams.normal(0, self.shape, purpose, dtype, self.spectrum.device)  # type: ignore[arg-type]
        return self.mean + self._filter(z, self.spectrum.to(dtype).sqrt())

    def posterior_draws(
        self, problem: Problem, n: int, *, seed: int, max_iter: int = 2000, tol: float = 1e-5
    ) -> tuple[Tensor, Tensor]:
        """The exact posterior mean, (*shape), and n exact draws, (n, *shape), of a linear problem with Gaussian noise.

        Matheron's rule: with x0 from the prior and n0 from the noise, x0 + K (y - A x0 - n0) is a draw of the posterior. K by
        conjugate gradients in the space of the measurement, to relative residual `tol`.
        """
        operator, sigma = linear_gaussian(problem, "StationaryGaussian.posterior_draws")
        y = problem.y
        variance, streams = sigma.to(y.real.dtype) ** 2, Streams(seed, n)
        x0 = torch.cat(
            [torch.full((1, *self.shape), self.mean, dtype=y.real.dtype, device=y.device), self.sample(streams, y.real.dtype)]
        )  # type: ignore[arg-type]
        noise = streams.normal(0, operator.out_shape, "matheron", y.dtype, y.device) * variance.sqrt()
        misfit = y - operator(x0) - torch.cat([torch.zeros_like(noise[:1]), noise])
        if operator.measured is not None:
            misfit = misfit * operator.measured
        result = cg(lambda v: operator(self.covariance(operator.adjoint(v))) + variance * v, misfit, max_iter=max_iter, tol=tol)
        if float(result.residual.max()) > 10 * tol:
            raise NumericalError(
                f"StationaryGaussian: conjugate gradients reached {float(result.residual.max()):.1e} in {max_iter} iterations"
            )
        draws = x0 + self.covariance(operator.adjoint(result.x))
        return draws[0], draws[1:]
