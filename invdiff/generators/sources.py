"""Training sources from fields: drawn as they are needed, or stored by `invdiff simulate`.

A source is a function of an index. Drawn ones compute blocks of neighbouring indices at once, which a training run then asks
for in turn. Stored ones take entry `index` modulo the number of entries, at random under the symmetries that are named: a
periodic field may be rolled along an axis by multiples of a step, and turned by half a turn where its law allows that.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError
from ..io.fields import Layout, read_fields
from ..io.images import finite

__all__ = ["Drawn", "Generator", "Stored"]


@runtime_checkable
class Generator(Protocol):
    """A data set as a function: indices -> {name: (N, *shape)}, each sample a function of its own index.

    `simulate` takes the axes of a field after (N, frames or channels) for those of its grid. A generator that has fields with
    components between them, such as (N, frames, 2, H, W), says so by `grid_axes`: {name: number of axes of the grid}.
    """

    def __call__(
        self, indices: Sequence[int], *, dtype: torch.dtype = ..., device: torch.device | str = ...
    ) -> dict[str, Tensor]: ...


class Drawn:
    """index -> the field `name` of sample `index` of a generator, float32, without a batch dimension.

    Args:
        block: samples that are generated at once.
    """

    def __init__(self, generator: Generator, name: str, *, block: int = 64) -> None:
        if block < 1:
            raise ConfigError(f"Drawn: expected block >= 1, got {block}")
        self.generator, self.name, self.block = generator, name, block
        self._held: tuple[int, Tensor] | None = None

    def __call__(self, index: int) -> Tensor:
        number, place = divmod(index, self.block)
        if index < 0:
            raise ConfigError(f"Drawn: expected an index >= 0, got {index}")
        if self._held is None or self._held[0] != number:
            fields = self.generator(range(number * self.block, (number + 1) * self.block))
            if self.name not in fields:
                raise ConfigError(
                    f"Drawn: {type(self.generator).__name__} makes {', '.join(fields)}, expected a field {self.name!r}"
                )
            self._held = number, fields[self.name]
        return self._held[1][place].float()


class Stored:
    """index -> an entry of a field in a file that `read_fields` reads, (1, *grid) float32.

    Args:
        path: of the file.
        dataset: name of the field, where there are more; its first axes are entries and times, the last `dims` the grid.
        dims: axes of the grid.
        roll: for each axis of the grid, the step in points of the random roll; 0 for none.
        half_turn: turn a random half of the entries, periodic ones, by 180 degrees about the first point of the grid.
        seed: of roll and turn.
        layout, every, times: see `read_fields`.

    Raises:
        ConfigError: a step of the roll is negative or longer than its axis, or an option of `read_fields`.
        DataError: the file can't be read, has too few axes, or values that are not real and finite.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        dataset: str | None = None,
        *,
        dims: int = 2,
        roll: Sequence[int] = (),
        half_turn: bool = False,
        seed: int = 0,
        layout: Layout | None = None,
        every: int = 1,
        times: Sequence[int] | None = None,
    ) -> None:
        only = None if dataset is None else [dataset]
        array = read_fields(path, layout=layout, only=only, every=every, times=times).one(dataset)
        if array.ndim <= dims or not array.size:
            raise DataError(f"{path}: expected entries and a grid of {dims} axes, got {array.shape}")
        if len(roll) not in (0, dims) or any(r < 0 for r in roll):
            raise ConfigError(f"Stored: expected roll to have {dims} steps >= 0, got {tuple(roll)}")
        if np.iscomplexobj(array):
            raise DataError(f"{path}: expected real values, got {array.dtype}")
        grid = array.shape[array.ndim - dims :]
        if any(r > n for r, n in zip(roll, grid, strict=False)):
            raise ConfigError(f"Stored: expected steps of roll of at most the {grid} points of the grid, got {tuple(roll)}")
        self.values = finite(str(path), array).reshape(-1, *grid)
        self.roll, self.half_turn, self.seed = tuple(roll), half_turn, seed

    def __call__(self, index: int) -> Tensor:
        if index < 0:
            raise ConfigError(f"Stored: expected an index >= 0, got {index}")
        rng = np.random.default_rng([self.seed, index])
        field = self.values[index % len(self.values)]
        for axis, step in enumerate(self.roll):
            if step:
                field = np.roll(field, step * int(rng.integers(field.shape[axis] // step)), axis)
        if self.half_turn and rng.integers(2):
            # x -> -x on a periodic grid, whose first point stays where it is
            field = np.roll(np.flip(field), 1, tuple(range(field.ndim)))
        return torch.from_numpy(np.ascontiguousarray(field, np.float32))[None]
