"""Langevin samplers: annealed, unadjusted, and explicitly stabilised.

With the score of the smoothed prior, s(x) = (D(x, sigma) - x) / sigma^2, and that of the likelihood, with J the derivative of A
at x, l(x) = J^T Sigma_y^-1 (y - A(x)), g = s + l:

    ULA       x' = x + h g(x) + sqrt(2 h) z
    SK-ROCK   K_1 = x + mu_1 h g(x + nu_1 sqrt(2 h) z) + k_1 sqrt(2 h) z
              K_j = mu_j h g(K_{j-1}) + nu_j K_{j-1} + k_j K_{j-2},   j = 2 .. S,   x' = K_S
              mu_j = 2 w1 T_{j-1}(w0) / T_j(w0),  nu_j = 2 w0 T_{j-1}(w0) / T_j(w0),  k_j = 1 - nu_j
              mu_1 = w1 / w0,  nu_1 = S w1 / 2,  k_1 = S w1 / w0,  w0 = 1 + eta / S^2,  w1 = T_S(w0) / T_S'(w0)
    ALD       `inner` steps of ULA at each level of a grid, h_k = share sigma_k^2, Sigma_y + (gamma sigma_k)^2 for Sigma_y

T_j are Chebyshev's polynomials. The first two target p_sigma(x) p(y | x), the posterior of the prior smoothed by `sigma`;
smaller ones cost smaller steps, since g varies at the rate L <= 1 / sigma^2 + |A|^2 / sigma_y^2. ULA is stable for h < 2 / L, S
stages for h up to ((S - 1/2)^2 (2 - 4 eta / 3) - 3/2) / L: the time that S evaluations cover grows with S^2 and not with S.

Where prior and likelihood are Gaussian, g(x) = -Q (x - m), the law of every iterate is Gaussian and known. For an eigenvalue q
of Q, at p = -h q, one step is x' = A(p) x + B(p) sqrt(2 h) z about m, and the stationary variance 2 h B^2 / (1 - A^2):

    ULA       A = 1 + p,                       B = 1                                         variance 1 / (q (1 - h q / 2))
    SK-ROCK   A = T_S(w0 + w1 p) / T_S(w0),    B = U_{S-1}(w0 + w1 p) / U_{S-1}(w0) (1 + w1 p / 2)

(U of the second kind). The mean is exact. The variance of ULA is too large, by a share h q / 2; that of SK-ROCK too small, by
0.2 % at h q = 0.1, 2 % at 1, and almost gone in stiffer directions, which is the price of long steps. One draw is the end of
one chain, so that `steps` must be several relaxation times 1 / (h q) of the slowest direction.

References: Song, Ermon, Generative modeling by estimating gradients of the data distribution, 2019, arXiv:1907.05600, Algorithm
1; Jalal, Arvinte, Daras, Price, Dimakis, Tamir, Robust compressed sensing MRI with deep generative priors, 2021,
arXiv:2108.01368; Abdulle, Almuslimani, Vilmart, Optimal explicit stabilized integrator of weak order 1 for stiff and ergodic
stochastic differential equations, SIAM/ASA JUQ 6, 2018, arXiv:1708.08145; Pereyra, Vargas Mieles, Zygalakis, Accelerating
proximal Markov chain Monte Carlo by using an explicit stabilized method, 2020, arXiv:1908.08845, Algorithm 1; Laumont, De
Bortoli, Almansa, Delon, Durmus, Pereyra, Bayesian imaging using plug & play priors: when Langevin meets Tweedie, 2022,
arXiv:2103.04715.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..core import ConfigError, Denoiser, Grid, Karras, Problem, Sampler, State, Streams
from ..core.errors import require_positive
from ..guidance import require_gaussian
from .guided import Level, levels, pure_noise, start

__all__ = ["ALD", "SKROCK", "ULA", "chebyshev"]


def chebyshev(stages: int, eta: float) -> tuple[float, float, list[float]]:
    """w0, w1 and T_0(w0) .. T_S(w0)."""
    w0 = 1.0 + eta / stages**2
    values, slopes = [1.0, w0], [0.0, 1.0]
    for _ in range(stages - 1):
        slopes.append(2.0 * values[-1] + 2.0 * w0 * slopes[-1] - slopes[-2])
        values.append(2.0 * w0 * values[-1] - values[-2])
    return w0, values[stages] / slopes[stages], values


def gradient(problem: Problem, prior: Denoiser, x: Tensor, sigma: float, added: float, who: str) -> Tensor:
    """s + l, with `added` to the variance of the noise of y; (B, *shape)."""
    score = (prior(x, x.new_full((len(x),), sigma)) - x) / sigma**2
    value, pull = problem.operator.vjp(x)
    return score + pull((problem.y - value) / (require_gaussian(problem, who).square() + added))


@dataclass(frozen=True)
class Langevin(Sampler):
    """Base of the chains at one noise level.

    Args:
        sigma: the level at which the prior's score is taken, in data units, between the prior's limits.
        step_size: h, in data units squared; see above for how large.
        steps: of the chain.

    Raises:
        ConfigError: sigma is not between the prior's limits, or an option is out of its range.
        CapabilityError: the noise is not Gaussian.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vjp"})
    state_class: ClassVar[type[State]] = Level
    steps: int = field(default=1000, kw_only=True)
    sigma: float = 0.1
    step_size: float = 1e-3

    def __post_init__(self) -> None:
        require_positive(self, sigma=self.sigma, step_size=self.step_size)

    @property
    def caveats(self) -> tuple[str, ...]:
        return (f"of the prior smoothed by sigma = {self.sigma:g}, with the bias of steps of {self.step_size:g}",)

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, self.name)
        if not prior.sigma_min <= self.sigma <= prior.sigma_max:
            raise ConfigError(
                f"{self.name}: expected sigma inside the prior's [{prior.sigma_min:g}, {prior.sigma_max:g}], got {self.sigma:g}"
            )
        return prior

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Level:
        return pure_noise(self.sigma, problem, prior.origin, streams)

    def describe(self, state: Level) -> dict[str, Any]:  # type: ignore[override]
        return {"sigma": state.sigma}


