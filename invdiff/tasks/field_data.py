"""Fields to reconstruct: samples of a generator, or entries of a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..core import ConfigError, DataError, Denoiser, NumericalError, ShapeError
from ..generators.sources import Generator
from ..io.fields import Layout, read_fields
from .data import Data, Item, finite

__all__ = ["Fields"]


@dataclass(frozen=True, kw_only=True)
class Fields(Data):
    """Fields in the units that they come in, float32 (C, *grid): of a generator or of a file, one of the two.

    Samples of a generator have the seed 1,000,000 + the run's, which no training set has. A measurement alone, without a
    generator or a path, is of an image of the prior's shape.

    Args:
        generator: a data set such as `invdiff.generators.DarcyFlow`.
        name: of the generator's field; None where it makes only one. A task names it, so that it may stand beside a path,
            whose field is `dataset`.
        seed: of the generator, in place of the run's: 1000 are the samples that shipped priors are held out from.
        path: a file that `invdiff.io.read_fields` reads.
        dataset: name of the field in the file; None where there is only one.
        layout, every: of the file, see `read_fields`.
        index: of the first item: sample of the generator, or entry of the file.
        times: frames to take, which become channels; negative ones from the end. None takes all.
        dims: axes of the grid. What is before them are channels; a field without any has one.

    Raises:
        ConfigError: neither or both of generator and path are given, or an option is of the other one; no such field, entry
            or frame.
        ShapeError: the field has not `dims` axes, or one more.
        DataError, NumericalError: the file, or the generator, gives values that are not finite.
    """

    generator: Generator | None = None
    name: str | None = None
    seed: int | None = None
    path: str | None = None
    dataset: str | None = None
    layout: Layout | None = None
    every: int = 1
    index: int = 0
    times: Sequence[int] | None = None
    dims: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        sources = [name for name in ("generator", "path") if getattr(self, name) is not None]
        if len(sources) > 1 or (not sources and self.measurement is None):
            raise ConfigError(f"Fields: expected a generator or a path, got {' and '.join(sources) or 'neither'}")
        for source, options in (("generator", ("seed",)), ("path", ("dataset", "layout", "every"))):
            given = [o for o in options if getattr(self, o) != getattr(type(self), o)]
            if given and source not in sources:
                raise ConfigError(f"Fields: expected a {source} for {', '.join(given)}, got none")
        if self.index < 0 or self.dims < 1:
            raise ConfigError(f"Fields: expected index >= 0 and dims >= 1, got {self.index} and {self.dims}")
        if self.generator is not None and not (
            is_dataclass(self.generator) and "seed" in {f.name for f in fields(self.generator)}
        ):
            raise ConfigError(f"Fields: expected a generator with a seed, such as DarcyFlow, got {self.generator!r}")

    def items(self, count: int, seed: int, prior: Denoiser) -> Iterator[Item]:
        y = self.measured()
        if y is not None and count != 1:
            raise ConfigError(f"{self.measurement}: holds one item, got items={count}")
        if self.generator is not None:
            made = replace(self.generator, seed=1_000_000 + seed if self.seed is None else self.seed)  # type: ignore[type-var]
            facts = {"generator": repr(made)}
            for index in range(self.index, self.index + count):
                truth = self.picture(self._sample(made, index), repr(made), frames=True)
                yield Item(f"sample {index}", tuple(truth.shape), truth, y, facts={**facts, "sample": index})
        elif self.path is not None:
            found = read_fields(
                self.path,
                layout=self.layout,
                only=None if self.dataset is None else [self.dataset],
                entries=(self.index, self.index + count),
                every=self.every,
                times=self.times,
            )
            values = finite(self.path, found.one(self.dataset))
            facts = {"path": str(self.path), "dataset": self.dataset or next(iter(found.values)), "layout": found.layout}
            for index, value in enumerate(values, self.index):
                if np.iscomplexobj(value):
                    raise DataError(f"{self.path}: expected real values, got {value.dtype}")
                truth = self.picture(torch.from_numpy(np.ascontiguousarray(value, np.float32)), self.path)
                yield Item(f"entry {index}", tuple(truth.shape), truth, y, facts={**facts, "entry": index})
        else:
            yield Item("measurement", tuple(prior.shape), y=y)  # type: ignore[arg-type]

    def picture(self, value: Tensor, who: str, *, frames: bool = False) -> Tensor:
        """A field as (C, *grid).

        Args:
            frames: the frames of `times` are yet to be taken.
        """
        if value.ndim not in (self.dims, self.dims + 1):
            raise ShapeError(
                f"{who}: expected a grid of dims={self.dims} axes and channels, got {tuple(value.shape)} (entries lie along "
                "the first axis of a file: a single field is (1, *grid))"
            )
        value = value if value.ndim > self.dims else value[None]
        if not frames or self.times is None:
            return value
        if not self.times or not all(-len(value) <= time < len(value) for time in self.times):
            raise ConfigError(f"{who}: has times 0 to {len(value) - 1}, got {list(self.times)}")
        return value[list(self.times)]

    def _sample(self, generator: Generator, index: int) -> Tensor:
        made = generator((index,))
        if self.name not in made and (self.name is not None or len(made) > 1):
            raise ConfigError(f"{generator!r}: expected name to be one of {', '.join(made)}, got {self.name!r}")
        value = made[self.name or next(iter(made))][0].float()
        if not value.isfinite().all():
            raise NumericalError(f"{generator!r}: sample {index} is not finite")
        return value
