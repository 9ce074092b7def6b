"""Trajectories of an equation as a training source for priors of fields and for regression networks.

Sample k of a generator has u0 (1, n), f (slots, n) and u (frames + 1, n), which starts with u0, or more axes of space. With as
many slots as frames, u without its first frame and f are on one grid (time, *space). Coarser levels of a sample have every
second frame, and averages over pairs of slots and over 2^d neighbouring cells. An item is the unknown of a `FieldCode` with
what is told of it, each part of which is left out at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.rng import Streams
from ..generators.sources import Generator
from ..priors.refine import coarsen, upsample
from ..priors.wdno import FieldCode

__all__ = ["RefinedTrajectories", "Trajectories", "as_fields"]

Samples = dict[str, Tensor]


def as_fields(raw: Mapping[str, Tensor]) -> Samples:
    """What a generator makes, as fields: u0 and uT (N, 1, *space), u and f (N, 1, time, *space)."""
    u = raw["u"]
    return {"u0": raw["u0"], "uT": u[:, -1:], "u": u[:, 1:].unsqueeze(1), "f": raw["f"].unsqueeze(1)}


class Trajectories:
    """index -> (unknown, {"concat": what is told}), float32, a function of the index as all sources are.

    Every trajectory that was asked for stays in memory, with its whole batch: in the end 4 count (numbers of u0, f, u and uT)
    bytes, of 10,000 with 80 x 120 frames and slots 0.8 GB; and for as long as a batch is computed what its solver needs.

    Args:
        generator: indices -> {"u0", "f", "u"}, with as many slots of f as frames of u.
        code: units, coordinates, and what is told.
        count: how many trajectories there are; index k is trajectory k mod count, with other parts left out.
        keep: {name: probability with which it is told}; 1 for names that are missing.
        coarser: how many times the trajectories are halved on every axis.
        batch: trajectories computed at once.
        seed: of what is left out.
    """

    def __init__(
        self,
        generator: Generator,
        code: FieldCode,
        *,
        count: int,
        keep: Mapping[str, float] | None = None,
        coarser: int = 0,
        batch: int = 128,
        seed: int = 0,
    ) -> None:
        if min(count, batch) < 1 or coarser < 0:
            raise ConfigError(f"Trajectories: expected count, batch >= 1 and coarser >= 0, got {count}, {batch} and {coarser}")
        if bad := {k: p for k, p in (keep or {}).items() if k not in code.told or not 0.0 <= p <= 1.0}:
            raise ConfigError(f"Trajectories: expected keep to have probabilities of {', '.join(code.told)}, got {bad}")
        self.generator, self.code, self.count, self.batch = generator, code, count, batch
        self.keep, self.coarser, self.seed = dict(keep or {}), coarser, seed
        self._held: dict[int, Samples] = {}

    def __call__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        sample, code = self.sample(index % self.count), self.code
        chance = Streams(self.seed, (index,)).uniform(0, (len(code.told),), "told")[0].tolist()
        told = {n: sample[n] for n, c in zip(code.told, chance, strict=True) if c < self.keep.get(n, 1.0)}
        unknown = code.encode({name: sample[name] for name in code.unknown})
        return unknown[0], {"concat": code.condition(sample["u"].shape[2:], told, like=unknown)[0]}

    def sample(self, k: int) -> Samples:
        """The fields of trajectory k, each (1, 1, ...)."""
        block, place = divmod(k, self.batch)
        if block not in self._held:
            first = block * self.batch
            fields = as_fields(self.generator(range(first, min(first + self.batch, self.count))))
            for _ in range(self.coarser):
                fields = coarsen(fields)
            self._held[block] = {name: v.float() for name, v in fields.items()}
        return {name: v[place : place + 1] for name, v in self._held[block].items()}

    def samples(self, indices: Sequence[int]) -> Samples:
        """The fields of some trajectories, (N, 1, ...)."""
        each = [self.sample(k) for k in indices]
        return {name: torch.cat([s[name] for s in each]) for name in each[0]}


class RefinedTrajectories:
    """index -> (unknown, {"concat"}) for the refinement of `priors.refine`: what a finer grid adds to the solution.

    Items of one batch share their level, which is drawn for the batch.

    Args:
        trajectories: at the finest level; of its code the unknown is "r", and what is told u0, f and "coarse".
        levels: how many levels there are, the finest, once coarser, ...; below the coarsest there has to be another one.
        batch: of the training.
    """

    def __init__(self, trajectories: Trajectories, *, levels: int, batch: int) -> None:
        if min(levels, batch) < 1:
            raise ConfigError(f"RefinedTrajectories: expected levels and batch >= 1, got {levels} and {batch}")
        self.trajectories, self.levels, self.batch = trajectories, levels, batch

    def __call__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        own = self.trajectories
        chance = float(Streams(own.seed, (index // self.batch,)).uniform(0, (), "level"))
        sample = _refined(own.sample(index % own.count), int(chance * self.levels))
        unknown = own.code.encode(sample)
        told = {name: sample[name] for name in own.code.told}
        return unknown[0], {"concat": own.code.condition(sample["r"].shape[2:], told, like=unknown)[0]}

    def samples(self, indices: Sequence[int]) -> list[Samples]:
        """The fields of some trajectories at each level, for units."""
        fine = self.trajectories.samples(indices)
        return [_refined(fine, level) for level in range(self.levels)]


def _refined(sample: Samples, level: int) -> Samples:
    """A sample some levels coarser, with the interpolation "coarse" of the next coarser one and what it lacks, "r"."""
    for _ in range(level):
        sample = coarsen(sample)
    below = coarsen(sample)
    if min(below["u"].shape[2:]) < 2 or prod(below["u"].shape) == 0:
        raise ConfigError(f"RefinedTrajectories: no level below {tuple(sample['u'].shape[2:])}: take fewer levels")
    coarse = upsample(below["u"], below["u0"])
    return sample | {"coarse": coarse, "r": sample["u"] - coarse}
