"""Complex slices from magnitude volumes: a training source for magnetic resonance imaging.

A public volume of reconstructed magnitudes carries no phase, few contrasts and one position. Every item therefore is

    x = g b m^gamma exp(i phi),

m a slice along one of the three axes under a random affine map, gamma a monotone change of contrast, b an occasional coil
shading, g a gain, and phi a polynomial of second order plus a band-limited field plus an arbitrary constant: smooth where a
receive coil and the main field are smooth, and without a preferred global phase.

Resampling is linear on a grid at least twice as fine and no coarser than the voxels, averaged over each pixel, so that detail
finer than a pixel is integrated, not aliased.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invdiff.core.errors import ConfigError, DataError
from invdiff.io.images import read_array

from .canvas import gaussian_fields

__all__ = ["MRSlices"]


class MRSlices:
    """An endless source of slices, a function of (seed, index) and of the volumes only.

    Args:
        paths: NIfTI volumes of magnitudes with three axes; each is divided by the 99.5th percentile of its non-zero voxels.
        size: pixels along each side; the longer side of a slice spans them at zoom 1. Pixels are square whatever the voxels.
        seed: a non-negative integer.
        complex_phase: with a phase, (real, imaginary); else the magnitude alone.

    Returns (of a call): (2, size, size) or (1, size, size) float32 tensor, white matter or the brightest tissue near 1.

    Raises:
        DataError: a file can't be read, is no volume of magnitudes, or has no slice with enough in it.
    """

    def __init__(
        self, paths: Sequence[str | PathLike[str]], size: int = 128, seed: int = 0, complex_phase: bool = True
    ) -> None:
        if isinstance(paths, str) or not paths:
            raise ConfigError(f"MRSlices: expected a list of at least one path, got {paths!r}")
        if seed < 0 or size < 8:
            raise ConfigError(f"MRSlices: expected seed >= 0 and size >= 8, got {seed} and {size}")
        self.size, self.seed, self.complex_phase = int(size), int(seed), bool(complex_phase)
        self.shape = (2 if complex_phase else 1, self.size, self.size)
        self._stacks = [_stacks(path) for path in paths]

    def __call__(self, index: int) -> Tensor:
        if index < 0:
            raise ConfigError(f"MRSlices: expected an index >= 0, got {index}")
        rng = np.random.default_rng([self.seed, index])
        volume = self._stacks[int(rng.integers(len(self._stacks)))]
        stack, spacing = volume[int(rng.integers(len(volume)))]
        image = self._magnitude(rng, stack[int(rng.integers(len(stack)))], spacing)
        if not self.complex_phase:
            return torch.from_numpy(image)[None]
        phase = self._phase(rng)
        return torch.from_numpy(np.stack([image * np.cos(phase), image * np.sin(phase)]))

    def _magnitude(self, rng: np.random.Generator, plane: NDArray[Any], spacing: tuple[float, float]) -> NDArray[np.float32]:
        from scipy.ndimage import affine_transform

        size = self.size
        extent = max(n * h for n, h in zip(plane.shape, spacing, strict=True))
        angle = rng.normal(0, 0.25) + 0.5 * np.pi * rng.integers(4)
        pixel = extent / size / rng.uniform(0.8, 1.25)
        c, s = np.cos(angle), np.sin(angle)
        flip = rng.choice((-1.0, 1.0))
        fold = max(2, int(np.ceil(pixel / min(spacing))))
        matrix = pixel / fold * np.array([[c, -s * flip], [s, c * flip]]) / np.array(spacing)[:, None]
        centre = (np.array(plane.shape) - 1) / 2 + rng.uniform(-0.06, 0.06, 2) * extent / np.array(spacing)
        offset = centre - matrix @ np.full(2, (fold * size - 1) / 2)
        fine = affine_transform(plane.astype(np.float32), matrix, offset, (fold * size,) * 2, np.float32, order=1)
        image = fine.reshape(size, fold, size, fold).mean((1, 3))
        image = image ** np.float32(rng.uniform(0.6, 1.6)) * np.float32(rng.uniform(0.8, 1.2))
        if rng.random() < 0.4:
            shade = gaussian_fields(rng, size, rng.uniform(0.15, 0.4) * size)[0]
            image = image * np.exp(np.float32(rng.uniform(0.05, 0.25)) * (shade - shade.mean()))
        return image.astype(np.float32)

    def _phase(self, rng: np.random.Generator) -> NDArray[np.float32]:
        axis = np.linspace(-1, 1, self.size, dtype=np.float32)
        x, y = axis[None, :], axis[:, None]
        a = rng.normal(size=5).astype(np.float32) * np.float32(rng.uniform(0, 1.5))
        smooth = gaussian_fields(rng, self.size, rng.uniform(0.05, 0.25) * self.size)[0]
        field = np.float32(rng.uniform(0, 0.6)) * smooth
        return np.float32(rng.uniform(0, 2 * np.pi)) + a[0] * x + a[1] * y + a[2] * x * x + a[3] * x * y + a[4] * y * y + field


def _stacks(path: str | PathLike[str]) -> list[tuple[NDArray[np.float16], tuple[float, float]]]:
    """The slices along each axis that hold enough, normalised, and the spacing of their pixels in mm."""
    array = read_array(path)
    data = np.squeeze(array.data)
    if array.affine is None or data.ndim != 3 or np.iscomplexobj(data):
        raise DataError(
            f"{path}: expected a NIfTI volume of magnitudes with three axes, got {data.dtype} of shape {data.shape}"
        )
    if not np.isfinite(data).all() or data.min() < 0 or not data.any():
        raise DataError(f"{path}: expected finite magnitudes, not all zero, got values from {data.min()} to {data.max()}")
    zooms = array.facts["zooms"][:3]
    volume = data.astype(np.float32)
    volume /= np.percentile(volume[volume > 0], 99.5)
    stacks = []
    for axis in range(3):
        planes = np.moveaxis(volume, axis, 0)
        filled = (planes > 0.1).mean((1, 2))
        kept = filled > max(0.08, 0.35 * float(filled.max()))
        if kept.any():
            i, j = (k for k in range(3) if k != axis)
            stacks.append((np.ascontiguousarray(planes[kept], np.float16), (zooms[i], zooms[j])))
    if not stacks:
        raise DataError(f"{path}: no slice has more than 8 % of its pixels above a tenth of the bright tissue")
    return stacks
