"""Decoupled samplers: denoise, correct the estimate by the measurement, add noise of the next level.

    x0 = correct(D(x, sigma)),    x' = x0 + gamma (sqrt(1 - zeta) eps + sqrt(zeta) z)

gamma is sigma' unless the correction says that x0 itself carries noise. Because x0 is a point, not a draw of p(x0 | x, y),
such samplers lose variance even where the measurement says nothing: zeta = 1 about halves it. In variance-preserving papers
zeta = eta^2.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from ..core import ConfigError, Denoiser, Problem, Streams
from .guided import DownLevels, Level

__all__ = ["Corrected", "Decoupled"]


class Corrected(NamedTuple):
    """x0 and the direction eps, (B, *shape), and the standard deviation gamma of the noise to add."""

    x0: Tensor
    eps: Tensor
    gamma: float


@dataclass(frozen=True)
class Decoupled(DownLevels):
    """Base of the decoupled samplers.

    Args:
        zeta: share of the added noise that is fresh, in [0, 1].
        grid: noise levels between the prior's limits.
        steps: number of levels.
    """

    kind: ClassVar[str] = "point"
    differentiable: ClassVar[bool] = True
    zeta: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.zeta <= 1.0:
            raise ConfigError(f"{self.name}: expected zeta in [0, 1], got {self.zeta}")

    @abstractmethod
    def correct(self, problem: Problem, x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Corrected:
        """What the measurement makes of D(x, sigma)."""

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        x = state.x
        sigma, sigma_next = self.between(prior, state)
        x0, eps, gamma = self.correct(problem, x, prior(x, x.new_full((len(x),), sigma)), sigma, sigma_next)
        new = x0 + gamma * math.sqrt(1.0 - self.zeta) * eps
        if gamma * self.zeta > 0.0:
            z = streams.normal(state.step + 1, problem.shape, dtype=x.dtype, device=x.device)
            new = new + gamma * math.sqrt(self.zeta) * z
        return Level(state.step + 1, new, sigma_next)
