"""Despeckling as a task: log-intensities of made-up scenes or of files, and what a referee asks of the ratio image.

z = log I = u + log G: the unknown is u, of any level. The ratio image I / R of an estimate R = e^u is the speckle that it took
out: of mean 1, of variance 1 / L, without structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Operator, ShapeError
from ..generators.land_cover import LandCover
from ..io.images import read_array
from ..io.sar_images import read_complex_image
from ..metrics import ratio_statistics
from ..operators.restoration import Identity
from ..samplers.despeckle import log_problem
from .data import Data, Item, finite

__all__ = ["SpeckledImages", "log_reflectivity", "ratio_score"]


@dataclass(frozen=True, kw_only=True)
class SpeckledImages(Data):
    """Speckled images of made-up land cover, or the user's.

    Args:
        path: complex: .npy, .npz, HDF5 (NISAR too) or GeoTIFF; intensity or amplitude: what `read_array` reads; None makes
            scenes up, whose speckle the task's noise draws.
        dataset: the array's name in the file.
        kind: of the values of a file.
        floor: of the intensities of a file; see `log_problem`.
        size: pixels along each side of a made-up scene.
        window: (first row, first column, rows, columns) of a file; None takes all.
        index: of the first made-up scene; its seed is 1,000,000 + the run's.

    Raises:
        ConfigError: an option is out of its range, or of a file and there is none, or a measurement is given beside it.
    """

    path: str | None = None
    dataset: str | None = None
    kind: Literal["complex", "intensity", "amplitude"] = "complex"
    floor: float = 0.0
    size: int = 128
    window: tuple[int, int, int, int] | None = None
    index: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.measurement is not None:
            raise ConfigError("SpeckledImages: expected the measurement as path, got data.measurement")
        if self.size < 1 or self.index < 0 or (self.window is not None and min(self.window[2:]) < 1):
            raise ConfigError(
                f"SpeckledImages: expected size >= 1, index >= 0 and a window of pixels, got {self.size}, {self.index} and "
                f"{self.window}"
            )

        of_file = {"dataset": self.dataset, "kind": self.kind, "floor": self.floor, "window": self.window}
        usual = {"dataset": None, "kind": "complex", "floor": 0.0, "window": None}
        given = [f"{name}={value}" for name, value in of_file.items() if value != usual[name]]
        if self.path is None and given:
            raise ConfigError(f"SpeckledImages: expected a file, data.path=FILE, for {', '.join(given)}, got none")

    def items(self, count: int, seed: int, prior: Denoiser) -> Iterator[Item]:
        if self.path is not None:
            if count != 1:
                raise ConfigError(f"{self.path}: holds one image, got items={count}")
            yield self._read(self.path)
            return
        made = LandCover(seed=1_000_000 + seed, size=self.size)
        for index in range(self.index, self.index + count):
            u = made((index,))["reflectivity"][0]
            yield Item(f"scene {index}", tuple(u.shape), u, facts={"generator": repr(made), "scene": index})

    def _read(self, path: str) -> Item:
        spacing = None
        if self.kind == "complex":
            image = read_complex_image(path, self.dataset)
            values, spacing = torch.from_numpy(image.pixels), image.spacing
        else:
            array = read_array(path, self.dataset)
            values = torch.from_numpy(finite(path, array.data)).float()
        if values.ndim != 2:
            raise ShapeError(f"{path}: expected an image (H, W), got {tuple(values.shape)}")
        if self.window is not None:
            row, column, rows, columns = self.window
            if not (row >= 0 and row + rows <= values.shape[0] and column >= 0 and column + columns <= values.shape[1]):
                raise ConfigError(f"{path}: the window {tuple(self.window)} is not within {tuple(values.shape)}")
            values = values[row : row + rows, column : column + columns]
        # the looks are the task's noise; the logarithm does not depend on them
        z = log_problem(values, kind=self.kind, floor=self.floor).y[0]
        facts: dict[str, Any] = {"path": path, "kind": self.kind, "spacing_m": spacing}
        return Item(Path(path).name, tuple(z.shape), y=z, facts=facts)


def log_reflectivity(item: Item) -> Operator:
    """The logarithm of the intensity measures that of the reflectivity."""
    return Identity(tuple(item.shape))


def ratio_score(item: Item, images: Tensor, *, looks: float = 1.0) -> Mapping[str, Any]:
    """Of estimates of u (n, 1, H, W): mean, variance and correlation of neighbours of I / R for a file, R the mean of e^u.

    The mean of R over the draws has the power of the image, E I = E R, which a mean of logarithms has not. Of made-up scenes,
    whose measurement is not the item's, there is the truth instead.
    """
    if item.y is None:
        return {}
    reflectivity = images.exp().mean(0, keepdim=True)
    found = ratio_statistics(item.y[None].to(reflectivity).exp(), reflectivity, looks)
    rows, columns = found.autocorrelation[0].tolist()
    facts = {"ratio_mean": float(found.mean[0]), "ratio_variance": float(found.variance[0])}
    return {**facts, "ratio_lag_row": rows, "ratio_lag_column": columns}
