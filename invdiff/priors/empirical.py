"""The empirical distribution of a data set, with or without a kernel.

    x ~ sum_i w_i N(x_i, h^2 I)
    D(x, sigma) = (1 - h^2 / v) sum_i rho_i x_i + (h^2 / v) x,  rho = softmax_i(log w_i - |x - x_i|^2 / 2 v),  v = h^2 + sigma^2

With h = 0 this is the minimiser of the denoising loss over all functions, for that data set: the score that memorises, whose
samples are the training items. It is the exact reference for tests, for what a network with too much capacity learns, and for
how far a trained one is from it. Posteriors are exact for every operator and noise: the likelihood reweights the items.

The sum runs over chunks of the data with a running maximum, so that a call needs O(B chunk + chunk N) memory. Distances are
expanded squares of data centred about their mean, in float64 whatever the dtype of x: the exponent's error is about
1e-16 |x|^2 / sigma^2, which is below 1e-6 down to sigma = 1e-5 of the data's norm; a matrix product is an order of magnitude
faster than differences.

References: Gu, Du, Pang, Li, Lin, Wang, On memorization in diffusion models, 2023, arXiv:2310.02664. De Bortoli, Convergence of
denoising diffusion models under the manifold hypothesis, 2022, arXiv:2208.05314. Silverman, Density estimation, 1986.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import CapabilityError, ConfigError, Denoiser, NumericalError, Problem, ShapeError, Streams

__all__ = ["Empirical"]


class Empirical(Denoiser):
    """A mixture of points, or of equal round kernels, at the items of a data set.

    Args:
        data: (M, *shape), floating-point.
        bandwidth: standard deviation h of the kernel in data units; 0 for points.
        weights: (M,), not negative, normalised here; None for equal ones.
        chunk: items at once.
        sigma_min, sigma_max: noise levels that samplers may use; the denoiser is exact at all of them.

    Raises:
        ShapeError: data or weights have another shape.
        ConfigError: an option is out of its range, or no weight is positive.
    """

    data: Tensor
    centre: Tensor
    log_weights: Tensor

    def __init__(
        self,
        data: Tensor,
        *,
        bandwidth: float = 0.0,
        weights: Tensor | None = None,
        chunk: int = 4096,
        sigma_min: float = 1e-3,
        sigma_max: float = 1000.0,
    ) -> None:
        if data.ndim < 2 or not data.is_floating_point() or not len(data) or not bool(data.isfinite().all()):
            raise ShapeError(f"Empirical: expected finite real data (M, *shape), got {tuple(data.shape)} {data.dtype}")
        super().__init__(tuple(data.shape[1:]), sigma_min, sigma_max)
        weights = torch.ones(len(data), device=data.device) if weights is None else weights
        if weights.shape != data.shape[:1]:
            raise ShapeError(f"Empirical: expected weights ({len(data)},), got {tuple(weights.shape)}")
        weights = weights.double()
        if not (0.0 <= bandwidth < math.inf and chunk >= 1 and bool((weights >= 0).all() and weights.sum() > 0)):
            raise ConfigError(
                f"Empirical: expected bandwidth >= 0, chunk >= 1, weights >= 0 and one positive, got {bandwidth}, {chunk}"
            )
        self.bandwidth, self.chunk = float(bandwidth), chunk
        self.register_buffer("data", data)
        self.register_buffer("centre", data.double().mean(0).flatten(), persistent=False)
        self.register_buffer("log_weights", (weights / weights.sum()).log())

    def extra_repr(self) -> str:
        return f"bandwidth={self.bandwidth}"

    def _sums(self, x: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Log of sum_i w_i exp(-|x - x_i|^2 / 2 v), (B,), and the weighted mean of x_i, (B, N), both float64."""
        centre = self.centre.double()
        z = x.flatten(1).double() - centre
        top = torch.full_like(z[:, 0], -math.inf)
        total, moment = torch.zeros_like(top), torch.zeros_like(z)
        for items, log_w in zip(self.data.split(self.chunk), self.log_weights.double().split(self.chunk), strict=True):
            d = items.flatten(1).double() - centre
            log = log_w + (z @ d.T - 0.5 * d.square().sum(1)) / variance[:, None]
            # the shift cancels; items of weight zero alone must not make it -inf - (-inf)
            new = torch.maximum(top, log.detach().amax(1))
            shift = torch.where(new == -math.inf, 0.0, new)
            old, part = (top - shift).exp(), (log - shift[:, None]).exp()
            total, moment, top = total * old + part.sum(1), moment * old[:, None] + part @ d, new
        return total.log() + top - 0.5 * z.square().sum(1) / variance, centre + moment / total[:, None]

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The exact posterior mean of x0."""
        variance = sigma.double() ** 2 + self.bandwidth**2
        keep = (self.bandwidth**2 / variance)[:, None]
        nearest = self._sums(x, variance)[1]
        return ((1.0 - keep) * nearest + keep * x.flatten(1)).to(x.dtype).reshape(x.shape)

    def log_prob(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """log density of x = x0 + sigma n, (B, *shape), (B,) -> (B,); without sigma that of x0.

        Raises:
            NumericalError: neither sigma nor a bandwidth, where points have no density.
        """
        if sigma is None and self.bandwidth == 0.0:
            raise NumericalError("Empirical: points have no density: give a sigma or a bandwidth")
        variance = (x.new_zeros(len(x)) if sigma is None else sigma).double() ** 2 + self.bandwidth**2
        log = self._sums(x, variance)[0] - 0.5 * x[0].numel() * (2.0 * math.pi * variance).log()
        return log.to(x.dtype)

    def sample(self, streams: Streams) -> Tensor:
        """Exact draws, (draws, *shape): items of the data set, plus the kernel's noise."""
        u = streams.uniform(0, (1,), "component", torch.float64, self.data.device)
        index = torch.searchsorted(self.log_weights.double().exp().cumsum(0), u).clamp_max(len(self.data) - 1)[:, 0]
        if self.bandwidth == 0.0:
            return self.data[index]
        noise = streams.normal(0, self.data.shape[1:], "prior", self.data.dtype, self.data.device)
        return self.data[index] + self.bandwidth * noise

    def posterior(self, problem: Problem) -> Empirical:
        """The exact posterior of points under any operator and noise: w_i p(y | A x_i) as weights.

        Raises:
            CapabilityError: there is a bandwidth; the posterior's kernels are then not round.
            NumericalError: no item has a finite likelihood.
        """
        if self.bandwidth > 0.0:
            raise CapabilityError(
                "Empirical.posterior: the posterior of round kernels is not one of them: use bandwidth 0, or a LowRankMixture "
                "of rank 0 with tau = bandwidth"
            )
        parts = [problem.log_likelihood(items.to(problem.y.real.dtype)) for items in self.data.split(self.chunk)]
        log = self.log_weights.double() + torch.cat(parts).double()
        if not bool(log.isfinite().any()):
            raise NumericalError("Empirical.posterior: no item of the data has a finite likelihood")
        return Empirical(
            self.data, weights=log.softmax(0), chunk=self.chunk, sigma_min=self.sigma_min, sigma_max=self.sigma_max
        )

    @property
    def mean(self) -> Tensor:
        """The mean, (*shape)."""
        return torch.tensordot(self.log_weights.exp().to(self.data.dtype), self.data, dims=1)

    @property
    def cov(self) -> Tensor:
        """The covariance of the flattened unknown, (N, N); for small unknowns."""
        d = (self.data - self.mean).flatten(1)
        identity = torch.eye(d.shape[1], dtype=d.dtype, device=d.device)
        return (self.log_weights.exp().to(d.dtype)[:, None] * d).T @ d + self.bandwidth**2 * identity
