"""Phase history of a synthetic aperture radar, and its exact adjoint, unfiltered back-projection.

    y[p, k] = e^{j phi_p} m[p, k] sum_r g(r) exp(s j (4 pi / c) f_pk dR_p(r)),      dR_p(r) = mean_a |q_pa - r| - R_p

g is the complex reflectivity at the points r of a scene, q_pa the phase centres of the antenna at pulse p (one of them, or
transmitter and receiver), R_p the range to which the data are deramped, f_pk = f_p0 + (k - k0) df_p, s the sign of the data's
convention, m what is measured, phi_p an error of phase. Nothing is taken for plane: this is the model that a dense sum has, to
a requested accuracy, in O(P (N D + D n log n)) for N points, P pulses, K frequencies and n >= 8 K range cells, where the sum
takes O(P N K); D is 4 for 1e-5 (`sar_cells`). Carrier, cell and offset of every pulse and point are kept where they fit into
`memory`, else made again for each block of pulses.

    gradient in q_p    Re<v_p, dA_p/dR x> dR/dq,     dA_p/dR = diag(s j 4 pi f_p / c) A_p

References: Gorham, Moore, SAR image formation toolbox for MATLAB, Proc. SPIE 7699, 2010 (the model).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..core.errors import ConfigError, ShapeError
from ..core.operator import LinearOperator
from .constants import Constants
from .sar_cells import SPEED_OF_LIGHT, Cells, Series, Tables, cells_for, gather, scatter, terms

__all__ = ["PhaseHistory", "Radar", "check_geometry", "spacing"]

# images of single points that are projected at once
AT_ONCE = 16
# elements of a block of pulses and points: larger ones fall out of the processor's cache
BLOCK = 1 << 16


class Radar(LinearOperator):
    """Maps of a scene's reflectivity to the phase history of a track: what image formation and autofocus ask of each.

    Attributes:
        positions: phase centres, (P, 3) or (P, A, 3), m. frequencies: (P, K), Hz. points: of the image, (H, W, 3), m. sign: s.

    Shapes: reflectivity (B, 1, H, W) complex -> phase history (B, 1, P, K) complex, zero where not measured.
    """

    positions: Tensor
    frequencies: Tensor
    points: Tensor
    sign: Literal[-1, 1]

    @torch.no_grad()
    def histories(self, y: Tensor, pixels: Tensor) -> Tensor:
        """What each pulse says of some points r: sum_k conj(A e_r)[p, k] y[p, k], (n, P), without a gradient.

        Args:
            y: one phase history, (1, P, K).
            pixels: indices of the points in the image, row by row, (n,).
        """
        parts = []
        for some in pixels.split(AT_ONCE):
            points = y.new_zeros(len(some), self.in_shape[1] * self.in_shape[2])
            points[torch.arange(len(some), device=y.device), some] = 1.0
            parts.append((self(points.view(-1, *self.in_shape)).conj() * y).sum((1, 3)))
        return torch.cat(parts)


class PhaseHistory(Radar):
    """Deramped pulses of a spotlight, stripmap or circular track, monostatic or bistatic, of a scene of any relief.

    Args:
        positions: phase centres, (P, 3) or (P, A, 3), m, float64, relative to the scene's origin; one array for the two of
            a bistatic radar. A parameter gets its gradient.
        frequencies: (K,) or (P, K), Hz, equally spaced.
        points: of the image, (H, W, 3), m; see `sar_geometry.ground`.
        sign: s, -1 or 1: CPHD's SGN. The wrong one gives an image just as sharp, reflected at the origin.
        reference: R_p, (P,), m; None for the distance of the (mean) phase centre from the origin.
        phases: phi_p, (P,), rad; None for none. A parameter gets its gradient.
        mask: (P,), (P, K) or (1, K), boolean, True where something is measured; None for everywhere.
        accuracy: of the model, relative to the dense sum, from 1e-2 to 1e-9, the rounding of 10 km (float32 has 1e-6).
        memory: bytes of the tables that are kept; 0 makes them again in each call.

    Shapes: reflectivity (B, 1, H, W) complex -> phase history (B, 1, P, K) complex, zero where not measured.

    Attributes:
        reference: R_p, (P,), m. frequencies: (P, K), Hz. rows: indices of the pulses of which something is measured.

    Raises:
        ShapeError: shapes disagree. ConfigError: the sign, the accuracy, frequencies that are not equally spaced, a mask that
            keeps nothing, or values that are not finite.
    """

    phases: Tensor
    reference: Tensor
    rows: Tensor

    def __init__(
        self,
        positions: Tensor,
        frequencies: Tensor,
        points: Tensor,
        *,
        sign: Literal[-1, 1],
        reference: Tensor | None = None,
        phases: Tensor | None = None,
        mask: Tensor | None = None,
        accuracy: float = 1e-5,
        memory: int = 1 << 30,
    ) -> None:
        fixed, measured = check_geometry("PhaseHistory", positions, frequencies, sign, reference, phases, mask)
        if points.ndim != 3 or points.shape[-1] != 3 or not points.numel():
            raise ShapeError(f"PhaseHistory: expected points (H, W, 3), one or more, got {tuple(points.shape)}")
        _finite("PhaseHistory", points=points)
        if not 1e-9 <= accuracy <= 1e-2:
            raise ConfigError(f"PhaseHistory: expected an accuracy from 1e-9 to 1e-2, got {accuracy}")
        pulses, k = len(positions), frequencies.shape[-1]
        super().__init__((1, *points.shape[:2]), (1, pulses, k), in_complex=True, out_complex=True)
        self.measured = None if measured is None else measured[None]
        self.sign, self.terms, self.memory = sign, terms(accuracy), memory
        self.cells = cells_for(k)
        middle, step = (t.expand(pulses, 1) for t in spacing("PhaseHistory", frequencies))
        # pulses of which nothing is measured are not computed
        rows = torch.arange(pulses) if measured is None else measured.any(1).nonzero()[:, 0]
        if not len(rows):
            raise ConfigError("PhaseHistory: expected a mask that keeps something, got one that is False everywhere")
        self.register_buffer("rows", rows, persistent=False)
        nominal = positions.detach().reshape(pulses, -1, 3).clone()
        _keep(self, "positions", positions)
        _keep(self, "phases", torch.zeros(pulses, dtype=torch.float64) if phases is None else phases)
        self.register_buffer("points", points.detach().double(), persistent=False)
        # the range that the data were deramped to, which an error of the positions does not change
        self.register_buffer("reference", fixed, persistent=False)
        flat = self.points.reshape(-1, 3).mT.contiguous()
        fixed_by = (nominal[rows], fixed[rows], flat, middle[rows], step[rows])
        self.tables = Constants(Tables(self.sign, self.cells), *fixed_by)
        self.series = Constants(Series(self.terms, self.sign, k, self.cells))
        self.register_buffer("frequencies", middle + step * (torch.arange(k) - k // 2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._turned(_Pulses.apply(x, self.positions, self), 1)  # type: ignore[no-untyped-call]

    def adjoint(self, y: Tensor) -> Tensor:
        return _Image.apply(self._turned(y, -1), self.positions, self)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def histories(self, y: Tensor, pixels: Tensor) -> Tensor:
        turned, (series,) = self._turned(y, -1), self.series(y)
        out = y.new_zeros(len(pixels), self.out_shape[1])
        for first, last, cells in self.blocks(y):
            rows, seen = self.rows[first:last], Cells(*(t[:, pixels] for t in cells))
            out[:, rows] = gather(turned[:, rows], seen, series, n=self.cells, sign=self.sign)[0].mT
        return out

    def blocks(self, like: Tensor) -> Iterator[tuple[int, int, Cells]]:
        """First and last, in `rows`, of each block of pulses, and its cells, in the precision and on the device of `like`."""
        pulses, points = len(self.rows), self.in_shape[1] * self.in_shape[2]
        size = max(1, BLOCK // points)
        width = 16 if like.dtype == torch.complex64 else 28
        kept = None
        if not isinstance(self.positions, nn.Parameter) and pulses * points * width <= self.memory:
            kept = Cells(*self.tables(like))
        for first in range(0, pulses, size):
            last = min(first + size, pulses)
            yield first, last, kept.block(first, last) if kept else self._cells(first, last, like)

    def _cells(self, first: int, last: int, like: Tensor) -> Cells:
        nominal, reference, points, middle, step = (getattr(self.tables, f"given{i}").to(like.device) for i in range(5))
        q = nominal
        if isinstance(self.positions, nn.Parameter):
            if self.positions.dtype != torch.float64:
                raise ShapeError(f"PhaseHistory: expected positions to stay float64, got {str(self.positions.dtype)[6:]}")
            q = self.positions.detach().to(like.device).reshape(self.out_shape[1], -1, 3)[self.rows]
        rows = (t[first:last] for t in (middle, step))
        return Cells(*self.tables.derive(q[first:last], reference[first:last], points, *rows, dtype=like.real.dtype))

    def _turned(self, y: Tensor, direction: int) -> Tensor:
        turn = self.phases.to(y.device)[:, None] * direction
        factor = torch.polar(torch.ones_like(turn), turn).to(y)
        return y * factor if self.measured is None else y * (factor * self.measured)


class _Pulses(torch.autograd.Function):
    """g -> sum_r g(r) exp(s j (4 pi / c) f dR), with exact gradients in g and the positions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Tensor, operator: PhaseHistory) -> Tensor:
        ctx.operator = operator
        ctx.save_for_backward(x if positions.requires_grad else None)
        return project(operator, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        moved = None if x is None else position_gradient(ctx.operator, x, v)
        return backproject(ctx.operator, v) if ctx.needs_input_grad[0] else None, moved, None


class _Image(torch.autograd.Function):
    """The adjoint, with exact gradients."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, positions: Tensor, operator: PhaseHistory) -> Tensor:
        ctx.operator = operator
        ctx.save_for_backward(y if positions.requires_grad else None)
        return backproject(operator, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        # <g, A^H y> = <A g, y>
        moved = None if y is None else position_gradient(ctx.operator, g, y)
        return project(ctx.operator, g) if ctx.needs_input_grad[0] else None, moved, None


def project(operator: PhaseHistory, x: Tensor) -> Tensor:
    """The phase history, (B, 1, P, K), without phases and mask."""
    (series,) = operator.series(x)
    out = x.new_zeros(len(x), *operator.out_shape)
    for first, last, cells in operator.blocks(x):
        rows = operator.rows[first:last]
        out[:, 0, rows] = scatter(x.flatten(1), cells, series, n=operator.cells, sign=operator.sign)
    return out


def backproject(operator: PhaseHistory, y: Tensor) -> Tensor:
    """The exact transpose of `project`, (B, 1, H, W)."""
    out = y.new_zeros(len(y), math.prod(operator.in_shape))
    for _, _, images in _images(operator, y):
        out += images[:, 0] if images.shape[1] == 1 else images.sum(1)
    return out.view(-1, *operator.in_shape)


def position_gradient(operator: PhaseHistory, x: Tensor, v: Tensor) -> Tensor:
    """Gradient of Re<v, A x>, phases and mask apart, in the positions, (P, 3) or (P, A, 3)."""
    q = operator.positions.detach().reshape(operator.out_shape[1], -1, 3)[operator.rows]
    slope = operator.sign * 4.0 * math.pi / SPEED_OF_LIGHT * operator.frequencies.to(v.real)
    out, points = torch.zeros_like(operator.positions).reshape(operator.out_shape[1], -1, 3), operator.points.reshape(-1, 3)
    for first, last, images in _images(operator, v * torch.complex(torch.zeros_like(slope), -slope)):
        weight = (x.flatten(1)[:, None].conj() * images).real.double().sum(0)
        for a in range(q.shape[1]):
            apart = q[first:last, a, None] - points
            moved = (weight[..., None] * apart / apart.norm(dim=-1, keepdim=True)).sum(1) / q.shape[1]
            out[operator.rows[first:last], a] = moved
    return out.reshape(operator.positions.shape)


def _images(operator: PhaseHistory, y: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """What each pulse adds to the image, in blocks: first and last in `rows`, (B, pulses, N)."""
    (series,) = operator.series(y)
    for first, last, cells in operator.blocks(y):
        part = y[:, 0, operator.rows[first:last]]
        yield first, last, gather(part, cells, series, n=operator.cells, sign=operator.sign)


def check_geometry(
    owner: str,
    positions: Tensor,
    frequencies: Tensor,
    sign: int,
    reference: Tensor | None,
    phases: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The reference ranges, (P,), and what is measured, (P, K) boolean, None for everything, of arguments as `PhaseHistory`'s.

    Raises:
        ShapeError, ConfigError: as for `PhaseHistory`.
    """
    if positions.ndim not in (2, 3) or positions.shape[-1] != 3 or not positions.numel() or positions.dtype != torch.float64:
        raise ShapeError(
            f"{owner}: expected positions (P, 3) or (P, A, 3) float64, as ranges are needed to parts of a wavelength, "
            f"got {tuple(positions.shape)} {str(positions.dtype)[6:]}"
        )
    pulses, k = len(positions), frequencies.shape[-1] if frequencies.ndim else 0
    if frequencies.shape not in ((k,), (pulses, k)) or k < 2:
        raise ShapeError(f"{owner}: expected frequencies (K,) or ({pulses}, K), two or more, got {tuple(frequencies.shape)}")
    for name, given in (("reference", reference), ("phases", phases)):
        if given is not None and given.shape != (pulses,):
            raise ShapeError(f"{owner}: expected {name} of shape ({pulses},), got {tuple(given.shape)}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape not in ((pulses,), (pulses, k), (1, k))):
        found = f"{tuple(mask.shape)} {str(mask.dtype)[6:]}"
        raise ShapeError(f"{owner}: expected a boolean mask ({pulses},), ({pulses}, {k}) or (1, {k}), got {found}")
    _finite(owner, positions=positions, frequencies=frequencies, reference=reference, phases=phases)
    if sign not in (-1, 1):
        raise ConfigError(f"{owner}: expected sign -1 or 1, got {sign}")
    q = positions.detach().reshape(pulses, -1, 3)
    fixed = q.mean(1).norm(dim=-1) if reference is None else reference.detach().double().clone()
    return fixed, None if mask is None else (mask[:, None] if mask.ndim == 1 else mask).expand(pulses, k).clone()


def spacing(owner: str, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """The middle frequency and the step of each pulse, (P, 1) or (1, 1), of equally spaced frequencies (P, K) or (K,)."""
    f = frequencies.detach().double().reshape(-1, frequencies.shape[-1])
    k = f.shape[-1]
    step = (f[:, -1:] - f[:, :1]) / (k - 1)
    middle = f[:, :1] + step * (k // 2)
    uneven = float((f - f[:, :1] - step * torch.arange(k)).abs().max())
    # a hundredth of a step turns the edge of the unambiguous swath by 3.6 degrees
    if not float(step.min()) > 0.0 or uneven > 0.01 * float(step.min()):
        raise ConfigError(
            f"{owner}: expected rising, equally spaced frequencies, got ones {uneven:.3g} Hz off steps of "
            f"{float(step.min()):.6g} Hz: interpolate them"
        )
    return middle, step


def _finite(owner: str, **values: Tensor | None) -> None:
    for name, value in values.items():
        if value is not None and not bool(value.isfinite().all()):
            raise ConfigError(f"{owner}: expected finite {name}, got {int((~value.isfinite()).sum())} values that are not")


def _keep(module: nn.Module, name: str, value: Tensor) -> None:
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, value.detach().clone(), persistent=False)