@dataclass(frozen=True)
class ULA(Langevin):
    """The unadjusted Langevin algorithm: one evaluation a step."""

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        x, h = state.x, self.step_size
        z = streams.normal(state.step + 1, problem.shape, dtype=x.dtype, device=x.device)
        new = x + h * gradient(problem, prior, x, self.sigma, 0.0, self.name) + math.sqrt(2.0 * h) * z
        return Level(state.step + 1, new, self.sigma)


@dataclass(frozen=True)
class SKROCK(Langevin):
    """The stochastic orthogonal Runge-Kutta-Chebyshev method: S evaluations a step that is S^2 times as long.

    Args:
        stages: S >= 2; 5 to 15 pay.
        eta: damping; the paper's 0.05.
    """

    step_size: float = 1e-2
    stages: int = 10
    eta: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, eta=self.eta)
        if self.stages < 2:
            raise ConfigError(f"SKROCK: expected stages >= 2, got {self.stages}")

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        x, h, stages = state.x, self.step_size, self.stages
        w0, w1, t = chebyshev(stages, self.eta)
        z = streams.normal(state.step + 1, problem.shape, dtype=x.dtype, device=x.device) * math.sqrt(2.0 * h)

        def drift(at: Tensor) -> Tensor:
            return h * gradient(problem, prior, at, self.sigma, 0.0, self.name)

        before, now = x, x + (w1 / w0) * drift(x + 0.5 * stages * w1 * z) + (stages * w1 / w0) * z
        for j in range(2, stages + 1):
            nu = 2.0 * w0 * t[j - 1] / t[j]
            before, now = now, (2.0 * w1 * t[j - 1] / t[j]) * drift(now) + nu * now + (1.0 - nu) * before
        return Level(state.step + 1, now, self.sigma)


@dataclass(frozen=True)
class ALD(Sampler):
    """Annealed Langevin dynamics; draws are only those of the posterior for steps that are small and many at each level.

    Args:
        inner: Langevin steps at each level.
        step_size: share of sigma_k^2, less than 2 / (1 + |A|^2 / (gamma^2 + (sigma_y / sigma_k)^2)) for stability.
        gamma: share of sigma_k that is added to the noise of y, in the units of y over those of x; about the norm of A keeps
            the steps stable at all levels, 0 anneals the prior alone.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        ConfigError: an option is out of its range.
        CapabilityError: the noise is not Gaussian.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vjp"})
    state_class: ClassVar[type[State]] = Level
    inner: int = 5
    step_size: float = 0.2
    gamma: float = 1.0
    grid: Grid = field(default_factory=Karras)

    def __post_init__(self) -> None:
        require_positive(self, step_size=self.step_size)
        if self.inner < 1 or not 0.0 <= self.gamma < math.inf:
            raise ConfigError(f"ALD: expected inner >= 1 and gamma >= 0, got {self.inner} and {self.gamma}")

    @property
    def caveats(self) -> tuple[str, ...]:
        return ("annealed Langevin dynamics with few steps at each level lags behind its levels: spreads are approximate",)

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, self.name)
        return prior

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Level:
        return start(self.grid, self.steps, problem, prior, streams)

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        x = state.x
        sigma, sigma_next = levels(self.grid, self.steps, prior)[state.step :][:2]
        h = self.step_size * sigma**2
        z = streams.normal(state.step + 1, (self.inner, *problem.shape), dtype=x.dtype, device=x.device)
        for k in range(self.inner):
            slope = gradient(problem, prior, x, sigma, (self.gamma * sigma) ** 2, self.name)
            x = x + h * slope + math.sqrt(2.0 * h) * z[:, k]
        return Level(state.step + 1, x, sigma_next)

    def describe(self, state: Level) -> dict[str, Any]:  # type: ignore[override]
        return {"sigma": state.sigma}
