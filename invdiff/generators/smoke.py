"""Controlled smoke: trajectories of a block of smoke among obstacles, pushed from the rim towards one of seven outlets.

A box of 128 x 128 units, in which a frame lasts 8. A block of density 1 and side 11 starts below the obstacles with velocity
(0, 0.2); y points upwards and grows with the row. The velocity is controlled in a rim 16 units wide alone, for a path of legs
of equal time from the block over points at random x to the target, the middle outlet of the top:

    c_t(r) = 2 (v_k . n) n - v_k + s_t e,     n = r / |r| from the centre,     v_k = gain (p_k+1 - p_k) / leg,     e white,

s_t = |v_k| / 10 at the start of a leg, else `noise`. This is the flow of a dipole: forwards before and behind, backwards at
the sides, because a uniform velocity in the rim, made free of divergence, hardly moves what is inside.

The published set has closed walls, buckets inside them, and a control that is noise alone between way-points; here a control is
held for its leg, and flow passes the outlets. Sample i is a function of (seed, i) alone; held-out data are another seed.

References: Hu et al., Wavelet diffusion neural operator, 2024, arXiv:2412.04833. Wei et al., DiffPhyCon: a generative approach
to control complex physical systems, 2024, arXiv:2407.06494.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError, require_positive
from ..core.rng import Streams
from ..operators.pde.smoke import Smoke, bucket_share
from ..operators.pde.smoke_grid import rectangles

__all__ = ["SmokeControl"]

LENGTH, FRAME, SIDE, SPEED, RIM = 128.0, 8.0, 11.0, 0.2, 16.0
TARGET = (64.0, 124.0)
# (top, left, height, width) of 64 x 64 cells; the first outlet is the target
OBSTACLES = ((28, 20, 4, 8), (28, 36, 4, 8), (44, 28, 4, 8))
OUTLETS = (
    (62, 28, 2, 8),
    (62, 8, 2, 8),
    (62, 48, 2, 8),
    (20, 0, 8, 2),
    (44, 0, 8, 2),
    (20, 62, 8, 2),
    (44, 62, 8, 2),
)


@dataclass(frozen=True, kw_only=True)
class SmokeControl:
    """Trajectories of controlled smoke.

    Args:
        seed: of the data set.
        size: cells along each side, a multiple of 32.
        frames: saved times after the first one, and slots of the control.
        substeps: time steps of a frame.
        waypoints: legs of the path, which divide the frames.
        noise: standard deviation of the control within a leg, length / time.
        gain: of the control over the velocity of the path, as the flow within the rim is slower.

    Raises:
        ConfigError: an argument is out of its range.
    """

    seed: int = 0
    size: int = 64
    frames: int = 32
    substeps: int = 4
    waypoints: int = 4
    noise: float = 0.1
    gain: float = 1.5

    grid_axes: ClassVar[Mapping[str, int]] = MappingProxyType({"velocity": 2, "control": 2})

    def __post_init__(self) -> None:
        require_positive(self, size=self.size, frames=self.frames, substeps=self.substeps, waypoints=self.waypoints)
        if self.size % 32 or self.frames % self.waypoints:
            raise ConfigError(
                "SmokeControl: expected a size that 32 divides and frames that waypoints divide, got "
                f"{self.size}, {self.frames} and {self.waypoints}"
            )
        if not (0.0 <= self.noise < inf and isfinite(self.gain)):
            raise ConfigError(f"SmokeControl: expected noise >= 0 and a finite gain, got {self.noise} and {self.gain}")

    @cached_property
    def outlets(self) -> Tensor:
        """The seven outlets, boolean (7, size, size), the target first."""
        return torch.stack([self._boxes([box]) for box in OUTLETS])

    @cached_property
    def operator(self) -> Smoke:
        """From (density, controls, initial velocity) to the frames."""
        rim = round(self.size * RIM / LENGTH)
        inner = rectangles((self.size, self.size), [[rim, rim, self.size - 2 * rim, self.size - 2 * rim]])
        return Smoke(
            (self.size, self.size),
            obstacles=self._boxes(OBSTACLES),
            outlets=self.outlets.any(0),
            length=(LENGTH, LENGTH),
            time=FRAME * self.frames,
            steps=self.substeps * self.frames,
            save=self.frames,
            controls=self.frames,
            control="velocity",
            control_mask=~inner,
            velocity=None,
            fields="all",
        )

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """What the operator maps to the samples, (N, 3 + 2 frames, size, size), float64."""
        streams, n = Streams(self.seed, tuple(indices)), len(indices)
        start = torch.tensor([52.0, 36.0]) + torch.tensor([24.0, 8.0]) * streams.uniform(0, (2,), "start", torch.float64)
        part = torch.arange(self.waypoints + 1, dtype=torch.float64)[:, None] / self.waypoints
        path = (1.0 - part) * start[:, None] + part * torch.tensor(TARGET)
        path[:, 1:-1, 0] = 32.0 + 64.0 * streams.uniform(0, (self.waypoints - 1,), "path", torch.float64)
        legs = self.frames // self.waypoints
        velocity = (self.gain * path.diff(dim=1) / (FRAME * legs)).repeat_interleave(legs, 1)
        spread = torch.full((n, self.frames, 1), self.noise, dtype=torch.float64)
        spread[:, ::legs] = velocity[:, ::legs].norm(dim=-1, keepdim=True) / 10.0
        white = streams.normal(0, (self.frames, 2, self.size, self.size), "control", torch.float64)
        control = (self._dipole(velocity) + spread[..., None, None] * white) * self.operator.control_mask
        along_x, along_y = self._covered(start[:, 0]), self._covered(start[:, 1])
        density = (along_y[:, :, None] * along_x[:, None, :]).unsqueeze(1)
        return torch.cat([density, control.flatten(1, 2), torch.zeros_like(density), SPEED * density], 1)

    @torch.no_grad()
    def __call__(
        self, indices: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Samples, computed in float64 on the CPU.

        Returns:
            "density" (N, frames + 1, size, size), where an outlet cell holds what it has collected; "velocity" (N, frames + 1,
            2, size, size) and "control" (N, frames, 2, size, size), components (x, y); "outlet" (N, frames + 1), the share of
            the smoke that has left through the target.
        """
        x = self.inputs(indices)
        density, u, v = self.operator.trajectory(x)
        velocity = self.operator.grid.to_cells(u.flatten(0, 1), v.flatten(0, 1)).unflatten(0, density.shape[:2])
        fields = {
            "density": density,
            "velocity": velocity,
            "control": x[:, 1:-2].unflatten(1, (self.frames, 2)),
            "outlet": bucket_share(density, self.outlets[0]),
        }
        return {name: field.to(device, dtype) for name, field in fields.items()}

    def _dipole(self, velocity: Tensor) -> Tensor:
        """2 (v . n) n - v for velocities (N, frames, 2), (N, frames, 2, size, size)."""
        axis = torch.arange(self.size, dtype=torch.float64) - 0.5 * (self.size - 1)
        x, y = axis.expand(self.size, self.size), axis[:, None].expand(self.size, self.size)
        v_x, v_y = velocity[..., None, None].unbind(2)
        along = 2.0 * (v_x * x + v_y * y) / (x**2 + y**2)
        return torch.stack([along * x - v_x, along * y - v_y], 2)

    def _covered(self, centre: Tensor) -> Tensor:
        """The part of each cell along an axis that the block covers, (N, size)."""
        cell = LENGTH / self.size
        edges = (torch.arange(self.size + 1, dtype=torch.float64) * cell - centre[:, None]).clamp(-SIDE / 2.0, SIDE / 2.0)
        return edges.diff(dim=1) / cell

    def _boxes(self, boxes: Sequence[Sequence[int]]) -> Tensor:
        """Boxes of the 64 x 64 cells on this grid."""
        return rectangles((self.size, self.size), [[k * self.size // 64 for k in box] for box in boxes])
