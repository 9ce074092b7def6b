"""Fields on another grid of the same domain, by their modes: interpolation of the highest order, and its exact adjoint.

    (R x)(s) = sum over the modes that both grids hold, coefficients unchanged

of Fourier (periodic), cosine (Neumann) or sine (Dirichlet) type along each axis. Periodic grids share their first point; with
walls the points are the centres of the cells. A finer grid shows the band-limited interpolant, a coarser one the field without
the modes that it can't hold. The Nyquist mode of an even periodic axis and the last sine mode, which alternate from point to
point and have no counterpart of equal norm, are left out; on the other modes of a coarse grid R^T R is a multiple of the
identity.

    (E x)(i) = x(n i)          E^T: zeros between the points; E E^T = I, E^T E a mask

leaves the field as it is and looks at every n-th point: what the coarse grid can't hold is aliased.

References: Canuto, Hussaini, Quarteroni, Zang, Spectral methods: fundamentals in single domains, 2006, section 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError, ShapeError
from ..core.linalg import expand
from ..core.operator import LinearOperator
from ..core.spectrum import Spectrum, unchanged
from .axes import per_axis
from .cosine import dct, dst, idct, idst

__all__ = ["Every", "Regrid"]

Boundary = Literal["periodic", "neumann", "dirichlet"]


class Regrid(LinearOperator):
    """(B, C, *grid) -> (B, C, *size) for fields on the same domain.

    Args:
        shape: (C, *grid) of what comes in.
        size: points of the grid that goes out, one number for all axes or one for each.
        boundary: "periodic", "neumann" or "dirichlet", one for all axes or one for each.

    Raises:
        ShapeError: another number of axes.
        ConfigError: an unknown boundary, or a size below 1.
    """

    def __init__(
        self, shape: Sequence[int], size: int | Sequence[int], *, boundary: Boundary | Sequence[Boundary] = "neumann"
    ) -> None:
        axes = len(shape) - 1
        sizes = per_axis(size, axes)
        kinds = per_axis(boundary, axes)
        if axes < 1 or len(sizes) != axes or len(kinds) != axes:
            raise ShapeError(
                f"Regrid: expected one size and boundary for each axis of {tuple(shape)[1:]}, got {size} and {boundary}"
            )
        if min(sizes) < 1 or not set(kinds) <= {"periodic", "neumann", "dirichlet"}:
            raise ConfigError(f"Regrid: expected sizes >= 1 and periodic, neumann or dirichlet, got {sizes} and {kinds}")
        super().__init__(tuple(shape), (shape[0], *sizes))
        self.boundary = kinds

    def forward(self, x: Tensor) -> Tensor:
        return self._to(x, self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        # the coefficients are those of sampled fields, whose norms differ by the ratio of the numbers of points
        return self._to(y, self.in_shape) * (math.prod(self.out_shape) / math.prod(self.in_shape))

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}, boundary={self.boundary}"

    def _to(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        for axis, (n, kind) in enumerate(zip(shape[1:], self.boundary, strict=True), 2):
            if n != x.shape[axis]:
                x = (_periodic if kind == "periodic" else _walls)(x, axis, n, kind)
        return x


class Every(LinearOperator):
    """Every n-th point along each axis, from the first one: (B, C, *grid) -> (B, C, *grid / n).

    Args:
        shape: (C, *grid) of what comes in, the grid divisible by n.
        n: >= 1.

    Raises:
        ShapeError: no axis, or a grid that n does not divide.
        ConfigError: n below 1.
    """

    def __init__(self, shape: Sequence[int], n: int = 2) -> None:
        if n < 1:
            raise ConfigError(f"Every: expected n >= 1, got {n}")
        if len(shape) < 2 or any(size % n for size in shape[1:]):
            raise ShapeError(f"Every: expected (C, *grid) with a grid divisible by {n}, got {tuple(shape)}")
        super().__init__(tuple(shape), (shape[0], *(size // n for size in shape[1:])))
        self.n = n
        self.points: tuple[Any, ...] = (..., *(slice(None, None, n) for _ in shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        return x[self.points]

    def adjoint(self, y: Tensor) -> Tensor:
        out = y.new_zeros(len(y), *self.in_shape)
        out[self.points] = y
        return out

    def solve(self, b: Tensor, rho: Tensor | float) -> Tensor:
        weight = expand(torch.as_tensor(rho), b)
        out = b / weight
        out[self.points] = b[self.points] / (1.0 + weight)
        return out

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        kind, device = (torch.float64, None) if like is None else (like.real.dtype, like.device)
        values = torch.zeros(self.in_shape, dtype=kind, device=device)
        values[self.points] = 1.0
        return Spectrum(values, unchanged, unchanged)

    def guess(self, y: Tensor) -> Tensor:
        """The band-limited field on a torus with the values y, without the Nyquist modes of the coarse grid."""
        return Regrid(self.out_shape, self.in_shape[1:], boundary="periodic")(y)

    def extra_repr(self) -> str:
        return f"{self.in_shape}, n={self.n}"


def _walls(x: Tensor, axis: int, n: int, kind: str) -> Tensor:
    old = x.shape[axis]
    kept = min(n, old) - (kind == "dirichlet")
    modes = (dct if kind == "neumann" else dst)(x, axis).narrow(axis, 0, kept)
    return (idct if kind == "neumann" else idst)(_padded(modes, axis, n), axis) * math.sqrt(n / old)


def _periodic(x: Tensor, axis: int, n: int, _: str) -> Tensor:
    old = x.shape[axis]
    kept = (min(n, old) + 1) // 2
    modes = torch.fft.rfft(x, dim=axis, norm="forward").narrow(axis, 0, kept)
    return torch.fft.irfft(_padded(modes, axis, n // 2 + 1), n=n, dim=axis, norm="forward")


def _padded(modes: Tensor, axis: int, n: int) -> Tensor:
    gap = list(modes.shape)
    gap[axis] = n - modes.shape[axis]
    return torch.cat([modes, modes.new_zeros(gap)], axis) if gap[axis] > 0 else modes
