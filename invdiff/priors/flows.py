"""Paths of flow matching: rectified flow, the trigonometric path, and stochastic interpolants of any alpha and sigma.

The velocity that such networks predict is d/dt of the path, alpha' x0 + sigma' eps, in the direction in which their own t
runs: for the straight path eps - x0 if t = 0 is the data and x0 - eps if t = 1 is. Both ends have no finite or no positive
level, so that a `margin` is kept from them.

References: Liu, Gong, Liu, Flow straight and fast: learning to generate and transfer data with rectified flow, 2023,
arXiv:2209.03003. Lipman et al., Flow matching for generative modeling, 2023, arXiv:2210.02747. Albergo, Boffi, Vanden-Eijnden,
Stochastic interpolants: a unifying framework for flows and diffusions, 2023, arXiv:2303.08797.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .paths import Path

__all__ = ["Cosine", "Interpolant", "RectifiedFlow"]


@dataclass(frozen=True)
class RectifiedFlow(Path):
    """The straight path between data and noise.

    Args:
        data_at: 0 if t = 0 is the data (x_t = (1 - t) x0 + t eps, velocity eps - x0), 1 if t = 1 is (x_t = t x0 + (1 - t) eps,
            velocity x0 - eps).
        margin: distance of the used times from both ends; the levels are margin / (1 - margin) and its inverse.
        factor: the network is told factor * t.
    """

    data_at: int = 0
    margin: float = 1e-3
    factor: float = 1.0

    def __post_init__(self) -> None:
        _ends(self)
        if self.data_at not in (0, 1):
            raise ConfigError(f"RectifiedFlow: expected data_at 0 or 1, got {self.data_at}")

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return self.margin / (1 - self.margin)

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return (1 - self.margin) / self.margin

    def alpha(self, t: Tensor) -> Tensor:
        return t if self.data_at else 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t if self.data_at else t

    def time(self, level: Tensor) -> Tensor:
        return 1 / (1 + level) if self.data_at else level / (1 + level)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t)
        return (one, -one) if self.data_at else (-one, one)

    def told(self, t: Tensor) -> Tensor:
        return self.factor * t


@dataclass(frozen=True)
class Cosine(Path):
    """The trigonometric path x_t = cos(pi t / 2) x0 + sin(pi t / 2) eps; its velocity is (pi / 2) v.

    Args:
        margin: distance of the used times from 0 and 1.
        factor: the network is told factor * t.
    """

    margin: float = 1e-3
    factor: float = 1.0

    def __post_init__(self) -> None:
        _ends(self)

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return math.tan(0.5 * math.pi * self.margin)

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return 1 / self.sigma_min

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)

    def time(self, level: Tensor) -> Tensor:
        return level.atan() * (2 / math.pi)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * math.pi * self.sigma(t), 0.5 * math.pi * self.alpha(t)

    def told(self, t: Tensor) -> Tensor:
        return self.factor * t


@dataclass(frozen=True)
class Interpolant(Path):
    """x_t = a(t) x0 + s(t) eps for any differentiable a and s whose ratio is monotone.

    Args:
        a, s: functions of a float64 tensor, elementwise, made of torch's differentiable operations.
        near, far: the times nearest to the data and to the noise that are used; a and s are positive there and between.
        factor: the network is told factor * t.

    The time of a level outside [sigma_min, sigma_max] is that of the nearer end.

    Raises:
        ConfigError: a or s is not positive, or s / a does not increase from `near` to `far`.
    """

    a: Callable[[Tensor], Tensor] = field(repr=False)
    s: Callable[[Tensor], Tensor] = field(repr=False)
    near: float = 1e-3
    far: float = 1 - 1e-3
    factor: float = 1.0

    def __post_init__(self) -> None:
        t = torch.linspace(self.near, self.far, 1001, dtype=torch.float64)
        a, s = self.a(t), self.s(t)
        if not (bool((a > 0).all() and (s > 0).all()) and bool((s / a).diff().gt(0).all())):
            raise ConfigError(f"Interpolant: expected a, s > 0 and s / a increasing from t = {self.near} to {self.far}")

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return float(self._log_level(torch.tensor(self.near, dtype=torch.float64)).exp())

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return float(self._log_level(torch.tensor(self.far, dtype=torch.float64)).exp())

    def _log_level(self, t: Tensor) -> Tensor:
        return self.s(t).log() - self.a(t).log()

    def alpha(self, t: Tensor) -> Tensor:
        return self.a(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.s(t)

    def time(self, level: Tensor) -> Tensor:
        want = level.double().log()
        near, far = torch.full_like(want, self.near), torch.full_like(want, self.far)
        for _ in range(60):  # the interval falls below the spacing of float64
            middle = 0.5 * (near + far)
            low = self._log_level(middle) < want
            near, far = torch.where(low, middle, near), torch.where(low, far, middle)
        return 0.5 * (near + far)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t)
        # elementwise functions: the pullback of ones is the derivative
        return torch.func.vjp(self.a, t)[1](one)[0], torch.func.vjp(self.s, t)[1](one)[0]

    def told(self, t: Tensor) -> Tensor:
        return self.factor * t


def _ends(path: RectifiedFlow | Cosine) -> None:
    if not 0.0 < path.margin < 0.5:
        raise ConfigError(f"{type(path).__name__}: expected 0 < margin < 0.5, got {path.margin}")
