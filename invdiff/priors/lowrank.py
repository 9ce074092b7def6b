"""Mixtures of low-rank Gaussians: the denoiser, the density and the posterior are exact, and no N x N matrix is formed.

    x ~ sum_k w_k N(m_k, C_k),    C_k = U_k diag(l_k) U_k^T + tau_k^2 I,    U_k (N, r) orthonormal,   l_k >= -tau_k^2
    D(x, sigma) = sum_k rho_k(x) D_k,    D_k = m_k + (l + tau^2) / (l + t) on span U_k,  tau^2 / t off it,   t = tau^2 + sigma^2

One call costs O(B N K r) operations. The posterior under a linear operator with m real measurements is again such a mixture, of
rank r where tau_k = 0, else r + m (or N): the measurement makes C_k smaller than tau_k^2 I along A^T, which is why l_k may be
negative. With Q an orthonormal basis of span [U_k, A^T], P = Q^T C_k Q = L L^T diagonal, H = Sigma^(-1/2) A Q L and
e = Sigma^(-1/2) (y - A m_k),

    a = (I + H^T H)^-1 H^T e,    m'_k = m_k + Q L a,    C'_k = Q L (I + H^T H)^-1 L Q^T + tau_k^2 (I - Q Q^T)
    -2 log p(y | k) = |e - H a|^2 + |a|^2 + log det(I + H^T H) + const

Cost for each component: O(N (r + m)^2 + (r + m)^3), after m adjoint calls once; where all tau_k = 0, r operator calls and
O(m r^2), whatever m is.

References: Tipping, Bishop, Mixtures of probabilistic principal component analyzers, Neural Computation 11, 1999. Wang, Zhang,
Zhang, Chen, Ma, Qu, Diffusion models learn low-dimensional distributions via subspace clustering, 2024, arXiv:2409.02426.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, LinearOperator, Problem, ShapeError, Streams
from ..core.algebra import flatten_real
from .linear import linear_gaussian

__all__ = ["LowRankMixture"]


class LowRankMixture(Denoiser):
    """A mixture of K Gaussians of rank r plus white.

    Args:
        weights: (K,), not negative; normalised here.
        means: (K, *shape).
        bases: orthonormal columns on the flattened unknown, (K, N, r); r may be 0.
        spreads: variances along the columns in excess of tau^2, (K, r).
        taus: standard deviation in every direction, (K,) or a number, not negative.
        sigma_min, sigma_max: noise levels that samplers may use; the denoiser is exact at all of them.

    Raises:
        ShapeError: shapes disagree.
        ConfigError: a weight or tau is negative, a variance spread + tau^2 is, or the columns are not orthonormal.
    """

    weights: Tensor
    means: Tensor
    bases: Tensor
    spreads: Tensor
    taus: Tensor

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        bases: Tensor,
        spreads: Tensor,
        taus: Tensor | float,
        *,
        sigma_min: float = 1e-3,
        sigma_max: float = 1000.0,
    ) -> None:
        super().__init__(tuple(means.shape[1:]), sigma_min, sigma_max)
        taus = torch.as_tensor(taus, dtype=means.dtype, device=means.device).expand(len(means))
        count, size, rank = len(means), means[0].numel(), bases.shape[-1]
        if bases.shape != (count, size, rank) or spreads.shape != (count, rank) or weights.shape != (count,):
            raise ShapeError(
                "LowRankMixture: expected weights (K,), means (K, *shape), bases (K, N, r), spreads (K, r), got "
                f"{', '.join(str(tuple(t.shape)) for t in (weights, means, bases, spreads))}"
            )
        rounding = -8.0 * torch.finfo(means.dtype).eps * taus[:, None] ** 2
        if not bool((weights >= 0).all() and weights.sum() > 0 and (taus >= 0).all()) or bool(
            (spreads + taus[:, None] ** 2 < rounding).any()
        ):
            raise ConfigError("LowRankMixture: expected weights, taus and spreads + taus^2 >= 0, and a positive weight")
        identity = torch.eye(rank, dtype=means.dtype, device=means.device)
        gap = float((bases.mT @ bases - identity).abs().max()) if rank else 0.0
        if not gap < 100.0 * size * torch.finfo(means.dtype).eps:
            raise ConfigError(f"LowRankMixture: the columns of bases are not orthonormal (|U^T U - I| reaches {gap:.1e})")
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        self.register_buffer("bases", bases)
        # along a measured direction l = -tau^2 up to rounding
        self.register_buffer("spreads", torch.maximum(spreads, -(taus[:, None] ** 2)))
        self.register_buffer("taus", taus + 0.0)  # memory of its own: an expanded tensor of one is contiguous to torch

    def _components(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log(w_k N(x; m_k, C_k + sigma^2)), (B, K), and the coefficients U_k^T (x - m_k), (B, K, r)."""
        flat, logs, coefficients = x.flatten(1), [], []
        # one component after the other: the residual off the subspace is formed, not a difference of squares, in O(B N) memory
        for log_w, m, basis, spread, tau in zip(
            self.weights.log(), self.means.flatten(1), self.bases, self.spreads, self.taus, strict=True
        ):
            d = flat - m
            z = d @ basis
            white = (tau**2 + sigma**2)[:, None]
            inside = white + spread
            square = (z * z / inside).sum(1) + (d - z @ basis.T).square().sum(1) / white[:, 0]
            volume = (len(m) - len(spread)) * white[:, 0].log() + inside.log().sum(1) + len(m) * math.log(2.0 * math.pi)
            logs.append(log_w - 0.5 * (square + volume))
            coefficients.append(z)
        return torch.stack(logs, dim=1), torch.stack(coefficients, dim=1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The exact posterior mean of x0."""
        log, z = self._components(x, sigma)
        rho, tau, noise = log.softmax(1), self.taus**2, sigma[:, None] ** 2
        outside = tau / (tau + noise)
        excess = self.spreads * noise[..., None] / ((tau + noise)[..., None] * ((tau + noise)[..., None] + self.spreads))
        flat = (rho * outside).sum(1, keepdim=True) * x.flatten(1) + (rho * (1.0 - outside)) @ self.means.flatten(1)
        flat = flat + (rho[..., None] * excess * z).flatten(1) @ self.bases.transpose(1, 2).flatten(0, 1)
        return flat.reshape(x.shape)

    def log_prob(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """log density of x = x0 + sigma n, (B, *shape), (B,) -> (B,); without sigma that of x0, which needs tau > 0."""
        return self._components(x, x.new_zeros(len(x)) if sigma is None else sigma)[0].logsumexp(1)

    def sample(self, streams: Streams) -> Tensor:
        """Exact draws, (draws, *shape)."""
        dtype, device, size = self.means.dtype, self.means.device, self.means[0].numel()
        u = streams.uniform(0, (1,), "component", torch.float64, device)
        k = torch.searchsorted(self.weights.double().cumsum(0), u).clamp_max(len(self.weights) - 1)[:, 0]
        white = streams.normal(0, (size,), "prior", dtype, device)
        x = self.means.flatten(1)[k] + self.taus[k, None] * white
        # on the subspace the white part is rescaled to the variance l + tau^2, which also holds for negative l
        scale = (self.spreads + self.taus[:, None] ** 2).sqrt() - self.taus[:, None]
        for j, (basis, s) in enumerate(zip(self.bases, scale, strict=True)):
            own = k == j
            x[own] += (white[own] @ basis * s) @ basis.T
        return x.reshape(-1, *self.means.shape[1:])

    @property
    def mean(self) -> Tensor:
        """The mean, (*shape)."""
        return torch.einsum("k,k...->...", self.weights, self.means)

    @property
    def covs(self) -> Tensor:
        """The components' covariances, (K, N, N); for small unknowns."""
        identity = torch.eye(self.bases.shape[1], dtype=self.means.dtype, device=self.means.device)
        return (self.bases * self.spreads[:, None]) @ self.bases.mT + self.taus[:, None, None] ** 2 * identity

    @property
    def cov(self) -> Tensor:
        """The covariance of the flattened unknown, (N, N); for small unknowns."""
        apart = (self.means - self.mean).flatten(1)
        return torch.einsum("k,knp->np", self.weights, self.covs) + (self.weights[:, None] * apart).T @ apart

    def posterior(self, problem: Problem) -> LowRankMixture:
        """The exact posterior of a linear problem with Gaussian noise, a mixture with as many components."""
        operator, sigma = linear_gaussian(problem, "LowRankMixture.posterior")
        keep = _measured(operator, self.means.device)
        scale = 1.0 / flatten_real(sigma.to(self.means).expand(1, *operator.out_shape), operator.out_complex)[0][keep]
        misfit = flatten_real(problem.y - operator(self.means), operator.out_complex)[:, keep] * scale
        thin = bool((self.taus == 0).all())
        rows = None if thin else _rows(operator, keep, self.means) * scale[:, None]
        parts = []
        for e, m, basis, spread, tau in zip(misfit, self.means.flatten(1), self.bases, self.spreads, self.taus, strict=True):
            if rows is None:
                q, variance = basis, spread
                seen = flatten_real(operator(basis.T.reshape(-1, *operator.in_shape)), operator.out_complex)[:, keep].T
                seen = seen * scale[:, None]
            else:
                # Householder: orthonormal whatever the columns, and the first r are those of U up to their signs
                q = torch.linalg.qr(torch.cat([basis, rows.T], dim=1)).Q
                variance, seen = (tau**2).repeat(q.shape[1]), rows @ q
                variance[: len(spread)] += spread
            root = variance.sqrt()
            h = seen * root
            values, vectors = torch.linalg.eigh(h.T @ h)
            values = values.clamp_min(0.0)
            a = vectors @ ((vectors.T @ (h.T @ e)) / (1.0 + values))
            evidence = -0.5 * ((e - h @ a).square().sum() + a.square().sum() + values.log1p().sum())
            inner = (root[:, None] * vectors / (1.0 + values)) @ (root[:, None] * vectors).T
            new, turn = torch.linalg.eigh(inner)
            parts.append((evidence, m + q @ (root * a), q @ turn, new.clamp_min(0.0) - tau**2))
        evidences, means, bases, spreads = (torch.stack(p) for p in zip(*parts, strict=True))
        return LowRankMixture(
            (self.weights.log() + evidences).softmax(0),
            means.reshape(self.means.shape),
            bases,
            spreads,
            self.taus,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
        )


def _measured(operator: LinearOperator, device: torch.device) -> Tensor:
    """Which of the real measurements carry information, (m,) boolean."""
    mask = torch.ones((), dtype=torch.bool) if operator.measured is None else operator.measured
    return flatten_real(mask.to(device).expand(1, *operator.out_shape), operator.out_complex)[0]


def _rows(operator: LinearOperator, keep: Tensor, like: Tensor) -> Tensor:
    """The measured rows of A as a real matrix, (m, N), by adjoint calls."""
    basis = torch.zeros(int(keep.sum()), len(keep), dtype=like.dtype, device=like.device)
    basis.scatter_(1, keep.nonzero(), 1.0)
    if operator.out_complex:
        basis = torch.complex(*basis.chunk(2, dim=1))
    return operator.adjoint(basis.reshape(-1, *operator.out_shape)).flatten(1)
