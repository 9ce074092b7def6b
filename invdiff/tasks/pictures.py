"""Crops of grey pictures: a training source for natural images.

Every item is a square crop of one picture, mirrored at random, after the picture was shrunk by a random factor: the pictures
of a collection are then seen at several distances, and sharper than the camera took them.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..core.errors import ConfigError, DataError
from ..io.images import read_array

__all__ = ["Pictures"]


class Pictures:
    """An endless source of crops, a function of (seed, index) and of the pictures only.

    Args:
        paths: picture files, or one folder of PNG or TIFF files, in the order of their names. Colours are averaged.
        size: pixels along each side of a crop.
        part: [first, last) of the files, to keep some apart; None takes all.
        seed: a non-negative integer.
        shrink: the smallest factor by which a picture is shrunk before the crop, as far as the crop still fits; 1 for never.
        mirror: mirror left and right at random.

    Returns (of a call): (1, size, size) float32 tensor, black 0, white 1.

    Raises:
        DataError: there is no picture, or one can't be read or is smaller than a crop.
    """

    def __init__(
        self,
        paths: str | PathLike[str] | Sequence[str | PathLike[str]],
        size: int = 64,
        seed: int = 0,
        shrink: float = 0.6,
        mirror: bool = True,
        part: tuple[int, int] | None = None,
    ) -> None:
        if size < 1 or seed < 0 or not 0.0 < shrink <= 1.0:
            raise ConfigError(f"Pictures: expected size >= 1, seed >= 0 and 0 < shrink <= 1, got {size}, {seed}, {shrink}")
        self.size, self.seed, self.shrink, self.mirror = int(size), int(seed), float(shrink), bool(mirror)
        self.shape = (1, self.size, self.size)
        self._pictures = [_grey(path, self.size) for path in _files(paths, part)]

    def __len__(self) -> int:
        """The number of pictures; a crop of an index beyond it is another crop."""
        return len(self._pictures)

    def __call__(self, index: int) -> Tensor:
        if index < 0:
            raise ConfigError(f"Pictures: expected an index >= 0, got {index}")
        rng = np.random.default_rng([self.seed, index])
        picture = self._pictures[int(rng.integers(len(self._pictures)))]
        factor = rng.uniform(max(self.shrink, self.size / min(picture.shape)), 1.0)
        flip = self.mirror and rng.random() < 0.5
        places = rng.random(2)
        image = torch.from_numpy(picture)[None, None].float() / 255
        if factor < 1.0:
            shape = [max(self.size, round(factor * n)) for n in picture.shape]
            image = F.interpolate(image, shape, mode="bicubic", antialias=True).clamp(0.0, 1.0)
        top, left = (int(u * (n - self.size + 1)) for u, n in zip(places, image.shape[2:], strict=True))
        crop = image[0, :, top : top + self.size, left : left + self.size]
        return crop.flip(-1) if flip else crop.contiguous()


def _files(paths: str | PathLike[str] | Sequence[str | PathLike[str]], part: tuple[int, int] | None) -> list[Path]:
    if not isinstance(paths, (str, PathLike)):
        files = [Path(p) for p in paths]
    elif Path(paths).is_dir():
        files = sorted(p for p in Path(paths).iterdir() if p.suffix.lower() in (".png", ".tif", ".tiff"))
    elif Path(paths).exists():
        files = [Path(paths)]
    else:
        raise DataError(f"Pictures: there is no file or folder {paths}")
    if not files:
        raise DataError(f"Pictures: {paths} holds no .png or .tif files")
    chosen = files if part is None else files[part[0] : part[1]]
    if not chosen:
        raise DataError(f"Pictures: there are {len(files)} pictures, and none in part={part}")
    return chosen


def _grey(path: Path, size: int) -> NDArray[np.uint8]:
    """A picture as (H, W) uint8, which keeps a collection small in memory."""
    data = np.asarray(read_array(path).data)
    if data.ndim == 3 and data.shape[-1] in (3, 4):
        data = np.rint(data[..., :3].mean(-1)).astype(data.dtype)
    if data.ndim != 2 or data.dtype != np.uint8:
        raise DataError(f"{path}: expected an 8-bit picture, grey or colour, got {data.dtype} of shape {data.shape}")
    if min(data.shape) < size:
        raise DataError(f"{path}: expected a picture of at least {size} x {size}, got {data.shape}")
    return np.array(data)
