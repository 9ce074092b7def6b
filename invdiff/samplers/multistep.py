"""Multistep consistency sampling: a consistency function, noise, and the function again.

    x_1 = sigma_1 z,    x0 = f(x_k, sigma_k),    x_{k+1} = x0 + sqrt(sigma_{k+1}^2 - sigma_min^2) z,    sigma_1 > ... > sigma_K

with fresh z each time; the draw is the last x0, at noise level sigma_min. One evaluation for each step. With the exact f every
x0 has the law of x at sigma_min, but for the x0 that is missing from x_1, an error O(variance / sigma_1^2) that each further
step shrinks. For x0 ~ N(m, s^2), v_k the variance of the k-th x0, and r_k = (s^2 + sigma_min^2) / (s^2 + sigma_k^2):

    v_1 = r_1 sigma_1^2,    v_{k+1} = r_{k+1} (v_k + sigma_{k+1}^2 - sigma_min^2).

The levels are those of `core.Karras` from sigma_max on, sigma_min left out. Where the number of steps divides N - 1 they are
some of the N levels of the same rho that a student was distilled on.

References: Song, Dhariwal, Chen, Sutskever, Consistency models, 2023, arXiv:2303.01469, Algorithm 1. Luo, Tan, Huang, Li, Zhao,
Latent consistency models, 2023, arXiv:2310.04378.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..core import CapabilityError, ConfigError, Denoiser, Karras, Problem, Sampler, State, Streams
from .guided import Level, pure_noise

__all__ = ["Multistep"]


@dataclass(frozen=True)
class Multistep(Sampler):
    """Draws of a (conditional) consistency model, for problems that measure nothing: the condition is all that is known.

    Args:
        steps: evaluations of the model for each draw, 1 to 8 as a rule.
        rho: of the levels, see `core.Karras`.
        levels: the noise levels themselves, decreasing, as many as steps; None makes them from rho.

    Raises:
        ConfigError: rho is not positive, or the levels are not decreasing, not as many as steps, or not between the model's
            sigma_min and sigma_max.
        CapabilityError: the prior is no consistency function, or the problem has a measurement.
    """

    state_class: ClassVar[type[State]] = Level
    takes_consistency: ClassVar[bool] = True
    steps: int = 4
    rho: float = 7.0
    levels: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        Karras(rho=self.rho)
        if self.levels is None:
            return
        levels = tuple(float(v) for v in self.levels)
        object.__setattr__(self, "levels", levels)
        if len(levels) != self.steps or any(not a > b for a, b in itertools.pairwise(levels)):
            raise ConfigError(f"Multistep: expected {self.steps} decreasing levels, one for each step, got {levels}")

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the draws are of."""
        return ("Draws of a consistency model are those of its distillation: their spread may be less than the teacher's.",)

    def grid(self, prior: Denoiser) -> tuple[float, ...]:
        """The noise levels of a run, one for each step."""
        low, high = prior.sigma_min, prior.sigma_max
        if self.levels is None:
            u = torch.arange(self.steps, dtype=torch.float64) / self.steps
            return tuple(Karras(rho=self.rho).levels(u, low, high).tolist())
        if not low <= self.levels[-1] <= self.levels[0] <= high * (1.0 + 1e-9):
            raise ConfigError(f"Multistep: expected levels inside the prior's [{low:g}, {high:g}], got {self.levels}")
        return self.levels

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Level:
        if prior.posterior_mean:
            # the loop hands the prior on in a wrapper that counts
            name = type(getattr(prior, "prior", prior)).__name__
            raise CapabilityError(
                f"Multistep: expected a consistency function, got {name}: distil it (learning.distil), or sample it by Guided"
            )
        if problem.y.numel():
            raise CapabilityError(
                f"Multistep ignores measurements, and {type(problem.operator).__name__} makes {problem.y.numel()} values: give "
                "what is known as the model's condition, and Problem.unmeasured(shape)"
            )
        return pure_noise(self.grid(prior)[0], problem, prior.origin, streams)

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        k, levels = state.step, self.grid(prior)
        x = prior(state.x, state.x.new_full((len(state.x),), levels[k]))
        if k + 1 == self.steps:
            return Level(k + 1, x, prior.sigma_min)
        noise = streams.normal(k + 1, problem.shape, dtype=x.dtype, device=x.device)
        return Level(k + 1, x + math.sqrt(levels[k + 1] ** 2 - prior.sigma_min**2) * noise, levels[k + 1])

    def describe(self, state: Level) -> dict[str, Any]:  # type: ignore[override]
        return {"sigma": state.sigma}
