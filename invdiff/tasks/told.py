"""Items for conditional priors: what a prior is told comes from a generator of trajectories, with a truth, or from a file."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, ShapeError
from ..generators.sources import Generator
from ..io.images import read_array
from .data import Data, Item, finite

__all__ = ["ToldItems"]


@dataclass(frozen=True, kw_only=True)
class ToldItems(Data):
    """Trajectories of a generator, with the seed 1,000,000 + the run's, or the user's fields in a file, without a truth.

    Args:
        use: what the items are for, a name in `needed`.
        generator: of the trajectories; it has a seed.
        seed: of the generator, in place of the run's.
        index: of the first sample.
        path: .npz or HDF5 with the fields that are `needed`.
        frames: T of a trajectory from a file, where none of its fields says so.

    Attributes:
        needed: {use: names of the fields that a file has to hold}.
        axes: {name: the names of its axes}.

    Raises:
        ConfigError: neither or both of generator and path are given, or a measurement, which here comes with the path.
        ShapeError: the fields of the file don't fit together.
    """

    # of the class, no options
    needed = MappingProxyType[str, tuple[str, ...]]({})
    axes = MappingProxyType[str, tuple[str, ...]]({})

    use: str
    generator: Generator | None = None
    seed: int | None = None
    index: int = 0
    path: str | None = None
    frames: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        who = type(self).__name__
        if self.use not in self.needed:
            raise ConfigError(f"{who}: expected use to be one of {', '.join(self.needed)}, got {self.use!r}")
        if (self.generator is None) == (self.path is None) or self.measurement is not None:
            raise ConfigError(f"{who}: expected a generator or a path, one of the two, and no measurement beside it")
        made = self.generator
        own: set[str] = {f.name for f in dataclasses.fields(made)} if dataclasses.is_dataclass(made) else set()
        if made is not None and "seed" not in own:
            raise ConfigError(f"{who}: expected a generator with a seed, such as BurgersControl, got {made!r}")
        if self.index < 0 or self.frames < 1:
            raise ConfigError(f"{who}: expected index >= 0 and frames >= 1, got {self.index} and {self.frames}")

    def items(self, count: int, seed: int, prior: Denoiser) -> Iterator[Item]:
        if self.path is not None:
            if count != 1:
                raise ConfigError(f"{self.path}: holds one item, got items={count}")
            yield self.item("file", self._read(self.path), {"path": str(self.path)})
        elif self.generator is not None:
            made = replace(self.generator, seed=1_000_000 + seed if self.seed is None else self.seed)  # type: ignore[type-var]
            for index in range(self.index, self.index + count):
                fields = {name: v.float() for name, v in self.fields(made((index,))).items()}
                yield self.item(f"sample {index}", fields, {"generator": repr(made), "sample": index})

    @abstractmethod
    def fields(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the generator makes of one sample, as fields (1, 1, ...)."""

    @abstractmethod
    def item(self, name: str, fields: dict[str, Tensor], facts: dict[str, Any]) -> Item:
        """The item of fields (1, 1, ...): those of the generator, or those that are needed."""

    def _read(self, path: str) -> dict[str, Tensor]:
        fields = {}
        for name in self.needed[self.use]:
            value = finite(path, np.asarray(read_array(path, name).data))
            if value.ndim != len(self.axes[name]):
                raise ShapeError(f"{path}: expected {name} to be ({', '.join(self.axes[name])}), got {value.shape}")
            fields[name] = torch.from_numpy(np.ascontiguousarray(value, np.float32))[None, None]
        return fields
