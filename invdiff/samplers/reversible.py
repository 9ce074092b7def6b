"""Samplers whose chain can be undone exactly: from a pair of neighbouring iterates back to the noise.

On the levels sigma_0 > ... > sigma_N = 0, h_k = sigma_k - sigma_{k+1}, with e_k = (x_k - D(x_k, sigma_k)) / sigma_k, a step is
one or more moves x_{k+1} = a x_{k-1} + b x_k + c e_k of `core.reversible`, undone with the same evaluation e_k:

    O-BELM    a = r^2, r = h_k / h_{k-1}         b = 1 - a    c = -h_k (1 + r) = -(h_k + a h_{k-1})    order 2
    Graded    a = (sigma_{k+1}/sigma_k)^q        b = 1 - a    c = -(h_k + a h_{k-1})    order 2
    BDIA      a = gamma alpha_{k-1}/alpha_{k+1}  b = 1 - a    c = -(h_k + a h_{k-1})    alpha = 1/sqrt(1 + sigma^2), or 1
    Coupled   a = v                              b = 1 - v    c = -(1 - v) h_k          the coupling of invertible fine-tuning

and the first step of the first three is DDIM's, a = 1, b = 0, c = -h_0 on the pair (x_0, x_0). EDICT has two iterates (x, y) of
one level and four moves, the last two of which mix them and evaluate nothing:

    x_i = x - h e(y),    y_i = y - h e(x_i),    x' = p x_i + (1 - p) y_i,    y' = p y_i + (1 - p) x'.

e is never evaluated at sigma = 0. The step to it, as long as the smallest level, fits no grid: r is far above 1 on a fine one
and far below on a coarse one, where r^2 or 1/r^2 would multiply rounding. O-BELM and Graded take a = min(r, 1) there, for an
error O(sigma_min h) in this one step, of the kind that Euler's and Heun's last steps have too. The papers have x_t = alpha_t x0
+ sigma_t eps, so that x = x_t / alpha_t; BDIA's x_{i-1} = DDIM(x_i) + gamma (x_{i+1} - DDIM^-1(x_i)), divided by alpha_{i-1},
is the row above.

A rule with 1 - a = O(h) is of second order. Undoing it multiplies rounding by 1/a where the data vary; doing it multiplies an
oscillation by a / (1 - h_k / sigma_k) where they don't, because there x decays like sigma. On a Karras grid O-BELM is the power
q = 12/7 to first order: from sigma_min = 0.002 to the data's scale s, undoing loses (s / sigma_min)^q, four digits, whereas
q = 1.3 loses three and no accuracy. BDIA loses none, and oscillates on coarse grids where the data lie on a surface.

What comes back in float32, and how far the draws are from those of a fine Heun's rule, is in `benchmarks/invertible.py`.

References: Wang, Yin, Zhang, Dong, Zhang, Chen, Zhao, Sun, BELM: bidirectional explicit linear multi-step sampler for exact
inversion in diffusion models, NeurIPS 2024, arXiv:2410.07273. Zhang, Lewis, Kleijn, Exact diffusion inversion via
bi-directional integration approximation, ECCV 2024, arXiv:2307.10829. Wallace, Gokul, Naik, EDICT: exact diffusion inversion
via coupled transformations, CVPR 2023, arXiv:2211.12446. Chen, Zhang, Li, Zhang, Invertible diffusion models for compressed
sensing, 2024, arXiv:2403.17006.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core import ConfigError, Denoiser, Grid, Karras, Memory, Move, Problem, ShapeError, State, Streams
from ..core.reversible import Pair, run_moves
from ..guidance import Guidance
from .guided import ByGuidance, Level, levels, start

__all__ = ["BDIA", "EDICT", "OBELM", "Coupled", "Graded", "PairLevel", "Reversible", "Scheme"]

# (x, y) -> (y, x)
_SWAP = Move(1.0, 0.0, 0.0)


class _Slope(nn.Module):
    """x -> (x - D(x, sigma)) / sigma."""

    def __init__(self, denoise: Denoiser, sigma: float) -> None:
        super().__init__()
        self.denoise, self.sigma = denoise, sigma

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (x - self.denoise(x, x.new_full((len(x),), self.sigma))) / self.sigma
        return out


@dataclass(frozen=True)
class Scheme:
    """Base of the schemes: from one pair of iterates to the next."""

    def step(self, denoise: Denoiser, sigmas: Sequence[float], k: int) -> tuple[Move, ...]:
        """The moves from level k to level k + 1 of the decreasing levels `sigmas`, the last of which may be zero."""
        raise NotImplementedError(f"{type(self).__name__} does not define step")

    def moves(self, denoise: Denoiser, sigmas: Sequence[float]) -> list[Move]:
        """The moves of a whole chain, from the first level to the last."""
        return [move for k in range(len(sigmas) - 1) for move in self.step(denoise, sigmas, k)]

    def start(self, x: Tensor) -> Pair:
        """The pair that a chain from x at the first level starts with."""
        return x, x

    def finish(self, pair: Pair) -> Tensor:
        """x at the last level."""
        return pair[1]

    def pair(self, denoise: Denoiser, sigmas: Sequence[float], x: Tensor) -> Pair:
        """A pair that ends in x, by one step of DDIM's approximate inversion: e at the level before, of x itself."""
        sigma = sigmas[-2]
        return x + (sigma - sigmas[-1]) * _Slope(denoise, sigma)(x), x


