"""Velocities of layered ground: folds, faults and a gradient with depth.

In depth z and distance x of the unit square, downwards,

    s(z, x) = z + fold sum_{k=1..3} b_k sin(2 pi k nu x + phi_k) / k + sum_f throw_f [x - x_f > (z - 1/2) tan(dip_f)],
    c(z, x) = low + (high - low) (g clip(s) + (1 - g) r_j),       layer j: t_j < s <= t_{j+1},

r_j uniform in (0, 1), t_j uniform in (0, 1) and sorted, b_k and the throws uniform and of either sign, dips up to 30 degrees
off the vertical. Sample i is a function of (seed, i) alone; held-out data are another seed.

References: Deng et al., OpenFWI: large-scale multi-structural benchmark datasets for full waveform inversion, 2022,
arXiv:2111.02926 (families of flat, curved and faulted layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi, radians

import torch
from torch import Tensor

from ..core.errors import ConfigError, require_positive
from ..core.rng import Streams

__all__ = ["VelocityModels"]


@dataclass(frozen=True, kw_only=True)
class VelocityModels:
    """Velocities {"c": (N, 1, *shape)}, metres per second, between low and high.

    Args:
        seed: of the set.
        shape: points (H, W), depth first.
        low, high: the bounds, 0 < low < high.
        layers: fewest and most layers, >= 1; their number is uniform between them.
        fold: height of the folds, in depths of the square, >= 0.
        faults: the most faults; their number is uniform from 0.
        throw: the most that a fault moves layers, in depths of the square, >= 0.
        gradient: g, the part of the contrast that grows with depth, from 0 to 1; the rest jumps at random between layers.

    Raises:
        ConfigError: an argument is out of its range.
    """

    seed: int = 0
    shape: tuple[int, int] = (64, 64)
    low: float = 1500.0
    high: float = 4500.0
    layers: tuple[int, int] = (4, 10)
    fold: float = 0.08
    faults: int = 2
    throw: float = 0.15
    gradient: float = 0.6

    def __post_init__(self) -> None:
        require_positive(self, low=self.low, high=self.high)
        if min(self.shape) < 2 or not self.low < self.high or not 1 <= self.layers[0] <= self.layers[1]:
            raise ConfigError(
                f"VelocityModels: expected a shape of at least 2 x 2, low < high and 1 <= fewest <= most layers, got "
                f"{tuple(self.shape)}, {self.low}, {self.high}, {tuple(self.layers)}"
            )
        if self.fold < 0.0 or self.faults < 0 or self.throw < 0.0 or not 0.0 <= self.gradient <= 1.0:
            raise ConfigError(
                f"VelocityModels: expected fold, faults and throw >= 0 and a gradient in [0, 1], got {self.fold}, "
                f"{self.faults}, {self.throw}, {self.gradient}"
            )

    def __call__(
        self, indices: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        streams = Streams(self.seed, indices)

        def uniform(purpose: str, *shape: int) -> Tensor:
            return streams.uniform(0, shape, purpose, torch.float64, device)

        z, x = ((torch.arange(n, dtype=torch.float64, device=device) + 0.5) / n for n in self.shape)
        z, x = z[:, None], x[None]
        s = z.expand(len(indices), *self.shape) + self._folds(uniform("folds", 7), x)
        broken = (uniform("faults", 1)[..., None] * (self.faults + 1)).floor()
        for k in range(self.faults):
            place, dip, throw = uniform(f"fault {k}", 3)[..., None, None].unbind(1)
            beyond = x - place > (z - 0.5) * torch.tan(radians(60.0) * (dip - 0.5))
            s = s + torch.where(beyond & (k < broken), self.throw * (2.0 * throw - 1.0), 0.0)
        fewest, most = self.layers
        number = fewest + (uniform("number", 1) * (most - fewest + 1)).floor()
        tops, jumps = uniform("tops", most), uniform("jumps", most)
        layer = torch.zeros_like(s, dtype=torch.long)
        for j in range(most - 1):
            layer += (s > tops[:, j, None, None]) & (j + 1 < number[..., None])
        share = self.gradient * s.clamp(0.0, 1.0) + (1.0 - self.gradient) * jumps.gather(1, layer.flatten(1)).reshape(s.shape)
        return {"c": (self.low + (self.high - self.low) * share)[:, None].to(dtype)}

    def _folds(self, u: Tensor, x: Tensor) -> Tensor:
        """The height of the folds at each distance, (N, 1, W)."""
        wave = 0.5 + u[:, 6]
        height = torch.zeros_like(u[:, :1, None] * x)
        for k in (1, 2, 3):
            angle = 2.0 * pi * (k * wave[:, None, None] * x + u[:, k + 2, None, None])
            height = height + (2.0 * u[:, k - 1, None, None] - 1.0) * torch.sin(angle) / k
        return self.fold * height
