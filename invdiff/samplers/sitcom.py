"""Step-wise triple-consistent sampling (SITCOM).

Down the levels, the input of the network is moved until its output explains the measurement:

    v* = argmin_v |y - A(D(v, sigma))|^2 + lam |v - x|^2 / (1 + sigma^2)        by Adam from v = x
    x' = D(v*, sigma) + sigma' z

so that the output stays one of the network (backward consistency), agrees with the data (measurement consistency), and the
input stays near the chain (forward consistency). An item stops for itself once

    |y - A D|^2 <= stop^2 sigma_y^2 m,    m the number of measured values,

and is then not evaluated any more. The paper writes it for x_t = x / sqrt(1 + sigma^2), hence the weight; a step of Adam has
the length of its rate in units of x_t, and that times sqrt(1 + sigma^2) here.

For a prior N(mu, C), D = mu + S (v - mu) with S = C (C + sigma^2)^{-1}, and without stopping

    v* = x + (S A^T A S + lam / (1 + sigma^2))^{-1} S A^T (y - A D(x)),

which says how the draws are distributed. They are no draws of the posterior: for lam = 0 the data are met exactly along what is
observed, and elsewhere x' = D + sigma' z loses variance at every level.

References: Alkhouri, Liang, Huang, Dai, Qu, Ravishankar, Wang, SITCOM: step-wise triple-consistent diffusion sampling for
inverse problems, ICML 2025, arXiv:2410.04479, Algorithm 1; Kingma, Ba, Adam: a method for stochastic optimization, 2015,
arXiv:1412.6980, Algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Grid, Karras, Problem, Sampler, State, Streams, dot
from ..guidance import linearize, require_scalar_gaussian
from .guided import Level, levels, start

__all__ = ["SITCOM", "Fitted"]


@dataclass(frozen=True)
class Fitted(Level):
    """A Level, and |y - A D|^2 / (sigma_y^2 m) of the step, a mean over the items; 0 where nothing is measured."""

    chi2: Tensor = field(default_factory=lambda: torch.zeros(()))


@dataclass(frozen=True)
class SITCOM(Sampler):
    """The input of the network whose output explains the measurement; any differentiable operator; a point estimate.

    Args:
        inner: K, steps of Adam for each level, at most; the paper's 20 to 30. Each is one vector-Jacobian product.
        lr, beta1, beta2: Adam's, the rate in units of x_t, see above.
        lam: weight of the distance from the chain; 1 in the paper, its code for noisy data has none.
        stop: residual at which an item stops, in units of the noise; 0 never does.
        grid: noise levels between the prior's limits.
        steps: number of levels; the paper's 20.

    Raises:
        ConfigError: an argument is out of its range.
        CapabilityError: the noise is not Gaussian of one level, or the prior has no derivative.
    """

    kind: ClassVar[str] = "point"
    needs: ClassVar[frozenset[str]] = frozenset({"vjp"})
    state_class: ClassVar[type[State]] = Fitted
    inner: int = 20
    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    lam: float = 1.0
    stop: float = 1.0
    grid: Grid = field(default_factory=Karras)
    steps: int = field(default=20, kw_only=True)

    def __post_init__(self) -> None:
        if not (self.inner >= 1 and self.lr > 0 and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"SITCOM: expected inner >= 1, lr > 0 and betas in [0, 1), got {self}")
        if not (0.0 <= self.lam < math.inf and 0.0 <= self.stop < math.inf):
            raise ConfigError(f"SITCOM: expected lam >= 0 and stop >= 0, got {self.lam} and {self.stop}")

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_scalar_gaussian(problem, "SITCOM")
        return prior

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Fitted:
        first = start(self.grid, self.steps, problem, prior, streams)
        return Fitted(0, first.x, first.sigma, first.x.new_zeros(()))

    def step(self, problem: Problem, prior: Denoiser, state: Fitted, streams: Streams) -> Fitted:  # type: ignore[override]
        sigma, sigma_next = levels(self.grid, self.steps, prior)[state.step :][:2]
        x0 = self.fit(problem, prior, state.x, sigma)
        chi2 = problem.chi2(x0).mean()
        if sigma_next > 0.0:
            x0 = x0 + sigma_next * streams.normal(state.step + 1, problem.shape, dtype=x0.dtype, device=x0.device)
        return Fitted(state.step + 1, x0, sigma_next, chi2)

    def fit(self, problem: Problem, prior: Denoiser, x: Tensor, sigma: float) -> Tensor:
        """D(v, sigma) for v after at most K steps, (B, *shape)."""
        fitted, scale = torch.empty_like(x), math.sqrt(1.0 + sigma**2)
        bound = problem.operator.count_measured() * (self.stop * require_scalar_gaussian(problem, "SITCOM")).square()
        # what has stopped is left out, so that its cost is that of no other item
        items, near = torch.arange(len(x), device=x.device), x
        v, first, second = x, torch.zeros_like(x), torch.zeros_like(x)
        for t in range(1, self.inner + 1):
            denoised, transposed = linearize(prior, v, v.new_full((len(v),), sigma))
            with torch.no_grad():
                predicted, back = problem.operator.vjp(denoised)
                residual = problem.y - predicted
                gradient = -2.0 * transposed(back(residual)) + 2.0 * self.lam / scale**2 * (v - near)
                first = self.beta1 * first + (1.0 - self.beta1) * gradient
                second = self.beta2 * second + (1.0 - self.beta2) * gradient.square()
                root = (second / (1.0 - self.beta2**t)).sqrt() + 1e-8
                moved = v - scale * self.lr / (1.0 - self.beta1**t) * first / root
                if self.stop == 0.0:
                    # none is asked whether it is done, for which the host would wait
                    v = moved
                    continue
                done = dot(residual, residual) <= bound
                fitted[items[done]] = denoised[done]
                items, near, v, first, second = (part[~done] for part in (items, near, moved, first, second))
            if not len(items):
                return fitted
        with torch.no_grad():
            fitted[items] = prior(v, v.new_full((len(v),), sigma))
        return fitted

    def describe(self, state: Fitted) -> dict[str, Any]:  # type: ignore[override]
        return {"sigma": state.sigma, "chi2": state.chi2}
