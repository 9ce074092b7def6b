"""How good a radar image is: speckle, targets and phase.

    equivalent looks        m^2 / v of the intensity in a homogeneous region; L for the mean of L independent looks
    ratio image             q = I / R; for a right R and L looks Gamma(L, 1 / L): mean 1, variance 1 / L, no structure
    edge preservation       sum |d estimate| / sum |d reference| over the differences of neighbours
    target to clutter       10 log10(max |x|^2 in the target / mean |x|^2 in the clutter)
    entropy                 - sum p ln p, p = |x|^2 / sum |x|^2
    aligned NRMSE           min over c of |c x - t| / |t|, |c| = 1: c = <x, t> / |<x, t>|, or any c: c = <x, t> / <x, x>
    phase error             root mean square of arg(t conj(c x)) where |t| is above a threshold

with m, v the mean and the variance, <x, t> = sum conj(x) t. The structure of a ratio image is its autocorrelation at a lag of
one pixel, whose standard error is 1 / sqrt(pairs) for independent values of any distribution of finite variance.

References: Oliver, Quegan, Understanding synthetic aperture radar images, 2004. Argenti, Lapini, Bianchi, Alparone, A tutorial
on speckle reduction in synthetic aperture radar images, IEEE GRSM 1, 2013. Gomez, Ospina, Frery, Unassisted quantitative
evaluation of despeckling filters, Remote Sensing 9, 2017.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import ConfigError, ShapeError, expand, norm

__all__ = [
    "RatioStatistics",
    "Region",
    "edge_preservation",
    "entropy",
    "equivalent_looks",
    "phase_aligned_nrmse",
    "phase_rmse",
    "ratio_statistics",
    "target_to_clutter",
]

Region = Tensor | tuple[slice, slice]


class RatioStatistics(NamedTuple):
    """Statistics of a ratio image; of a right estimate the mean is 1 and the variance `expected_variance`.

    Args:
        mean: (B,), 1 for a right estimate, with the standard error `mean_error`.
        variance: (B,).
        expected_variance: 1 / looks.
        mean_error: 1 / sqrt(looks N), N the number of pixels, for independent speckle.
        autocorrelation: (B, 2), at a lag of one row and of one column; 0 for independent speckle.
        autocorrelation_error: (2,), the standard errors of these for independent values.
    """

    mean: Tensor
    variance: Tensor
    expected_variance: float
    mean_error: float
    autocorrelation: Tensor
    autocorrelation_error: Tensor


def equivalent_looks(intensity: Tensor, region: Region) -> Tensor:
    """Equivalent number of looks, mean^2 / variance of the intensity in a region, (B, ..., H, W) -> (B,).

    Args:
        intensity: real, not negative, in any unit; the variance is that of a sample (N - 1).
        region: a boolean mask (H, W), or slices of rows and columns; homogeneous, or texture is counted as speckle.
    """
    values = _inside(_intensity(intensity, "equivalent_looks"), region, "equivalent_looks", "region")
    if values.shape[1] < 2:
        raise ConfigError(f"equivalent_looks: expected two pixels or more in the region, got {values.shape[1]}")
    return values.mean(1).square() / values.var(1)


def ratio_statistics(intensity: Tensor, estimate: Tensor, looks: float = 1.0) -> RatioStatistics:
    """Mean, variance and neighbour correlation of intensity / estimate, (B, ..., H, W) with H, W >= 2.

    Args:
        intensity: measured, real, not negative.
        estimate: of the reflectivity, positive, of the same shape and unit.
        looks: L of the measured intensity.
    """
    _same(_intensity(intensity, "ratio_statistics"), estimate, "ratio_statistics")
    if min(intensity.shape[-2:]) < 2:
        raise ShapeError(f"ratio_statistics: expected images of 2 x 2 pixels or more, got {tuple(intensity.shape)}")
    if estimate.is_complex() or not bool((estimate > 0).all()):
        raise ConfigError("ratio_statistics: expected a positive estimate")
    if not 0.0 < looks < math.inf:
        raise ConfigError(f"ratio_statistics: expected looks > 0, got {looks}")
    ratio = (intensity / estimate).flatten(1, -3) if intensity.ndim > 3 else (intensity / estimate)[:, None]
    count = ratio[0].numel()
    mean, variance = ratio.flatten(1).mean(1), ratio.flatten(1).var(1)
    rest = ratio - expand(mean, ratio)
    lagged = ((rest[..., 1:, :] * rest[..., :-1, :]), (rest[..., 1:] * rest[..., :-1]))
    power = rest.square().flatten(1).mean(1)
    correlation = torch.stack([product.flatten(1).mean(1) / power for product in lagged], 1)
    error = mean.new_tensor([product[0].numel() ** -0.5 for product in lagged])
    return RatioStatistics(mean, variance, 1.0 / looks, (looks * count) ** -0.5, correlation, error)


def edge_preservation(estimate: Tensor, reference: Tensor) -> Tensor:
    """Sum of absolute differences of neighbours over that of a reference, (B, ..., H, W) -> (B,).

    Real images; 1 for equal ones, less where edges are smoothed away, more where speckle is left.
    """
    _same(estimate, reference, "edge_preservation")
    if estimate.is_complex() or reference.is_complex() or estimate.ndim < 3:
        found = f"{tuple(estimate.shape)} {estimate.dtype}"
        raise ShapeError(f"edge_preservation: expected real images (B, ..., H, W), got {found}")
    ours, theirs = _variation(estimate), _variation(reference)
    if not bool((theirs > 0).all()):
        raise ConfigError("edge_preservation: a reference is constant: it has no edges")
    return ours / theirs


def target_to_clutter(image: Tensor, target: Region, clutter: Region) -> Tensor:
    """Peak power in one region over the mean power in another, in dB, (B, ..., H, W) -> (B,).

    Args:
        image: complex values or amplitudes (not intensities).
        target: around the target, a boolean mask (H, W) or slices of rows and columns.
        clutter: beside it, of the same kinds.
    """
    if image.ndim < 3:
        raise ShapeError(f"target_to_clutter: expected images (B, ..., H, W), got {tuple(image.shape)}")
    power = image.abs().square()
    peak = _inside(power, target, "target_to_clutter", "target").amax(1)
    return 10.0 * torch.log10(peak / _inside(power, clutter, "target_to_clutter", "clutter").mean(1))


def entropy(image: Tensor) -> Tensor:
    """Entropy of the normalised intensity in nats, (B, ...) -> (B,): 0 for one pixel, ln N for N equal ones.

    Args:
        image: complex values or amplitudes.
    """
    if image.ndim < 2:
        raise ShapeError(f"entropy: expected a batch (B, ...), got {tuple(image.shape)}")
    power = image.abs().flatten(1)
    power = (power / power.amax(1, keepdim=True)).square()
    if not bool(power.isfinite().all()):
        raise ConfigError("entropy: an image is zero or not finite")
    return torch.special.entr(power / power.sum(1, keepdim=True)).sum(1)


def phase_aligned_nrmse(x: Tensor, reference: Tensor, *, scale: bool = False) -> Tensor:
    """|c x - reference| / |reference| after the best global phase c, |c| = 1, complex (B, ...), (B, ...) -> (B,).

    Args:
        scale: c may have any modulus, for images in other units; an estimate that is too small is then no error.
    """
    _same(x, reference, "phase_aligned_nrmse")
    inner = _inner(x, reference)
    size = norm(x).square() if scale else inner.abs()
    c = torch.where(size > 0, inner / size, torch.ones_like(inner))
    return norm(expand(c, x) * x - reference) / norm(reference)


def phase_rmse(x: Tensor, reference: Tensor, threshold: float, *, align: bool = True) -> Tensor:
    """Root mean square phase error in radians where |reference| > threshold, complex (B, ...), (B, ...) -> (B,).

    Errors are taken in (-pi, pi]; of unrelated phases it is pi / sqrt(3).

    Args:
        threshold: in the units of the reference; phases of dark pixels are noise.
        align: take off the global phase arg <x, reference> of these pixels first.
    """
    _same(x, reference, "phase_rmse")
    if not (x.is_complex() and reference.is_complex()):
        raise ShapeError(f"phase_rmse: expected complex images, got {x.dtype} and {reference.dtype}")
    bright = (reference.abs() > threshold).flatten(1)
    count = bright.sum(1)
    if not bool((count > 0).all()):
        raise ConfigError(f"phase_rmse: no pixel of a reference is above {threshold}")
    product = torch.where(bright, (x.conj() * reference).flatten(1), 0)
    if align:
        product = product * torch.exp(-1j * product.sum(1, keepdim=True).angle())
    return (product.angle().square() * bright).sum(1).div(count).sqrt()


def _variation(x: Tensor) -> Tensor:
    return x.diff(dim=-1).abs().flatten(1).sum(1) + x.diff(dim=-2).abs().flatten(1).sum(1)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    return (x.conj() * y).flatten(1).sum(1)


def _same(x: Tensor, y: Tensor, name: str) -> None:
    if x.shape != y.shape or x.ndim < 2:
        raise ShapeError(f"{name}: expected two batches (B, ...) of the same shape, got {tuple(x.shape)} and {tuple(y.shape)}")


def _intensity(x: Tensor, name: str) -> Tensor:
    if x.is_complex() or x.ndim < 3:
        raise ShapeError(f"{name}: expected real intensities (B, ..., H, W), got {tuple(x.shape)} {x.dtype}")
    if not bool((x >= 0).all()):
        raise ConfigError(f"{name}: expected an intensity, which is not negative")
    return x


def _inside(x: Tensor, region: Region, name: str, what: str) -> Tensor:
    """Pixels of (B, ..., H, W) in a region, (B, N)."""
    if isinstance(region, Tensor):
        if region.dtype != torch.bool or region.shape != x.shape[-2:]:
            found = f"{tuple(region.shape)} {region.dtype}"
            raise ShapeError(f"{name}: expected a boolean {what} {tuple(x.shape[-2:])}, got {found}")
        values = x[..., region.to(x.device)].flatten(1)
    else:
        values = x[(..., *region)].flatten(1)
    if not values.shape[1]:
        raise ConfigError(f"{name}: the {what} holds no pixel")
    return values
