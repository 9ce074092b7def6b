"""Image restoration: denoising, inpainting, deblurring, super-resolution.

    Identity    A = I
    Mask        A = diag(m)                                    (A^T A + rho)^-1 = 1 / (m + rho)
    Blur        A = F^H diag(k) F, periodic                    (A^T A + rho)^-1 = F^H diag(1 / (|k|^2 + rho)) F
    Downsample  A x = W_h x W_w^T, W = U diag(s) V^T           (A^T A + rho)^-1 = (I - V diag(t / (t + rho)) V^T) / rho, t = s^2

Downsampling is separable, an antialiased interpolation of each axis with the weights renormalised at the borders as in common
image libraries, so that two small singular value decompositions make its solve and its pseudo-inverse exact.

References: Keys, Cubic convolution interpolation for digital image processing, IEEE TASSP 29, 1981 (a = -1/2).
"""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError, ShapeError
from ..core.linalg import expand
from ..core.operator import LinearOperator
from ..core.spectrum import Spectrum, given, significant, unchanged
from .constants import Constants
from .fourier import hartley
from .masks import box_mask, random_mask

__all__ = ["Blur", "Downsample", "Identity", "Mask", "box_inpainting", "gaussian_blur", "gaussian_kernel", "random_inpainting"]

Shape = tuple[int, ...]


class Identity(LinearOperator):
    """The operator of denoising.

    Args:
        shape: of the image without the batch, (C, H, W) or any other.
    """

    unitary = True

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, shape)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def normal(self, x: Tensor) -> Tensor:
        return x

    def solve(self, b: Tensor, rho: Tensor) -> Tensor:
        return b / expand(1.0 + rho, b)

    def pinv(self, y: Tensor) -> Tensor:
        return y


class Mask(LinearOperator):
    """Inpainting: the visible pixels, zero where hidden.

    Args:
        mask: boolean, broadcastable to `shape`; True where visible.
        shape: of the image without the batch, (C, H, W).

    Raises:
        ShapeError: the mask is not boolean or does not broadcast to the shape.
    """

    measured: Tensor

    def __init__(self, mask: Tensor, shape: Shape) -> None:
        super().__init__(shape, shape)
        fits = mask.ndim <= len(self.in_shape) and all(
            m in (1, s) for m, s in zip(mask.shape[::-1], self.in_shape[::-1], strict=False)
        )
        if mask.dtype != torch.bool or not fits:
            raise ShapeError(f"Mask: expected a boolean mask on {self.in_shape}, got {tuple(mask.shape)} {str(mask.dtype)[6:]}")
        self.measured = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.measured

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self.measured

    def normal(self, x: Tensor) -> Tensor:
        return x * self.measured

    def solve(self, b: Tensor, rho: Tensor) -> Tensor:
        return b / (self.measured + expand(rho, b))

    def pinv(self, y: Tensor) -> Tensor:
        return y * self.measured

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        kind = torch.float64 if like is None else like.real.dtype
        return Spectrum(self.measured.expand(self.in_shape).to(kind), unchanged, unchanged)


