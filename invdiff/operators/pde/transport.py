"""Advection and diffusion with coefficients that vary in space.

    u_t + div(v u) = div(kappa grad u) + s,      (I + h K / 2) u' = (I - h K / 2) u + h s,      h = T / steps

Cell-centred finite volumes on a box of one or two axes: (K u)_i is the sum over the axes of (F_i+1/2 - F_i-1/2) / d, d the
spacing, with the flux through a face between cells p and q

    F = w u_f - (2 kappa_p kappa_q / (kappa_p + kappa_q)) (u_q - u_p) / d,      w = (v_p + v_q) / 2
    central    u_f = (u_p + u_q) / 2            order 2 in space; free of oscillations for |w| d <= 2 kappa
    upwind     u_f = u_p where w > 0, else u_q  order 1; monotone in space, with a diffusion |w| d / 2 of its own

and Crank-Nicolson in time, of order 2 and stable for any h where K is dissipative: where div v = 0 with periodic or no-flux
walls, say. It hardly damps modes with h lambda >> 2: a rough state needs h of some d^2 / kappa, or it keeps oscillations.
The sum of u over the cells changes by sources and walls alone.

    boundary     at the walls
    periodic     none
    dirichlet    u = 0, half a cell away: the diffusive flux is 2 kappa_p u_p / d; nothing flows in with v, and "upwind" carries
                 u_p out where v points outward, "central" the 0 of the wall
    neumann      no flux: neither by v nor by kappa

Linear in u(0) and s, with the transposed recursion as its adjoint; one sparse LU of I + h K / 2 serves all steps of both.

References: Eymard, Gallouet, Herbin, Finite volume methods, Handbook of Numerical Analysis VII, 2000. Crank, Nicolson, A
practical method for numerical evaluation of solutions of partial differential equations, Proc. Camb. Phil. Soc. 43, 1947.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ...core.errors import ConfigError, ShapeError, require_positive
from ...core.operator import LinearOperator
from ..axes import per_axis
from ..sparse import SparseLU
from .poisson import Boundary

__all__ = ["AdvectionDiffusion"]

Advection = Literal["central", "upwind"]


class AdvectionDiffusion(LinearOperator):
    """u(0), and with `source` the constant source s, to u at later times.

    Args:
        size: cells (N,) or (N, M), at least two along each axis.
        diffusivity: kappa >= 0, a number or a field (*size) at the cells' centres, length^2 / time.
        velocity: v, a number per axis or a field (axes, *size) at the cells' centres, component k along axis k, length / time;
            None for diffusion alone.
        length: of the box, in any unit; one number, or one per axis.
        boundary: "periodic", "dirichlet" or "neumann"; one for all axes, or one per axis.
        advection: "central" or "upwind".
        source: whether the input has s as a second channel, in the unit of u per time.
        time: T, > 0.
        steps: number of steps to T, >= 1.
        save: number of equally spaced times kept as channels, the last one T; divides `steps`.

    Shapes: (B, 1, *size), or (B, 2, *size) with a source -> (B, save, *size). Solved in float64 on the CPU whatever the input;
    the result has its precision and device.

    Raises:
        ShapeError: another number of axes, fewer than two cells along one, or a coefficient that is not on the grid.
        ConfigError: an argument is out of its range, or a coefficient negative or not finite.
    """

    def __init__(
        self,
        size: Sequence[int],
        diffusivity: float | Tensor,
        velocity: Sequence[float] | Tensor | None = None,
        *,
        length: float | Sequence[float] = 1.0,
        boundary: Boundary | Sequence[Boundary] = "periodic",
        advection: Advection = "central",
        source: bool = False,
        time: float = 1.0,
        steps: int = 64,
        save: int = 1,
    ) -> None:
        grid = tuple(size)
        if not 1 <= len(grid) <= 2 or min(grid) < 2:
            raise ShapeError(f"AdvectionDiffusion: expected one or two axes of at least two cells, got {grid}")
        lengths = per_axis(length, len(grid))
        kinds = per_axis(boundary, len(grid))
        if not len(lengths) == len(kinds) == len(grid) or not set(kinds) <= set(get_args(Boundary)):
            raise ConfigError(
                f"AdvectionDiffusion: expected one length and one boundary of {', '.join(get_args(Boundary))} per axis of "
                f"{grid}, got {length} and {boundary}"
            )
        if advection not in get_args(Advection):
            raise ConfigError(f"AdvectionDiffusion: expected advection of {', '.join(get_args(Advection))}, got {advection!r}")
        for value in (*lengths, time):
            require_positive(self, length_or_time=value)
        if steps < 1 or save < 1 or steps % save:
            raise ConfigError(f"AdvectionDiffusion: expected save >= 1 that divides steps >= 1, got {save} and {steps}")
        super().__init__((2 if source else 1, *grid), (save, *grid))
        kappa, v = _coefficients(grid, diffusivity, velocity)
        self.length, self.boundary, self.advection = tuple(map(float, lengths)), kinds, advection
        self.spacing = tuple(side / n for side, n in zip(self.length, grid, strict=True))
        self.source, self.time, self.steps, self.save = source, float(time), steps, save
        self.matrix = _matrix(kappa, v, self.spacing, self.boundary, advection)
        from scipy.sparse import identity

        half = 0.5 * self.time / steps
        self.factor = SparseLU(identity(prod(grid), format="csc") + half * self.matrix)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2).double()
        state, load = flat[:, 0], flat[:, 1] if self.source else None
        saved = []
        for _ in range(self.save):
            state = self._stretch(state, load)
            saved.append(state)
        return torch.stack(saved, 1).to(x.dtype).reshape(-1, *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        saved, h = y.flatten(2).double(), self.time / self.steps
        state = torch.zeros_like(saved[:, 0])
        load = torch.zeros_like(state)
        for k in reversed(range(self.save)):
            state = state + saved[:, k]
            for _ in range(self.steps // self.save):
                solved = self.factor.solve(state, transposed=True)
                load = load + h * solved
                state = 2.0 * solved - state
        return torch.stack([state, load] if self.source else [state], 1).to(y.dtype).reshape(-1, *self.in_shape)

    def residual(self, a: Tensor, u: Tensor) -> Tensor:
        """What the saved states, (B, save, *size), miss of the scheme, in the unit of u.

        For save = steps it is (I + h K / 2) u' - (I - h K / 2) u - h s of every step, by the stencil, without the factor;
        otherwise u less the state before it carried on.
        """
        self.check(a, "x")
        self.check(u, "y")
        flat, after = a.flatten(2).double(), u.flatten(2).double()
        before = torch.cat((flat[:, :1], after[:, :-1]), 1)
        load = flat[:, 1:2].expand_as(after) if self.source else torch.zeros_like(after)
        if self.save == self.steps:
            h = self.time / self.steps
            missing = after - before - h * load + 0.5 * h * self.rate(after + before)
        else:
            missing = after - self._stretch(before.flatten(0, 1), load.flatten(0, 1)).reshape(after.shape)
        return missing.to(u.dtype).reshape(u.shape)

    def rate(self, u: Tensor) -> Tensor:
        """K u, what leaves each cell per unit of time, of fields flattened to their last dimension, float64."""
        columns = u.reshape(-1, u.shape[-1]).cpu().numpy().T
        return torch.from_numpy(np.ascontiguousarray((self.matrix @ columns).T)).to(u.device).reshape(u.shape)

    def extra_repr(self) -> str:
        return (
            f"size={self.in_shape[1:]}, length={self.length}, boundary={self.boundary}, advection={self.advection}, "
            f"time={self.time}, steps={self.steps}, save={self.save}, source={self.source}"
        )

    def _stretch(self, state: Tensor, load: Tensor | None) -> Tensor:
        h = self.time / self.steps
        for _ in range(self.steps // self.save):
            # I - h K / 2 = 2 I - (I + h K / 2): a step is a solve
            right = 2.0 * state if load is None else 2.0 * state + h * load
            state = self.factor.solve(right) - state
        return state


def _coefficients(
    grid: tuple[int, ...], diffusivity: float | Tensor, velocity: Sequence[float] | Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """kappa (*grid) and v (axes, *grid), float64."""
    kappa = torch.as_tensor(diffusivity, dtype=torch.float64).detach().cpu()
    v = torch.zeros(len(grid)) if velocity is None else torch.as_tensor(velocity, dtype=torch.float64).detach().cpu()
    v = v.double().reshape(-1, *[1] * len(grid)) if v.ndim == 1 and len(v) == len(grid) else v
    if kappa.ndim and kappa.shape != grid:
        raise ShapeError(f"AdvectionDiffusion: expected a number or a field {grid} as diffusivity, got {tuple(kappa.shape)}")
    if v.shape not in ((len(grid), *grid), (len(grid), *[1] * len(grid))):
        raise ShapeError(f"AdvectionDiffusion: expected a velocity {(len(grid), *grid)}, got {tuple(v.shape)}")
    if not bool((kappa >= 0.0).all() and kappa.isfinite().all() and v.isfinite().all()):
        raise ConfigError(
            "AdvectionDiffusion: expected a finite velocity and a finite diffusivity >= 0, got a diffusivity in "
            f"[{float(kappa.min()):.3g}, {float(kappa.max()):.3g}], velocity in [{float(v.min()):.3g}, {float(v.max()):.3g}]"
        )
    return kappa.expand(grid).numpy(), v.expand(len(grid), *grid).numpy()


def _matrix(
    kappa: np.ndarray, velocity: np.ndarray, spacing: tuple[float, ...], boundary: tuple[Boundary, ...], advection: Advection
) -> Any:
    """K, sparse: for each axis the fluxes of its faces, as the weights of the cells before and behind, enter both cells."""
    from scipy.sparse import coo_array

    cells, n = np.arange(kappa.size).reshape(kappa.shape), kappa.size
    rows, columns, values = [], [], []

    def enter(row: np.ndarray, column: np.ndarray, value: np.ndarray) -> None:
        rows.append(row.ravel())
        columns.append(column.ravel())
        values.append(value.ravel())

    for axis, (d, kind) in enumerate(zip(spacing, boundary, strict=True)):
        index, k, v = (np.moveaxis(t, axis, -1) for t in (cells, kappa, velocity[axis]))
        if kind == "periodic":
            index, k, v = (np.concatenate([t, t[..., :1]], -1) for t in (index, k, v))
        p, q, w = index[..., :-1], index[..., 1:], 0.5 * (v[..., :-1] + v[..., 1:])
        total = k[..., :-1] + k[..., 1:]
        conduct = np.divide(2.0 * k[..., :-1] * k[..., 1:], total, out=np.zeros_like(total), where=total > 0.0) / d
        before, behind = (0.5 * w, 0.5 * w) if advection == "central" else (np.maximum(w, 0.0), np.minimum(w, 0.0))
        for cell, weight in ((p, before + conduct), (q, behind - conduct)):
            enter(p, cell, weight / d)
            enter(q, cell, -weight / d)
        if kind == "dirichlet":
            for edge, outward in ((0, -1.0), (-1, 1.0)):
                out = np.maximum(outward * v[..., edge], 0.0) if advection == "upwind" else 0.0
                enter(index[..., edge], index[..., edge], (2.0 * k[..., edge] / d + out) / d)
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return coo_array(entries, shape=(n, n)).tocsc()
