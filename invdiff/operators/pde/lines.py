"""Means of a field along straight segments: rays, transects, baselines.

    y_m = (1 / |l_m|) int over l_m of u ds

of the multilinear interpolant of `sensors`, exactly: between two crossings of a segment with planes of the grid it is a
polynomial of a degree of at most three, one for each axis, which two Gauss points integrate. For smooth fields of second order.

References: Davis, Rabinowitz, Methods of numerical integration, 1984.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...core.errors import ConfigError, ShapeError
from ...core.operator import LinearOperator
from ..constants import Constants
from ..sparse import csr_pair
from .observe import domain
from .poisson import Boundary
from .sensors import AROUND, interpolation

__all__ = ["LineAverages"]


class LineAverages(LinearOperator):
    """Fields (C, *grid) to their means along M straight segments, (C, M); a segment of no length is a point.

    Args:
        shape: (C, *grid) with one to three axes.
        ends: (M, 2, axes), both ends of each segment, in the unit of `length`, from 0 to the length of each axis.
        length: of the domain; one number, or one per axis.
        boundary: "periodic", "dirichlet" or "neumann", as `PointSensors`; one for all axes, or one per axis.

    Raises:
        ShapeError: another number of axes, or ends of another shape.
        ConfigError: an end outside the domain or not finite, an unknown boundary, a length that is not positive.
    """

    def __init__(
        self,
        shape: Sequence[int],
        ends: Tensor | Sequence[Sequence[Sequence[float]]],
        *,
        length: float | Sequence[float] = 1.0,
        boundary: Boundary | Sequence[Boundary] = "dirichlet",
    ) -> None:
        lengths, kinds = domain("LineAverages", shape, length, boundary)
        segments, axes = torch.as_tensor(ends, dtype=torch.float64), len(lengths)
        if segments.ndim != 3 or segments.shape[1:] != (2, axes) or not len(segments):
            raise ShapeError(f"LineAverages: expected ends (M, 2, {axes}), got {tuple(segments.shape)}")
        inside = ((segments >= 0) & (segments <= torch.tensor(lengths, dtype=torch.float64))).all(2).all(1)
        if not bool(inside.all()):
            m = int((~inside).nonzero()[0])
            raise ConfigError(f"LineAverages: segment {m}, {segments[m].tolist()}, leaves the domain of {lengths}")
        super().__init__(tuple(shape), (shape[0], len(segments)))
        self.length, self.boundary = lengths, kinds
        self.constants = Constants(partial(_lines, tuple(shape)[1:], lengths, kinds), segments)

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_to(self.constants(x)[0], x).reshape(-1, *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply_to(self.constants(y)[1], y).reshape(-1, *self.in_shape)

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}, length={self.length}, boundary={self.boundary}"

    def _apply_to(self, matrix: Tensor, x: Tensor) -> Tensor:
        return (matrix @ x.reshape(-1, matrix.shape[1]).T).T


def _lines(grid: tuple[int, ...], length: tuple[float, ...], kinds: tuple[str, ...], ends: Tensor) -> tuple[Tensor, ...]:
    """The averages (M, N) of the interpolant and their transpose, in compressed rows."""
    from scipy.sparse import csr_array

    points, shares, owners = [], [], []
    scale = torch.tensor(
        [(n + AROUND[kind][0]) / side for n, side, kind in zip(grid, length, kinds, strict=True)], dtype=torch.float64
    )
    first = torch.tensor([AROUND[kind][1] for kind in kinds], dtype=torch.float64)
    for m, (start, stop) in enumerate(ends):
        cuts = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
        for a, b in zip(start * scale - first, stop * scale - first, strict=True):
            planes = torch.arange(math.ceil(min(a, b)), math.floor(max(a, b)) + 1, dtype=torch.float64)
            cuts.append(((planes - a) / (b - a)).clamp(0.0, 1.0) if a != b else planes[:0])
        t = torch.cat(cuts).unique()
        for node in (-1.0, 1.0):
            place = 0.5 * (t[1:] + t[:-1]) + node * (0.5 / math.sqrt(3.0)) * t.diff()
            points.append(start + place[:, None] * (stop - start))
            shares.append(0.5 * t.diff())
            owners.append(torch.full((len(place),), m))
    where, share, owner = (torch.cat(parts) for parts in (points, shares, owners))
    read, _ = interpolation(grid, length, kinds, where)
    values, indices, pointers = (part.numpy() for part in (read.values(), read.col_indices(), read.crow_indices()))
    reading = csr_array((values, indices, pointers), shape=tuple(read.shape))
    mean = csr_array((share.numpy(), (owner.numpy(), np.arange(len(owner)))), shape=(len(ends), len(owner)))
    product = (mean @ reading).tocoo()
    rows, columns = product.coords
    return csr_pair(product.data, rows, columns, product.shape)
