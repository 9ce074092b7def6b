"""Gaussian mixtures: multimodal priors whose denoiser and whose posterior under a linear operator are exact.

    x ~ sum_k w_k N(m_k, C_k)
    D(x, sigma) = sum_k r_k(x) D_k(x, sigma),         r_k ~ w_k N(x; m_k, C_k + sigma^2 I)
    x | y ~ sum_k w'_k N(m'_k, C'_k),                 w'_k ~ w_k N(y; A m_k, A C_k A^T + Sigma)

No guided sampler that approximates p(x0 | x) by one Gaussian is exact here; the closed-form posterior's own denoiser is, which
separates the error of a guidance from that of integrators, streams and metrics.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Problem, ShapeError, Streams
from ..core.algebra import dense, flatten_real
from .linear import linear_gaussian

__all__ = ["GaussianMixture"]


class GaussianMixture(Denoiser):
    """A mixture of K Gaussians on vectors or small tensors.

    Args:
        weights: (K,), positive; normalised here.
        means: (K, *shape).
        covs: covariances of the flattened unknown, (K, N, N) or (N, N) shared; None for unit covariances. With a shared one an
            evaluation takes of the order of K N + N^2 operations instead of K N^2.

    Raises:
        ShapeError, ConfigError: shapes disagree, or a weight is negative.
    """

    weights: Tensor
    means: Tensor
    bases: Tensor
    variances: Tensor

    def __init__(
        self, weights: Tensor, means: Tensor, covs: Tensor | None = None, *, sigma_min: float = 1e-3, sigma_max: float = 1000.0
    ) -> None:
        super().__init__(tuple(means.shape[1:]), sigma_min, sigma_max)
        size = means[0].numel()
        covs = torch.eye(size, dtype=means.dtype, device=means.device) if covs is None else covs
        covs = covs[None] if covs.ndim == 2 else covs
        if covs.shape not in ((1, size, size), (len(means), size, size)) or weights.shape != means.shape[:1]:
            raise ShapeError(
                "GaussianMixture: expected weights (K,), means (K, *shape), covs (K, N, N) or (N, N), got "
                f"{tuple(weights.shape)}, {tuple(means.shape)}, {tuple(covs.shape)}"
            )
        if not bool((weights >= 0).all() and weights.sum() > 0):
            raise ConfigError("GaussianMixture: weights must not be negative, and not all zero")
        variances, bases = torch.linalg.eigh(covs)
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        self.register_buffer("bases", bases)
        self.register_buffer("variances", variances.clamp_min(0.0))

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture, (*shape)."""
        return torch.tensordot(self.weights, self.means, 1)

    @property
    def origin(self) -> Tensor:
        return self.mean

    @property
    def cov(self) -> Tensor:
        """Covariance of the flattened unknown, (N, N): that within the components and that between their means."""
        weights = self.weights if len(self.bases) > 1 else self.weights.new_ones(1)
        within = torch.einsum("k,knm,km,kpm->np", weights, self.bases, self.variances, self.bases)
        between = (self.means - self.mean).flatten(1)
        return within + torch.einsum("k,kn,kp->np", self.weights, between, between)

    def _components(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log(w_k N(x; m_k, C_k + sigma^2)), rotated deviations and their variances: (B, K), (B, K, N), (B, K, N)."""
        if len(self.bases) == 1:
            z = (x.flatten(1) @ self.bases[0])[:, None] - self.means.flatten(1) @ self.bases[0]
        else:
            z = torch.einsum("bkn,knm->bkm", x.flatten(1)[:, None] - self.means.flatten(1), self.bases)
        total = self.variances + sigma[:, None, None] ** 2
        log = self.weights.log() - 0.5 * (z.square() / total + (2.0 * math.pi * total).log()).sum(-1)
        return log, z, total

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The exact posterior mean of x0."""
        log, z, total = self._components(x, sigma)
        if len(self.bases) == 1:
            share = log.softmax(-1)
            z = torch.einsum("bk,bkn->bn", share, z) * (self.variances / total[:, 0])
            return (z @ self.bases[0].T + share @ self.means.flatten(1)).reshape(x.shape)
        shrunk = torch.einsum("bkm,knm->bkn", z * self.variances / total, self.bases) + self.means.flatten(1)
        return torch.einsum("bk,bkn->bn", log.softmax(-1), shrunk).reshape(x.shape)

    def log_prob(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """log p(x), (B,), covariances positive definite; with sigma, (B,), that of x0 + sigma n."""
        return self._components(x, x.new_zeros(len(x)) if sigma is None else sigma)[0].logsumexp(-1)

    def sample(self, streams: Streams) -> Tensor:
        """Exact draws, (draws, *shape)."""
        dtype, device = self.means.dtype, self.means.device
        u = streams.uniform(0, (1,), "component", torch.float64, device)
        k = torch.searchsorted(self.weights.double().cumsum(0), u).clamp_max(len(self.weights) - 1)[:, 0]
        own = k if len(self.bases) > 1 else torch.zeros_like(k)
        z = streams.normal(0, (self.means[0].numel(),), "prior", dtype, device) * self.variances[own].sqrt()
        rotated = torch.einsum("bm,bnm->bn", z, self.bases[own]) if len(self.bases) > 1 else z @ self.bases[0].T
        return self.means[k] + rotated.reshape(-1, *self.means.shape[1:])

    def posterior(self, problem: Problem) -> GaussianMixture:
        """The exact posterior of a linear problem with Gaussian noise, a mixture with as many components."""
        operator, sigma = linear_gaussian(problem, "GaussianMixture.posterior")
        matrix = dense(operator, self.means.dtype, self.means.device)
        variance = flatten_real(sigma.to(self.means.dtype).expand(1, *operator.out_shape), operator.out_complex)[0] ** 2
        covs = torch.einsum("knm,km,kpm->knp", self.bases, self.variances, self.bases)
        ca = covs @ matrix.T
        inner = matrix @ ca + torch.diag(variance)
        misfit = flatten_real(problem.y - operator(self.means), operator.out_complex)
        gain = torch.linalg.solve(inner, ca.transpose(1, 2)).transpose(1, 2)
        means = self.means + (gain @ misfit[..., None])[..., 0].reshape(self.means.shape)
        new = covs - gain @ ca.transpose(1, 2)
        solved = torch.linalg.solve(inner, misfit[..., None])[..., 0]
        log = self.weights.log() - 0.5 * (misfit * solved).sum(-1) - 0.5 * torch.linalg.slogdet(inner).logabsdet
        return GaussianMixture(
            log.softmax(0), means, 0.5 * (new + new.transpose(1, 2)), sigma_min=self.sigma_min, sigma_max=self.sigma_max
        )
