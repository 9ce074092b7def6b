"""Particles: sequential Monte Carlo from noise to data, one particle of an independent run for each draw.

    look       log w_i += log G_k(x_i)                      potentials, with the network at the particles
    resample   ancestors a_i ~ w where the effective sample size (sum_i w_i)^2 / sum_i w_i^2 is below a share of N
    propose    x'_i ~ q_k(. | x_{a_i}),  log w_i += log p_k(x'_i | x_{a_i}) - log q_k(x'_i | x_{a_i})

from pure noise at sigma_max to sigma = 0, where one particle is picked by its weight. Resampling is systematic: with a uniform
number u for each run, a_i is the particle into whose share of the cumulative weights (i + u) / N falls, so that particle j has
floor(N w_j) or ceil(N w_j) children, N w_j in the mean.

The law of a draw tends to the target's as N grows, with a bias of the order of 1 / N; what the target is, the subclass says.
Particles of one run share ancestors and are not independent, hence one of each run. All runs of a batch go through the network
together, N particles a draw; the network's calls are counted for each particle.

References: Doucet, de Freitas, Gordon, Sequential Monte Carlo methods in practice, Springer 2001. Kitagawa, Monte Carlo filter
and smoother for non-Gaussian nonlinear state space models, JCGS 5, 1996 (systematic resampling).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Grid, Karras, Problem, Sampler, State, Streams
from .guided import Level, levels

__all__ = ["Particles", "Proposed", "Swarm", "Transition", "effective_size", "normalised", "picked", "systematic"]


def normalised(log_weights: Tensor) -> Tensor:
    """Logarithms of weights (B, N) whose sum is one in each run; NaN throughout a run that has none."""
    return log_weights - log_weights.logsumexp(1, keepdim=True)


def effective_size(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of each run, (B, N) -> (B,): N for equal weights, 1 for a single one."""
    return (2.0 * log_weights.logsumexp(1) - (2.0 * log_weights).logsumexp(1)).exp()


def systematic(log_weights: Tensor, u: Tensor) -> Tensor:
    """Ancestors by systematic resampling, increasing: (B, N) normalised, u in (0, 1) of each run, (B,) -> (B, N) indices."""
    count = log_weights.shape[1]
    points = (torch.arange(count, dtype=torch.float64, device=u.device) + u.double()[:, None]) / count
    return _located(log_weights, points)


def picked(log_weights: Tensor, u: Tensor) -> Tensor:
    """One particle of each run by its weight, (B, N) normalised, u in (0, 1), (B,) -> (B,) indices."""
    return _located(log_weights, u.double()[:, None])[:, 0]


def _located(log_weights: Tensor, points: Tensor) -> Tensor:
    cumulative = log_weights.double().exp().cumsum(1)
    # rounding: the last entry is one, and a particle of weight zero is no ancestor
    cumulative = (cumulative / cumulative[:, -1:]).contiguous()
    return torch.searchsorted(cumulative, points.contiguous(), right=True).clamp_max(log_weights.shape[1] - 1)


