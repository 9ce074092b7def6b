"""Several priors as one.

    Mixture        p = sum_k w_k p_k:    D = sum_k r_k(x) D_k,   r_k ~ w_k p_k(x; sigma)      exact
    Average        D = sum_k w_k D_k:    the score of prod_k p_k(x; sigma)^w_k at each sigma
    Alternating    one D_k at each sigma, each in its share of the levels
    Experts        D_k for sigma_{k-1} < sigma <= sigma_k                                     exact, if each D_k is

A mixture needs the density of noisy unknowns, p_k(x; sigma) = p_k * N(0, sigma^2), which closed forms have and networks don't.
The average of networks that were trained alike has the smaller error; of different priors it is the score of their smoothed
densities' geometric mean, which is not the smoothed geometric mean: for Gaussians of one covariance it is exact, for others it
is a heuristic (a product of experts). Alternating approaches the average as the levels of a run become dense, at one call each.

References: Balaji, Nah, Huang et al., eDiff-I: text-to-image diffusion models with an ensemble of expert denoisers, 2022,
arXiv:2211.01324 (experts); Du, Durkan, Strudel et al., Reduce, reuse, recycle: compositional generation with energy-based
diffusion models and MCMC, ICML 2023, arXiv:2302.11552 (what the average is not).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition, Denoiser
from ..core.errors import CapabilityError, ConfigError, ShapeError
from ..core.linalg import expand
from ..core.operator import Operator
from .adapter import by_level, grouped, is_encoded, quasirandom

__all__ = ["Alternating", "Average", "Experts", "Mixture"]


class _Ensemble(Denoiser):
    """Priors on the same unknown. What only some of them say of themselves (value range, known levels) is not said of all."""

    def __init__(self, priors: Sequence[Denoiser], weights: Sequence[float] | None, limits: tuple[float, float] | None) -> None:
        who = type(self).__name__
        if not priors:
            raise ConfigError(f"{who}: expected at least one prior")
        low, high = limits or (max(p.sigma_min for p in priors), min(p.sigma_max for p in priors))
        if not low < high:
            raise ConfigError(f"{who}: the priors have no noise level in common: from {low:g} to {high:g}")
        super().__init__(_common([p.shape for p in priors], who), low, high)
        _common([p.image_shape for p in priors], who)
        if len({is_encoded(p) for p in priors}) > 1:
            raise ShapeError(f"{who}: expected priors on the same unknown, got images and what they are decoded from")
        weights = [1.0] * len(priors) if weights is None else list(weights)
        if len(weights) != len(priors) or not all(0.0 < w < math.inf for w in weights):
            raise ConfigError(f"{who}: expected {len(priors)} positive weights, got {weights}")
        self.priors: Any = nn.ModuleList(priors)
        self.weights = tuple(w / sum(weights) for w in weights)
        self.divisor = math.lcm(*(p.divisor for p in priors))
        if len({p.value_range for p in priors}) == 1:
            self.value_range = priors[0].value_range
        known = [p.known for p in priors if p.known is not None]
        if len(known) == len(priors) and all(torch.equal(known[0], other) for other in known):
            self.known = known[0]

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        return self.priors[0].image_shape

    @property
    def image_divisor(self) -> int:
        return math.lcm(*(p.image_divisor for p in self.priors))

    def synthesis(self, shape: Sequence[int]) -> Operator | None:
        return self.priors[0].synthesis(shape)

    def analyse(self, x: Tensor) -> Tensor:
        return self.priors[0].analyse(x)

    def extra_repr(self) -> str:
        return f"weights={self.weights}"


class Average(_Ensemble):
    """The mean of denoisers.

    Args:
        priors: on the same unknown (latents: of the same autoencoder).
        weights: positive, normalised here; None for equal ones.

    Raises:
        ConfigError: no prior, no common noise level, or weights that don't fit. ShapeError: the priors' shapes differ.
    """

    def __init__(self, priors: Sequence[Denoiser], weights: Sequence[float] | None = None) -> None:
        super().__init__(priors, weights, None)

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """sum_k w_k D_k(x, sigma)."""
        out = torch.zeros_like(x)
        for weight, prior in zip(self.weights, self.priors, strict=True):
            out = out + weight * prior(x, sigma, condition)
        return out


class Mixture(_Ensemble):
    """The mixture of priors whose noisy densities are known.

    Args:
        priors: each with a method `log_prob(x, sigma)`: (B, *shape), (B,) -> (B,), the log-density of x0 + sigma n, normalised.
        weights: positive, normalised here; None for equal ones.

    Raises:
        CapabilityError: a prior has no `log_prob`. ConfigError, ShapeError: as of `Average`.
    """

    def __init__(self, priors: Sequence[Denoiser], weights: Sequence[float] | None = None) -> None:
        super().__init__(priors, weights, None)
        for prior in priors:
            if not callable(getattr(prior, "log_prob", None)):
                raise CapabilityError(
                    f"Mixture: {type(prior).__name__} has no log_prob(x, sigma), without which its share at x is unknown: "
                    "Average takes any prior, and is another law"
                )

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(x; sigma), (B,)."""
        return self._shares(x, sigma).logsumexp(0)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """sum_k r_k(x) D_k(x, sigma)."""
        shares = self._shares(x, sigma).softmax(0)
        return torch.stack([expand(r, x) * prior(x, sigma) for r, prior in zip(shares, self.priors, strict=True)]).sum(0)

    def _shares(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.stack([math.log(w) + p.log_prob(x, sigma) for w, p in zip(self.weights, self.priors, strict=True)])


class Alternating(_Ensemble):
    """One of the priors at each noise level, by the golden-ratio sequence of `floor(64 ln sigma)`.

    Args:
        priors: on the same unknown.
        weights: their shares of the levels, positive, normalised here; None for equal ones.

    Raises:
        ConfigError, ShapeError: as of `Average`.
    """

    def __init__(self, priors: Sequence[Denoiser], weights: Sequence[float] | None = None) -> None:
        super().__init__(priors, weights, None)
        self.edges = list(itertools.accumulate(self.weights))[:-1]

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """D_k(x, sigma) of the level's prior."""
        return by_level(self._denoise, x, sigma, condition)

    def _denoise(self, level: int, x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        (u,) = quasirandom(level, 1)
        return self.priors[sum(u >= edge for edge in self.edges)](x, sigma, condition)


class Experts(_Ensemble):
    """Priors for consecutive noise levels.

    Args:
        priors: from the lowest levels to the highest.
        edges: the K - 1 levels up to which each but the last is used, increasing, in data units.

    The noise levels go from sigma_min of the first to sigma_max of the last.

    Raises:
        ConfigError: a prior does not reach its edges, so that there would be a gap; or edges do not increase. ShapeError: as of
            `Average`.
    """

    def __init__(self, priors: Sequence[Denoiser], edges: Sequence[float]) -> None:
        if not priors or len(edges) != len(priors) - 1:
            raise ConfigError(
                f"Experts: expected one edge between each two priors, got {len(priors)} priors and {len(edges)} edges"
            )
        limits = [priors[0].sigma_min, *edges, priors[-1].sigma_max]
        for prior, low, high in zip(priors, limits, limits[1:], strict=False):
            if not prior.sigma_min <= low < high <= prior.sigma_max:
                raise ConfigError(
                    f"Experts: {type(prior).__name__} is for levels in [{prior.sigma_min:g}, {prior.sigma_max:g}] and would be "
                    f"used in [{low:g}, {high:g}]: move the edges to where both neighbours were trained"
                )
        super().__init__(priors, None, (limits[0], limits[-1]))
        self.edges = tuple(float(edge) for edge in edges)

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """D_k(x, sigma) of the level's expert."""
        expert = (sigma.double()[:, None] > sigma.new_tensor(self.edges, dtype=torch.float64)).sum(1)
        return grouped(expert, self._denoise, x, sigma, condition)

    def _denoise(self, k: int, x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        return self.priors[k](x, sigma, condition)

    def extra_repr(self) -> str:
        return f"edges={self.edges}"


def _common(shapes: Sequence[tuple[int | None, ...]], who: str) -> tuple[int | None, ...]:
    """The shape that all shapes allow."""
    sizes = [{n for n in column if n is not None} for column in itertools.zip_longest(*shapes)]
    if len({len(shape) for shape in shapes}) > 1 or any(len(size) > 1 for size in sizes):
        raise ShapeError(f"{who}: expected priors on the same unknown, got {', '.join(str(tuple(s)) for s in shapes)}")
    return tuple(size.pop() if size else None for size in sizes)
