"""Scenes of a generator as a training source: one field of each, and what is told of it.

A field of log-reflectivity may be counted from its own mean over the scene, that is R in units of its geometric mean, plus a
random level: users' images have no calibration, and the mean of their logarithm says the level only roughly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.rng import Streams
from ..generators.sources import Generator

__all__ = ["Scenes"]


class Scenes:
    """index -> the field, or (the field, {"concat": what is told}), (C, H, W) float32, a function of the index.

    Every scene that was asked for stays in memory: of 2,000 with 128 x 128 pixels and five channels 0.7 GB.

    Args:
        generator: indices -> {name: (N, C, H, W)}.
        unknown: name of the field.
        told: names of what is told, joined along the channels.
        count: how many scenes there are; index k is scene k mod count.
        level: None keeps the values; a number counts them from their mean, plus a normal number of this standard deviation,
            another one for each index.
        mirror: turn the axis of rows around in a random half: along the track left and right are alike, in range they are not.
        batch: scenes generated at once.
        seed: of levels and turns.

    Raises:
        ConfigError: a count is below one, or the generator has no such field.
    """

    def __init__(
        self,
        generator: Generator,
        unknown: str,
        *,
        told: Sequence[str] = (),
        count: int,
        level: float | None = None,
        mirror: bool = True,
        batch: int = 50,
        seed: int = 0,
    ) -> None:
        if min(count, batch) < 1:
            raise ConfigError(f"Scenes: expected count and batch >= 1, got {count} and {batch}")
        self.generator, self.unknown, self.told, self.count, self.batch = generator, unknown, tuple(told), count, batch
        self.level, self.mirror, self.seed = level, mirror, seed
        self._held: dict[int, Mapping[str, Tensor]] = {}

    def __call__(self, index: int) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        sample = self.sample(index % self.count)
        streams = Streams(self.seed, (index,))
        turned = self.mirror and float(streams.uniform(0, (), "mirror")) < 0.5
        field, *told = (sample[name].flip(1) if turned else sample[name] for name in (self.unknown, *self.told))
        if self.level is not None:
            field = field - field.mean() + self.level * float(streams.normal(0, (), "level"))
        return (field, {"concat": torch.cat(told)}) if told else field

    def sample(self, k: int) -> dict[str, Tensor]:
        """The fields of scene k, each (C, H, W)."""
        block, place = divmod(k, self.batch)
        if block not in self._held:
            first = block * self.batch
            made = self.generator(range(first, min(first + self.batch, self.count)))
            if missing := {self.unknown, *self.told} - set(made):
                who = type(self.generator).__name__
                raise ConfigError(f"Scenes: {who} makes {', '.join(made)}, expected {', '.join(sorted(missing))} too")
            self._held[block] = {name: made[name].float() for name in (self.unknown, *self.told)}
        return {name: v[place] for name, v in self._held[block].items()}
