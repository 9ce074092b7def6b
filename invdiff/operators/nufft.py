"""The non-uniform Fourier transform, from pixels to any points of k-space, in one to three dimensions.

    y_m = s sum_n x_n exp(-2 pi i k_m . (n - c)),    c = N // 2 along each axis,

k in cycles per pixel and periodic with period 1; s = prod(N)^(-1/2) for norm="ortho", else 1. The origin is that of
`fourier.fft2c`: on k = (j - c) / N the transform is the centred orthonormal FFT.

Along each axis the image, divided by the kernel's transform, is centred on a grid of M >= a N points (a: oversampling, M even),
transformed, and interpolated at k M by W values of the Kaiser-Bessel kernel psi:

    exp(-2 pi i k r) ~ (1 / psi^(r / M)) sum_l psi(k M - l) exp(-2 pi i l r / M),    |r| <= N / 2,
    psi(u) = e^(-b) I_0(b sqrt(1 - (2 u / W)^2)),    psi^(f) = e^(-b) W sinh(q) / q,    q^2 = b^2 - (pi W f)^2,
    b = pi sqrt((W / a)^2 (a - 1/2)^2 - 0.8).

As the image's centre lies at M / 2, the FFT's phases are (-1)^l and go into the weights, which are one real sparse matrix for
all images and channels; the adjoint multiplies by its transpose. W is the smallest width at which d times the largest error of
the approximation above, over all k and r, is below `accuracy`, hence |error of y_m| <= accuracy s sum_n |x_n|.

A^H A is a convolution with Q_l = s^2 sum_m exp(2 pi i k_m . l), which is a multiplication by a real kernel between two FFTs of
2 N points per axis.

References: Fessler, Sutton, Nonuniform fast Fourier transforms using min-max interpolation, IEEE TSP 51, 2003; Beatty,
Nishimura, Pauly, Rapid gridding reconstruction with a minimal oversampling ratio, IEEE TMI 24, 2005 (b); Pipe, Menon, Sampling
density compensation in MRI: rationale and an iterative numerical solution, MRM 41, 1999; Fessler, Lee, Olafsson, Shi, Noll,
Toeplitz-based iterative image reconstruction for MRI with correction for magnetic field inhomogeneity, IEEE TSP 53, 2005.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..core.errors import ConfigError, ShapeError
from ..core.operator import LinearOperator
from .constants import Constants
from .sparse import csr_pair

__all__ = ["NUFFT", "Kernel", "density", "kernel_for", "radial_nufft", "radial_points"]

WIDEST = 24
# bytes of oversampled grids in one pass over the weights on a CPU: what leaves the cache costs more than reading them again
PASS = 2**24


@dataclass(frozen=True)
class Kernel:
    """The Kaiser-Bessel kernel, scaled by e^(-beta) so that its powers stay within float32.

    Attributes:
        width: support W in points of the oversampled grid. oversampling: a of the module's docstring.
    """

    width: int
    oversampling: float

    @property
    def beta(self) -> float:
        """b of the module's docstring."""
        return math.pi * math.sqrt((self.width / self.oversampling * (self.oversampling - 0.5)) ** 2 - 0.8)

    def values(self, u: Tensor) -> Tensor:
        """psi at distances u in points of the grid; 0 beyond W / 2."""
        inner = 1.0 - (u * (2.0 / self.width)).square()
        root = self.beta * inner.abs().sqrt()
        return torch.where(inner >= 0.0, torch.special.i0e(root) * torch.exp(root - self.beta), 0.0)

    def transform(self, f: Tensor) -> Tensor:
        """The transform of psi at frequencies |f| <= 1 / (2 a), in cycles per point of the grid."""
        root = torch.sqrt(self.beta**2 - (math.pi * self.width * f).square())
        return (0.5 * self.width) * torch.exp(root - self.beta) * -torch.expm1(-2.0 * root) / root

    def error(self) -> float:
        """The largest error of one exponential along one axis, rounding included, over a grid of k and r."""
        f = torch.linspace(0.0, 0.5 / self.oversampling, 33, dtype=torch.float64)
        t = torch.linspace(0.0, 1.0, 33, dtype=torch.float64)[:, None]
        u = torch.ceil(t - 0.5 * self.width) + torch.arange(self.width, dtype=torch.float64) - t
        waves = torch.polar(self.values(u)[..., None].expand(-1, -1, len(f)), (-2.0 * math.pi) * u[..., None] * f)
        return float((waves.sum(1) / self.transform(f) - 1.0).abs().max())


