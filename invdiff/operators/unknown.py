"""What is not known of a measurement: gains, the shift of a detector, a blur kernel, coil maps.

    y = L2 (m(phi) . L1 x),     `operators.Calibrated`

    gains     m = 1 + g along an axis                      L1 = A, L2 = I
    shift     m_k = exp(-2 pi i k s / n)                   L1 = F A, L2 = F^H, F the Fourier transform of an axis of n samples
    kernel    m = F (k_0 + sum_b c_b B_b)                  L1 = F, L2 = M F^H: a periodic convolution seen through a mask
    maps      m_j = S_j + sum_b c_jb B_b, c complex        L1 = I, L2 = M F: coils of magnetic resonance

All but the shift are linear in phi given x. B_b are products of cosines; of the kernel all but the constant one, so that its
sum is that of k_0: with Gaussian coefficients the law of the kernel is Gaussian, and values of either sign are possible in it.

What data cannot tell apart, the priors decide: a gain common to all of y and a factor of x, a factor common to all maps and one
of x, a translated kernel and a translated x, and under a stationary Gaussian law of x a kernel and its mirror image. The shift
of a sinogram is told from a translation of the slice: of its effect over half a turn the part 8 / pi^2 is that of a
translation, the rest is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.algebra import ViewAsComplex
from ..core.errors import ConfigError, ShapeError
from ..core.operator import LinearOperator, Operator
from .calibration import Calibrated, Fourier, Product
from .constants import Constants, as_given
from .masks import random_columns
from .mri import birdcage_maps
from .restoration import Mask

__all__ = ["blind_blur", "blind_mri", "unknown_gains", "unknown_kernel", "unknown_maps", "unknown_shift"]


class _Offset(Operator):
    """phi -> m_0 + L phi."""

    def __init__(self, constant: Tensor, linear: LinearOperator) -> None:
        super().__init__(linear.in_shape, linear.out_shape)
        self.constant, self.linear = Constants(as_given, constant), linear

    def forward(self, x: Tensor) -> Tensor:
        return self.constant(x)[0] + self.linear(x)

    def linearize(self, x: Tensor) -> tuple[Tensor, Product, Product]:
        return self(x), self.linear, self.linear.adjoint


class _Combined(LinearOperator):
    """(G K,) -> (G, *size), sum_k c_gk B_k; without B the coefficients themselves, in a shape."""

    def __init__(self, groups: int, basis: Tensor | None, shape: Sequence[int]) -> None:
        super().__init__((groups if basis is None else groups * len(basis),), tuple(shape))
        self.groups = groups
        self.basis = None if basis is None else Constants(as_given, basis.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        c = x if self.basis is None else x.unflatten(1, (self.groups, -1)) @ self.basis(x)[0]
        return c.reshape(-1, *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return y.flatten(1) if self.basis is None else (y.reshape(len(y), self.groups, -1) @ self.basis(y)[0].mT).flatten(1)


class _Phase(Operator):
    """s -> exp(-2 pi i k s / n) for the centred frequencies of an axis, (P,) -> a shape with n along it."""

    def __init__(self, count: int, n: int, axis: int, each: int | None, dims: int) -> None:
        shape = [1] * dims
        shape[axis] = n
        self.spread = [1] * dims
        if each is not None:
            self.spread[each] = shape[each] = count
        super().__init__((count,), tuple(shape), out_complex=True)
        turns = -2j * math.pi * torch.fft.fftshift(torch.fft.fftfreq(n, dtype=torch.float64))
        self.rate = Constants(as_given, turns.reshape([n if i == axis % dims else 1 for i in range(dims)]))

    def forward(self, x: Tensor) -> Tensor:
        return (self.rate(x)[0] * x.reshape(-1, *self.spread)).exp()

    def linearize(self, x: Tensor) -> tuple[Tensor, Product, Product]:
        m, (rate,) = self(x), self.rate(x)

        def pull(v: Tensor) -> Tensor:
            return (m * rate).conj().mul(v).real.sum_to_size((len(v), *self.spread)).flatten(1)

        return m, lambda t: m * rate * t.reshape(-1, *self.spread), pull


def unknown_gains(operator: Operator, axis: int | None = 0) -> Calibrated:
    """y = (1 + g) A x; phi = g.

    Args:
        operator: A, of real unknowns.
        axis: of its output, without the batch, along which the gains differ (channels, detector elements, coils); None for one
            gain.
    """
    shape = [1] * len(operator.out_shape)
    if axis is not None:
        shape[axis] = operator.out_shape[axis]
    return Calibrated(operator, _Offset(torch.ones(1, dtype=torch.float64), _Combined(math.prod(shape), None, shape)))


def unknown_shift(operator: Operator, axis: int = -1, each: int | None = None) -> Calibrated:
    """y(t) = (A x)(t - s) along an axis, periodic and band-limited; phi = s in samples. The centre of rotation of a sinogram.

    The derivative is exact. What leaves the axis at one end comes back at the other: it has to have a margin of zeros wider
    than s.

    Args:
        operator: A, real.
        axis: of its output without the batch.
        each: another axis along which shifts differ (a jitter of the views); None for one shift.

    Raises:
        ShapeError: the output is complex, not measured everywhere, or the two axes are the same.
    """
    dims = len(operator.out_shape)
    if operator.out_complex or operator.measured is not None or (each is not None and (axis - each) % dims == 0):
        raise ShapeError(
            f"unknown_shift: expected two axes of a real output that is measured everywhere, got {axis} and {each} of "
            f"{type(operator).__name__}"
        )
    count = 1 if each is None else operator.out_shape[each]
    transform = Fourier(operator.out_shape, (axis % dims - dims,))
    return Calibrated(transform @ operator, _Phase(count, operator.out_shape[axis], axis, each, dims), transform.H)


def unknown_kernel(shape: Sequence[int], kernel: Tensor, mask: Tensor | None = None, orders: int | None = None) -> Calibrated:
    """y = M (k * x), periodic; phi: k - k_0 in orthonormal cosines on the support of k_0, without the constant.

    White phi of standard deviation s are white perturbations of the kernel with that of s for each value, but for the sum.
    `operator.response.inner(phi)` is the kernel about the centre of the image, times sqrt(H W).

    Args:
        shape: of the image, (C, H, W).
        kernel: k_0, (h, w), odd sizes.
        mask: boolean, broadcastable to the shape; None where all is seen.
        orders: cosines of each direction; None for all, which makes h w - 1 coefficients.

    Raises:
        ShapeError: the kernel's sizes are even or exceed the image's.
    """
    h, w = kernel.shape
    if not (h % 2 and w % 2) or h > shape[-2] or w > shape[-1]:
        raise ShapeError(f"unknown_kernel: expected a kernel of odd sizes within {tuple(shape[-2:])}, got {h} x {w}")
    scale, (low, left) = math.sqrt(shape[-2] * shape[-1]), (shape[-2] // 2 - h // 2, shape[-1] // 2 - w // 2)

    def padded(value: Tensor) -> Tensor:
        wide = value.new_zeros(*value.shape[:-2], *shape[-2:], dtype=torch.float64)
        wide[..., low : low + h, left : left + w] = scale * value
        return wide

    basis = padded(_cosines((h, w), orders)[1:] / math.sqrt(h * w))
    plane = (1, *shape[-2:])
    combined = _Offset(padded(kernel)[None], _Combined(1, basis, plane))
    transform = Fourier(shape)
    after: LinearOperator = transform.H if mask is None else Mask(mask, tuple(shape)) @ transform.H  # type: ignore[assignment]
    return Calibrated(transform, Fourier(plane) @ combined, after)


def unknown_maps(mask: Tensor, maps: Tensor, orders: int = 3) -> Calibrated:
    """y_j = M F (S_j + sum_b c_jb B_b) x; phi are the real, then the imaginary parts of c, (2, coils, orders^2) flat.

    The cosines have a root mean square of one. A factor common to all coils is one of x as well.

    Args:
        mask: (H, W) or what broadcasts to it, boolean.
        maps: S, those that are expected, (coils, H, W) complex.
        orders: cosines of each direction.

    Shapes: x is (2, H, W), real and imaginary part; y is (coils, H, W) complex.
    """
    if maps.ndim != 3 or not maps.is_complex():
        raise ShapeError(f"unknown_maps: expected complex maps (coils, H, W), got {tuple(maps.shape)} {str(maps.dtype)[6:]}")
    coils, height, width = maps.shape
    view = ViewAsComplex((coils, height, width))
    combined = _Combined(2 * coils, _cosines((height, width), orders), (2 * coils, height, width))
    response = view @ _Offset(torch.cat((maps.real, maps.imag)), combined)
    return Calibrated(ViewAsComplex((1, height, width)), response, Fourier(maps.shape, is_complex=True, mask=mask))


def blind_blur(height: int, width: int, channels: int = 1, sigma: float = 1.5, support: int = 7, orders: int = 3) -> Calibrated:
    """A periodic blur with an unknown kernel about a Gaussian of standard deviation `sigma`; see `unknown_kernel`.

    Args:
        support: rows and columns of the kernel, odd.
    """
    line = torch.exp(-0.5 * ((torch.arange(support, dtype=torch.float64) - support // 2) / sigma).square())
    return unknown_kernel((channels, height, width), torch.outer(line, line) / line.sum() ** 2, None, orders)


def blind_mri(
    height: int,
    width: int,
    coils: int = 4,
    acceleration: float = 4,
    center_fraction: float = 0.08,
    seed: int = 0,
    orders: int = 3,
) -> Calibrated:
    """Undersampled MRI with unknown maps about those of birdcage coils; see `unknown_maps` and `cartesian_mri`."""
    mask = random_columns(width, acceleration, center_fraction, seed).expand(height, width)
    return unknown_maps(mask, birdcage_maps(coils, (height, width), dtype=torch.complex128), orders)


def _cosines(size: Sequence[int], orders: int | None) -> Tensor:
    """Products of cosines with a mean square of one, the constant first, (K, H, W), float64."""
    lines = []
    for n in size:
        if orders is not None and not 1 <= orders <= n:
            raise ConfigError(f"cosines: expected 1 <= orders <= {n}, got {orders}")
        k, j = torch.arange(n if orders is None else orders, dtype=torch.float64), torch.arange(n, dtype=torch.float64)
        line = torch.cos(math.pi * k[:, None] * (j + 0.5) / n)
        lines.append(line / line.square().mean(1, keepdim=True).sqrt())
    return torch.einsum("ah,bw->abhw", *lines).flatten(0, 1)
