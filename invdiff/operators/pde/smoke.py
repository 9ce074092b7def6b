"""Smoke in an incompressible flow with obstacles, driven by controls: a density and its velocity on a staggered grid.

    rho_t + w . grad rho = 0        w_t + w . grad w = -grad p + b rho e_y + f        div w = 0        no viscosity

in a box with closed walls but for outlets, w . n = 0 on walls and obstacles (slip), p = 0 outside an outlet at the border. A
step t of the splitting, of first order in time, and of first order in the cell size h where t / h is fixed:

    w'       = w + t (f + b rho e_y), or w' = c in the controlled cells
    w''(x)   = w'(x - t w)                   semi-Lagrangian
    w       <- P w''                         projection to no divergence
    rho(x)  <- rho(x - t w)

with the back-trace and the projection of `smoke_grid`. There is no bound of the step, though accuracy wants t |w| / h of order
one and walls thicker than t |w|. Interpolation is bilinear: the density stays between its least and its largest value and is
smeared, its sum is conserved to the order of the scheme alone, and the map has kinks where a back-trace ends on a grid line; at
rest, where all do, the derivative is that towards one side.

What reaches an outlet cell leaves the air and is collected there: an outlet cell of the density holds what it has received, so
that `bucket_share` gives the share of the smoke that has left through any outlets at any saved time, differentiably. A step of
more than the depth of an outlet would miss some.

References: Stam, Stable fluids, SIGGRAPH 1999. Holl, Koltun, Thuerey, Learning to control PDEs with differentiable physics,
2020, arXiv:2001.07457. Hu et al., Wavelet diffusion neural operator, 2024, arXiv:2412.04833 (the controlled smoke).
"""

from __future__ import annotations

from functools import partial
from math import isfinite
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.func import debug_unwrap

from ...core.errors import ConfigError, NumericalError, ShapeError, require_positive
from ...core.memory import Memory, Tensors
from .smoke_grid import MACGrid, Trace
from .spectral import Evolution

__all__ = ["Smoke", "bucket_share"]

Fields = Literal["density", "all"]
Control = Literal["force", "velocity"]
State = tuple[Tensor, Tensor, Tensor]


def bucket_share(density: Tensor, bucket: Tensor) -> Tensor:
    """The share of all smoke that is in a bucket: densities (..., H, W), boolean bucket (H, W) -> (...); 0 where there is none.

    Of an output of `Smoke` and a bucket of outlet cells: what has left through them until then. The shares of all outlets and
    that of the air add up to 1.
    """
    total = density.sum((-2, -1))
    return (density * bucket).sum((-2, -1)) / torch.where(total > 0.0, total, 1.0)


