"""RED-diff with particles that repel each other: K coupled estimates for each draw, of which it is the first.

With s(x) = -grad ||y - A x||^2 / (2 sigma_y^2) + (D - x) / sigma^2, the score of the posterior whose prior is smoothed by
sigma (`REDDiff` with weight "score", lam 1 and pairs (eps, -eps)), xbar the mean of a draw's particles and gamma the strength,
each particle moves by Adam along

    linear    v_i = sum_j k_ij s(x_j) / K + gamma (x_i - xbar),                 k_ij = 1 + <x_i - xbar, x_j - xbar>
    rbf       v_i = sum_j (k_ij s(x_j) + gamma (2 / h) k_ij (x_i - x_j)) / K,   k_ij = exp(-||x_i - x_j||^2 / h)
    density   v_i = s(x_i) - gamma grad log sum_j k(x_i, x_j)                   the same k, of features of x if there are any

The first two are Stein variational gradient descent (SVGD), the last is repulsive score distillation (RSD). h is the median of
the squared distances of a draw's particles over log K. The levels go from high to low, and the steps to zero like a cosine.

What is known of the end points, for a posterior N(m, P^-1) of d unknowns and gamma = 1:

    linear    s = -P (x - m), v_i = -P (xbar - m) + (1 - P S) (x_i - xbar), S the covariance of the particles (over K). So
              xbar = m, and S = P^-1 if K > d. The particles of a draw are exchangeable: mean and covariance of a draw are those
              of the posterior, at finite K. Its law is not: (x - m)^T P (x - m) <= K - 1, so that its tails are lighter.
              Adam has to get there: 400 steps do for a noise of 0.1 of a prior N(0, I), and not for 0.01 (z-scores of 28).
              Where K <= d, K - 1 directions only have a spread, and the trace of P S is K - 1.
    rbf       For P = 1 and K <= d + 1 the particles are the corners of a simplex: k_ij = 1 / K, 1 - 1 / K = 2 / h, and the
              mean variance of an unknown is log K / d: it collapses with d. The law tends to the posterior's as K grows.
    density   There h = 2 K / (2 K - 1), and it is log K (K - 1) / (d (2 K - 1)): less than half of that.

With gamma = 0 all particles of a linear one end at the mode. A strength above 1 spreads "rbf" and "density" further: their
squared distances from xbar are proportional to it there. None of the three has the weights of a posterior of several modes: on
the mixtures of the laboratory (d = 8; one, two, four measurements; 60 draws, 300 steps) the distance of "linear" with 12
particles to the posterior is 7, 22 and 34 times that between exact draws, of "rbf" with 8 particles 6, 17 and 14 times.

References: Zilberstein, Mardani, Segarra, Repulsive latent score distillation for solving inverse problems, ICLR 2025,
arXiv:2406.16683; Liu, Wang, Stein variational gradient descent, NeurIPS 2016, arXiv:1608.04471, Algorithm 1; Liu, Wang, Stein
variational gradient descent as moment matching, NeurIPS 2018, arXiv:1810.11693 (linear kernels); Ba, Erdogdu, Ghassemi, Sun,
Suzuki, Wu, Zhang, Understanding the variance collapse of SVGD in high dimensions, ICLR 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core import ConfigError, Denoiser, Grid, Karras, Problem, Sampler, State, Streams
from .guided import levels
from .reddiff import REDDiff

__all__ = ["Ensemble", "REDDiffParticles", "linear_flow", "rbf_kernel"]


@dataclass(frozen=True)
class Ensemble(State):
    """The first particle as x, all of them and Adam's running moments, (B, K, *shape), and the noise level of the step."""

    particles: Tensor = field(default_factory=lambda: torch.zeros(0))
    first: Tensor = field(default_factory=lambda: torch.zeros(0))
    second: Tensor = field(default_factory=lambda: torch.zeros(0))
    sigma: float = 0.0


def linear_flow(x: Tensor, score: Tensor, strength: float) -> Tensor:
    """v of the linear kernel about the mean, (B, K, N)."""
    apart = x - x.mean(1, keepdim=True)
    return ((1.0 + apart @ apart.mT) @ score) / x.shape[1] + strength * apart


def rbf_kernel(f: Tensor) -> tuple[Tensor, Tensor]:
    """exp(-||f_i - f_j||^2 / h), (B, K, K), and h, (B, 1, 1), of vectors (B, K, N) with K > 1."""
    count = f.shape[1]
    squares = torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist").square()
    i, j = torch.triu_indices(count, count, 1, device=f.device)
    h = squares[:, i, j].quantile(0.5, dim=1)[:, None, None] / math.log(count)
    h = h.clamp_min(torch.finfo(f.dtype).tiny)
    return (-squares / h).exp(), h


