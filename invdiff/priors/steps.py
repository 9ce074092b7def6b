"""Discrete variance-preserving schedules: DDPM, improved DDPM, ADM (guided-diffusion), Stable Diffusion.

    abar_t = prod_{s <= t} (1 - beta_s),    alpha_t = sqrt(abar_t),    sigma_t = sqrt(1 - abar_t),    level^2 = 1 / abar_t - 1

It is abar, the cumulative product, and its square root, that belong here; the logarithms are summed in float64, so that
neither the first level (1 - abar of 1e-4) nor the last (abar of 1e-9) loses digits.

Between the steps ln(level) is linear in t. A network with a sinusoidal embedding is told that fractional t: it was trained at
the whole ones, and the embedding is smooth. One with a table of embeddings has `nearest=True`: it is told the nearest whole
step (in ln(level)), while the input and the combination with x keep the level of the call; the level it believes in is then
off by up to half a step (22 % at the first of DDPM's linear schedule, 0.3 % at its middle), and `Path.known` lists the
levels where it is not.

References: Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020, arXiv:2006.11239. Nichol, Dhariwal, Improved
denoising diffusion probabilistic models, 2021, arXiv:2102.09672. Dhariwal, Nichol, Diffusion models beat GANs on image
synthesis, 2021, arXiv:2105.05233. Rombach et al., High-resolution image synthesis with latent diffusion models, 2022,
arXiv:2112.10752.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .paths import Path

__all__ = ["DiscreteVP", "cosine_betas", "cumulative_betas", "linear_betas", "scaled_linear_betas"]


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> tuple[float, ...]:
    """DDPM's and ADM's schedule: beta in equal steps. For T steps other than 1000 ADM scales start and end by 1000 / T."""
    return tuple(torch.linspace(start, end, steps, dtype=torch.float64).tolist())


def scaled_linear_betas(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> tuple[float, ...]:
    """Stable Diffusion's schedule: sqrt(beta) in equal steps."""
    return tuple(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square().tolist())


def cosine_betas(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> tuple[float, ...]:
    """Improved DDPM's: abar_t = f(t / T) / f(0), f(u) = cos^2((u + offset) / (1 + offset) pi / 2), beta at most `largest`."""
    u = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
    f = torch.cos((u + offset) / (1 + offset) * (math.pi / 2)).square()
    return tuple((1 - f[1:] / f[:-1]).clamp_max(largest).tolist())


def cumulative_betas(abar: Sequence[float] | Tensor) -> tuple[float, ...]:
    """The betas of a table of cumulative products abar, decreasing in (0, 1)."""
    table = torch.as_tensor(abar, dtype=torch.float64)
    return tuple((1 - table / torch.cat([table.new_ones(1), table[:-1]])).tolist())


@dataclass(frozen=True)
class DiscreteVP(Path):
    """A schedule of T betas.

    Args:
        betas: T numbers in (0, 1), in the order of increasing noise.
        first: what the network calls the first of them: 0 if it counts 0 ... T-1, 1 if 1 ... T.
        factor: it is told factor * t; 1 / T for one that takes t in [0, 1].
        nearest: tell it whole steps only (int64 if factor is 1).

    Raises:
        ConfigError: fewer than 2 betas, or one outside (0, 1). A schedule rescaled to zero terminal signal-to-noise ratio
            ends with beta = 1, an infinite level: leave that step out.
    """

    betas: Sequence[float] = field(repr=False)
    first: int = 0
    factor: float = 1.0
    nearest: bool = False
    _log_levels: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        if len(self.betas) < 2 or not all(0.0 < b < 1.0 for b in self.betas):
            low, high = min(self.betas, default=math.nan), max(self.betas, default=math.nan)
            raise ConfigError(
                f"DiscreteVP: expected 2 or more betas in (0, 1), got {len(self.betas)} between {low:g} and {high:g}: leave a "
                "last step without signal out, and give cumulative products as cumulative_betas(abar)"
            )
        log_abar = torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)).cumsum(0)
        object.__setattr__(self, "_log_levels", 0.5 * ((-torch.expm1(log_abar)).log() - log_abar))

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return float(self._log_levels[0].exp())

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return float(self._log_levels[-1].exp())

    @property
    def known(self) -> Tensor | None:
        return self._log_levels.exp() if self.nearest else None

    def _squared_level(self, t: Tensor) -> Tensor:
        table = self._log_levels.to(t.device)
        position = t.double() - self.first
        left = position.floor().clamp(0, len(table) - 2).long()
        return (2 * torch.lerp(table[left], table[left + 1], position - left)).exp()

    def alpha(self, t: Tensor) -> Tensor:
        return (1 + self._squared_level(t)).rsqrt()

    def sigma(self, t: Tensor) -> Tensor:
        squared = self._squared_level(t)
        return (squared / (1 + squared)).sqrt()

    def time(self, level: Tensor) -> Tensor:
        table, want = self._log_levels.to(level.device), level.double().log()
        left = torch.searchsorted(table, want, right=True).sub(1).clamp(0, len(table) - 2)
        return self.first + left + (want - table[left]) / (table[left + 1] - table[left])

    def told(self, t: Tensor) -> Tensor:
        if not self.nearest:
            return self.factor * t
        whole = t.round().long()
        return whole if self.factor == 1.0 else self.factor * whole.double()