class Smoke(Evolution):
    """The densities (and velocities) of smoke from its initial density, controls, and initial velocity.

    Args:
        size: cells (H, W), of y and x.
        obstacles, outlets: boolean masks (H, W); None for none. An outlet absorbs smoke; at the border flow passes it too.
        length: of the box (along y, along x).
        time: T, > 0; `steps` equal steps to it, of which `save` equally spaced ones are kept: see `Evolution`.
        controls: number of equal time slots of the control, 0 for none; divides `steps`.
        control: "force", an acceleration, length / time^2, or "velocity", set at the start of each step.
        control_mask: boolean (H, W), the cells that are controlled; None for all. A face between one that is and one that is
            not is controlled by half.
        velocity: initial velocity (x, y), length / time, or None for two more channels of the input. Made free of divergence,
            which in a box without outlets leaves nothing of a constant one.
        buoyancy: b, acceleration along y by a density of 1, length / time^2; y grows with the row.
        fields: "density", or "all" for (density, velocity along x, along y) at cells.
        trace: back-trace by "euler" or by the "midpoint" rule.
        memory: policy of what is kept for the derivative; see `Evolution`.

    Shapes: (B, 1 + 2 controls [+ 2], H, W), the initial density, (x, y) components at cells for each slot, then the initial
    velocity -> (B, save, H, W) or (B, 3 save, H, W), time by time. Values in obstacles and controls elsewhere have no effect.

    On the CPU the pressure is solved by one sparse factor, made at the first call; on another device by conjugate gradients, to
    1e-13 in float64.

    Raises:
        ConfigError: an argument is out of its range.
        ShapeError: a mask is not boolean or not on the grid, or a cell is obstacle and outlet.
        NumericalError: in a call, an input that is not finite.
    """

    outlets: Tensor
    weight_x: Tensor
    weight_y: Tensor
    control_mask: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        *,
        obstacles: Tensor | None = None,
        outlets: Tensor | None = None,
        length: tuple[float, float] = (1.0, 1.0),
        time: float = 1.0,
        steps: int = 32,
        save: int = 1,
        controls: int = 0,
        control: Control = "force",
        control_mask: Tensor | None = None,
        velocity: tuple[float, float] | None = (0.0, 0.0),
        buoyancy: float = 0.0,
        fields: Fields = "density",
        trace: Trace = "midpoint",
        memory: str | Memory = "checkpoint(step)",
    ) -> None:
        h, w = size
        super().__init__((h, w), time=time, steps=steps, save=save, memory=memory)
        require_positive(self, length_y=length[0], length_x=length[1])
        for name, value, kinds in (("fields", fields, Fields), ("control", control, Control), ("trace", trace, Trace)):
            if value not in get_args(kinds):
                raise ConfigError(f"Smoke: expected {name} of {', '.join(get_args(kinds))}, got {value!r}")
        if controls < 0 or (controls and steps % controls):
            raise ConfigError(f"Smoke: expected controls >= 0 that divide steps, got {controls} and {steps}")
        if not all(map(isfinite, (buoyancy, *(velocity or ())))):
            raise ConfigError(f"Smoke: expected a finite buoyancy and velocity, got {buoyancy} and {velocity}")
        self.controls, self.control, self.velocity, self.buoyancy = controls, control, velocity, float(buoyancy)
        self.fields, self.trace, self.length = fields, trace, (float(length[0]), float(length[1]))
        self.in_shape = (1 + 2 * controls + (2 if velocity is None else 0), h, w)
        self.out_shape = (save * (1 if fields == "density" else 3), h, w)
        walls, exits = self._mask("obstacles", obstacles, False), self._mask("outlets", outlets, False)
        if bool((walls & exits).any()):
            raise ShapeError("Smoke: expected no cell of both obstacles and outlets")
        self.grid = MACGrid(walls, exits, (length[0] / h, length[1] / w))
        self.register_buffer("outlets", exits, persistent=False)
        self.register_buffer("control_mask", self._mask("control_mask", control_mask, True), persistent=False)
        weights = self.grid.to_faces(self.control_mask.double().expand(1, 2, h, w))
        for axis, weight in zip("xy", weights, strict=True):
            # multiples of a half, exact in any precision
            self.register_buffer(f"weight_{axis}", weight[0].half(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        density, u, v = (t[:, 1:].flatten(0, 1) for t in self.trajectory(x))
        frames = density.unsqueeze(1)
        if self.fields == "all":
            frames = torch.cat([frames, self.grid.to_cells(u, v)], 1)
        return frames.reshape(len(x), *self.out_shape)

    def trajectory(self, x: Tensor) -> State:
        """The states at time 0 and the saved times: densities (B, save + 1, H, W) and the velocities at faces.

        (B, save + 1, H, W + 1) along x and (B, save + 1, H + 1, W) along y, free of divergence.
        """
        self.check(x, "x")
        return self._run(x, None)

    def residual(self, x: Tensor, u: Tensor) -> Tensor:
        """What each saved density misses of the one before it carried on by the scheme, in the flow that starts from x.

        With "all", the given velocities less those of that flow beside it. (B, *out_shape), zero to round-off on the operator's
        own output.
        """
        self.check(x, "x")
        self.check(u, "y")
        given = u.unflatten(1, (self.save, -1))
        density, across, along = (t[:, 1:] for t in self._run(x, given[:, :, 0]))
        parts = [density.unsqueeze(2)]
        if self.fields == "all":
            cells = self.grid.to_cells(across.flatten(0, 1), along.flatten(0, 1))
            parts.append(cells.unflatten(0, (-1, self.save)))
        return (given - torch.cat(parts, 2)).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"size={self.in_shape[1:]}, steps={self.steps}, controls={self.controls}, fields={self.fields}"

    def _run(self, x: Tensor, densities: Tensor | None) -> State:
        """The saved states; of `densities`, (B, save, H, W), each is carried on from instead of the scheme's own."""
        self._require_finite(x)
        slots = x[:, 1 : 1 + 2 * self.controls].unflatten(1, (self.controls, 2)).unbind(1) if self.controls else ()
        each, length = self.steps // max(self.controls, 1), self.steps // self.save
        steps = [partial(self._step, control=slots[k // each] if slots else None) for k in range(self.steps)]
        memory = self.memory if debug_unwrap(x) is x else Memory.parse("full")
        states: list[Tensors] = [self._start(x)]
        for k in range(self.save):
            density, *flow = states[-1]
            state = (densities[:, k - 1] if k and densities is not None else density, *flow)
            states.append(memory.chain(steps[k * length : (k + 1) * length], state))
        density, u, v = (torch.stack(t, 1) for t in zip(*states, strict=True))
        return density, u, v

    def _start(self, x: Tensor) -> State:
        if self.velocity is None:
            cells = x[:, -2:]
        else:
            cells = x.new_tensor(self.velocity)[:, None, None].expand(len(x), 2, *x.shape[2:])
        return (x[:, 0] * self.grid.fluid, *self.grid.project(*self.grid.to_faces(cells)))

    def _step(self, rho: Tensor, u: Tensor, v: Tensor, *, control: Tensor | None) -> State:
        t, air = self.time / self.steps, rho * ~self.outlets
        a, b = u, v
        if control is not None:
            c, d = self.grid.to_faces(control * self.control_mask)
            if self.control == "force":
                a, b = a + t * c, b + t * d
            else:
                a, b = (1.0 - self.weight_x.to(a.dtype)) * a + c, (1.0 - self.weight_y.to(b.dtype)) * b + d
        if self.buoyancy:
            b = b + t * self.buoyancy * self.grid.to_faces(torch.stack([air, air], 1))[1]
        u, v = self.grid.project(*self.grid.carry_velocity(a, b, u, v, t, self.trace))
        moved = self.grid.carry(air, u, v, t, self.trace)
        return moved + rho * self.outlets, u, v

    def _mask(self, name: str, mask: Tensor | None, default: bool) -> Tensor:
        size = self.in_shape[1:]
        if mask is None:
            return torch.full(size, default)
        if mask.shape != size or mask.dtype != torch.bool:
            got = f"{tuple(mask.shape)} {str(mask.dtype)[6:]}"
            raise ShapeError(f"Smoke: expected {name} to be a boolean mask {tuple(size)}, got {got}")
        return mask.detach().cpu().clone()

    def _require_finite(self, x: Tensor) -> None:
        finite = debug_unwrap(x).isfinite()
        if not bool(finite.all()):
            raise NumericalError("Smoke: expected a finite density, control and velocity, got one that is not")
