"""Grids of noise levels: decreasing from sigma_max to sigma_min in `steps` values, then zero.

    Karras       sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho
    LogUniform   sigma_i = sigma_max (sigma_min / sigma_max)^(i/(N-1))
    VP           sigma(t) = sqrt(exp(beta_min t + (beta_max - beta_min) t^2 / 2) - 1), t equally spaced

A variance-preserving schedule is used only through sigma = sigma_t / alpha_t.

References: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022,
arXiv:2206.00364, Eq. 5; Song, Sohl-Dickstein, Kingma et al., Score-based generative modeling through SDEs, 2021,
arXiv:2011.13456.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ConfigError

__all__ = ["VP", "Grid", "Karras", "LogUniform"]


@dataclass(frozen=True)
class Grid:
    """A rule for noise levels; the limits are the prior's unless they are given here.

    Args:
        sigma_min, sigma_max: limits in data units; None takes the prior's.
    """

    sigma_min: float | None = None
    sigma_max: float | None = None

    def __call__(self, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        """`steps` decreasing levels and a final zero, (steps + 1,) float64, within the prior's limits."""
        low = sigma_min if self.sigma_min is None else self.sigma_min
        high = sigma_max if self.sigma_max is None else self.sigma_max
        slack = 1.0 + 1e-9
        if not (sigma_min <= low * slack and low < high and high <= sigma_max * slack):
            raise ConfigError(
                f"{type(self).__name__}: expected levels inside the prior's [{sigma_min:g}, {sigma_max:g}], got "
                f"[{low:g}, {high:g}]"
            )
        if steps < 2:
            raise ConfigError(f"{type(self).__name__}: expected at least 2 steps, got {steps}")
        levels = self.levels(torch.linspace(0.0, 1.0, steps, dtype=torch.float64), low, high)
        return torch.cat([levels, levels.new_zeros(1)])

    def levels(self, u: Tensor, low: float, high: float) -> Tensor:
        """The levels at positions u in [0, 1], from `high` at 0 to `low` at 1."""
        raise NotImplementedError(f"{type(self).__name__} does not define levels")


@dataclass(frozen=True)
class Karras(Grid):
    """Levels equally spaced in sigma^(1/rho).

    Args:
        rho: 7 spends the steps at low noise, 1 is uniform in sigma.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0.0 < self.rho < math.inf:
            raise ConfigError(f"Karras: expected rho > 0, got {self.rho}")

    def levels(self, u: Tensor, low: float, high: float) -> Tensor:
        a, b = high ** (1.0 / self.rho), low ** (1.0 / self.rho)
        return (a + u * (b - a)) ** self.rho


@dataclass(frozen=True)
class LogUniform(Grid):
    """Levels equally spaced in log sigma."""

    def levels(self, u: Tensor, low: float, high: float) -> Tensor:
        return high * (low / high) ** u


@dataclass(frozen=True)
class VP(Grid):
    """The linear-beta variance-preserving schedule, expressed in sigma and cut to the limits.

    Args:
        beta_min, beta_max: of beta(t) = beta_min + t (beta_max - beta_min).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta_min < self.beta_max < math.inf:
            raise ConfigError(f"VP: expected 0 <= beta_min < beta_max, got {self.beta_min} and {self.beta_max}")

    def levels(self, u: Tensor, low: float, high: float) -> Tensor:
        slope = self.beta_max - self.beta_min
        first, last = (self._time(sigma, slope) for sigma in (high, low))
        t = first + u * (last - first)
        return torch.expm1(self.beta_min * t + 0.5 * slope * t * t).sqrt()

    def _time(self, sigma: float, slope: float) -> float:
        integral = math.log1p(sigma * sigma)
        return (math.sqrt(self.beta_min**2 + 2.0 * slope * integral) - self.beta_min) / slope
