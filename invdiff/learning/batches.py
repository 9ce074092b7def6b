"""Batches of a training run: functions of the seed and the step, whoever computes which part of them.

Item k of step t is item t B + k of the source. First random crops, then whole images, as many as make about the same number of
pixels. Crop, noise and dropped conditions are functions of (seed, that index), the noise levels of (seed, t), so that neither a
resumed run, nor one with other pieces or processes, sees anything else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.denoiser import Condition
from ..core.errors import DataError, ShapeError
from ..core.rng import Streams
from ..priors.network import EDMDenoiser
from .objectives import Model, noise_levels
from .settings import Training

__all__ = ["Batch", "Batches", "Item", "Source", "pieces", "split", "to_device"]

Item = Tensor | tuple[Tensor, Condition]
Source = Callable[[int], Item]


class Batch(NamedTuple):
    """Some items of a step: (n, C, *spatial) clean and noisy, (n,) sigma, the source's condition, and the items' streams."""

    clean: Tensor
    noisy: Tensor
    sigma: Tensor
    condition: Mapping[str, Tensor] | None = None
    step: int = 0
    streams: Streams = Streams(0)


def pieces(count: int, part: int = 0, parts: int = 1, cuts: int = 1) -> list[range]:
    """The places, of `count`, that process `part` of `parts` computes, in at most `cuts` pieces of nearly equal size."""
    first, last = count * part // parts, count * (part + 1) // parts
    ends = [first + (last - first) * k // cuts for k in range(cuts + 1)]
    return [range(a, b) for a, b in itertools.pairwise(ends) if b > a]


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """A copy on the device, for which a GPU need not be waited for."""
    if torch.device(device).type != "cuda" or x.is_cuda:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


class Batches:
    """The batches of a run.

    Args:
        source: index -> image (C, *spatial) in the denoiser's units, or (image, condition): a mapping of tensors without batch
            dimension with keys of `concat` (C', *spatial; cropped as the image is), `vector` (K,) and `label` (), int64.
        device: of the batches.
    """

    def __init__(self, source: Source, training: Training, denoiser: Model, device: torch.device | str) -> None:
        self.source, self.training, self.denoiser, self.device = source, training, denoiser, device
        self._held: tuple[int, Item] | None = None

    def whole(self, step: int) -> bool:
        """Whether the step uses whole images."""
        return step >= self.training.full_from * self.training.steps

    def indices(self, step: int) -> range:
        """Which items of the source a step takes."""
        batch, crop = self.training.batch, self.training.crop
        indices = range(step * batch, (step + 1) * batch)
        if not self.whole(step):
            return indices
        # what was asked for to learn the size of the images is not asked for again
        self._held = indices[0], self.source(indices[0])
        sizes = split(self._held[1])[0].shape[1:]
        return indices[: max(1, round(batch * crop ** len(sizes) / math.prod(sizes)))]

    def __call__(self, step: int, indices: range, places: range) -> Batch:
        """The items of a step, those at some places of its `indices`, with their noise."""
        chosen = indices[places.start : places.stop]
        images, conditions = zip(*map(self._item, chosen), strict=True)
        streams = Streams(self.training.seed, chosen)
        if not self.whole(step):
            corners = streams.uniform(0, (images[0].ndim - 1,), "crop").tolist()
            cut = [self._crop(x, c, corner) for x, c, corner in zip(images, conditions, corners, strict=True)]
            images, conditions = zip(*cut, strict=True)
        if len(shapes := {tuple(x.shape) for x in images}) > 1:
            found = " and ".join(map(str, sorted(shapes)))
            raise ShapeError(f"fit: expected images of one shape in a batch, the source gives {found}")
        clean = to_device(torch.stack(images).contiguous(memory_format=self.denoiser.net.memory_format), self.device)
        levels = noise_levels(self.training, self.denoiser, step, len(indices))
        sigma = to_device(levels[places.start : places.stop], self.device)
        noise = streams.normal(0, clean.shape[1:], "noise", device=self.device)
        noisy = clean + sigma[(...,) + (None,) * (clean.ndim - 1)] * noise
        return Batch(clean, noisy, sigma, self._condition(conditions, streams), step, streams)

    def _item(self, index: int) -> tuple[Tensor, Condition | None]:
        held = self._held
        image, condition = split(held[1] if held is not None and held[0] == index else self.source(index))
        net, found = self.denoiser.net, tuple(image.shape)
        if len(found) != net.dims + 1:
            raise ShapeError(f"fit: expected images (C, {net.dims} sizes) for the network, the source gives {found}")
        if self.training.full_from < 1.0 and any(n % net.divisor for n in found[1:]):
            raise ShapeError(
                f"fit: expected sizes that are multiples of {net.divisor}, because images are used whole from "
                f"full_from={self.training.full_from:g} on, the source gives {found}: give others, or full_from=1"
            )
        return image, condition

    def _crop(self, image: Tensor, condition: Condition | None, corner: list[float]) -> tuple[Tensor, Condition | None]:
        side, sizes = self.training.crop, image.shape[1:]
        if side > min(sizes):
            raise ShapeError(f"fit: the source gives images of shape {tuple(image.shape)}, smaller than the crop of {side}")
        starts = [int(u * (n - side + 1)) for u, n in zip(corner, sizes, strict=True)]
        window: tuple[Any, ...] = (..., *(slice(start, start + side) for start in starts))
        if condition is not None and "concat" in condition:
            if condition["concat"].shape[1:] != sizes:
                found = f"{tuple(condition['concat'].shape)} for an image of {tuple(image.shape)}"
                raise ShapeError(f"fit: the source gives a condition concat of shape {found}: they have to share their sizes")
            condition = {**condition, "concat": condition["concat"][window]}
        return image[window], condition

    def _condition(self, conditions: tuple[Condition | None, ...], streams: Streams) -> dict[str, Tensor] | None:
        """Stack, and drop: a dropped condition is the network's `null`."""
        keys = {frozenset(c or ()) for c in conditions}
        if len(keys) != 1:
            raise DataError("fit: the source gives some items with a condition, or some parts of one, and others without")
        if not (names := sorted(keys.pop())):
            return None
        condition = {name: torch.stack([c[name] for c in conditions if c is not None]) for name in names}
        if self.training.drop:
            dropped = streams.uniform(0, (), "drop") < self.training.drop
            assert isinstance(self.denoiser, EDMDenoiser)
            null = self.denoiser.null(condition)
            for name, value in condition.items():
                condition[name] = torch.where(dropped.to(value.device)[(...,) + (None,) * (value.ndim - 1)], null[name], value)
        return {name: to_device(value, self.device) for name, value in condition.items()}


def split(item: Item) -> tuple[Tensor, Condition | None]:
    """What a source gave, as an image and its condition, if it has one."""
    if isinstance(item, Tensor):
        return item, None
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Tensor) and isinstance(item[1], Mapping):
        return item
    raise DataError(f"fit: expected the source to give an image or (image, condition), got {type(item).__name__}")