def gathered(values: Tensor, ancestors: Tensor) -> Tensor:
    """values[b, ancestors[b, i]], (B, N, ...), (B, N) -> (B, N, ...)."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, ancestors]


class Transition(NamedTuple):
    """Where a step stands.

    Attributes:
        step: number of steps done.
        sigma, sigma_next: the levels that it goes between; sigma_next is zero in the last.
        before: the level of the step before; infinite in the first.
    """

    step: int
    sigma: float
    sigma_next: float
    before: float


class Proposed(NamedTuple):
    """Particles at the next level.

    Attributes:
        x: (M, *shape).
        log_weight: increments of the log-weights, (M,).
        history: what the next step remembers, (M, ...).
    """

    x: Tensor
    log_weight: Tensor
    history: Tensor


@dataclass(frozen=True, kw_only=True)
class Swarm(Level):
    """Weighted particles of each draw's run.

    Attributes:
        x: one particle of each run by its weight, (B, *shape).
        particles: (B, N, *shape).
        log_weights: logarithms of weights whose sum is one, (B, N).
        history: what the subclass remembers of each particle, (B, N, ...), resampled with it; (B, N, 0) if nothing.
        ess: the smallest effective sample size in the batch, when the step before had looked, ().
    """

    particles: Tensor
    log_weights: Tensor
    history: Tensor
    ess: Tensor


@dataclass(frozen=True)
class Particles(Sampler):
    """Base of sequential Monte Carlo samplers: subclasses write `look` and `propose`.

    Both see the particles of all runs as one batch of M = B N items, which must not depend on each other.

    Args:
        particles: N, of each draw's run.
        resample: share of N below which the effective sample size makes a run resample, in [0, 1]: 1 always does, 0 never.
        chunk: particles that the network sees at once; None for all.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        ConfigError: an option out of its range.
        NumericalError: no particle of a run has a finite weight.
    """

    state_class: ClassVar[type[State]] = Swarm
    particles: int = 32
    resample: float = 0.5
    chunk: int | None = None
    grid: Grid = field(default_factory=Karras)

    def __post_init__(self) -> None:
        if self.particles < 1 or (self.chunk is not None and self.chunk < 1):
            raise ConfigError(f"{self.name}: expected particles >= 1 and chunk >= 1, got {self.particles} and {self.chunk}")
        if not 0.0 <= self.resample <= 1.0:
            raise ConfigError(f"{self.name}: expected resample in [0, 1], got {self.resample}")

    @property
    def caveats(self) -> tuple[str, ...]:
        return (f"exact as the number of particles grows; here {self.particles} for each draw",)

    def look(self, problem: Problem, prior: Denoiser, x: Tensor, at: Transition) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Increments of the log-weights, (M,), and what `propose` needs of each particle, (M, ...) each."""
        raise NotImplementedError(f"{self.name} does not define look")

    def propose(
        self,
        problem: Problem,
        prior: Denoiser,
        x: Tensor,
        seen: tuple[Tensor, ...],
        history: Tensor,
        at: Transition,
        noise: Callable[..., Tensor],
    ) -> Proposed:
        """The particles of the next level.

        Args:
            x: particles after resampling, (M, *shape).
            seen: what `look` returned of them.
            history: what the step before returned of them; (M, 0) in the first.
            at: the levels.
            noise: (shape, purpose="step") -> standard normals (M, *shape), of each draw's own stream.
        """
        raise NotImplementedError(f"{self.name} does not define propose")

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Swarm:
        """Pure noise of the highest level about the origin of the prior, of equal weight."""
        count, dtype, device = self.particles, problem.y.real.dtype, problem.y.device
        sigma = levels(self.grid, self.steps, prior)[0]
        x = sigma * streams.normal(0, (count, *problem.shape), "init", dtype, device)
        x = x + torch.as_tensor(prior.origin, dtype=dtype, device=device)
        equal = x.new_full((len(x), count), -math.log(count))
        return Swarm(
            step=0,
            x=x[:, 0],
            sigma=sigma,
            particles=x,
            log_weights=equal,
            history=x.new_zeros(len(x), count, 0),
            ess=x.new_full((), count),
        )

    def step(self, problem: Problem, prior: Denoiser, state: Swarm, streams: Streams) -> Swarm:  # type: ignore[override]
        grid, k = levels(self.grid, self.steps, prior), state.step
        at = Transition(k, grid[k], grid[k + 1], grid[k - 1] if k else math.inf)
        runs, count = state.log_weights.shape
        increment, seen = self._looked(problem, prior, state.particles.flatten(0, 1), at)
        log_weights = normalised(state.log_weights + increment.unflatten(0, (runs, count)))
        ess = effective_size(log_weights)
        ancestors, log_weights = self._resampled(log_weights, ess, k, streams)

        def chosen(values: Tensor) -> Tensor:
            return gathered(values, ancestors).flatten(0, 1)

        def noise(shape: Sequence[int], purpose: str = "step") -> Tensor:
            z = streams.normal(k + 1, (count, *shape), purpose, state.x.dtype, state.x.device)
            return z.flatten(0, 1)

        kept = tuple(chosen(s.unflatten(0, (runs, count))) for s in seen)
        new = self.propose(problem, prior, chosen(state.particles), kept, chosen(state.history), at, noise)
        x, history = (v.unflatten(0, (runs, count)) for v in (new.x, new.history))
        log_weights = normalised(log_weights + new.log_weight.unflatten(0, (runs, count)))
        one = self._picked(x, log_weights, k, streams)
        return Swarm(
            step=k + 1,
            x=one,
            sigma=at.sigma_next,
            particles=x,
            log_weights=log_weights,
            history=history,
            ess=ess.min(),
        )

    def describe(self, state: Swarm) -> dict[str, Any]:  # type: ignore[override]
        return {"sigma": state.sigma, "ess": state.ess}

    def _looked(self, problem: Problem, prior: Denoiser, x: Tensor, at: Transition) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.chunk is None or len(x) <= self.chunk:
            return self.look(problem, prior, x, at)
        parts = [self.look(problem, prior, part, at) for part in x.split(self.chunk)]
        seen = zip(*(part[1] for part in parts), strict=True)
        return torch.cat([part[0] for part in parts]), tuple(torch.cat(s) for s in seen)

    def _resampled(self, log_weights: Tensor, ess: Tensor, k: int, streams: Streams) -> tuple[Tensor, Tensor]:
        """Ancestors (B, N), each its own in runs that do not resample, and the weights after it."""
        count = log_weights.shape[1]
        poor = (ess <= self.resample * count)[:, None]
        u = streams.uniform(k + 1, (), "resample", torch.float64, log_weights.device)
        own = torch.arange(count, device=log_weights.device)
        return torch.where(poor, systematic(log_weights, u), own), torch.where(poor, -math.log(count), log_weights)

    def _picked(self, x: Tensor, log_weights: Tensor, k: int, streams: Streams) -> Tensor:
        u = streams.uniform(k + 1, (), "pick", torch.float64, x.device)
        one = gathered(x, picked(log_weights, u)[:, None])[:, 0]
        # the loop looks at x, and reports draws without weights, which stay so, with their step
        lost = log_weights.isnan().any(1).reshape(-1, *[1] * (x.ndim - 2))
        return torch.where(lost, math.nan, one)
