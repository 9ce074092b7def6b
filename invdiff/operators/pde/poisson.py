"""Constant-coefficient equations on a box of one, two or three dimensions, solved exactly in a fast transform.

    Poisson      -lap u = f                                         m = 1 / lambda
    Helmholtz    -lap u - k^2 u = f                                 m = 1 / (lambda - k^2)
    Heat         u_t = kappa lap u,  u(T) = exp(kappa T lap) u_0    m = exp(-kappa T lambda)

Each is A = B^T diag(m) B, so that A^T = A, (A^T A + rho)^-1 = B^T diag(1 / (m^2 + rho)) B, and A^+ is known too. Per axis of n
points, spacing h and the domain's length L, with mode j = 0, 1, ...

    boundary     points                  transform B    angle t_j
    periodic     x_i = i h, h = L / n               Fourier        2 pi j / n, |t_j| <= pi
    dirichlet    x_i = (i + 1) h, h = L / (n + 1)   sine, I        pi (j + 1) / (n + 1)
    neumann      x_i = (i + 1/2) h, h = L / n       cosine, II     pi j / n

where u is periodic, zero at the walls (which are not points of the grid), or of zero slope at them (which are faces of cells),
and -lap has the eigenvalues lambda = sum over the axes of

    scheme "5-point"     4 sin^2(t_j / 2) / h^2    second differences, error O(h^2); 3 points on a line, 7 in a volume
    scheme "spectral"    (t_j / h)^2               the derivative of the trigonometric interpolant

`length` is in any unit of length; f is then u per its square, k per length, kappa its square per unit of time. Inhomogeneous
boundary values are not included.

References: Buzbee, Golub, Nielson, On direct methods for solving Poisson's equations, SIAM J. Numer. Anal. 7, 1970. Strang, The
discrete cosine transform, SIAM Review 41, 1999.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from ...core.errors import ConfigError, ShapeError, require_positive
from ...core.linalg import expand
from ...core.operator import LinearOperator
from ...core.spectrum import Spectrum, given, significant
from ..axes import per_axis
from ..constants import Constants
from ..cosine import dct, idct
from ..fourier import hartley

__all__ = ["Diagonal", "Heat", "Helmholtz", "Poisson", "dst1"]

Boundary = Literal["periodic", "dirichlet", "neumann"]
Scheme = Literal["5-point", "spectral"]


class Diagonal(LinearOperator):
    """A function of the Laplacian, (C, *grid) -> (C, *grid), for each channel alone. Abstract: the classes below say which.

    Args:
        shape: (C, *grid) with one to three axes of at least two points.
        multipliers: from the eigenvalues of -lap, those of the operator and of its pseudo-inverse; a function that pickles.
        length: of the domain, in any unit of length; one number, or one per axis.
        boundary: one for all axes, or one per axis.
        scheme: "5-point" or "spectral", how -lap is discretised.

    Raises:
        ShapeError: another number of axes, or an axis of fewer than two points.
        ConfigError: unknown boundary or scheme, a length that is not positive, or not one of each per axis.
    """

    def __init__(
        self,
        shape: Sequence[int],
        multipliers: Callable[[Tensor], tuple[Tensor, Tensor]],
        *,
        length: float | Sequence[float],
        boundary: Boundary | Sequence[Boundary],
        scheme: Scheme,
    ) -> None:
        super().__init__(tuple(shape), tuple(shape))
        who, grid = type(self).__name__, tuple(shape)[1:]
        if not 1 <= len(grid) <= 3 or min(grid) < 2:
            raise ShapeError(f"{who}: expected a shape (C, *grid) with 1 to 3 axes of at least 2 points, got {tuple(shape)}")
        lengths = per_axis(length, len(grid))
        kinds = per_axis(boundary, len(grid))
        if not len(lengths) == len(kinds) == len(grid):
            raise ConfigError(f"{who}: expected one length and one boundary per axis of {grid}, got {length} and {boundary}")
        if not set(kinds) <= set(get_args(Boundary)):
            raise ConfigError(f"{who}: expected a boundary of {', '.join(get_args(Boundary))}, got {boundary!r}")
        if scheme not in get_args(Scheme):
            raise ConfigError(f"{who}: expected a scheme of {', '.join(get_args(Scheme))}, got {scheme!r}")
        for value in lengths:
            require_positive(self, length=value)
        self.length, self.boundary, self.scheme = tuple(map(float, lengths)), kinds, scheme
        self.spacing = tuple(
            side / (n + 1 if kind == "dirichlet" else n) for n, side, kind in zip(grid, self.length, kinds, strict=True)
        )
        self._periodic = tuple(i for i, kind in enumerate(kinds, 2) if kind == "periodic")
        laplacian = partial(_eigenvalues, grid, self.spacing, self.boundary, scheme)
        self.constants = Constants(partial(_constants, laplacian, multipliers))

    def forward(self, x: Tensor) -> Tensor:
        m, *_ = self.constants(x)
        return self._filter(x, m)

    def adjoint(self, y: Tensor) -> Tensor:
        m, *_ = self.constants(y)
        return self._filter(y, m)

    def normal(self, x: Tensor) -> Tensor:
        m, *_ = self.constants(x)
        return self._filter(x, m.square())

    def solve(self, b: Tensor, rho: Tensor) -> Tensor:
        m, *_ = self.constants(b)
        return self._filter(b, 1.0 / (m.square() + expand(rho, b)))

    def pinv(self, y: Tensor) -> Tensor:
        _, inverse, _ = self.constants(y)
        return self._filter(y, inverse)

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        m, *_ = self.constants(given(like))
        if self._periodic:
            # the last periodic axis is halved in m, whose modes j and n - j have the same eigenvalue
            n = self.in_shape[self._periodic[-1] - 1]
            j = torch.arange(n, device=m.device)
            m = m.index_select(self._periodic[-1] - 2, torch.minimum(j, n - j))
        return Spectrum(significant(m.abs(), max(self.in_shape[1:])).expand(self.in_shape), self._modes, self._field)

    def extra_repr(self) -> str:
        return f"{self.in_shape}, length={self.length}, boundary={self.boundary}, scheme={self.scheme}"

    def minus_laplacian(self, u: Tensor) -> Tensor:
        """-lap u, (B, C, *grid): for the 5-point scheme by differences of neighbours, without the transform."""
        self.check(u, "x")
        if self.scheme == "spectral":
            _, _, eigenvalues = self.constants(u)
            return self._filter(u, eigenvalues)
        axes = enumerate(zip(self.spacing, self.boundary, strict=True), 2)
        return torch.stack([_second_difference(u, axis, kind) / h**2 for axis, (h, kind) in axes]).sum(0)

    def residual(self, a: Tensor, u: Tensor) -> Tensor:
        """What the equation leaves of a pair, (B, C, *grid) both -> (B, C, *grid); zero to rounding where u = forward(a)."""
        raise NotImplementedError(f"{type(self).__name__} does not define residual(a, u)")

    def _modes(self, x: Tensor) -> Tensor:
        for axis, kind in enumerate(self.boundary, 2):
            if kind != "periodic":
                x = dst1(x, axis) if kind == "dirichlet" else dct(x, axis)
        return hartley(x, self._periodic) if self._periodic else x

    def _field(self, c: Tensor) -> Tensor:
        x = hartley(c, self._periodic) if self._periodic else c
        for axis, kind in enumerate(self.boundary, 2):
            if kind != "periodic":
                x = dst1(x, axis) if kind == "dirichlet" else idct(x, axis)
        return x

    def _filter(self, x: Tensor, weight: Tensor) -> Tensor:
        size = [x.shape[i] for i in self._periodic]
        for axis, kind in enumerate(self.boundary, 2):
            if kind != "periodic":
                x = dst1(x, axis) if kind == "dirichlet" else dct(x, axis)
        if self._periodic:
            x = torch.fft.irfftn(torch.fft.rfftn(x, dim=self._periodic) * weight, s=size, dim=self._periodic)
        else:
            x = x * weight
        for axis, kind in enumerate(self.boundary, 2):
            if kind != "periodic":
                x = dst1(x, axis) if kind == "dirichlet" else idct(x, axis)
        return x


class Poisson(Diagonal):
    """The source f of -lap u = f to the field u.

    Without a Dirichlet wall constants are in the null space: the mean of f is removed (no solution exists otherwise) and u is
    the solution of zero mean, per channel.

    Args, Raises: as `Diagonal`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        length: float | Sequence[float] = 1.0,
        boundary: Boundary | Sequence[Boundary] = "dirichlet",
        scheme: Scheme = "5-point",
    ) -> None:
        super().__init__(shape, _poisson, length=length, boundary=boundary, scheme=scheme)

    def residual(self, a: Tensor, u: Tensor) -> Tensor:
        """-lap u - f, f = a, without its mean where constants are in the null space; the mean of u is then not seen."""
        self.check(a, "x")
        if "dirichlet" not in self.boundary:
            a = a - a.mean(tuple(range(2, a.ndim)), keepdim=True)
        return self.minus_laplacian(u) - a