class Blur(LinearOperator):
    """Periodic convolution of each channel, y = k * x.

    Args:
        kernel: real, (h, w), at most as large as the image; its centre is element (h // 2, w // 2).
        shape: of the image without the batch, (C, H, W).

    The pseudo-inverse treats frequencies with |k| below max(H, W) eps max|k| as not transmitted.

    Raises:
        ShapeError: the kernel is complex, not two-dimensional, or larger than the image.
    """

    def __init__(self, kernel: Tensor, shape: Shape) -> None:
        super().__init__(shape, shape)
        if kernel.ndim != 2 or kernel.is_complex() or any(k > s for k, s in zip(kernel.shape, self.in_shape[-2:], strict=True)):
            raise ShapeError(
                f"Blur: expected a real kernel of two dimensions within {self.in_shape[-2:]}, "
                f"got {tuple(kernel.shape)} {str(kernel.dtype)[6:]}"
            )
        self.constants = Constants(partial(_spectrum, size=self.in_shape[-2:]), kernel)

    def forward(self, x: Tensor) -> Tensor:
        (k,) = self.constants(x)
        return self._filter(x, k)

    def adjoint(self, y: Tensor) -> Tensor:
        (k,) = self.constants(y)
        return self._filter(y, k.conj())

    def normal(self, x: Tensor) -> Tensor:
        (k,) = self.constants(x)
        return self._filter(x, _power(k))

    def solve(self, b: Tensor, rho: Tensor) -> Tensor:
        (k,) = self.constants(b)
        return self._filter(b, 1.0 / (_power(k) + expand(rho, b)))

    def pinv(self, y: Tensor) -> Tensor:
        (k,) = self.constants(y)
        cut = max(self.in_shape[-2:]) * torch.finfo(y.dtype).eps * k.abs().max()
        return self._filter(y, torch.where(k.abs() > cut, k.conj() / _power(k), 0.0))

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        (k,) = self.constants(given(like))
        h, w = self.in_shape[-2:]
        rows, columns = -torch.arange(h, device=k.device) % h, torch.arange(w // 2 + 1, w, device=k.device)
        # |k| of a real kernel is the same at minus the frequency
        full = torch.cat((k.abs(), k.abs()[rows][:, w - columns]), 1)
        return Spectrum(significant(full, max(h, w)).expand(self.in_shape), hartley, hartley)

    def _filter(self, x: Tensor, spectrum: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * spectrum, s=self.in_shape[-2:])


def _power(k: Tensor) -> Tensor:
    return k.real.square() + k.imag.square()


def _spectrum(kernel: Tensor, size: tuple[int, int]) -> tuple[Tensor]:
    h, w = kernel.shape
    padded = torch.zeros(size, dtype=torch.float64)
    padded[:h, :w] = kernel
    return (torch.fft.rfft2(padded.roll((-(h // 2), -(w // 2)), (0, 1))),)


class Downsample(LinearOperator):
    """Antialiased downsampling by an integer factor, (C, H, W) -> (C, H / factor, W / factor).

    Output pixel i averages the input around factor (i + 1/2) - 1/2 with the interpolation kernel stretched by the factor;
    weights that would fall outside the image are left out and the rest is renormalised.

    Args:
        shape: of the image without the batch, (C, H, W), divisible by the factor.
        factor: 2, 3, 4 ...
        kernel: "bicubic" (Keys), "lanczos" (3 lobes) or "box" (block means).

    Raises:
        ShapeError: the image is not divisible by the factor.
    """

    def __init__(self, shape: Shape, factor: int, kernel: Literal["bicubic", "lanczos", "box"] = "bicubic") -> None:
        channels, h, w = shape
        if factor < 1 or h % factor or w % factor:
            raise ShapeError(
                f"Downsample: expected an image divisible by the factor, got ({h}, {w}) and {factor}: crop the image"
            )
        if kernel not in _KERNELS:
            raise ConfigError(f"Downsample: expected a kernel of {', '.join(_KERNELS)}, got {kernel!r}")
        super().__init__(shape, (channels, h // factor, w // factor))
        self.factor, self.kernel = factor, kernel
        self.constants = Constants(partial(_resampling, size=(h, w), factor=factor, kernel=kernel))
        self.bases = Constants(partial(_bases, size=(h, w), factor=factor, kernel=kernel))

    def forward(self, x: Tensor) -> Tensor:
        a, b, *_ = self.constants(x)
        return a @ x @ b.mT

    def adjoint(self, y: Tensor) -> Tensor:
        a, b, *_ = self.constants(y)
        return a.mT @ y @ b

    def solve(self, b: Tensor, rho: Tensor) -> Tensor:
        _, _, _, _, vh, vw, s = self.constants(b)
        rho, t = expand(rho, b), s.square()
        inside = vh.mT @ b @ vw
        return (b - vh @ (inside * (t / (t + rho))) @ vw.mT) / rho

    def pinv(self, y: Tensor) -> Tensor:
        _, _, uh, uw, vh, vw, s = self.constants(y)
        cut = max(self.in_shape[-2:]) * torch.finfo(y.dtype).eps * s.max()
        return vh @ (uh.mT @ y @ uw * torch.where(s > cut, 1.0 / s, 0.0)) @ vw.mT

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        vh, vw, s = self.bases(given(like))
        values = significant(s, max(self.in_shape[-2:])).expand(self.in_shape)
        return Spectrum(values, partial(_sandwich, left=vh.mT, right=vw), partial(_sandwich, left=vh, right=vw.mT))

    def extra_repr(self) -> str:
        return f"shape={self.in_shape}, factor={self.factor}, kernel={self.kernel}"


def _bicubic(t: Tensor) -> Tensor:
    t = t.abs()
    near, far = (1.5 * t - 2.5) * t * t + 1.0, ((-0.5 * t + 2.5) * t - 4.0) * t + 2.0
    return torch.where(t <= 1.0, near, torch.where(t < 2.0, far, 0.0))


def _lanczos(t: Tensor) -> Tensor:
    return torch.where(t.abs() < 3.0, torch.sinc(t) * torch.sinc(t / 3.0), 0.0)


def _box(t: Tensor) -> Tensor:
    return (t.abs() < 0.5).double()


_KERNELS = {"bicubic": _bicubic, "lanczos": _lanczos, "box": _box}


def _resampling(size: tuple[int, int], factor: int, kernel: str) -> tuple[Tensor, ...]:
    """W_h, W_w, U_h, U_w, V_h, V_w and the products of their singular values."""
    matrices = [_interpolation(n, factor, kernel) for n in size]
    (uh, sh, vh), (uw, sw, vw) = (torch.linalg.svd(m, full_matrices=False) for m in matrices)
    return *matrices, uh, uw, vh.mT, vw.mT, sh[:, None] * sw


def _bases(size: tuple[int, int], factor: int, kernel: str) -> tuple[Tensor, ...]:
    """V_h (H, H) and V_w (W, W), with the null spaces, and the products of their singular values, (H, W)."""
    values, bases = [], []
    for n in size:
        _, s, vt = torch.linalg.svd(_interpolation(n, factor, kernel))
        values.append(torch.cat((s, s.new_zeros(n - len(s)))))
        bases.append(vt.mT)
    return *bases, values[0][:, None] * values[1]


def _interpolation(n: int, factor: int, kernel: str) -> Tensor:
    """The rows of one axis, (n / factor, n)."""
    position, pixel = torch.arange(n // factor, dtype=torch.float64), torch.arange(n, dtype=torch.float64)
    weights = _KERNELS[kernel]((pixel - (factor * (position[:, None] + 0.5) - 0.5)) / factor)
    return weights / weights.sum(1, keepdim=True)


def _sandwich(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return left @ x @ right


def gaussian_kernel(sigma: float) -> Tensor:
    """A normalised Gaussian of standard deviation `sigma` in pixels, cut at 4 sigma, (2 r + 1, 2 r + 1) float64."""
    if not sigma > 0.0:
        raise ConfigError(f"gaussian_kernel: expected sigma > 0, got {sigma}")
    r = ceil(4.0 * sigma)
    line = torch.exp(-0.5 * (torch.arange(-r, r + 1, dtype=torch.float64) / sigma).square())
    return torch.outer(line, line) / line.sum() ** 2


def gaussian_blur(height: int, width: int, channels: int = 1, sigma: float = 2.0) -> Blur:
    """A periodic Gaussian blur; sigma in pixels."""
    return Blur(gaussian_kernel(sigma), (channels, height, width))


def random_inpainting(height: int, width: int, channels: int = 1, keep: float = 0.5, seed: int = 0) -> Mask:
    """Each pixel is visible, in all channels, with probability `keep`."""
    return Mask(random_mask((height, width), keep, seed), (channels, height, width))


def box_inpainting(height: int, width: int, channels: int = 1, box: int = 32) -> Mask:
    """A square of box x box pixels in the middle is hidden."""
    return Mask(box_mask((height, width), box), (channels, height, width))
