"""Darcy flow: the pressure of a permeability.

    -div(a grad u) = f on a square, u = 0 on its walls,        K(a) u = f,   K(a) = sum_k D_k^T T_k(a) D_k / h_k^2

Cell-centred finite volumes: D_k is the difference across the faces of axis k, with u = 0 behind the walls, and T_k(a) the
permeability of a face between cells p and q, 2 a_p a_q / (a_p + a_q) (harmonic: the flux through two half cells in series) or
(a_p + a_q) / 2 (arithmetic: the convention of much published data, first order where a jumps), and 2 a_p at a wall, which is
half a cell away. K is symmetric and positive definite: one sparse LU of an item serves its solution and its derivatives,

    du = -K^-1 (dK/da da) u        (jvp)            a_bar = -(d(K u)/da)^T K^-1 u_bar        (vjp)

and because the solve is the one primitive, with closed forms for the rest, second derivatives follow by the same rules.

References: Eymard, Gallouet, Herbin, Finite volume methods, Handbook of Numerical Analysis VII, 2000. Li et al., Fourier neural
operator for parametric partial differential equations, 2020, arXiv:2010.08895.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ...core.errors import ConfigError, DataError, ShapeError, require_positive
from ...core.operator import Operator
from ..constants import Constants, as_given

__all__ = ["Darcy"]

Faces = Literal["harmonic", "arithmetic"]


class Darcy(Operator):
    """The pressure u of a permeability a > 0; non-linear, differentiable any number of times.

    Args:
        size: number of cells N, or (N, M) along the two axes; at least 2.
        source: f, a number or a field (N, M).
        length: side of the square, in the unit that f and a are given in (u has the unit of f length^2 / a).
        faces: the mean of a across a face, "harmonic" or "arithmetic".

    Shapes: permeability (B, 1, N, M) -> pressure (B, 1, N, M), both at cell centres. Solved in float64 on the CPU whatever the
    input; the result has its precision and device.

    Raises:
        ConfigError: the length is not positive, or the mean unknown.
        ShapeError: the grid has fewer than two cells along an axis, or the source is not on it.
        DataError: in a call, a permeability that is not positive and finite; the item is named.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        source: float | Tensor = 1.0,
        *,
        length: float = 1.0,
        faces: Faces = "harmonic",
    ) -> None:
        n, m = (size, size) if isinstance(size, int) else size
        super().__init__((1, n, m), (1, n, m))
        require_positive(self, length=length)
        if faces not in get_args(Faces):
            raise ConfigError(f"Darcy: expected faces of {', '.join(get_args(Faces))}, got {faces!r}")
        if n < 2 or m < 2:
            raise ShapeError(f"Darcy: expected at least two cells along each axis, got ({n}, {m})")
        f = torch.as_tensor(source, dtype=torch.float64)
        if f.ndim and f.shape != (n, m):
            raise ShapeError(f"Darcy: expected a number or a field ({n}, {m}) as the source, got {tuple(f.shape)}")
        self.length, self.faces, self.spacing = float(length), faces, (length / n, length / m)
        self.constants = Constants(as_given, f.expand(n, m).clone())

    def forward(self, x: Tensor) -> Tensor:
        a = x.double()
        (f,) = self.constants(a)
        return _Solve.apply(a, f.expand_as(a), _System(self.spacing, self.faces)).to(x.dtype)

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """As for any operator; all products share one factorisation of each item."""
        self.check(x, "x")
        a, system = x.detach().double(), _System(self.spacing, self.faces)
        (f,) = self.constants(a)
        u = system.solve(a, f.expand_as(a))

        def push(t: Tensor) -> Tensor:
            return system.solve(a, -_apply(system.tangents(a, t.detach().double()), u)).to(x.dtype)

        def pull(v: Tensor) -> Tensor:
            return -system.pullback(a, u, system.solve(a, v.detach().double())).to(x.dtype)

        return u.to(x.dtype), push, pull

    def residual(self, a: Tensor, u: Tensor) -> Tensor:
        """K(a) u - f, (B, 1, N, M), in the unit of f: zero to round-off, eps max(a) |u| / h^2, on the operator's own output."""
        self.check(a, "x")
        self.check(u, "y")
        (f,) = self.constants(u)
        return _apply(_System(self.spacing, self.faces).conductances(a), u) - f

    def extra_repr(self) -> str:
        return f"size={self.in_shape[1:]}, length={self.length}, faces={self.faces}"