class Helmholtz(Diagonal):
    """The source f of -lap u - k^2 u = f to the field u. (Data of lap u + k^2 u = f are those of the source -f.)

    Args:
        shape, length, boundary, scheme: as `Diagonal`.
        wavenumber: k, radians per unit of length.

    Raises:
        ConfigError: k^2 is within 1e-6 of an eigenvalue of -lap, relative to the larger of k^2 and the lowest one that is not
            zero; or as `Diagonal`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        wavenumber: float,
        *,
        length: float | Sequence[float] = 1.0,
        boundary: Boundary | Sequence[Boundary] = "dirichlet",
        scheme: Scheme = "5-point",
    ) -> None:
        super().__init__(shape, partial(_helmholtz, k=float(wavenumber)), length=length, boundary=boundary, scheme=scheme)
        require_positive(self, wavenumber=wavenumber)
        self.wavenumber = float(wavenumber)
        *_, eigenvalues = self.constants(torch.zeros((), dtype=torch.float64))
        square = self.wavenumber**2
        nearest = float(eigenvalues.flatten()[(eigenvalues - square).abs().argmin()])
        if abs(nearest - square) <= 1e-6 * max(square, float(eigenvalues[eigenvalues > 0].min())):
            raise ConfigError(
                f"Helmholtz: expected k^2 away from the eigenvalues of the Laplacian, got k^2 = {square:.9g} at the eigenvalue "
                f"{nearest:.9g}: change wavenumber, length or shape"
            )

    def residual(self, a: Tensor, u: Tensor) -> Tensor:
        """-lap u - k^2 u - f, f = a."""
        self.check(a, "x")
        return self.minus_laplacian(u) - self.wavenumber**2 * u - a


class Heat(Diagonal):
    """The temperature u(0) to u(T), exact in time: u(T) = exp(kappa T lap) u(0).

    The pseudo-inverse treats modes that have decayed below max(grid) eps as not transmitted.

    Args:
        shape, length, boundary, scheme: as `Diagonal`.
        diffusivity: kappa, square of the unit of length per unit of time.
        time: T.

    Raises:
        ConfigError: a diffusivity or a time that is not positive; or as `Diagonal`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        diffusivity: float,
        time: float,
        *,
        length: float | Sequence[float] = 1.0,
        boundary: Boundary | Sequence[Boundary] = "periodic",
        scheme: Scheme = "spectral",
    ) -> None:
        super().__init__(shape, partial(_heat, kt=diffusivity * time), length=length, boundary=boundary, scheme=scheme)
        require_positive(self, diffusivity=diffusivity, time=time)
        self.diffusivity, self.time = float(diffusivity), float(time)

    def pinv(self, y: Tensor) -> Tensor:
        m, inverse, _ = self.constants(y)
        return self._filter(y, torch.where(m > max(self.in_shape[1:]) * torch.finfo(y.dtype).eps, inverse, 0.0))

    def residual(self, a: Tensor, u: Tensor) -> Tensor:
        """u - exp(kappa T lap) u(0), u(0) = a."""
        self.check(u, "x")
        return u - self(a)


