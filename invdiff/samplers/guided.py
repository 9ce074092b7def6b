"""A guidance and an integrator, on a grid of noise levels: one sampler for every pair.

    x_0 = c + sigma_max z,    x_{k+1}, past_{k+1} = integrator.advance(D_y, x_k, past_k, sigmas, k)

The past is empty for rules of one step; where it is not, it is part of the state, so that a resumed or differentiated run has
it too.

The exact x at sigma_max is x0 + sigma_max z. A number c, the prior's `origin`, in place of x0 is an error O(prior variance /
sigma_max^2) of the variance; of the mean, in standard deviations of the posterior, |posterior mean - c| / sigma_max for the
deterministic integrators, and that times (standard deviation / sigma_max) for the ancestral one, which forgets its start. The
means are vectors: of images of N pixels that are brighter than c by b everywhere it is b sqrt(N) / sigma_max.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Grid, Karras, Problem, Sampler, State, Streams
from ..guidance import Guidance
from .integrators import Heun, Integrator

__all__ = ["ByGuidance", "DownLevels", "Guided", "Level", "PastLevel", "levels", "start"]


@dataclass(frozen=True)
class Level(State):
    """A state at a noise level.

    Attributes:
        sigma: the noise level of x.
    """

    sigma: float = 0.0


@dataclass(frozen=True)
class PastLevel(Level):
    """A level with what the integrator remembers, (keeps, B, *shape)."""

    past: Tensor = field(default_factory=lambda: torch.zeros(0))


def levels(grid: Grid, steps: int, prior: Denoiser) -> tuple[float, ...]:
    """The steps + 1 levels of a run, the last of them zero."""
    return _levels(grid, steps, prior.sigma_min, prior.sigma_max)


@lru_cache(maxsize=16)
def _levels(grid: Grid, steps: int, sigma_min: float, sigma_max: float) -> tuple[float, ...]:
    return tuple(grid(steps, sigma_min, sigma_max).tolist())


def start(grid: Grid, steps: int, problem: Problem, prior: Denoiser, streams: Streams) -> Level:
    """Pure noise of the highest level, about the origin of the prior."""
    return pure_noise(levels(grid, steps, prior)[0], problem, prior.origin, streams)


def pure_noise(sigma: float, problem: Problem, origin: float | Tensor, streams: Streams) -> Level:
    """N(origin, sigma^2)."""
    x = sigma * streams.normal(0, problem.shape, "init", problem.y.real.dtype, problem.y.device)
    return Level(0, x + torch.as_tensor(origin, dtype=x.dtype, device=x.device), sigma)


@dataclass(frozen=True)
class DownLevels(Sampler):
    """Base of the samplers that go down a grid of levels from pure noise, one level a step; subclasses write `step`.

    Args:
        grid: noise levels between the prior's limits.
        steps: number of levels.
    """

    state_class: ClassVar[type[State]] = Level
    grid: Grid = field(default_factory=Karras, kw_only=True)

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Level:
        return start(self.grid, self.steps, problem, prior, streams)

    def between(self, prior: Denoiser, state: State) -> tuple[float, float]:
        """The levels that the step from a state goes between; the second is zero in the last."""
        sigma, sigma_next = levels(self.grid, self.steps, prior)[state.step :][:2]
        return sigma, sigma_next

    def describe(self, state: Level) -> dict[str, Any]:  # type: ignore[override]
        return {"sigma": state.sigma}


class ByGuidance(Sampler):
    """Base of the samplers that take what they promise and need from their guidance."""

    guidance: Guidance | None
    grid: Grid

    @property
    def kind(self) -> str:  # type: ignore[override]
        return "posterior" if self.guidance is None else self.guidance.kind

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset() if self.guidance is None else self.guidance.needs

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        # a guidance linearises the network apart from the graph
        return self.guidance is None

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        return prior if self.guidance is None else self.guidance(prior, problem)

    def describe(self, state: Level) -> dict[str, Any]:  # type: ignore[override]
        return {"sigma": state.sigma}


@dataclass(frozen=True)
class Guided(ByGuidance):
    """Draws of the posterior that the guidance approximates, or of the prior where there is none.

    Args:
        guidance: what makes the prior's denoiser one of the posterior; None samples the prior and ignores the measurement.
        integrator: from one level to the next.
        grid: noise levels between the prior's limits.
        steps: number of levels.
        start: "prior", noise of the highest level, or "guess", the operator's own crude inverse of y and that noise on it: for
            operators that are not linear, whose tangents lead astray from afar, with a highest level (the grid's sigma_max) of
            about the error of the guess. The draws then explore the mode of the posterior that the guess lies in, and differ by
            less than the posterior's own, where there are others.

    Raises:
        ConfigError: another start.
        CapabilityError: start is "guess" and the operator has none.
    """

    guidance: Guidance | None = None
    integrator: Integrator = field(default_factory=Heun)
    grid: Grid = field(default_factory=Karras)
    start: Literal["prior", "guess"] = "prior"

    def __post_init__(self) -> None:
        if self.start not in ("prior", "guess"):
            raise ConfigError(f'Guided: expected start to be "prior" or "guess", got {self.start!r}')

    @property
    def state_class(self) -> type[State]:  # type: ignore[override]
        return PastLevel if self.integrator.keeps else Level

    @property
    def name(self) -> str:
        return f"Guided({type(self.guidance).__name__ if self.guidance else None}, {type(self.integrator).__name__})"

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Level:
        if self.start == "prior":
            first = start(self.grid, self.steps, problem, prior, streams)
        else:
            # one measurement, not yet one for each draw
            guess = problem.operator.guess(problem.y)
            first = pure_noise(levels(self.grid, self.steps, prior)[0], problem, guess, streams)
        keeps = self.integrator.keeps
        return PastLevel(0, first.x, first.sigma, first.x.new_zeros(keeps, *first.x.shape)) if keeps else first

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        sigmas, k = levels(self.grid, self.steps, prior), state.step

        def noise() -> Tensor:
            return streams.normal(k + 1, problem.shape, dtype=state.x.dtype, device=state.x.device)

        past = state.past if isinstance(state, PastLevel) else state.x.new_zeros(0)
        x, past = self.integrator.advance(prior, state.x, past, sigmas, k, noise)
        return PastLevel(k + 1, x, sigmas[k + 1], past) if self.integrator.keeps else Level(k + 1, x, sigmas[k + 1])