@lru_cache(maxsize=64)
def kernel_for(accuracy: float, dimensions: int, oversampling: float = 2.0) -> Kernel:
    """The narrowest kernel whose error, summed over the dimensions, is below the accuracy.

    Raises:
        ConfigError: accuracy outside [1e-12, 1e-2], oversampling outside [1.25, 2], or no kernel reaches the accuracy in
            float64 (in 3-D: 1e-12 at an oversampling of 2 or 1.5, 1e-10 at 1.25).
    """
    if not 1e-12 <= accuracy <= 1e-2:
        raise ConfigError(f"NUFFT: expected an accuracy of 1e-12 to 1e-2, got {accuracy}")
    if not 1.25 <= oversampling <= 2.0:
        raise ConfigError(f"NUFFT: expected an oversampling of 1.25 to 2, got {oversampling}")
    best = math.inf
    for width in range(3, WIDEST + 1):
        kernel = Kernel(width, oversampling)
        best = min(best, dimensions * kernel.error())
        if best <= accuracy:
            return kernel
    raise ConfigError(
        f"NUFFT: expected an accuracy that float64 reaches at an oversampling of {oversampling} in {dimensions} dimensions, "
        f"{best:.1e}, got {accuracy}: use a larger oversampling"
    )


class NUFFT(LinearOperator):
    """The Fourier transform of complex images at given points.

    Args:
        points: (M, d), float64, finite, cycles per pixel along each axis in the order of `size`; any value (period 1).
        size: of the image, d = 1 to 3 axes.
        channels: images transformed alike, coils or looks say.
        accuracy: largest error of a value relative to s times the sum of the absolute values of its image, 1e-12 to 1e-2.
        oversampling: of the grid, 1.25 to 2. A smaller one takes a wider kernel and a smaller FFT, and amplifies rounding: with
            an accuracy of 1e-6 in 2-D, float32 reaches some 2e-7 of the norm at 2, 7e-7 at 1.5, 7e-5 at 1.25.
        norm: "ortho" for a factor prod(N)^(-1/2), "none" for none.
        toeplitz: compute `normal` by the convolution, at a cost that does not grow with M. It then differs from
            adjoint(forward) by about `accuracy`, which is why it is off by default: `solve` and `pinv`, which iterate `normal`,
            are exact for the operator as it is only without it.

    Shapes: image (B, C, *size) complex -> values (B, C, M) complex.

    Raises:
        ShapeError: size has not 1 to 3 positive axes, the points are not (M, d) float64, or there are none.
        ConfigError: an option is out of its range, a point is not finite, or the weights are beyond 32-bit indices.
    """

    def __init__(
        self,
        points: Tensor,
        size: Sequence[int],
        *,
        channels: int = 1,
        accuracy: float = 1e-6,
        oversampling: float = 2.0,
        norm: Literal["ortho", "none"] = "ortho",
        toeplitz: bool = False,
    ) -> None:
        size = _checked("NUFFT", points, size)
        if channels < 1 or norm not in ("ortho", "none"):
            raise ConfigError(f"NUFFT: expected channels >= 1 and a norm of ortho or none, got {channels} and {norm!r}")
        kernel = kernel_for(float(accuracy), len(size), float(oversampling))
        _require_indices(len(points), size, kernel)
        super().__init__((channels, *size), (channels, len(points)), in_complex=True, out_complex=True)
        self.size, self.kernel, self.toeplitz = size, kernel, toeplitz
        self.scale = math.prod(size) ** -0.5 if norm == "ortho" else 1.0
        self.constants = Constants(partial(_constants, size=size, kernel=kernel, scale=self.scale), points)
        self.convolution = Constants(partial(_convolution, size=size, kernel=kernel, scale=self.scale), points)
        self.compensation = Constants(partial(_density, size=size), points)

    def forward(self, x: Tensor) -> Tensor:
        apodisation, weights, _ = self.constants(x)
        grid = grid_of(self.size, self.kernel)
        passes = [_interpolate(v, apodisation, weights, grid) for v in _passes(x, grid)]
        return torch.cat(passes).unflatten(0, x.shape[:2])

    def adjoint(self, y: Tensor) -> Tensor:
        apodisation, _, weights = self.constants(y)
        grid = grid_of(self.size, self.kernel)
        passes = [_spread(v, apodisation, weights, grid) for v in _passes(y, grid)]
        return torch.cat(passes).unflatten(0, y.shape[:2])

    def normal(self, x: Tensor) -> Tensor:
        if not self.toeplitz:
            return super().normal(x)
        (kernel,) = self.convolution(x)
        axes = tuple(range(-len(self.size), 0))
        spectrum = torch.fft.fftn(x, kernel.shape, axes) * kernel
        return torch.fft.ifftn(spectrum, dim=axes)[(..., *(slice(n) for n in self.size))]

    def guess(self, y: Tensor) -> Tensor:
        """A^H W y with the weights of `density`, which make A^H W A as close to the identity as diagonal weights can."""
        (weights,) = self.compensation(y)
        unit = self.scale**2 * math.prod(self.size)
        return self.adjoint(y * weights) / unit


