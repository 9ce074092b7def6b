"""Gaussian priors: the denoiser and the posterior under a linear operator are exact.

    x ~ N(m, C),    D(x, sigma) = m + C (C + sigma^2 I)^-1 (x - m)
    y = A x + n:    x | y ~ N(m + K (y - A m), C - K A C),    K = C A^T (A C A^T + Sigma)^-1

`GaussianPrior` holds C by its eigenvectors (small unknowns, any covariance); the fields of `field.py` by a power spectrum
(images and fields on a grid). What is true of them is what every sampler is held to.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import Denoiser, NumericalError, Problem, ShapeError, Streams
from ..core.algebra import dense, flatten_real
from .linear import linear_gaussian

__all__ = ["GaussianPrior"]


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

    @property
    def origin(self) -> Tensor:
        return self.mean

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

    def log_prob(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """log p(x), (B,), the covariance positive definite; with sigma, (B,), that of x0 + sigma n."""
        z = self._rotate((x - self.mean).flatten(1))
        total = self.variances if sigma is None else self.variances + sigma[:, None].square()
        return -0.5 * (z.square() / total + (2.0 * math.pi * total).log()).sum(1)

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
