"""What a sampler returns: draws, their statistics, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .errors import CapabilityError, ConfigError

__all__ = ["Samples"]


@dataclass(frozen=True)
class Samples:
    """Draws from p(x | y), or repeated point estimates.

    Attributes:
        x: the draws, (n, *shape).
        kind: "posterior" or "point"; a point estimate refuses to give a spread.
        sampler: name of what made it.
        info: one dictionary per step (of the first chunk).
        network_calls, network_vjps, operator_calls: evaluations per draw.
        seconds: wall time of the run, of all chunks and across resumes.
        peak_bytes: peak memory: of the device on CUDA, of the process on a CPU.
    """

    x: Tensor
    kind: str = "posterior"
    sampler: str = ""
    info: list[dict[str, Any]] = field(default_factory=list)
    network_calls: float = 0.0
    network_vjps: float = 0.0
    operator_calls: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0

    def __len__(self) -> int:
        return len(self.x)

    @property
    def mean(self) -> Tensor:
        """Mean over the draws, (*shape)."""
        return self.x.mean(0)

    @property
    def std(self) -> Tensor:
        """Standard deviation over the draws per element, (*shape); of both components together for complex draws."""
        self._require_spread("a standard deviation")
        return self.x.std(0)

    def quantile(self, q: float) -> Tensor:
        """Quantile over the draws per element, (*shape), linear between order statistics."""
        self._require_spread("quantiles")
        if not 0.0 <= q <= 1.0:
            raise ConfigError(f"Samples.quantile: expected q in [0, 1], got {q}")
        return torch.quantile(self.x, q, dim=0)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Lower and upper limit per element of the interval that a further draw of the posterior lies in with probability
        `level`.

        With n draws the k-th smallest and the k-th largest enclose a further, exchangeable draw with probability (n + 1 -
        2k) / (n + 1); between and below those k the limits are interpolated in a normal shape, so that few draws do not make
        the interval too narrow.
        """
        self._require_spread("an interval")
        tail = 0.5 * (1.0 - level) * (len(self) + 1)
        if tail >= 1.0:
            ordered = self.x.sort(0).values
            k = int(tail)
            w = tail - k
            low = (1 - w) * ordered[k - 1] + w * ordered[min(k, len(self) - 1)]
            high = (1 - w) * ordered[len(self) - k] + w * ordered[max(len(self) - k - 1, 0)]
            return low, high
        # too few draws for order statistics: Student's prediction interval
        from scipy.stats import t

        half = float(t.ppf(0.5 * (1.0 + level), len(self) - 1)) * (1.0 + 1.0 / len(self)) ** 0.5 * self.std
        return self.mean - half, self.mean + half

    def map(self, function: Callable[[Tensor], Tensor]) -> Samples:
        """The same draws seen through a function of a batch, e.g. the magnitude of a complex image."""
        return replace(self, x=function(self.x))

    def _require_spread(self, what: str) -> None:
        if self.kind != "posterior":
            raise CapabilityError(
                f"{self.sampler or 'this sampler'} returns a point estimate, which has no "
                f"{what[2:] if what[:2] == 'a ' else what}"
            )
        if len(self) < 2:
            raise CapabilityError(
                f"{self.sampler or 'Samples'}: {what} needs at least 2 draws, got {len(self)}: use n=2 or more"
            )
