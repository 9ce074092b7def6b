"""A staggered grid with obstacles: averages, semi-Lagrangian transport, and the projection to no divergence.

Cells (i, j), i along y, of size (h_y, h_x); u on faces across x, (H, W + 1), v on faces across y, (H + 1, W). A face is open
between two fluid cells, and at the border of an outlet cell, behind which the pressure is 0; all others carry no flow.

    (D u)_ij = (u_i,j+1 - u_ij) / h_x + (v_i+1,j - v_ij) / h_y      G = -D^T on open faces      P u = u + G p,  (D G) p = -D u

so that D P = 0, P P = P and P = P^T. One sparse LU of -D G serves every solve, its derivative and its adjoint, which are the
same solve; a region without an outlet leaves its pressure free by a constant, which is fixed at one cell.

Transport reads a field where what arrives came from, x - t w(x) (Euler) or x - t w(x - t w(x) / 2) (midpoint rule), by bilinear
interpolation: a mean of its values, so that no new extremum arises. Outside the box the nearest value holds; a corner of the
interpolation that lies in an obstacle counts with the value of the place of arrival, so that a wall neither dilutes what slides
along it nor lets through what starts less than its thickness away.

References: Harlow, Welch, Numerical calculation of time-dependent viscous incompressible flow of fluid with free surface, Phys.
Fluids 8, 1965. Stam, Stable fluids, SIGGRAPH 1999. Staniforth, Cote, Semi-Lagrangian integration schemes for atmospheric
models: a review, Mon. Weather Rev. 119, 1991.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import NumericalError, ShapeError
from ...core.linalg import cg

__all__ = ["MACGrid", "rectangles"]

Trace = Literal["euler", "midpoint"]


def rectangles(size: tuple[int, int], boxes: Sequence[Sequence[int]]) -> Tensor:
    """Boolean mask (H, W), True in boxes (top, left, height, width) of cells.

    Raises:
        ShapeError: a box is no four numbers, or reaches out of the grid.
    """
    mask = torch.zeros(tuple(size), dtype=torch.bool)
    for box in boxes:
        if len(box) != 4 or min(box) < 0 or box[0] + box[2] > size[0] or box[1] + box[3] > size[1]:
            raise ShapeError(f"rectangles: expected (top, left, height, width) inside {tuple(size)}, got {tuple(box)}")
        top, left, height, width = box
        mask[top : top + height, left : left + width] = True
    return mask


class MACGrid(nn.Module):
    """The grid of an operator.

    Args:
        obstacles, outlets: boolean, (H, W), no cell of both.
        spacing: (h_y, h_x), in the unit of length.

    Shapes: u (B, H, W + 1), v (B, H + 1, W), zero on closed faces; fields of cells (B, H, W), zero in obstacles.
    """

    fluid: Tensor
    open_x: Tensor
    open_y: Tensor
    known_x: Tensor
    known_y: Tensor

    def __init__(self, obstacles: Tensor, outlets: Tensor, spacing: tuple[float, float]) -> None:
        super().__init__()
        fluid = ~obstacles
        border = fluid & outlets
        open_x = torch.cat([border[:, :1], fluid[:, 1:] & fluid[:, :-1], border[:, -1:]], 1)
        open_y = torch.cat([border[:1], fluid[1:] & fluid[:-1], border[-1:]], 0)
        # a face with fluid on one side has velocity 0; inside an obstacle there is none
        known = {"known_x": _either(fluid.mT).mT, "known_y": _either(fluid)}
        masks = {"fluid": fluid, "open_x": open_x, "open_y": open_y, **known}
        for name, mask in masks.items():
            self.register_buffer(name, mask, persistent=False)
        self.spacing, self.blocked = spacing, bool(obstacles.any())
        self.pressure = _Pressure(fluid, open_x, open_y, spacing)

    def divergence(self, u: Tensor, v: Tensor) -> Tensor:
        """D (u, v), (B, H, W), in 1 / time."""
        return u.diff(dim=-1) / self.spacing[1] + v.diff(dim=-2) / self.spacing[0]

    def gradient(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """G p on open faces."""
        return _gradient(p, self.open_x, self.open_y, self.spacing)

    def project(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest velocity without divergence, of one that is zero on closed faces."""
        p = _Solve.apply(self.divergence(u, v).double(), self.pressure)
        across, along = self.gradient(p.to(u.dtype))
        return u + across, v + along

    def to_faces(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """The means of (x, y) components at cells, (B, 2, H, W), on open faces; that of one cell at the border."""
        x, y = cells.unbind(-3)
        return _means(x) * self.open_x, _means(y.mT).mT * self.open_y

    def to_cells(self, u: Tensor, v: Tensor) -> Tensor:
        """(x, y) components at cells, (B, 2, H, W)."""
        x, y = 0.5 * (u[..., 1:] + u[..., :-1]), 0.5 * (v[..., 1:, :] + v[..., :-1, :])
        return torch.stack([x, y], -3) * self.fluid

    def carry(self, rho: Tensor, u: Tensor, v: Tensor, time: float, trace: Trace) -> Tensor:
        """A field of cells after it has moved with (u, v) for a time."""
        x, y = self.to_cells(u, v).unbind(-3)
        return self._carry(rho, (x, y), (0.0, 0.0), (u, v), time, trace, self.fluid) * self.fluid

    def carry_velocity(self, a: Tensor, b: Tensor, u: Tensor, v: Tensor, time: float, trace: Trace) -> tuple[Tensor, Tensor]:
        """A field of faces (a, b) after it has moved with (u, v) for a time."""
        x, y = self.to_cells(u, v).unbind(-3)
        a = self._carry(a, (u, _means(y)), (0.5, 0.0), (u, v), time, trace, self.known_x) * self.open_x
        b = self._carry(b, (_means(x.mT).mT, v), (0.0, 0.5), (u, v), time, trace, self.known_y) * self.open_y
        return a, b

    def _carry(
        self,
        field: Tensor,
        here: tuple[Tensor, Tensor],
        offset: tuple[float, float],
        flow: tuple[Tensor, Tensor],
        time: float,
        trace: Trace,
        known: Tensor,
    ) -> Tensor:
        """A field on a grid that starts `offset` (x, y) cells before the first centre; `here` is the velocity at its points."""
        rows, columns = (torch.arange(n, dtype=field.dtype, device=field.device) for n in field.shape[-2:])
        y, x = rows.unsqueeze(1), columns
        per_x, per_y = time / self.spacing[1], time / self.spacing[0]
        u, v = here
        if trace == "midpoint":
            # the grid of u starts half a cell before the first centre along x, that of v along y
            dx, dy = 0.5 * per_x * u, 0.5 * per_y * v
            u = _bilinear(flow[0], y - dy - offset[1], x - dx - offset[0] + 0.5)
            v = _bilinear(flow[1], y - dy - offset[1] + 0.5, x - dx - offset[0])
        y, x = y - per_y * v, x - per_x * u
        if not self.blocked:
            return _bilinear(field, y, x)
        weight = _bilinear(known.to(field.dtype).expand(field.shape), y, x)
        return _bilinear(field * known, y, x) + (1.0 - weight) * field


def _either(fluid: Tensor) -> Tensor:
    """Faces along the first axis with fluid on at least one side, n -> n + 1."""
    return torch.cat([fluid[:1], fluid[1:] | fluid[:-1], fluid[-1:]], 0)


def _means(cells: Tensor) -> Tensor:
    """Means along the last axis at faces, n -> n + 1."""
    wide = torch.cat([cells[..., :1], cells, cells[..., -1:]], -1)
    return 0.5 * (wide[..., 1:] + wide[..., :-1])


def _gradient(p: Tensor, open_x: Tensor, open_y: Tensor, spacing: tuple[float, float]) -> tuple[Tensor, Tensor]:
    pad = nn.functional.pad
    across = pad(p, (1, 1)).diff(dim=-1) / spacing[1]
    along = pad(p, (0, 0, 1, 1)).diff(dim=-2) / spacing[0]
    return across * open_x, along * open_y


def _bilinear(field: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """A field (B, n, m) at positions (B, h, w) in steps of its grid; outside the grid the nearest value."""
    n, m = field.shape[-2:]
    y, x = y.clamp(0.0, n - 1.0), x.clamp(0.0, m - 1.0)
    top, left = y.detach().floor().clamp(max=n - 2.0), x.detach().floor().clamp(max=m - 2.0)
    below, right = y - top, x - left
    corner = (top * m + left).long().flatten(-2)
    flat = field.flatten(-2)
    a, b, c, d = (flat.gather(-1, corner + k).view(y.shape) for k in (0, 1, m, m + 1))
    return (1.0 - below) * ((1.0 - right) * a + right * b) + below * ((1.0 - right) * c + right * d)


class _Solve(torch.autograd.Function):
    """(-D G)^-1 b, b (..., H, W) float64; linear and symmetric."""

    @staticmethod
    def forward(b: Tensor, pressure: _Pressure) -> Tensor:
        return pressure.solve(b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.pressure = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Solve.apply(gradient, ctx.pressure), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _Solve.apply(tangent, ctx.pressure)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], b: Tensor, pressure: _Pressure) -> tuple[Tensor, int]:  # noqa: ARG004
        return _Solve.apply(b.movedim(in_dims[0], 0), pressure), 0


class _Pressure:
    """-D G and its factor, which is made at the first solve and not copied."""

    def __init__(self, fluid: Tensor, open_x: Tensor, open_y: Tensor, spacing: tuple[float, float]) -> None:
        self.masks, self.spacing = (fluid, open_x, open_y), spacing
        self.factor: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "factor": None}

    def solve(self, b: Tensor) -> Tensor:
        """By the factor on the CPU; on another device by conjugate gradients, to a relative residual of 1e-13."""
        if b.device.type != "cpu":
            return self.iterate(b)
        if self.factor is None:
            self.factor = self._factorise()
        right = b.detach().numpy().reshape(-1, self.masks[0].numel())
        # item by item: a block of right-hand sides is rounded differently than one
        return torch.from_numpy(np.array([self.factor.solve(r) for r in right])).reshape(b.shape)

    def iterate(self, b: Tensor) -> Tensor:
        """The same by conjugate gradients, per item; a pressure that is free by a constant differs by one."""
        _, open_x, open_y = (m.to(b.device) for m in self.masks)

        def apply(p: Tensor) -> Tensor:
            across, along = _gradient(p, open_x, open_y, self.spacing)
            return -across.diff(dim=-1) / self.spacing[1] - along.diff(dim=-2) / self.spacing[0]

        result = cg(apply, b.reshape(-1, *b.shape[-2:]), max_iter=20_000, tol=1e-13)
        worst = float(result.residual.max()) if result.residual.numel() else 0.0
        if not worst <= 1e-12:
            raise NumericalError(
                f"MACGrid: the pressure stopped after {result.iterations} iterations at a relative residual of {worst:.1e}: "
                "run the operator on the CPU, where it is solved directly"
            )
        return result.x.reshape(b.shape)

    def _factorise(self) -> Any:
        from scipy.ndimage import label
        from scipy.sparse import diags
        from scipy.sparse.linalg import splu

        fluid, open_x, open_y = (m.cpu().numpy() for m in self.masks)
        h, w = fluid.shape
        across, along = open_x / self.spacing[1] ** 2, open_y / self.spacing[0] ** 2
        centre = across[:, 1:] + across[:, :-1] + along[1:] + along[:-1]
        # outlets open to the outside fix the pressure of their region; it is exact to fix one cell of every other
        regions, count = label(fluid)
        sides = ((regions.T, open_x.T), (regions, open_y))
        vented = {r for region, faces in sides for end in (0, -1) for r in region[end][faces[end]]}
        for region in set(range(1, count + 1)) - vented:
            centre.flat[np.flatnonzero(regions == region)[0]] += min(self.spacing) ** -2
        centre[~fluid] = 1.0
        side = across[:, 1:].copy()
        side[:, -1] = 0.0
        side, below = -side.ravel()[:-1], -along[1:-1].ravel()
        matrix = diags((centre.ravel(), side, side, below, below), (0, 1, -1, w, -w), shape=(h * w, h * w), format="csc")
        return splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
