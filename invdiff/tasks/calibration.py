"""Tasks with unknown parameters of the measurement: a scan whose centre of rotation is off.

The unknown is the packed vector of `operators.Calibrated`, image and parameters, and so is the truth; the report compares the
images, and says of the parameters their posterior mean and standard deviation beside the truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Operator, Problem, Samples, Streams
from ..operators.calibration import Calibrated, Multiplied
from ..operators.unknown import unknown_shift
from .data import CTSlices, Item
from .setups import sparse_view_ct

__all__ = ["Nominal", "OffCentreSlices", "PackedItem", "parameters", "shifted_ct"]


@dataclass(frozen=True, kw_only=True)
class PackedItem(Item):
    """An item whose truth and shape are those of the packed vector.

    Args:
        image_shape: of its first part.
    """

    image_shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class OffCentreSlices(CTSlices):
    """Slices whose scan has its centre of rotation off by s detector elements.

    Args:
        std: standard deviation of s, of which each item has its own.
        centre: s of all items instead.

    Raises:
        ConfigError: an option is out of its range.
    """

    std: float = 1.5
    centre: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.std < math.inf or (self.centre is not None and not math.isfinite(self.centre)):
            raise ConfigError(f"OffCentreSlices: expected std > 0 and a finite centre, got {self.std} and {self.centre}")

    def items(self, count: int, seed: int, prior: Denoiser) -> Iterator[Item]:
        for index, item in enumerate(super().items(count, seed, prior)):
            s = self.std * float(Streams(seed, (index,)).normal(0, (1,), "centre", torch.float64))
            s = s if self.centre is None else self.centre
            own = {f.name: getattr(item, f.name) for f in fields(Item)}
            own["shape"] = (1, math.prod(item.shape) + 1)
            if item.truth is not None:
                own["truth"] = torch.cat((item.truth.flatten(), torch.tensor([s]).to(item.truth)))[None]
            yield PackedItem(**own, image_shape=tuple(item.shape))


def shifted_ct(
    item: Item, *, views: int = 20, detector: int | None = None, engine: Literal["auto", "joseph", "fourier"] = "auto"
) -> Operator:
    """Line integrals (`sparse_view_ct`) on a detector that is shifted by an unknown number of its elements."""
    if not isinstance(item, PackedItem):
        raise ConfigError(f"shifted_ct: expected an item of OffCentreSlices, got {type(item).__name__}")
    scan = sparse_view_ct(replace(item, shape=item.image_shape), views=views, detector=detector, engine=engine)
    return unknown_shift(scan)


@dataclass(frozen=True)
class Nominal:
    """A baseline that takes the parameters for zero, what they are expected to be.

    Args:
        baseline: of the image.
    """

    baseline: Any

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"{getattr(self.baseline, 'name', type(self.baseline).__name__)}, nominal"

    def __call__(self, problem: Problem) -> tuple[Tensor, Mapping[str, Any]]:
        """The packed estimate, (1, 1, N + P), and the facts of the baseline."""
        operator = problem.operator
        if not isinstance(operator, Calibrated):
            raise ConfigError(f"Nominal: expected a Calibrated operator, got {type(operator).__name__}")
        phi = problem.y.real.new_zeros(1, operator.count)
        x, facts = self.baseline(Problem(operator.at(phi), problem.noise, problem.y))
        return operator.join(x, phi), facts


def parameters(item: Item, draws: Samples, problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
    """What draws say of the parameters: mean, standard deviation and, where it is known, the truth, of each; no figures."""
    outer, inner = getattr(problem.operator, "outer", None), getattr(problem.operator, "inner", None)
    scaled = isinstance(outer, Calibrated) and isinstance(inner, Multiplied)
    operator, x = (outer, inner(draws.x)) if scaled else (problem.operator, draws.x)  # type: ignore[misc]
    if not isinstance(operator, Calibrated):
        return {}, {}
    phi = operator.split(x)[1]
    facts: dict[str, Any] = {"parameters": phi.mean(0).tolist()}
    if len(phi) > 1 and draws.kind == "posterior":
        facts["parameters_std"] = phi.std(0).tolist()
    if item.truth is not None:
        facts["parameters_truth"] = operator.split(item.truth)[1].tolist()
    return facts, {}