def _two_step(denoise: Denoiser, sigmas: Sequence[float], k: int, a: float) -> tuple[Move, ...]:
    """The member a of the consistent two-step rules, DDIM's for k = 0."""
    h, slope = sigmas[k] - sigmas[k + 1], _Slope(denoise, sigmas[k])
    if k == 0:
        return (Move(1.0, 0.0, -h, slope),)
    return (Move(a, 1.0 - a, -(h + a * (sigmas[k - 1] - sigmas[k])), slope),)


def _least_error(sigmas: Sequence[float], k: int) -> float:
    """r^2, in the step to zero min(r, 1)."""
    r = 1.0 if k == 0 else (sigmas[k] - sigmas[k + 1]) / (sigmas[k - 1] - sigmas[k])
    return min(r, 1.0) if sigmas[k + 1] == 0.0 else r**2


@dataclass(frozen=True)
class OBELM(Scheme):
    """The two-step rule of least local error: second order, one evaluation per step."""

    def step(self, denoise: Denoiser, sigmas: Sequence[float], k: int) -> tuple[Move, ...]:
        return _two_step(denoise, sigmas, k, _least_error(sigmas, k))


@dataclass(frozen=True)
class Graded(Scheme):
    """Second order at one evaluation per step, and more digits on the way back than O-BELM; not from a paper.

    Args:
        power: q, >= 0; below 1 the chain oscillates where the data lie on a surface.
    """

    power: float = 1.3

    def __post_init__(self) -> None:
        if not 0.0 <= self.power < math.inf:
            raise ConfigError(f"Graded: expected power >= 0, got {self.power}")

    def step(self, denoise: Denoiser, sigmas: Sequence[float], k: int) -> tuple[Move, ...]:
        a = (sigmas[k + 1] / sigmas[k]) ** self.power
        if k > 0 and sigmas[k + 1] == 0.0:
            a = _least_error(sigmas, k)
        return _two_step(denoise, sigmas, k, a)


@dataclass(frozen=True)
class BDIA(Scheme):
    """The average of a DDIM step and of the step before it, undone; one evaluation per step.

    Args:
        gamma: share of the step before, in (0, 1]; N steps lose a factor gamma^N: at 0.5, all of float32 within 40.
        coordinates: in which the average is taken: "vp", as published, or "sigma", where coarse grids are unstable.
    """

    gamma: float = 1.0
    coordinates: Literal["vp", "sigma"] = "vp"

    def __post_init__(self) -> None:
        if not 0.0 < self.gamma <= 1.0:
            raise ConfigError(f"BDIA: expected gamma in (0, 1], got {self.gamma}")
        if self.coordinates not in ("vp", "sigma"):
            raise ConfigError(f"BDIA: expected coordinates to be vp or sigma, got {self.coordinates!r}")

    def step(self, denoise: Denoiser, sigmas: Sequence[float], k: int) -> tuple[Move, ...]:
        a = self.gamma
        if self.coordinates == "vp" and k > 0:
            a *= math.sqrt((1.0 + sigmas[k + 1] ** 2) / (1.0 + sigmas[k - 1] ** 2))
        return _two_step(denoise, sigmas, k, a)


@dataclass(frozen=True)
class EDICT(Scheme):
    """Two coupled chains; two evaluations per step; unstable on coarse grids.

    Args:
        p: mixing weight, in (0, 1]; N steps lose a factor p^(2 N).
        alternate: exchange the parts of x and y after each step, as in the published code.
    """

    p: float = 0.93
    alternate: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.p <= 1.0:
            raise ConfigError(f"EDICT: expected p in (0, 1], got {self.p}")

    def step(self, denoise: Denoiser, sigmas: Sequence[float], k: int) -> tuple[Move, ...]:
        ddim = Move(1.0, 0.0, sigmas[k + 1] - sigmas[k], _Slope(denoise, sigmas[k]))
        mix = Move(self.p, 1.0 - self.p, 0.0)
        return ((_SWAP,) if self.alternate and k > 0 else ()) + (ddim, ddim, mix, mix)

    def pair(self, denoise: Denoiser, sigmas: Sequence[float], x: Tensor) -> Pair:
        """x twice, as published."""
        return x, x