@dataclass(frozen=True)
class REDDiffParticles(Sampler):
    """Particles by Adam along the score and their repulsion; any differentiable operator.

    Draws of "linear" with strength 1 are those of a posterior: mean and covariance are exact for Gaussian posteriors. All other
    draws, and those of one particle, are point estimates. The cost is twice K evaluations of the prior for each step.

    Args:
        particles: K, of each draw.
        repulsion: "linear", for more particles than unknowns; "rbf" or "density".
        strength: gamma.
        spread: standard deviation of the particles about their start, in data units.
        features: for "density": a differentiable module on unknowns, (M, *shape) -> (M, ...), items apart; None for x itself.
        init_from: the start, see `REDDiff`.
        lr, beta1, beta2: Adam's; lr is that of the first steps.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        ConfigError: an argument is out of its range, or as many unknowns as particles where their covariance is promised.
        CapabilityError: the noise is not Gaussian.
    """

    state_class: ClassVar[type[State]] = Ensemble
    steps: int = field(default=1000, kw_only=True)
    particles: int = 16
    repulsion: Literal["linear", "rbf", "density"] = "linear"
    strength: float = 1.0
    spread: float = 1.0
    features: nn.Module | None = None
    init_from: Literal["pinv", "ridge", "adjoint", "zeros", "prior"] = "ridge"
    lr: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    grid: Grid = field(default_factory=Karras)

    def __post_init__(self) -> None:
        if self.repulsion not in ("linear", "rbf", "density"):
            raise ConfigError(f"REDDiffParticles: expected repulsion to be one of linear, rbf, density, got {self.repulsion!r}")
        if self.particles < 1 or not (0.0 < self.spread < math.inf and 0.0 <= self.strength < math.inf):
            raise ConfigError(
                f"REDDiffParticles: expected particles >= 1, spread > 0 and strength >= 0, got {self.particles}, {self.spread} "
                f"and {self.strength}"
            )
        if self.features is not None and self.repulsion != "density":
            raise ConfigError(f'REDDiffParticles: features are for repulsion "density", got {self.repulsion!r}')
        self.single()

    def single(self) -> REDDiff:
        """The sampler of one particle, whose forces and start these have."""
        return REDDiff(
            lam=1.0,
            weight="score",
            antithetic=True,
            init_from=self.init_from,
            lr=self.lr,
            beta1=self.beta1,
            beta2=self.beta2,
            grid=self.grid,
            steps=self.steps,
        )

    @property
    def kind(self) -> str:  # type: ignore[override]
        return "posterior" if self.repulsion == "linear" and self.strength == 1.0 and self.particles > 1 else "point"

    @property
    def caveats(self) -> tuple[str, ...]:
        if self.kind == "point":
            return ()
        return (
            "exact in mean and covariance for Gaussian posteriors, once Adam has converged; of others a Gaussian near one mode",
        )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return self.single().needs

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        size = math.prod(problem.shape)
        if self.kind == "posterior" and self.particles <= size:
            raise ConfigError(
                f'REDDiffParticles: repulsion "linear" needs more particles than the {size} unknowns, got {self.particles}: '
                'give more, or repulsion "rbf" or "density" for point estimates that differ'
            )
        return self.single().condition(problem, prior)

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Ensemble:
        start = self.single().init(problem, prior, streams)
        noise = streams.normal(0, (self.particles, *problem.shape), "particles", start.x.dtype, start.x.device)
        x = start.x[:, None] + self.spread * noise
        return Ensemble(0, x[:, 0], x, torch.zeros_like(x), torch.zeros_like(x), start.sigma)

    def step(self, problem: Problem, prior: Denoiser, state: Ensemble, streams: Streams) -> Ensemble:  # type: ignore[override]
        x, t = state.particles, state.step + 1
        sigma = levels(self.grid, self.steps, prior)[state.step]
        with torch.no_grad():
            eps = streams.normal(t, (self.particles, *problem.shape), "step", x.dtype, x.device)
            one, flat = self.single(), x.flatten(0, 1)
            force = one.data_force(problem, flat) + one.prior_force(problem, prior, flat, sigma, eps.flatten(0, 1))
            v = self.flow(x, -force.reshape(x.shape))
            first = self.beta1 * state.first + (1.0 - self.beta1) * v
            second = self.beta2 * state.second + (1.0 - self.beta2) * v.square()
            root = (second / (1.0 - self.beta2**t)).sqrt() + 1e-8
            rate = 0.5 * self.lr * (1.0 + math.cos(math.pi * state.step / self.steps))
            x = x + rate / (1.0 - self.beta1**t) * first / root
        return Ensemble(t, x[:, 0], x, first, second, sigma)

    def flow(self, x: Tensor, score: Tensor) -> Tensor:
        """v from particles and the scores at them, (B, K, *shape)."""
        if self.particles == 1:
            return score
        points, scores = x.flatten(2), score.flatten(2)
        if self.repulsion == "linear":
            return linear_flow(points, scores, self.strength).reshape(x.shape)
        if self.repulsion == "density":
            return score + self.strength * self._away(x)
        kernel, h = rbf_kernel(points)
        apart = kernel.sum(2, keepdim=True) * points - kernel @ points
        return ((kernel @ scores + self.strength * (2.0 / h) * apart) / self.particles).reshape(x.shape)

    def _away(self, x: Tensor) -> Tensor:
        """-grad log sum_j k(f(x_i), f(x_j)), with x_j and the width held fixed, (B, K, *shape)."""
        with torch.enable_grad():
            leaf = x.detach().flatten(0, 1).requires_grad_(self.features is not None)
            out = leaf if self.features is None else self.features(leaf)
        f = out.detach().reshape(*x.shape[:2], -1)
        kernel, h = rbf_kernel(f)
        apart = (2.0 / h) * (f - kernel @ f / kernel.sum(2, keepdim=True))
        if self.features is None:
            return apart.reshape(x.shape)
        return torch.autograd.grad(out, leaf, apart.reshape(out.shape))[0].reshape(x.shape)

    def describe(self, state: Ensemble) -> dict[str, Any]:  # type: ignore[override]
        return {"sigma": state.sigma}