def density(points: Tensor, size: Sequence[int], *, iterations: int = 30) -> Tensor:
    """Density compensation of Pipe and Menon, (M,) float64: w <- w / (C w) from w = 1.

    With C_mm' = |<a_m, a_m'>|^2 for the rows a_m of the orthonormal transform, the fixed point C w = 1 minimises
    |A^H diag(w) A - I| in the Frobenius norm over w >= 0, and each step lowers it; 0 < w <= 1. C is a convolution with the
    squared Dirichlet kernel, evaluated by transforms of images of 2 N pixels to 1e-5. No part of any likelihood.

    Args:
        points, size: as for NUFFT.

    Raises:
        ShapeError, ConfigError: as NUFFT does, or iterations < 1.
    """
    size = _checked("density", points, size)
    if iterations < 1:
        raise ConfigError(f"density: expected iterations >= 1, got {iterations}")
    (weights,) = _density(points.cpu(), size=size, iterations=iterations)
    return weights.to(points.device)


def radial_points(spokes: int, readout: int) -> Tensor:
    """Points of spokes through the origin, each turned by pi (sqrt 5 - 1) / 2 from the last, (spokes readout, 2) float64.

    A spoke has the radii (j - readout // 2) / readout, j = 0 .. readout - 1, in cycles per pixel.
    """
    if spokes < 1 or readout < 1:
        raise ConfigError(f"radial_points: expected spokes >= 1 and readout >= 1, got {spokes} and {readout}")
    angle = torch.arange(spokes, dtype=torch.float64)[:, None] * (math.pi * (math.sqrt(5.0) - 1.0) / 2.0)
    radius = (torch.arange(readout, dtype=torch.float64) - readout // 2) / readout
    return torch.stack((radius * torch.sin(angle), radius * torch.cos(angle)), -1).flatten(0, 1)


def radial_nufft(
    size: Sequence[int],
    spokes: int,
    readout: int,
    channels: int = 1,
    accuracy: float = 1e-6,
    oversampling: float = 2.0,
    norm: Literal["ortho", "none"] = "ortho",
    toeplitz: bool = False,
) -> NUFFT:
    """NUFFT at `radial_points(spokes, readout)`."""
    points = radial_points(spokes, readout)
    return NUFFT(points, size, channels=channels, accuracy=accuracy, oversampling=oversampling, norm=norm, toeplitz=toeplitz)


def grid_of(size: Sequence[int], kernel: Kernel) -> tuple[int, ...]:
    """The oversampled grid: even lengths without prime factors beyond 5."""
    from scipy.fft import next_fast_len

    return tuple(2 * next_fast_len(math.ceil(kernel.oversampling * n / 2.0), real=True) for n in size)


def _checked(owner: str, points: Tensor, size: Sequence[int]) -> tuple[int, ...]:
    """The size as a tuple, if it and the points are what they should be."""
    if not 1 <= len(size) <= 3 or min(size) < 1:
        raise ShapeError(f"{owner}: expected a size of 1 to 3 positive axes, got {tuple(size)}")
    if points.ndim != 2 or points.shape[1] != len(size) or len(points) < 1 or points.dtype != torch.float64:
        found = f"{tuple(points.shape)} {str(points.dtype)[6:]}"
        raise ShapeError(f"{owner}: expected points of shape (M, {len(size)}) float64 with M >= 1, got {found}")
    if not bool(points.isfinite().all()):
        raise ConfigError(f"{owner}: expected finite points, got {int((~points.isfinite()).any(1).sum())} that are not")
    return tuple(int(n) for n in size)


def _require_indices(points: int, size: tuple[int, ...], kernel: Kernel) -> None:
    count = points * kernel.width ** len(size)
    if max(count, math.prod(grid_of(size, kernel))) >= 2**31:
        raise ConfigError(
            f"NUFFT: expected fewer than 2^31 weights and grid points, got {points} x {kernel.width}^{len(size)} weights: "
            "use fewer points at a time (Stack), or a larger accuracy"
        )


def _passes(values: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, ...]:
    """(B, C, ...) -> parts of (B C, ...)."""
    images = values.flatten(0, 1)
    return images.split(max(1, PASS // (math.prod(grid) * images.element_size())) if images.is_cpu else max(1, len(images)))


def _interpolate(x: Tensor, apodisation: Tensor, weights: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(n, *size) -> (n, M)."""
    x = x * apodisation
    # axis by axis, so that lines of zeros are not transformed; the last one last, which leaves the grid contiguous
    for axis, m in enumerate(grid, 1):
        before = m // 2 - x.shape[axis] // 2
        after = m - before - x.shape[axis]
        x = torch.fft.fft(pad(x, (0, 0) * (x.ndim - 1 - axis) + (before, after)), dim=axis)
    return torch.view_as_complex((weights @ _columns(x)).unflatten(1, (-1, 2))).mT


def _spread(y: Tensor, apodisation: Tensor, weights: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Its transpose, (n, M) -> (n, *size); `weights` are the transposed ones."""
    x = torch.view_as_complex((weights @ _columns(y)).unflatten(1, (-1, 2))).mT.unflatten(1, grid)
    for axis, (m, n) in enumerate(zip(grid, apodisation.shape, strict=True), 1):
        x = torch.fft.ifft(x, dim=axis, norm="forward").narrow(axis, m // 2 - n // 2, n)
    return x * apodisation


def _columns(values: Tensor) -> Tensor:
    """(n, ...) complex -> (prod(...), 2 n) real."""
    return torch.view_as_real(values.flatten(1).mT.resolve_conj().contiguous()).flatten(1)


def _constants(points: Tensor, *, size: tuple[int, ...], kernel: Kernel, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The apodisation with the scale in it, the weights, and their transpose."""
    grid = grid_of(size, kernel)
    apodisation = torch.full((), scale, dtype=torch.float64)
    # the index of an axis outermost: columns of the matrix are points of the grid in the order of memory
    columns, values = torch.zeros(len(points), 1, dtype=torch.int64), torch.ones(len(points), 1, dtype=torch.float64)
    taps = torch.arange(kernel.width, dtype=torch.float64)
    for n, m, k in zip(size, grid, points.T, strict=True):
        r = torch.arange(n, dtype=torch.float64) - n // 2
        apodisation = apodisation[..., None] / kernel.transform(r / m)
        t = (k - k.round())[:, None] * m
        index = torch.ceil(t - 0.5 * kernel.width) + taps
        signed = kernel.values(index - t) * (1.0 - 2.0 * (index % 2.0))
        columns = (columns[:, :, None] * m + (index.long() % m)[:, None]).flatten(1)
        values = (values[:, :, None] * signed[:, None]).flatten(1)
    rows = np.repeat(np.arange(len(points), dtype=np.int32), columns.shape[1])
    shape = (len(points), math.prod(grid))
    return apodisation, *csr_pair(values.flatten().numpy(), rows, columns.flatten().numpy().astype(np.int32), shape)


def _convolution(points: Tensor, *, size: tuple[int, ...], kernel: Kernel, scale: float) -> tuple[Tensor]:
    """The transform of Q_l, |l| < N, on the grid of 2 N points; real, as Q_-l is the conjugate of Q_l."""
    wide = tuple(2 * n for n in size)
    apodisation, _, weights = _constants(points, size=wide, kernel=kernel, scale=scale**2)
    lags = _spread(torch.ones(1, len(points), dtype=torch.complex128), apodisation, weights, grid_of(wide, kernel))[0]
    for axis in range(len(size)):
        lags.select(axis, 0).zero_()
    return (torch.fft.fftn(torch.fft.ifftshift(lags)).real.contiguous(),)


def _density(points: Tensor, *, size: tuple[int, ...], iterations: int = 30) -> tuple[Tensor]:
    wide, kernel = tuple(2 * n for n in size), kernel_for(1e-5, len(size), 1.5)
    _require_indices(len(points), wide, kernel)
    grid = grid_of(wide, kernel)
    apodisation, weights, transposed = _constants(points, size=wide, kernel=kernel, scale=1.0)
    window = torch.ones((), dtype=torch.float64)
    for n in size:
        lags = torch.arange(-n, n, dtype=torch.float64)
        window = window[..., None] * ((1.0 - lags.abs() / n) / n)
    w = torch.ones(1, len(points), dtype=torch.float64)
    for _ in range(iterations):
        lags = window * _spread(w.to(torch.complex128), apodisation, transposed, grid)
        # no element of C is negative and its diagonal is 1: what falls below w is error
        w = w / torch.maximum(_interpolate(lags, apodisation, weights, grid).real, w)
    return (w[0],)