@dataclass(frozen=True)
class Coupled(Scheme):
    """A DDIM step averaged with the iterate before it; it lags behind the flow, so that the network has to be trained with it.

    Args:
        v: share of the iterate before, in (0, 1); N steps lose a factor v^(N / 2).
    """

    v: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.v < 1.0:
            raise ConfigError(f"Coupled: expected v in (0, 1), got {self.v}")

    def step(self, denoise: Denoiser, sigmas: Sequence[float], k: int) -> tuple[Move, ...]:
        return (Move(self.v, 1.0 - self.v, (1.0 - self.v) * (sigmas[k + 1] - sigmas[k]), _Slope(denoise, sigmas[k])),)


@dataclass(frozen=True)
class PairLevel(Level):
    """A level with the other tensor of the pair, (B, *shape): the iterate before, or EDICT's second one."""

    other: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass(frozen=True)
class Reversible(ByGuidance):
    """Draws along a chain that can be undone, of the posterior that the guidance approximates or of the prior.

    Args:
        guidance: what makes the prior's denoiser one of the posterior; None samples the prior and ignores the measurement.
        scheme: from one pair of iterates to the next.
        grid: noise levels between the prior's limits.
        steps: number of levels.
    """

    state_class: ClassVar[type[State]] = PairLevel
    guidance: Guidance | None = None
    scheme: Scheme = field(default_factory=OBELM)
    grid: Grid = field(default_factory=Karras)

    @property
    def name(self) -> str:
        return f"Reversible({type(self.guidance).__name__ if self.guidance else None}, {type(self.scheme).__name__})"

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> PairLevel:
        first = start(self.grid, self.steps, problem, prior, streams)
        other, x = self.scheme.start(first.x)
        return PairLevel(0, x, first.sigma, other)

    def step(self, problem: Problem, prior: Denoiser, state: PairLevel, streams: Streams) -> PairLevel:  # type: ignore[override]
        sigmas = levels(self.grid, self.steps, prior)
        other, x = run_moves(self.scheme.step(prior, sigmas, state.step), (state.other, state.x))
        return PairLevel(state.step + 1, x, sigmas[state.step + 1], other)

    def unroll(self, problem: Problem, prior: Denoiser, state: State, streams: Streams, memory: Memory) -> Tensor:
        pair = memory.chain(self.scheme.moves(prior, levels(self.grid, self.steps, prior)), self.scheme.start(state.x))
        return self.scheme.finish((pair[0], pair[1]))

    def invert(self, problem: Problem | None, prior: Denoiser, x: Tensor | Pair) -> Pair:
        """The pair at the highest level that `generate` takes back to x.

        Exact, to rounding, for a pair that `generate` returned. An image alone has no second tensor: the scheme's `pair` makes
        one. `generate` returns to the image as exactly then, but the noise is only as right as that approximation.

        Args:
            problem: what the guidance is for; None where there is no guidance.
            x: an image (B, *shape), or a pair of them.

        Raises:
            ConfigError, ShapeError, CapabilityError: the three do not fit together.
        """
        denoiser = self._denoiser(problem, prior, x)
        with torch.no_grad():
            sigmas = levels(self.grid, self.steps, denoiser)
            other, last = x if isinstance(x, tuple) else self.scheme.pair(denoiser, sigmas, x)
            for move in reversed(self.scheme.moves(denoiser, sigmas)):
                other, last = move.undo(other, last, move.evaluate(other, *move.inputs)), other
        return other, last

    def generate(self, problem: Problem | None, prior: Denoiser, x: Tensor | Pair) -> Pair:
        """The pair at level zero, its second tensor the draw, from noise (B, *shape) or from a pair, at the highest level.

        Args, Raises: as of `invert`.
        """
        denoiser = self._denoiser(problem, prior, x)
        with torch.no_grad():
            pair = x if isinstance(x, tuple) else self.scheme.start(x)
            return run_moves(self.scheme.moves(denoiser, levels(self.grid, self.steps, denoiser)), pair)

    def _denoiser(self, problem: Problem | None, prior: Denoiser, x: Tensor | Pair) -> Denoiser:
        """What the chain evaluates, where all fits together."""
        image = x[1] if isinstance(x, tuple) else x
        if problem is None:
            if self.guidance is not None:
                raise ConfigError(f"{self.name}: its guidance needs a problem, got none")
            problem = Problem.unmeasured(tuple(image.shape[1:]), image.dtype)
        self._check(problem, prior, len(image), None)
        if tuple(image.shape[1:]) != tuple(problem.shape):
            raise ShapeError(f"{self.name}: expected x of shape (B, {problem.shape}), got {tuple(image.shape)}")
        return self.condition(problem, prior)