def dst1(x: Tensor, dim: int = -1) -> Tensor:
    """Orthonormal sine transform of type I along an axis, its own inverse and adjoint, by one FFT of length 2 (n + 1)."""
    wall = torch.zeros_like(x.narrow(dim, 0, 1))
    odd = torch.cat([wall, x, wall, -x.flip(dim)], dim)
    return -torch.fft.rfft(odd, dim=dim, norm="ortho").imag.narrow(dim, 1, x.shape[dim])


def _second_difference(u: Tensor, axis: int, kind: Boundary) -> Tensor:
    """2 u_i - u_(i-1) - u_(i+1); beyond a wall is the value there, or the mirror image, or the other end."""
    n = u.shape[axis]
    first, last = u.narrow(axis, 0, 1), u.narrow(axis, n - 1, 1)
    before, after = {"periodic": (last, first), "neumann": (first, last)}.get(kind, (torch.zeros_like(first),) * 2)
    extended = torch.cat([before, u, after], axis)
    return 2.0 * u - extended.narrow(axis, 0, n) - extended.narrow(axis, 2, n)


def _eigenvalues(grid: tuple[int, ...], spacing: tuple[float, ...], boundary: tuple[Boundary, ...], scheme: Scheme) -> Tensor:
    """Those of -lap on the modes, (*grid) with the last periodic axis halved, as the FFT of a real field."""
    halved = max((i for i, kind in enumerate(boundary) if kind == "periodic"), default=None)
    total = torch.zeros((), dtype=torch.float64)
    for axis, (n, h, kind) in enumerate(zip(grid, spacing, boundary, strict=True)):
        j = torch.arange(n, dtype=torch.float64)
        if kind == "periodic":
            angle = 2.0 * math.pi * torch.minimum(j, n - j) / n
            angle = angle[: n // 2 + 1] if axis == halved else angle
        else:
            angle = math.pi * (j + 1.0) / (n + 1) if kind == "dirichlet" else math.pi * j / n
        line = (angle / h).square() if scheme == "spectral" else (2.0 / h * torch.sin(angle / 2.0)).square()
        total = total[..., None] + line
    return total


def _constants(laplacian: Callable[[], Tensor], multipliers: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    eigenvalues = laplacian()
    return *multipliers(eigenvalues), eigenvalues


def _poisson(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(eigenvalues > 0.0, 1.0 / eigenvalues, 0.0), eigenvalues


def _helmholtz(eigenvalues: Tensor, k: float) -> tuple[Tensor, Tensor]:
    return 1.0 / (eigenvalues - k**2), eigenvalues - k**2


def _heat(eigenvalues: Tensor, kt: float) -> tuple[Tensor, Tensor]:
    return torch.exp(-kt * eigenvalues), torch.exp(kt * eigenvalues)
