"""Variational regularisation by denoising (RED-diff).

A Gaussian at mu of vanishing width is fitted to the posterior; with x = mu + sigma eps and a stopped gradient sg,

    minimise  ||y - A mu||^2 / (2 sigma_y^2) + lam w(sigma) <sg(eps_hat - eps), mu>,   eps_hat - eps = (mu - D) / sigma

by Adam, one noise level per step, from high to low. No gradient runs through the network. For a prior N(0, C) the expected
force is lam w(sigma) sigma (C + sigma^2)^{-1} mu: with w = sigma it vanishes at low noise, so the end point follows the data
and depends on the learning rate and the number of steps. Adam only sees the ratio of the two terms; published codes scale
them differently:

    likelihood      grad ||y - A mu||^2 / (2 sigma_y^2) + lam w (eps_hat - eps)                       the objective above
    nvlabs          A^T (A mu - y) / m + lam w (eps_hat - eps) / n       means over m measurements, n unknowns; sigma_y unused
    inversebench    2 A^T (A mu - y) + lam w (eps_hat - eps)             sums; sigma_y unused; lam over its observation weight

With w = 1 / sigma ("score") and lam = 1 the expected force of any prior is -grad log p_sigma smoothed by sigma, here (C +
sigma^2)^{-1} mu: it does not vanish at low noise, and the end point is the mode of the posterior, whatever sigma_y is: nothing
is fitted to the noise. Its spread, about J eps / sigma with J the denoiser's Jacobian, is odd in eps to first order, and
cancels in the pair (eps, -eps), for a Gaussian prior exactly.

The parallel form takes several levels, spread evenly over the grid and moving through it, in each step, and their mean force.
Several estimates that repel each other, and so have a spread, are in `reddiff_particles`.

References: Mardani, Song, Kautz, Vahdat, A variational perspective on solving inverse problems with diffusion models, ICLR
2024, arXiv:2305.04391, Algorithm 1; Kingma, Ba, Adam: a method for stochastic optimization, 2015, arXiv:1412.6980, Algorithm
1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Grid, Karras, Problem, Sampler, State, Streams
from ..guidance import require_gaussian
from .guided import levels

__all__ = ["WEIGHTS", "Moments", "REDDiff"]

WEIGHTS: dict[str, Callable[[float], float]] = {
    "linear": lambda sigma: sigma,
    "sqrt": math.sqrt,
    "square": lambda sigma: sigma**2,
    "log": math.log1p,
    "clip": lambda sigma: min(sigma, 1.0),
    "two_thirds": lambda sigma: sigma ** (2.0 / 3.0),
    "constant": lambda _: 1.0,
    "score": lambda sigma: 1.0 / sigma,
}


@dataclass(frozen=True)
class Moments(State):
    """mu as x, with Adam's running moments of its gradient, (B, *shape), and the noise level of the step."""

    first: Tensor = field(default_factory=lambda: torch.zeros(0))
    second: Tensor = field(default_factory=lambda: torch.zeros(0))
    sigma: float = 0.0


