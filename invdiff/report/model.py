"""What a report is about: items, the estimates that methods make of them, and their metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..core import ConfigError, Samples, ShapeError
from ..metrics import coverage, nrmse, psnr, ssim

__all__ = ["COST", "LEVEL", "METRICS", "Estimate", "Item"]

LEVEL = 0.9
METRICS = ("psnr", "ssim", "nrmse", "error_rate", "misfit", "coverage")
COST = ("draws", "seconds", "network_calls", "network_vjps", "operator_calls", "peak_bytes")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one method gives for one item.

    Args:
        method: its name, the same for all items of a report.
        image: the estimate, (*shape), real, as it is compared with the truth (a magnitude where the truth is one).
        misfit: chi^2 per measured value (`Problem.chi2`); None where it was not computed.
        samples: the draws, (n, *shape), in the same view; None for a method without draws.
        coverage: of the 90 % interval, where it is not that of `samples` against the truth of this view.
        facts: further numbers and words for the report: a regularisation strength, a z-score. The keys of the cost table
            (seconds, operator_calls, ...) are shown there.
    """

    method: str
    image: Tensor
    misfit: float | None = None
    samples: Samples | None = None
    coverage: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Samples, *, misfit: float | None = None, coverage: float | None = None, **facts: object) -> Estimate:
        """The mean of draws, with them; further keywords are facts."""
        return cls(method=samples.sampler, image=samples.mean, misfit=misfit, samples=samples, coverage=coverage, facts=facts)

    @property
    def has_spread(self) -> bool:
        """Whether there are draws of a posterior, from which intervals follow."""
        return self.samples is not None and self.samples.kind == "posterior" and len(self.samples) > 1

    @property
    def cost(self) -> dict[str, Any]:
        """The columns of the cost table; None where a number is not known."""
        cost: dict[str, Any] = {key: self.facts.get(key) for key in COST}
        if self.samples is not None:
            cost |= {key: getattr(self.samples, key) for key in COST if key != "draws"} | {"draws": len(self.samples)}
        return cost


@dataclass(frozen=True, kw_only=True)
class Item:
    """One measurement: the truth, if it is known, and what each method makes of it.

    Args:
        name: of the item; unique within a report.
        estimates: baselines first, the sampler last.
        truth: (*shape), real; None for measured data.
        data_range: range of values that PSNR and SSIM refer to; None leaves both out.
        levels: the two values of an unknown that has only two, for the error rate: the part of the elements that are nearer to
            the wrong one.
        window: grey values shown as black and white; None takes the truth's or the last estimate's limits.
        notes: what a reader has to know about this item.

    Raises:
        ShapeError: an estimate has another shape than the truth or the other estimates.
        ConfigError: no estimate, or two with one name.
    """

    name: str
    estimates: Sequence[Estimate]
    truth: Tensor | None = None
    data_range: float | None = None
    levels: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        methods = [e.method for e in self.estimates]
        if not methods or len(set(methods)) < len(methods):
            raise ConfigError(f"Item {self.name}: expected estimates with different names, got {methods}")
        shape = tuple((self.estimates[-1].image if self.truth is None else self.truth).shape)
        for estimate in self.estimates:
            tensors = [estimate.image, *([] if estimate.samples is None else [estimate.samples.x[0]])]
            if any(t.shape != shape or t.is_complex() for t in tensors):
                got = ", ".join(f"{tuple(t.shape)} {str(t.dtype)[6:]}" for t in tensors)
                raise ShapeError(f"Item {self.name}: expected {estimate.method} to be {shape} real, got {got}")

    def metrics(self, estimate: Estimate) -> dict[str, float | None]:
        """The metrics of one of the estimates; None where there is none."""
        values: dict[str, float | None] = dict.fromkeys(METRICS) | {"misfit": estimate.misfit}
        if self.truth is not None:
            x, truth = estimate.image[None].cpu(), self.truth[None].to("cpu", estimate.image.dtype)
            values["nrmse"] = float(nrmse(x, truth))
            if self.levels is not None:
                middle = sum(self.levels) / 2.0
                values["error_rate"] = float(((x > middle) != (truth > middle)).double().mean())
            if self.data_range is not None:
                values["psnr"] = float(psnr(x, truth, self.data_range))
                if x.ndim == 4 and min(x.shape[2:]) >= 11:
                    values["ssim"] = float(ssim(x, truth, self.data_range))
            if estimate.has_spread:
                values["coverage"] = estimate.coverage
                if estimate.coverage is None:
                    low, high = estimate.samples.interval(LEVEL)
                    values["coverage"] = float(coverage(low[None].cpu(), high[None].cpu(), truth))
        return {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}
