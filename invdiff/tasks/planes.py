"""Planes of volumes: cut, turned upright, resampled, with an affine that follows.

A pixel (row i, column j) of a plane lies at affine @ (i, j, 0, 1) in mm, whatever was cut, turned and resampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core import ConfigError, ShapeError
from ..io.images import Array
from .canvas import gaussian_fields

__all__ = ["Plane", "planes", "smooth_phase"]


@dataclass(frozen=True)
class Plane:
    """An image and where it lies.

    Args:
        image: (H, W), real or complex.
        index: of the slice in its volume; None for a single image.
        affine: (4, 4), from (row, column, 0, 1) to mm; None where the file has none.
        spacing: (rows, columns) in mm; None where the file has none.
    """

    image: NDArray[Any]
    index: int | None = None
    affine: NDArray[np.float64] | None = None
    spacing: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """What reports call it."""
        return "image" if self.index is None else f"slice {self.index}"

    @property
    def pixel(self) -> float | None:
        """Size of the pixel in mm; None where it is unknown or not square within 2 %."""
        if self.spacing is None or not np.isclose(*self.spacing, rtol=0.02):
            return None
        return float(np.mean(self.spacing))

    def resampled(self, size: int | None) -> Plane:
        """(size, size) square pixels over the longer side of the field of view, zero beside the shorter; None: itself."""
        if size is None:
            return self
        if size < 8:
            raise ConfigError(f"expected size >= 8, got {size}")
        old = np.array(self.image.shape)
        extent = old * np.array(self.spacing or (1.0, 1.0))
        new = np.maximum(1, np.rint(size * extent / extent.max()).astype(int))
        low = (size - new) // 2
        image = np.zeros((size, size), np.result_type(self.image, np.float32))
        image[low[0] : low[0] + new[0], low[1] : low[1] + new[1]] = _interpolate(self.image, tuple(new))
        step = old / new
        follow = np.diag([*step, 1.0, 1.0])
        follow[:2, 3] = (0.5 - low) * step - 0.5
        return Plane(
            image,
            self.index,
            None if self.affine is None else self.affine @ follow,
            None if self.spacing is None else (float(self.spacing[0] * step[0]), float(self.spacing[1] * step[1])),
        )


def planes(path: str, array: Array, *, count: int, start: int | None, axis: int | None) -> Iterator[Plane]:
    """`count` consecutive slices of a volume, those in the middle by default; or the one image that the file holds.

    NIfTI volumes are cut along their last axis by default and turned so that their second remaining axis points upwards; others
    are cut along their first axis and left as stored.
    """
    data = array.data
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim not in (2, 3) or array.facts.get("mode", "L") in ("RGB", "RGBA", "LA", "CMYK", "YCbCr"):
        raise ShapeError(f"{path}: expected a grey image or a volume with three axes, got {data.shape}")
    if axis is not None and not 0 <= axis <= 2:
        raise ConfigError(f"{path}: expected axis 0, 1 or 2, got {axis}")
    flat = data.ndim == 2
    if flat and (start is not None or count != 1):
        raise ConfigError(f"{path}: holds one image, got slice={start} items={count}")
    volume = data[..., None] if flat else data
    cut = 2 if flat else axis if axis is not None else 2 if array.affine is not None else 0
    depth = volume.shape[cut]
    first = (depth - count + 1) // 2 if start is None else start
    if not 0 <= first <= depth - count:
        raise ConfigError(f"{path}: has slices 0 to {depth - 1} along axis {cut}, got slice={start} items={count}")
    for index in range(first, first + count):
        plane = np.take(volume, index, cut)
        yield _upright(plane, array, cut, index, flat) if array.affine is not None else Plane(plane, None if flat else index)


def _upright(plane: NDArray[Any], array: Array, cut: int, index: int, flat: bool) -> Plane:
    a, b = (k for k in range(3) if k != cut)
    # image[i, j] = plane[j, Q - 1 - i]
    turn = np.zeros((4, 4))
    turn[a, 1], turn[b, 0], turn[cut, 2], turn[3, 3] = 1.0, -1.0, 1.0, 1.0
    turn[b, 3], turn[cut, 3] = plane.shape[1] - 1, index
    unit = array.facts.get("units", ("mm",))[0]
    millimetres = np.diag([{"meter": 1e3, "micron": 1e-3}.get(unit, 1.0)] * 3 + [1.0])
    affine = millimetres @ np.asarray(array.affine) @ turn
    spacing = tuple(float(np.linalg.norm(affine[:3, k])) for k in (0, 1))
    return Plane(np.rot90(plane), None if flat else index, affine, spacing)  # type: ignore[arg-type]


def _interpolate(image: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    if np.iscomplexobj(image):
        return _interpolate(image.real, shape) + 1j * _interpolate(image.imag, shape)
    x = torch.from_numpy(np.ascontiguousarray(image, np.float64))[None, None]
    return torch.nn.functional.interpolate(x, shape, mode="bilinear", align_corners=False, antialias=True)[0, 0].numpy()


def smooth_phase(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """A phase of about unit strength in radians: a random polynomial of second order, a band-limited field, and a constant."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    a = rng.normal(size=5)
    field = gaussian_fields(rng, max(shape), 0.15 * max(shape))[0][: shape[0], : shape[1]]
    return rng.uniform(0, 2 * np.pi) + a[0] * x + a[1] * y + a[2] * x * x + a[3] * x * y + a[4] * y * y + 0.3 * field
