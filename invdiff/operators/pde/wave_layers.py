"""Staggered differences and absorbing layers of the wave equation.

The difference of order 2 q between two rows of points, at the face i + 1/2 between them,

    (G p)_{i+1/2} = sum_{j=1..q} a_j (p_{i+j} - p_{i-j+1}) / h,
    a_j = (-1)^{j+1} / (2 j - 1) prod_{i != j} (2 i - 1)^2 / |(2 i - 1)^2 - (2 j - 1)^2|,

is exact for polynomials of degree 2 q. Beyond the grid p is zero, or, above a free surface, odd about the row before the first.
G^T is the exact transpose, and -G^T G the Laplacian: symmetric, negative definite, of order 2 q, its largest eigenvalue
(2 sum |a_j| / h)^2 along an axis.

Layers stretch the coordinate of axis k, d_k -> d_k / (1 + zeta_k / (i omega)), where zeta_k = zeta_0 (depth / width)^2 and
zeta_0 = 3 speed log(1 / reflection) / (2 width), so that a wave of that speed that runs straight through the layer, and back
from its outer wall, is damped by `reflection`. In time, with one field phi_k for each axis,

    p_tt + (zeta_0 + zeta_1) p_t + zeta_0 zeta_1 p = c^2 (sum_k d_k (d_k p + phi_k) + f)
    phi_k,t = -zeta_k phi_k + (zeta_l - zeta_k) d_k p,        l the other axis.

References: Fornberg, Generation of finite difference formulas on arbitrarily spaced grids, Math. Comp. 51, 1988. Grote, Sim,
Efficient PML for the wave equation, 2010, arXiv:1001.0319.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import log, prod
from typing import Any

import torch
from torch import Tensor

__all__ = ["Difference", "Layers", "coefficients"]


@lru_cache
def coefficients(order: int) -> tuple[float, ...]:
    """a_1, ..., a_q of the staggered difference of that even order."""
    odd = range(1, order, 2)
    return tuple((-1.0) ** (j // 2) / j * prod(i * i / abs(i * i - j * j) for i in odd if i != j) for j in odd)


@dataclass(frozen=True)
class Difference:
    """G along an axis, from n points to the n + 2 q - 1 faces that see them, or to the n + q below a free surface.

    Args:
        axis: -1 or -2.
        weights: a_j / h.
        surface: whether the row before the first is a free surface.
    """

    axis: int
    weights: tuple[float, ...]
    surface: bool = False

    def __call__(self, p: Tensor) -> Tensor:
        """G p."""
        return _Apply.apply(p, self, False)  # type: ignore[no-untyped-call]

    def transpose(self, g: Tensor) -> Tensor:
        """G^T g."""
        return _Apply.apply(g, self, True)  # type: ignore[no-untyped-call]

    def apply(self, p: Tensor) -> Tensor:
        q, axis = len(self.weights), self.axis
        shape = list(p.shape)
        shape[axis] = 2 * q - 1
        parts = [p, p.new_zeros(shape)]
        if self.surface:
            shape[axis] = 1
            parts.insert(0, p.new_zeros(shape))
            if q > 1:
                parts.insert(0, -p.narrow(axis, 0, q - 1).flip(axis))
        else:
            parts.insert(0, parts[1])
        wide = torch.cat(parts, axis)
        faces = wide.shape[axis] - 2 * q + 1
        return self._sum(wide, faces, [(q - 1 + j, q - j) for j in range(1, q + 1)])

    def apply_transpose(self, g: Tensor) -> Tensor:
        q, axis = len(self.weights), self.axis
        points = g.shape[axis] - (q if self.surface else 2 * q - 1)
        if self.surface and q > 1:
            g = torch.cat([g.narrow(axis, 0, q - 1).flip(axis), g], axis)
        return self._sum(g, points, [(q - j, q - 1 + j) for j in range(1, q + 1)])

    def _sum(self, v: Tensor, count: int, starts: list[tuple[int, int]]) -> Tensor:
        """sum_j w_j (v[plus_j:] - v[minus_j:]), `count` long."""
        out: Tensor | None = None
        for weight, (plus, minus) in zip(self.weights, starts, strict=True):
            gap = v.narrow(self.axis, plus, count) - v.narrow(self.axis, minus, count)
            out = gap.mul_(weight) if out is None else out.add_(gap, alpha=weight)
        assert out is not None
        return out


class _Apply(torch.autograd.Function):
    """A difference, whose derivative is itself and whose backward is its transpose."""

    @staticmethod
    def forward(v: Tensor, difference: Difference, transposed: bool) -> Tensor:
        return difference.apply_transpose(v) if transposed else difference.apply(v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, ctx.difference, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Apply.apply(gradient, ctx.difference, not ctx.transposed), None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _Apply.apply(tangent, ctx.difference, ctx.transposed)  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], v: Tensor, difference: Difference, transposed: bool) -> tuple[Tensor, int]:  # noqa: ARG004
        # the axis counts from the end
        return _Apply.apply(v.movedim(in_dims[0], 0), difference, transposed), 0  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Layers:
    """Absorbing layers around a grid.

    Args:
        size: points of the grid, without layers.
        spacing: along each axis.
        width: of a layer, in points; 0 for walls at p = 0.
        order: of the differences.
        surface: a free surface, one spacing above the first row, in place of the layer there.
        speed: that the damping is made for.
        reflection: of a wave of that speed at normal incidence.
    """

    size: tuple[int, int]
    spacing: tuple[float, float]
    width: int
    order: int
    surface: bool
    speed: float
    reflection: float

    @property
    def top(self) -> int:
        """Points of the layer above the first row."""
        return 0 if self.surface else self.width

    @property
    def full(self) -> tuple[int, int]:
        """Points of the grid with its layers."""
        return self.size[0] + self.top + self.width, self.size[1] + 2 * self.width

    @property
    def differences(self) -> tuple[Difference, Difference]:
        """G along both axes."""
        down, across = (tuple(a / h for a in coefficients(self.order)) for h in self.spacing)
        return Difference(-2, down, self.surface), Difference(-1, across)

    @property
    def sharpest(self) -> float:
        """Square root of the largest eigenvalue of the Laplacian, 1 / length."""
        return float(sum((2.0 * sum(map(abs, d.weights))) ** 2 for d in self.differences) ** 0.5)

    @property
    def strongest(self) -> float:
        """Damping sqrt(zeta_0 zeta_1) at the corners, 1 / time."""
        return float(prod(self._damping(k, True).max() for k in (0, 1)) ** 0.5)

    def extend(self, c: Tensor) -> Tensor:
        """(..., *size) -> (..., *full) with the values of the edge in the layers."""
        for axis, before in ((-2, self.top), (-1, self.width)):
            n = c.shape[axis]
            shape = list(c.shape)
            # by hand: the backward of a replicating pad is not deterministic on a GPU
            shape[axis] = before
            first = c.narrow(axis, 0, 1).expand(shape)
            shape[axis] = self.width
            c = torch.cat([first, c, c.narrow(axis, n - 1, 1).expand(shape)], axis)
        return c

    def tables(self, dt: float) -> tuple[Tensor, ...]:
        """Weights of a step dt, float64: of p, of p one step before, of c^2 times what drives p; and for each axis

        of g = G p and phi in the driving flux g + (phi + phi') / 2, and in phi', half a step later than phi.
        """
        (z, z_faces), (x, x_faces) = ([self._damping(k, at_points) for at_points in (True, False)] for k in (0, 1))
        z, z_faces = z[:, None], z_faces[:, None]
        share = 1.0 + dt * (z + x) / 2.0
        tables = [(2.0 - dt**2 * z * x) / share, (1.0 - dt * (z + x) / 2.0) / share, dt**2 / share]
        for own, other in ((z_faces, x), (x_faces, z)):
            keep = (1.0 - dt * own / 2.0) / (1.0 + dt * own / 2.0)
            gain = dt * (other - own) / (1.0 + dt * own / 2.0)
            tables += [t.expand(gain.shape).clone() for t in (1.0 + gain / 2.0, (1.0 + keep) / 2.0, gain, keep)]
        return tuple(tables)

    def taps(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Flat indices into the full grid and bilinear shares of points (S, R, 2), each (S, taps, R); no idle taps."""
        places, shares = [points.new_zeros(points.shape[:2]).long()], [points.new_ones(points.shape[:2])]
        stride = (self.full[1], 1)
        for k, before in enumerate((self.top, self.width)):
            at = points[..., k] / self.spacing[k]
            # a point of the grid is one, whatever the rounding of metres
            at = torch.where((at - at.round()).abs() < 1e-8, at.round(), at)
            low = at.floor().clamp(0, self.size[k] - 2)
            ends = ((low, 1.0 - (at - low)), (low + 1, at - low))
            places = [p + (i.long() + before) * stride[k] for p in places for i, _ in ends]
            shares = [s * w for s in shares for _, w in ends]
        used = [i for i, s in enumerate(shares) if bool(s.any())]
        return torch.stack([places[i] for i in used], 1), torch.stack([shares[i] for i in used], 1)

    def _damping(self, axis: int, at_points: bool) -> Tensor:
        """zeta along an axis with its layers, at its points or its faces."""
        before = self.top if axis == 0 else self.width
        n, q, width = self.size[axis], self.order // 2, self.width
        place = torch.arange(-before, n + width, dtype=torch.float64)
        if not at_points:
            start = -0.5 if axis == 0 and self.surface else 0.5 - q - before
            place = torch.arange(start, n + width + q - 0.5, dtype=torch.float64)
        depth = place - (n - 1)
        if before:
            depth = torch.maximum(depth, -place)
        strength = 3.0 * self.speed * log(1.0 / self.reflection) / (2.0 * max(width, 1) * self.spacing[axis])
        return strength * (depth.clamp(0.0, width) / max(width, 1)).square()
