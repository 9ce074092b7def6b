"""What a row of the laboratory is made of: a sampler with its claim, and a planted fault."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from ..core import Denoiser, Problem, Sampler
from ..guidance import MMPS, Guidance

__all__ = ["DEVIATES", "Contender", "Doubled"]

# of a biased row on problems where its bias is many floors
DEVIATES = {"ratio": (1.2, math.inf)}


@dataclass(frozen=True)
class Doubled(Guidance):
    """A planted fault: twice the correction of another guidance.

    Args:
        guidance: the right one.
    """

    guidance: Guidance = MMPS(cg_steps=8)  # noqa: RUF009  # frozen

    def __call__(self, prior: Denoiser, problem: Problem) -> Denoiser:
        return _Doubled(prior, self.guidance(prior, problem))


class _Doubled(Denoiser):
    def __init__(self, prior: Denoiser, guided: Denoiser) -> None:
        super().__init__(prior.shape, prior.sigma_min, prior.sigma_max)
        self.prior, self.guided = prior, guided

    @property
    def origin(self) -> float | Tensor:
        return self.prior.origin

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return 2.0 * self.guided(x, sigma) - self.prior(x, sigma)


@dataclass(frozen=True)
class Contender:
    """A sampler, what is claimed of it, and where.

    Attributes:
        claim: "exact", "biased" or "wrong".
        cases: names in `MAKERS`.
        known: of a biased one, (lowest, highest) by name of a statistic: what 4,000 and 1,000 draws gave, with room for their
        spread. exact_prior: step with the closed-form posterior's own denoiser instead of the prior's.
    """

    name: str
    sampler: Sampler
    claim: str
    cases: tuple[str, ...]
    known: dict[str, tuple[float, float]] = field(default_factory=dict)
    exact_prior: bool = False
