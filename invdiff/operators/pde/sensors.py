"""Values of a field at given points, by multilinear interpolation: sensors, lines of them, tracks.

    y_m = sum_i w_mi u_i,    w_mi = prod over the axes of max(0, 1 - |s_m / h - x_i / h|)

for points x_i and spacing h of the grid that the boundary implies, as in `poisson`: periodic fields are wrapped around, those
with Dirichlet walls go to zero at the walls, and those with Neumann walls are constant from the last cell's centre to the wall.
The interpolation is exact for fields that are linear between the points, and of second order for smooth ones.

A single time of a series, a moving sensor or an average over a line are the same operator: time is an axis, and a line's
average is a mean of points.

References: Strikwerda, Finite difference schemes and partial differential equations, SIAM 2004 (grids and boundaries).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor

from ...core.errors import ConfigError, ShapeError
from ...core.operator import LinearOperator
from ...core.rng import Streams
from ..axes import per_axis
from ..constants import Constants
from ..sparse import csr_pair
from .poisson import Boundary

__all__ = ["AROUND", "PointSensors", "interpolation", "random_sensors"]


class PointSensors(LinearOperator):
    """Fields (C, *grid) to their values at M points, (C, M).

    Args:
        shape: (C, *grid) with one to three axes.
        positions: (M, axes), in the unit of `length`, from 0 to the length of each axis.
        length: of the domain; one number, or one per axis.
        boundary: "periodic", "dirichlet" or "neumann"; one for all axes, or one per axis.

    Raises:
        ShapeError: another number of axes, or positions of another shape.
        ConfigError: a position outside the domain or not finite, an unknown boundary, a length that is not positive.
    """

    def __init__(
        self,
        shape: Sequence[int],
        positions: Tensor | Sequence[Sequence[float]],
        *,
        length: float | Sequence[float] = 1.0,
        boundary: Boundary | Sequence[Boundary] = "dirichlet",
    ) -> None:
        grid = tuple(shape)[1:]
        points = torch.as_tensor(positions, dtype=torch.float64)
        if not 1 <= len(grid) <= 3 or points.ndim != 2 or points.shape[1] != len(grid) or not len(points):
            raise ShapeError(
                f"PointSensors: expected a shape (C, *grid) with 1 to 3 axes and positions (M, axes), got {tuple(shape)} and "
                f"{tuple(points.shape)}"
            )
        lengths = per_axis(length, len(grid))
        kinds = per_axis(boundary, len(grid))
        if not len(lengths) == len(kinds) == len(grid) or min(lengths) <= 0 or not set(kinds) <= set(AROUND):
            raise ConfigError(
                f"PointSensors: expected positive lengths and boundaries of {', '.join(AROUND)}, one per axis of {grid}, got "
                f"{length} and {boundary}"
            )
        inside = ((points >= 0) & (points <= torch.tensor(lengths, dtype=torch.float64))).all(1)
        if not bool(inside.all()):
            m = int((~inside).nonzero()[0])
            raise ConfigError(f"PointSensors: position {m}, {points[m].tolist()}, lies outside the domain of {lengths}")
        super().__init__(tuple(shape), (shape[0], len(points)))
        self.length, self.boundary = tuple(map(float, lengths)), kinds
        self.constants = Constants(partial(interpolation, grid, self.length, kinds), points)

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_to(self.constants(x)[0], x).reshape(-1, *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply_to(self.constants(y)[1], y).reshape(-1, *self.in_shape)

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}, length={self.length}, boundary={self.boundary}"

    def _apply_to(self, matrix: Tensor, x: Tensor) -> Tensor:
        return (matrix @ x.reshape(-1, matrix.shape[1]).T).T


def random_sensors(
    shape: Sequence[int],
    count: int,
    *,
    seed: int = 0,
    length: float | Sequence[float] = 1.0,
    boundary: Boundary | Sequence[Boundary] = "dirichlet",
) -> PointSensors:
    """`PointSensors` at `count` points, uniform in the domain and a function of the seed.

    Raises:
        ConfigError, ShapeError: count is below one; or as `PointSensors`.
    """
    if count < 1:
        raise ConfigError(f"random_sensors: expected count >= 1, got {count}")
    axes = len(tuple(shape)) - 1
    sides = torch.tensor(per_axis(length, axes), dtype=torch.float64)
    unit = Streams(seed).uniform(0, (count, axes), "sensors", torch.float64)[0]
    return PointSensors(shape, unit * sides, length=length, boundary=boundary)


def _periodic(i: Tensor, n: int) -> tuple[Tensor, Tensor]:
    return i % n, torch.ones_like(i, dtype=torch.bool)


def _dirichlet(i: Tensor, n: int) -> tuple[Tensor, Tensor]:
    return i.clamp(0, n - 1), (i >= 0) & (i < n)


def _neumann(i: Tensor, n: int) -> tuple[Tensor, Tensor]:
    return i.clamp(0, n - 1), torch.ones_like(i, dtype=torch.bool)


# for each boundary: spacings in a length beyond the points, the first point in spacings, and the neighbour that stands for one
AROUND: dict[str, tuple[int, float, Callable[[Tensor, int], tuple[Tensor, Tensor]]]] = {
    "periodic": (0, 0.0, _periodic),
    "dirichlet": (1, 1.0, _dirichlet),
    "neumann": (0, 0.5, _neumann),
}


def interpolation(
    grid: tuple[int, ...], length: tuple[float, ...], kinds: tuple[str, ...], points: Tensor
) -> tuple[Tensor, ...]:
    """The interpolation (M, N) and its transpose, in compressed rows."""
    ends: list[list[tuple[Tensor, Tensor]]] = []
    for n, side, kind, s in zip(grid, length, kinds, points.T, strict=True):
        extra, first, around = AROUND[kind]
        place = s * ((n + extra) / side) - first
        low = place.floor().long()
        share = place - low
        axis = []
        for i, weight in ((low, 1 - share), (low + 1, share)):
            index, counts = around(i, n)
            axis.append((index, weight * counts))
        ends.append(axis)
    rows, columns, values = [], [], []
    strides = [math.prod(grid[k + 1 :]) for k in range(len(grid))]
    for corner in product(*ends):
        rows.append(torch.arange(len(points)))
        columns.append(torch.stack([index * stride for (index, _), stride in zip(corner, strides, strict=True)]).sum(0))
        values.append(torch.stack([weight for _, weight in corner]).prod(0))
    entries, row, column = (torch.cat(parts).numpy() for parts in (values, rows, columns))
    return csr_pair(entries, row, column, (len(points), math.prod(grid)))
