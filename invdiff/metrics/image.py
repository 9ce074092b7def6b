"""How far an estimate is from the truth, for each item of a batch.

    PSNR  = 10 log10(R^2 / mean (x - t)^2)
    SSIM  = mean over windows of (2 m_x m_t + c1)(2 s_xt + c2) / ((m_x^2 + m_t^2 + c1)(s_x^2 + s_t^2 + c2)),
            c1 = (0.01 R)^2, c2 = (0.03 R)^2
    NRMSE = |x - t| / |t|

R is the data range, always given by the caller: a metric that takes it from its arguments can't be compared between images.
Two windows for SSIM are in use, and they do not give the same numbers: `ssim` is the original one, `ssim_uniform7` that of
scikit-image's defaults and of the fastMRI leaderboards. Both average over the windows that lie inside the image.

References: Wang, Bovik, Sheikh, Simoncelli, Image quality assessment: from error visibility to structural similarity, IEEE TIP
13, 2004; Zbontar, Knoll, Sriram et al., fastMRI: an open dataset and benchmarks for accelerated MRI, 2018, arXiv:1811.08839.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ..core import ConfigError, ShapeError, expand, norm

__all__ = ["nrmse", "psnr", "ssim", "ssim_uniform7"]


def psnr(x: Tensor, truth: Tensor, data_range: float | Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B, ...), (B, ...) -> (B,); infinite where the two are equal.

    Args:
        x, truth: real or complex tensors of the same shape; a complex error counts by its modulus.
        data_range: R, a number or one per item (B,), positive, in the units of x.
    """
    _same(x, truth, "psnr")
    mse = (x - truth).abs().square().flatten(1).mean(1)
    return 10.0 * torch.log10(_range(data_range, x, "psnr").square() / mse)


def nrmse(x: Tensor, truth: Tensor) -> Tensor:
    """|x - t| / |t| (Euclidean norms, real or complex), (B, ...), (B, ...) -> (B,)."""
    _same(x, truth, "nrmse")
    return norm(x - truth) / norm(truth)


def ssim(x: Tensor, truth: Tensor, data_range: float | Tensor) -> Tensor:
    """Structural similarity with a Gaussian window of 11 x 11 pixels and standard deviation 1.5, mean over channels.

    Args:
        x, truth: real, (B, C, H, W), at least 11 x 11 pixels.
        data_range: R, a number or one per item (B,), positive, in the units of x.

    Returns:
        (B,), 1 for equal images.
    """
    offsets = torch.arange(11, dtype=x.real.dtype, device=x.device) - 5.0
    window = torch.exp(-0.5 * (offsets / 1.5) ** 2)
    window = window / window.sum()

    def blur(z: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(z, window.reshape(1, 1, 11, 1)), window.reshape(1, 1, 1, 11))

    return _ssim(x, truth, data_range, "ssim", 11, blur, 1.0)


def ssim_uniform7(x: Tensor, truth: Tensor, data_range: float | Tensor) -> Tensor:
    """Structural similarity with a uniform window of 7 x 7 pixels and sample covariances (N - 1), mean over channels.

    Arguments as for `ssim`, at least 7 x 7 pixels. fastMRI gives one R for the slices of a volume, the maximum of the volume.
    """
    return _ssim(x, truth, data_range, "ssim_uniform7", 7, lambda z: functional.avg_pool2d(z, 7, stride=1), 49.0 / 48.0)


def _ssim(
    x: Tensor, truth: Tensor, data_range: float | Tensor, name: str, size: int, blur: Callable[[Tensor], Tensor], unbias: float
) -> Tensor:
    _same(x, truth, name)
    if x.ndim != 4 or x.is_complex() or min(x.shape[2:]) < size:
        raise ShapeError(
            f"{name}: expected real images (B, C, H, W) of at least {size} x {size} pixels, got {tuple(x.shape)} {x.dtype}"
        )
    # in units of R, and about a value near the mean, so that variances do not cancel in float32
    scale = expand(_range(data_range, x, name), x)
    a, b = (z.reshape(-1, 1, *z.shape[2:]) for z in (x / scale, truth / scale))
    shift = b.mean((2, 3), keepdim=True)
    a, b = a - shift, b - shift
    ma, mb = blur(a), blur(b)
    va, vb, vab = (unbias * (blur(p) - m) for p, m in ((a * a, ma * ma), (b * b, mb * mb), (a * b, ma * mb)))
    ma, mb = ma + shift, mb + shift
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
    return values.reshape(len(x), -1).mean(1)


def _same(x: Tensor, truth: Tensor, name: str) -> None:
    if x.shape != truth.shape or x.ndim < 2:
        raise ShapeError(
            f"{name}: expected two batches (B, ...) of the same shape, got {tuple(x.shape)} and {tuple(truth.shape)}"
        )


def _range(data_range: float | Tensor, x: Tensor, name: str) -> Tensor:
    value = torch.as_tensor(data_range, dtype=x.real.dtype, device=x.device).expand(len(x))
    if not bool((value > 0).all() and value.isfinite().all()):
        raise ConfigError(f"{name}: expected data_range > 0, got {data_range}")
    return value
