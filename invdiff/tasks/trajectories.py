"""Trajectories of an equation as a training source for priors of fields and for regression networks.

Sample k of a generator has u0 (1, n), f (slots, n) and u (frames + 1, n), which starts with u0, or more axes of space. With as
many slots as frames, u without its first frame and f are on one grid (time, *space). Coarser levels of a sample have every
second frame, and averages over pairs of slots and over 2^d neighbouring cells. Smoke (`SmokeControl`) has other names,
density0, density, vx, vy, cx and cy, and no coarser levels. An item is the unknown of a `FieldCode` with what is told of it,
each part of which is left out at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.rng import Streams
from ..generators.sources import Generator
from ..priors.refine import coarsen, upsample
from ..priors.wdno import FieldCode

__all__ = ["RefinedTrajectories", "Trajectories", "as_fields", "smoke_fields"]

Samples = dict[str, Tensor]


def as_fields(raw: Mapping[str, Tensor]) -> Samples:
    """What a generator makes, as fields: u0 and uT (N, 1, *space), u and f (N, 1, time, *space)."""
    u = raw["u"]
    return {"u0": raw["u0"], "uT": u[:, -1:], "u": u[:, 1:].unsqueeze(1), "f": raw["f"].unsqueeze(1)}


def smoke_fields(raw: Mapping[str, Tensor]) -> Samples:
    """What `SmokeControl` makes, as fields: density0 (N, 1, *space), density, vx, vy, cx, cy (N, 1, frames, *space).

    Frames are those after the first one, at the ends of the slots of the control.
    """
    density, velocity, control = raw["density"], raw["velocity"][:, 1:], raw["control"]
    fields = {"density0": density[:, :1], "density": density[:, 1:].unsqueeze(1)}
    for axis, name in enumerate("xy"):
        fields |= {f"v{name}": velocity[:, None, :, axis], f"c{name}": control[:, None, :, axis]}
    return fields


class Trajectories:
    """index -> (unknown, {"concat": what is told}), float32, a function of the index as all sources are.

    Every trajectory that was asked for stays in memory, with its whole batch: in the end 4 count (numbers of u0, f, u and uT)
    bytes, of 10,000 with 80 x 120 frames and slots 0.8 GB; and for as long as a batch is computed what its solver needs.

    Args:
        generator: indices -> {"u0", "f", "u"}, with as many slots of f as frames of u, or what `fields` takes.
        code: units, coordinates, and what is told.
        count: how many trajectories there are; index k is trajectory k mod count, with other parts left out.
        keep: {name: probability with which it is told}; 1 for names that are missing.
        together: names that are told together or not at all, with the probability of the first of each group.
        coarser: how many times the trajectories are halved on every axis.
        batch: trajectories computed at once.
        seed: of what is left out.
        fields: from what the generator makes to the fields of the code, `as_fields` or `smoke_fields`.
    """

    def __init__(
        self,
        generator: Generator,
        code: FieldCode,
        *,
        count: int,
        keep: Mapping[str, float] | None = None,
        together: Sequence[Sequence[str]] = (),
        coarser: int = 0,
        batch: int = 128,
        seed: int = 0,
        fields: Callable[[Mapping[str, Tensor]], Samples] = as_fields,
    ) -> None:
        if min(count, batch) < 1 or coarser < 0:
            raise ConfigError(f"Trajectories: expected count, batch >= 1 and coarser >= 0, got {count}, {batch} and {coarser}")
        if bad := {k: p for k, p in (keep or {}).items() if k not in code.told or not 0.0 <= p <= 1.0}:
            raise ConfigError(f"Trajectories: expected keep to have probabilities of {', '.join(code.told)}, got {bad}")
        first = {name: group[0] for group in together for name in group}
        if sum(map(len, together)) > len(first) or not set(first) <= set(code.told):
            raise ConfigError(f"Trajectories: expected together to be groups of {', '.join(code.told)}, got {together}")
        if fields is not as_fields and coarser:
            raise ConfigError(f"Trajectories: only u0, f and u have coarser levels: expected coarser=0, got {coarser}")
        self.generator, self.code, self.count, self.batch, self.fields = generator, code, count, batch, fields
        self.keep, self.coarser, self.seed = dict(keep or {}), coarser, seed
        self._leads = [code.told.index(first.get(name, name)) for name in code.told]
        self._held: dict[int, Samples] = {}

    def __call__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        sample, code = self.sample(index % self.count), self.code
        chance = Streams(self.seed, (index,)).uniform(0, (len(code.told),), "told")[0].tolist()
        kept = [c < self.keep.get(name, 1.0) for name, c in zip(code.told, chance, strict=True)]
        told = {name: sample[name] for name, k in zip(code.told, self._leads, strict=True) if kept[k]}
        unknown = code.encode({name: sample[name] for name in code.unknown})
        return unknown[0], {"concat": code.condition(sample[code.unknown[0]].shape[2:], told, like=unknown)[0]}

    def sample(self, k: int) -> Samples:
        """The fields of trajectory k, each (1, 1, ...)."""
        block, place = divmod(k, self.batch)
        if block not in self._held:
            first = block * self.batch
            fields = self.fields(self.generator(range(first, min(first + self.batch, self.count))))
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