@dataclass(frozen=True)
class REDDiff(Sampler):
    """Adam on the data term and the denoiser's residual; any differentiable operator; a point estimate.

    Args:
        lam: weight of the prior.
        weight: w(sigma), one of `WEIGHTS`; "linear" is the paper's 1/SNR, "score" the one that allows for the noise.
        antithetic: take each eps with its opposite, for twice the evaluations.
        parallel: levels in each step.
        scaling: of the two terms, see above.
        init_from: mu at the start: "pinv" A^+ y, as in the paper; "ridge" (A^T A + sigma_y^2)^-1 A^T y, the same where noise is
            small, for operators whose pseudoinverse amplifies it; "adjoint" A^T y; "zeros"; or "prior", what is left of zero
            at the prior's highest noise level, its mean, for operators that are not linear and not defined at zero.
        lr, beta1, beta2: Adam's.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        ConfigError: an argument is out of its range, or parallel above steps.
        CapabilityError: scaling is "likelihood" and the noise is not Gaussian.
    """

    kind: ClassVar[str] = "point"
    state_class: ClassVar[type[State]] = Moments
    lam: float = 0.25
    weight: str = "linear"
    antithetic: bool = False
    parallel: int = 1
    scaling: Literal["likelihood", "nvlabs", "inversebench"] = "likelihood"
    init_from: Literal["pinv", "ridge", "adjoint", "zeros", "prior"] = "pinv"
    lr: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    grid: Grid = field(default_factory=Karras)

    def __post_init__(self) -> None:
        options = {
            "weight": tuple(WEIGHTS),
            "scaling": ("likelihood", "nvlabs", "inversebench"),
            "init_from": ("pinv", "ridge", "adjoint", "zeros", "prior"),
        }
        for key, allowed in options.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(f"REDDiff: expected {key} to be one of {', '.join(allowed)}, got {getattr(self, key)!r}")
        if not (self.lr > 0 and self.lam >= 0 and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"REDDiff: expected lr > 0, lam >= 0 and betas in [0, 1), got {self}")
        if not 1 <= self.parallel <= self.steps:
            raise ConfigError(f"REDDiff: expected parallel from 1 to steps={self.steps}, got {self.parallel}")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        start = {"adjoint": {"adjoint"}, "zeros": set[str](), "prior": set[str]()}.get(self.init_from, {"adjoint", "solve"})
        return frozenset({"vjp"} | start)

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        if self.scaling == "likelihood":
            require_gaussian(problem, "REDDiff")
        return prior

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Moments:
        y = problem.y
        # of what it can do, `needs` tells the loop
        operator: Any = problem.operator
        with torch.no_grad():
            if self.init_from == "zeros":
                mu = y.real.new_zeros(1, *problem.shape)
            elif self.init_from == "prior":
                # of every draw, so that its cost is that of no chunk
                mu = y.real.new_zeros(len(streams.draws), *problem.shape)
                mu = prior(mu, mu.new_full((len(mu),), prior.sigma_max))
            elif self.init_from == "ridge":
                mu = operator.solve(operator.adjoint(y), require_gaussian(problem, "REDDiff").square().mean())
            else:
                mu = getattr(operator, self.init_from)(y)
        if len(mu) == 1:
            mu = mu.repeat(len(streams.draws), *([1] * len(problem.shape)))
        return Moments(0, mu, torch.zeros_like(mu), torch.zeros_like(mu), levels(self.grid, self.steps, prior)[0])

    def step(self, problem: Problem, prior: Denoiser, state: Moments, streams: Streams) -> Moments:  # type: ignore[override]
        mu, t, grid = state.x, state.step + 1, levels(self.grid, self.steps, prior)
        sigma = grid[state.step]
        with torch.no_grad():
            g = self.data_force(problem, mu)
            for j in range(self.parallel):
                level = grid[(state.step + j * self.steps // self.parallel) % self.steps]
                eps = streams.normal(t, problem.shape, f"step{j}" if j else "step", mu.dtype, mu.device)
                g = g + self.prior_force(problem, prior, mu, level, eps) / self.parallel
            first = self.beta1 * state.first + (1.0 - self.beta1) * g
            second = self.beta2 * state.second + (1.0 - self.beta2) * g.square()
            root = (second / (1.0 - self.beta2**t)).sqrt() + 1e-8
            mu = mu - self.lr / (1.0 - self.beta1**t) * first / root
        return Moments(t, mu, first, second, sigma)

    def prior_force(self, problem: Problem, prior: Denoiser, mu: Tensor, sigma: float, eps: Tensor) -> Tensor:
        """lam w (eps_hat - eps), in the scaling's units, (B, *shape)."""
        denoised = prior(mu + sigma * eps, mu.new_full((len(mu),), sigma))
        if self.antithetic:
            denoised = 0.5 * (denoised + prior(mu - sigma * eps, mu.new_full((len(mu),), sigma)))
        force = self.lam * WEIGHTS[self.weight](sigma) * (mu - denoised) / sigma
        return force / math.prod(problem.shape) if self.scaling == "nvlabs" else force

    def data_force(self, problem: Problem, mu: Tensor) -> Tensor:
        """The gradient of the data term, (B, *shape)."""
        predicted, back = problem.operator.vjp(mu)
        residual = problem.y - predicted
        if self.scaling == "likelihood":
            return -back(residual / require_gaussian(problem, "REDDiff").square())
        if self.scaling == "nvlabs":
            return -back(residual) / max(problem.operator.count_measured(), 1)
        return -2.0 * back(residual)

    def describe(self, state: Moments) -> dict[str, Any]:  # type: ignore[override]
        return {"sigma": state.sigma}