class _Solve(torch.autograd.Function):
    """K(a)^-1 b for a (B, 1, N, M) and right-hand sides b (B, R, N, M), float64; symmetric in b."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, system: _System) -> Tensor:
        return system.solve(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, _, ctx.system = inputs
        ctx.save_for_backward(a, output)
        ctx.save_for_forward(a, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        a, u = ctx.saved_tensors
        v = _Solve.apply(a, gradient, ctx.system)
        return -ctx.system.pullback(a, u, v) if ctx.needs_input_grad[0] else None, v, None

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, db: Tensor | None, _: None) -> Tensor:
        a, u = ctx.saved_tensors
        load = torch.zeros_like(u) if db is None else db
        if da is not None:
            load = load - _apply(ctx.system.tangents(a, da), u)
        return _Solve.apply(a, load, ctx.system)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], a: Tensor, b: Tensor, system: _System) -> tuple[Tensor, int]:
        n, (dim_a, dim_b, _) = info.batch_size, in_dims
        if dim_a is None:
            # one matrix for all: they are further right-hand sides of its factor
            many = b.movedim(dim_b, 1)
            return _Solve.apply(a, many.flatten(1, 2), system).unflatten(1, many.shape[1:3]), 1
        many = b.movedim(dim_b, 0) if dim_b is not None else b.expand(n, *b.shape)
        return _Solve.apply(a.movedim(dim_a, 0).flatten(0, 1), many.flatten(0, 1), system).unflatten(0, (n, -1)), 0


class _System:
    """The matrices of one evaluation; their factors live as long as its graph."""

    def __init__(self, spacing: tuple[float, float], faces: Faces) -> None:
        self.spacing, self.faces = spacing, faces
        self._values: np.ndarray | None = None
        self._factors: list[Any] = []

    def conductances(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """T_k(a) / h_k^2 of all faces, (B, 1, N + 1, M) and (B, 1, N, M + 1)."""
        rows, columns = self.spacing
        return _faces(a.mT, self.faces).mT / rows**2, _faces(a, self.faces) / columns**2

    def tangents(self, a: Tensor, da: Tensor) -> tuple[Tensor, Tensor]:
        """The derivative of `conductances` along da."""
        rows, columns = self.spacing
        return _faces_jvp(a.mT, da.mT, self.faces).mT / rows**2, _faces_jvp(a, da, self.faces) / columns**2

    def pullback(self, a: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The derivative of <v, K(a) u> with respect to a, summed over right-hand sides."""
        rows, columns = self.spacing
        across = (_slopes(v.mT) * _slopes(u.mT)).sum(1, keepdim=True) / rows**2
        along = (_slopes(v) * _slopes(u)).sum(1, keepdim=True) / columns**2
        return _faces_vjp(a.mT, across, self.faces).mT + _faces_vjp(a, along, self.faces)

    def solve(self, a: Tensor, b: Tensor) -> Tensor:
        """K(a)^-1 b by one sparse LU per item, made once for a given a."""
        values = a.detach().cpu().numpy()
        if self._values is None or not np.array_equal(self._values, values):
            bad = [i for i, v in enumerate(values) if not (np.isfinite(v) & (v > 0.0)).all()]
            if bad:
                low, high = values[bad[0]].min(), values[bad[0]].max()
                raise DataError(f"Darcy: expected a permeability > 0 and finite, item {bad[0]} lies in [{low:.3g}, {high:.3g}]")
            faces = zip(*(t.detach().cpu().numpy() for t in self.conductances(a)), strict=True)
            self._values, self._factors = values.copy(), [_factor(across[0], along[0]) for across, along in faces]
        right = b.detach().cpu().numpy().reshape(*b.shape[:2], -1)
        solved = [lu.solve(np.ascontiguousarray(r.T)).T for lu, r in zip(self._factors, right, strict=True)]
        return torch.from_numpy(np.stack(solved)).to(b.device).reshape(b.shape)


def _factor(across: np.ndarray, along: np.ndarray) -> Any:
    """The sparse LU of K from the conductances of its faces, (N + 1, M) and (N, M + 1)."""
    from scipy.sparse import diags
    from scipy.sparse.linalg import splu

    n, m = len(along), across.shape[1]
    centre = across[:-1] + across[1:] + along[:, :-1] + along[:, 1:]
    east = -along[:, 1:].copy()
    east[:, -1] = 0.0
    side, below = east.ravel()[:-1], -across[1:-1].ravel()
    matrix = diags((centre.ravel(), side, side, below, below), (0, 1, -1, m, -m), shape=(n * m, n * m), format="csc")
    return splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})


def _apply(conductances: tuple[Tensor, Tensor], u: Tensor) -> Tensor:
    across, along = conductances
    return -(across * _slopes(u.mT).mT).diff(dim=-2) - (along * _slopes(u)).diff(dim=-1)


def _slopes(u: Tensor) -> Tensor:
    """Differences along the last axis across all faces, n -> n + 1; u = 0 behind the walls."""
    return pad(u, (1, 1)).diff(dim=-1)


def _faces(a: Tensor, mean: Faces) -> Tensor:
    """The permeability of the faces along the last axis, n -> n + 1."""
    p, q = a[..., :-1], a[..., 1:]
    inner = 2.0 * p * q / (p + q) if mean == "harmonic" else 0.5 * (p + q)
    return torch.cat([2.0 * a[..., :1], inner, 2.0 * a[..., -1:]], -1)


def _weights(a: Tensor, mean: Faces) -> tuple[Tensor, Tensor]:
    """The derivatives of the inner faces with respect to the cell before and the cell behind them."""
    p, q = a[..., :-1], a[..., 1:]
    if mean == "arithmetic":
        half = torch.full_like(p, 0.5)
        return half, half
    return 2.0 * (q / (p + q)).square(), 2.0 * (p / (p + q)).square()


def _faces_jvp(a: Tensor, da: Tensor, mean: Faces) -> Tensor:
    before, behind = _weights(a, mean)
    return torch.cat([2.0 * da[..., :1], before * da[..., :-1] + behind * da[..., 1:], 2.0 * da[..., -1:]], -1)


def _faces_vjp(a: Tensor, w: Tensor, mean: Faces) -> Tensor:
    before, behind = _weights(a, mean)
    inner = w[..., 1:-1]
    return torch.cat([before * inner, 2.0 * w[..., -1:]], -1) + torch.cat([2.0 * w[..., :1], behind * inner], -1)
