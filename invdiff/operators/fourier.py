"""The centred orthonormal Fourier transform over the last two dimensions, and its shifts as factors.

With c = n // 2 the centre of an axis of n points,

    X_k = n^(-1/2) sum_j x_j exp(-2 pi i (j - c) (k - c) / n) = conj(r_c) r_k fft(r x)_k,    r_j = exp(2 pi i c j / n),

so that an operator which multiplies on both sides of the transform anyway gets the two shifts for nothing. For even n the
factors are +1 and -1.

The Hartley transform h = Re F x - Im F x, F the orthonormal FFT, is real, symmetric and its own inverse; for values w_k = w_-k
it diagonalises F^H diag(w) F as F does, without the conjugate pairs of a real field.

References: Bracewell, Discrete Hartley transform, JOSA 73, 1983.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["fft2c", "hartley", "ifft2c", "shift_factors"]

_AXES = (-2, -1)


def fft2c(x: Tensor) -> Tensor:
    """Centred orthonormal FFT, (..., H, W) -> (..., H, W) complex."""
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, _AXES), norm="ortho"), _AXES)


def ifft2c(x: Tensor) -> Tensor:
    """Its inverse and adjoint."""
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(x, _AXES), norm="ortho"), _AXES)


def hartley(x: Tensor, axes: Sequence[int] = _AXES) -> Tensor:
    """Orthonormal Hartley transform of a real tensor over some axes, its own inverse and adjoint."""
    f = torch.fft.fftn(x, dim=tuple(axes), norm="ortho")
    return f.real - f.imag


def shift_factors(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(a, b), each (H, W), with fft2c(x) = b fft2(a x, norm="ortho"): float64 for even sizes, else complex128."""
    before, after = torch.ones(()), torch.ones(())
    for n in size:
        c, j = n // 2, torch.arange(n)
        before = before[..., None] * _unit(c * j, n)
        after = after[..., None] * _unit(c * j - c * c, n)
    return before, after


def _unit(numerator: Tensor, n: int) -> Tensor:
    """exp(2 pi i numerator / n) with an exact argument; real where it is +1 or -1 throughout."""
    turns = (numerator % n).double() / n
    if bool((turns * 2 == (turns * 2).round()).all()):
        return 1.0 - 4.0 * turns
    return torch.polar(torch.ones_like(turns), 2.0 * torch.pi * turns)
