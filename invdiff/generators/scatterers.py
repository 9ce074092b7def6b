"""Scatterers: contrasts of cell-like objects with sub-structures, for inverse scattering.

An object is a body with a nucleus and granules, each a region around a centre c with a contrast of its own,

    rho(theta) = 1 + sum_m b_m cos(m theta + p_m)   (m = 2, 3, 4; zero but for bodies),   theta in the frame of the axes
    distance   = (rho - |(x - c) / axes|) min(axes),      share = smoothstep(1/2 + distance / (2 edge))

laid over what is there: f <- (1 - share) f + share value. f is then from the lowest contrast or 0, whichever is lower, to the
highest or 0, continuously differentiable, zero near the walls, and the same on every grid. Sample i is a function of (seed, i)
alone; held-out data are another seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigError, require_positive
from ..core.rng import Streams

__all__ = ["Scatterers"]

_WALL, _BUMP = 0.47, 0.08


@dataclass(frozen=True, kw_only=True)
class Scatterers:
    """Contrasts of cell-like objects: {"f": (N, 1, size, size)}, n^2 - 1, without unit.

    Args:
        seed: of the set.
        size: cells along each side; lengths below are in sides of the square.
        contrast: lowest and highest value of a region; any real ones but lowest > highest.
        objects: least and greatest number of objects.
        axes: least and greatest semi-axis of a body.
        granules: number of granules in an object.
        edge: half width of the smooth edge of a region, where its axis is the shorter one; along the longer one wider by their
            ratio.

    Raises:
        ConfigError: an option is out of its range, or the largest body does not fit between the walls.
    """

    seed: int = 0
    size: int = 128
    contrast: tuple[float, float] = (0.2, 1.0)
    objects: tuple[int, int] = (1, 4)
    axes: tuple[float, float] = (0.06, 0.2)
    granules: int = 3
    edge: float = 0.01

    def __post_init__(self) -> None:
        require_positive(self, size=self.size, edge=self.edge)
        if not (self.contrast[0] <= self.contrast[1] and all(map(math.isfinite, self.contrast))):
            raise ConfigError(f"Scatterers: expected contrast as (lowest, highest), got {tuple(self.contrast)}")
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise ConfigError(f"Scatterers: expected objects as (least, greatest) from 1 on, got {tuple(self.objects)}")
        if not 0.0 < self.axes[0] <= self.axes[1] <= 0.3:
            raise ConfigError(f"Scatterers: expected axes as (least, greatest) in (0, 0.3], got {tuple(self.axes)}")
        if self.granules < 0:
            raise ConfigError(f"Scatterers: expected granules >= 0, got {self.granules}")
        reach = self.axes[1] * (1.0 + 3.0 * _BUMP) + self.edge * self.axes[1] / self.axes[0]
        if reach > _WALL:
            raise ConfigError(
                f"Scatterers: expected bodies that reach to at most {_WALL} from their centre, got up to {reach:.3g} with "
                f"axes={tuple(self.axes)} and edge={self.edge}"
            )

    def __call__(
        self, indices: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        streams = Streams(self.seed, indices)
        f = torch.zeros(len(streams.draws), self.size, self.size, dtype=torch.float64, device=device)
        axis = (torch.arange(self.size, dtype=torch.float64, device=device) + 0.5) / self.size - 0.5
        least, greatest = self.objects
        count = streams.uniform(0, (1,), "objects", torch.float64, device)[:, 0] * (greatest - least + 1) + least
        for j in range(greatest):
            drawn = _Drawn(streams, j, device)
            axes = _between(drawn("axes", 2), self.axes)
            bumps = _BUMP * drawn("bumps", 3)
            # the farthest point of a body stays within the walls
            reach = axes.amax(1) * (1.0 + bumps.sum(1) + self.edge / axes.amin(1))
            centre = (2.0 * drawn("centre", 2) - 1.0) * (_WALL - reach)[:, None]
            angle, present = 2.0 * math.pi * drawn("angle", 1)[:, 0], (j < count.floor()).double()
            body = _share(axis, centre, axes, angle, self.edge, bumps, 2.0 * math.pi * drawn("phases", 3))
            f = self._lay(f, body, drawn("body", 1), present)
            offset = _turned(0.35 * axes * (2.0 * drawn("nucleus centre", 2) - 1.0), angle)
            nucleus = _share(axis, centre + offset, axes * _between(drawn("nucleus axes", 2), (0.25, 0.45)), angle, self.edge)
            f = self._lay(f, nucleus * body, drawn("nucleus", 1), present)
            for g in range(self.granules):
                distance, turn = drawn(f"granule {g}", 2).unbind(1)
                turn = 2.0 * math.pi * turn
                place = 0.75 * distance.sqrt()[:, None] * axes * torch.stack([turn.cos(), turn.sin()], 1)
                radius = axes.amin(1, keepdim=True) * _between(drawn(f"radius {g}", 1), (0.1, 0.2))
                granule = _share(axis, centre + _turned(place, angle), radius.expand(-1, 2), angle, self.edge)
                f = self._lay(f, granule * body, drawn(f"value {g}", 1), present)
        return {"f": f[:, None].to(dtype)}

    def _lay(self, f: Tensor, share: Tensor, level: Tensor, present: Tensor) -> Tensor:
        return torch.lerp(f, _between(level, self.contrast)[..., None].expand_as(f), share * present[:, None, None])


class _Drawn:
    """Uniform numbers of object j by name, (N, count)."""

    def __init__(self, streams: Streams, j: int, device: torch.device | str) -> None:
        self.streams, self.j, self.device = streams, j, device

    def __call__(self, name: str, count: int) -> Tensor:
        return self.streams.uniform(self.j, (count,), name, torch.float64, self.device)


def _between(u: Tensor, limits: tuple[float, float]) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * u


def _turned(v: Tensor, angle: Tensor) -> Tensor:
    """Vectors (N, 2) turned by angles (N,)."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([c * v[:, 0] - s * v[:, 1], s * v[:, 0] + c * v[:, 1]], 1)


def _share(
    axis: Tensor,
    centre: Tensor,
    axes: Tensor,
    angle: Tensor,
    edge: float,
    bumps: Tensor | None = None,
    phases: Tensor | None = None,
) -> Tensor:
    """How much of each point belongs to a region, (N, n, n)."""
    y, x = axis[:, None] - centre[:, 0, None, None], axis - centre[:, 1, None, None]
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    p, q = (c * y + s * x) / axes[:, 0, None, None], (c * x - s * y) / axes[:, 1, None, None]
    rho = torch.ones_like(p)
    if bumps is not None and phases is not None:
        theta = torch.atan2(q, p)
        for m in range(3):
            rho = rho + bumps[:, m, None, None] * ((m + 2) * theta + phases[:, m, None, None]).cos()
    distance = (rho - torch.hypot(p, q)) * axes.amin(1)[:, None, None]
    t = (0.5 + distance / (2.0 * edge)).clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
