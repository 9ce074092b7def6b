"""How a task measures its items: operators made to fit an item, noise relative to the signal, and the way to the prior's grid.

A setup takes an item and returns the operator on its image; its other arguments are those of the experiment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..core import (
    ConfigError,
    DataError,
    Denoiser,
    Gaussian,
    LinearOperator,
    NumericalError,
    Operator,
    ShapeError,
    ViewAsComplex,
)
from ..io.images import read_array
from ..operators.cs import BlockCS, DenseCS
from ..operators.ct import ParallelBeamCT
from ..operators.masks import box_mask, random_columns, random_mask
from ..operators.mri import CartesianMRI, birdcage_maps
from ..operators.restoration import Blur, Mask, gaussian_kernel
from ..priors.gaussian import GaussianPrior
from .data import Item, finite

__all__ = [
    "Crop",
    "Relative",
    "block_cs",
    "cartesian_mri",
    "deblurring",
    "dense_cs",
    "gaussian_signal",
    "inpainting",
    "sparse_view_ct",
    "synthesis",
]


class Crop(LinearOperator):
    """The central part of a larger image, (B, C, *large) -> (B, C, *small); its adjoint pads with zeros.

    Args:
        large, small: shapes without the batch, (C, *spatial), small no larger than large.
        is_complex: of complex images.
    """

    def __init__(self, large: tuple[int, ...], small: tuple[int, ...], *, is_complex: bool = False) -> None:
        if len(large) != len(small) or large[0] != small[0] or any(a < b for a, b in zip(large, small, strict=True)):
            raise ShapeError(f"Crop: {small} is no part of {large}")
        super().__init__(large, small, in_complex=is_complex, out_complex=is_complex)
        self.low = tuple((a - b) // 2 for a, b in zip(large[1:], small[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        return x[(..., *(slice(i, i + n) for i, n in zip(self.low, self.out_shape[1:], strict=True)))].contiguous()

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *self.in_shape)
        x[(..., *(slice(i, i + n) for i, n in zip(self.low, self.out_shape[1:], strict=True)))] = y
        return x

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}"


@dataclass(frozen=True)
class Relative:
    """Gaussian noise whose sigma is a part of the signal: sigma = level * root mean square of the noise-free measured values.

    The root mean square is over real components, so that sigma is that of each of them. Of a real measurement, which has noise
    in it, the mean square is too large by a factor of 1 + level^2, and is corrected.

    Args:
        level: positive; 0.02 is 2 %.
        noise_free: whether a simulated measurement is left without noise; the level is then what the sampler allows for, in a
            protocol without noise: no posterior of any data, so that nothing is known of its coverage.
    """

    level: float
    noise_free: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.level < 1.0:
            raise ConfigError(f"Relative: expected 0 < level < 1, got {self.level}")

    def of(self, y: Tensor, operator: Operator, *, noisy: bool) -> Gaussian:
        """The noise model for a measurement, (1, *out_shape), with or without noise."""
        power = float(y.abs().square().double().sum()) / operator.count_measured()
        if noisy:
            power /= 1.0 + self.level**2
        if not power > 0.0:
            raise NumericalError(
                "Relative: the measured values are all zero, so that noise relative to them is too: give Gaussian(sigma)"
            )
        return Gaussian(self.level * power**0.5)


def synthesis(operator: Operator, prior: Denoiser) -> LinearOperator | None:
    """From the prior's real grid to the operator's image: complex numbers from two channels, the image from a larger grid.

    Priors of any size need multiples of their `divisor`; the image is then the centre of the next larger grid. Of a latent
    prior, the grid is that of the images it decodes to.

    Returns:
        The operator, or None where the two agree.

    Raises:
        ShapeError: the channels differ, or the prior's grid is smaller than the image.
    """
    if prior.image_complex and not operator.in_complex:
        raise ShapeError(f"{type(prior).__name__} is a prior on complex images, the operator takes real ones")
    view = ViewAsComplex(operator.in_shape) if operator.in_complex and not prior.image_complex else None
    real = operator.in_shape if view is None else view.in_shape
    shape, divisor = prior.image_shape, prior.image_divisor
    fits = len(shape) == len(real) and shape[0] in (None, real[0])
    grid = tuple(real[:1]) + tuple(
        -(-n // divisor) * divisor if s is None else s for s, n in zip(shape[1:], real[1:], strict=False)
    )
    if not fits or any(g < n for g, n in zip(grid, real, strict=True)):
        wants = ", ".join("any" if s is None else str(s) for s in shape)
        raise ShapeError(
            f"{type(prior).__name__} is a prior on ({wants}), the image needs {tuple(real)}"
            f"{' (complex: two channels)' if view is not None else ''}: choose a prior that fits, or the size of the data"
        )
    crop = None if grid == tuple(real) else Crop(grid, tuple(real), is_complex=prior.image_complex)
    if view is None or crop is None:
        return view or crop
    return view @ crop  # type: ignore[return-value]


def dense_cs(item: Item, *, ratio: float = 0.5, seed: int = 0) -> Operator:
    """Random projections with orthonormal rows, of a small unknown; `ratio` of them per unknown."""
    return DenseCS(item.shape, ratio=ratio, seed=seed)


def block_cs(item: Item, *, ratio: float = 0.25, block: int = 33, seed: int = 0) -> Operator:
    """Compressed sensing of each block x block patch for itself; `ratio` of random projections per pixel."""
    return BlockCS(_image("block_cs", item), ratio=ratio, block=block, seed=seed)


def inpainting(item: Item, *, keep: float | None = 0.5, box: int | None = None, seed: int = 0) -> Operator:
    """Hidden pixels: each is visible with probability `keep`, or all but a square of box x box in the middle."""
    if (keep is None) == (box is None):
        raise ConfigError(f"inpainting: expected either keep or box, got keep={keep} and box={box}")
    shape = _image("inpainting", item)
    return Mask(random_mask(shape[1:], keep, seed) if keep is not None else box_mask(shape[1:], box), shape)  # type: ignore[arg-type]


def deblurring(item: Item, *, width: float = 2.0) -> Operator:
    """A periodic Gaussian blur of standard deviation `width` in pixels."""
    return Blur(gaussian_kernel(width), _image("deblurring", item))


def sparse_view_ct(
    item: Item, *, views: int = 20, detector: int | None = None, engine: Literal["auto", "joseph", "fourier"] = "auto"
) -> Operator:
    """Line integrals along parallel beams at `views` equally spaced angles in [0, pi); the unit is mm of water.

    Pixels have the item's size, 1 mm where it has none; detector bins have the same. -log(I / I0) is this times the attenuation
    of water, 0.019 / mm near 70 keV.

    Args:
        detector: number of bins; None for as many as the diagonal of the image needs.
    """
    shape = _image("sparse_view_ct", item)
    pixel = item.pixel if item.pixel is not None else 1.0
    return ParallelBeamCT(shape[1:], views, detector=detector, pixel=pixel, pitch=pixel, engine=engine)


def cartesian_mri(
    item: Item,
    *,
    coils: int = 8,
    acceleration: float = 4.0,
    center_fraction: float = 0.08,
    seed: int = 0,
    mask: str | None = None,
    maps: str | None = None,
) -> Operator:
    """Undersampled Cartesian k-space: fastMRI's random columns and birdcage coils, or the user's mask and maps.

    Args:
        mask: a file with the pattern, (H, W) or (W,), not zero where k-space is measured.
        maps: a file with the coil sensitivities, (coils, H, W), complex.
    """
    _, *sides = _image("cartesian_mri", item)
    size = sides[0], sides[1]
    sensitivities: Tensor | None
    if maps is not None:
        sensitivities = _stored(maps).to(torch.complex128)
    elif coils < 1:
        raise ConfigError(f"cartesian_mri: expected coils >= 1, got {coils}")
    else:
        sensitivities = birdcage_maps(coils, size, dtype=torch.complex128) if coils > 1 else None
    if mask is not None:
        pattern = _stored(mask) != 0
    else:
        pattern = random_columns(size[1], acceleration, center_fraction, seed)
    operator = CartesianMRI(pattern if sensitivities is not None else pattern.expand(size), sensitivities)
    if operator.in_shape != tuple(item.shape):
        raise ShapeError(f"cartesian_mri: maps and mask are for {operator.in_shape}, the image is {tuple(item.shape)}")
    return operator


def gaussian_signal(points: int = 16, *, length: float = 3.0, std: float = 1.0) -> GaussianPrior:
    """Smooth signals, N(0, C) on (points,): C_ij = std^2 exp(-(i - j)^2 / (2 length^2)) plus 1 % on the diagonal."""
    if points < 2 or not (length > 0 and std > 0):
        raise ConfigError(f"gaussian_signal: expected points >= 2, length > 0 and std > 0, got {points}, {length}, {std}")
    t = torch.arange(points, dtype=torch.float64)
    cov = torch.exp(-0.5 * ((t[:, None] - t) / length) ** 2) + 0.01 * torch.eye(points, dtype=torch.float64)
    return GaussianPrior(torch.zeros(points, dtype=torch.float64), std**2 * cov)


def _stored(path: str) -> Tensor:
    """A mask or maps from a file."""
    values = torch.from_numpy(np.ascontiguousarray(finite(path, read_array(path).data)))
    if not bool(values.any()):
        raise DataError(f"{path}: every value is zero, so that nothing is measured")
    return values


def _image(who: str, item: Item) -> tuple[int, int, int]:
    if len(item.shape) != 3:
        raise ShapeError(f"{who}: expected an image (C, H, W), got {item.shape}")
    return tuple(item.shape)  # type: ignore[return-value]
