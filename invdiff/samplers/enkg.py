"""Ensemble Kalman diffusion guidance (EnKG): the gradient of the misfit by the covariance of an ensemble, from values alone.

N particles u_j at level sigma, each with its own x0_j = Phi(u_j), the end of the prior's ODE, and G_j = A(x0_j) / sigma_y. With
bars for means over the ensemble,

    C_jk = <G_j - y / sigma_y, G_k - Gbar> / N,    u_j <- u_j - (gamma / |C|_F) sum_k C_jk (u_k - ubar)

`updates` times at a level, and then a step of the ODE to the next one. Where A Phi is linear, of the matrix H, the sum is
S grad |H u_j + h - y / sigma_y|^2 / 2 with S the covariance of the u_k: a preconditioned gradient step, without a derivative
of the operator or of the network, whose length is that of the ensemble's spread, whatever the units.

For a prior N(m, Gamma) and N to infinity the particles are N(M, S) with

    r = H M + h - y / sigma_y,    P = H S H^T,    c = gamma / sqrt(tr P^2 + r^T P r)
    M' = M - c S H^T r,           S' = (I - c S H^T H) S (I - c S H^T H)^T

and the affine rules of the ODE between: a closed form, to which draws tend with a bias of the order 1 / N.

It returns points: one level sigma_y drops out of C / |C|_F, so that the draws do not know how far to trust the data, and each
update shrinks the ensemble in the directions that A sees, whatever the prior says. Measured on `validation.cases.white`, prior
N(0, I_8), four measurements, 40 levels, as the variance over the exact one: with N = 64 and the defaults 0.003 in the row space
of A and 1.9 in its complement, where correlations by chance move the particles (6.8 with N = 16); with gamma = 0.2, 0.07 and
1.0. The mean is off by 4.2 and 1.9 norms of the exact one.

One particle of an independent run is one draw, since those of one run share their mean; with N = 1 there is no covariance, and
the draws are those of the prior.

References: Zheng, Chu, Wang, Kovachki, Baptista, Yue, Ensemble Kalman diffusion guidance: a derivative-free method for inverse
problems, 2024, arXiv:2409.20175. Iglesias, Law, Stuart, Ensemble Kalman methods for inverse problems, Inverse Problems 29,
2013.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Grid, Karras, Problem, Sampler, State, Streams
from ..core.algebra import flatten_real
from ..core.errors import require_positive
from ..guidance import require_gaussian
from .guided import Level, levels
from .integrators import ddim

__all__ = ["EnKG", "Ensemble", "kalman_update"]


def kalman_update(particles: Tensor, predicted: Tensor, data: Tensor, gamma: float) -> Tensor:
    """Particles after one update.

    Args:
        particles: u, (B, N, *shape). predicted: G, (B, N, m), and data, (m,) or (1, m), in units of the noise.
        gamma: length of the step.
    """
    count = particles.shape[1]
    around = predicted - predicted.mean(1, keepdim=True)
    weights = (predicted - data) @ around.mT / count
    length = weights.flatten(1).norm(dim=1)
    scale = torch.where(length > 0.0, gamma / torch.where(length > 0.0, length, 1.0), 0.0)
    flat = particles.flatten(2)
    moved = weights @ (flat - flat.mean(1, keepdim=True))
    return (flat - scale[:, None, None] * moved).reshape(particles.shape)


@dataclass(frozen=True, kw_only=True)
class Ensemble(Level):
    """The ensemble of each draw's run.

    Attributes:
        x: its first particle, (B, *shape). particles: (B, N, *shape).
    """

    particles: Tensor


@dataclass(frozen=True)
class EnKG(Sampler):
    """An ensemble of each draw's run that is led to the data by its own covariance; operators that offer values alone.

    Args:
        particles: N; 2048 are published. An update costs N calls of the operator and N evaluations of x0.
        gamma: length of an update in units of the ensemble's spread, about.
        updates: at each level.
        ode_steps: the most levels of the ODE that ends in x0; a quarter of those that are left, where that is less; 1 is D.
        start, end: shares of the levels without an update, at the first and at the last ones.
        chunk: particles that the network and the operator see at once; None for all.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        ConfigError: an option out of its range.
        CapabilityError: the noise is not Gaussian.
    """

    kind: ClassVar[str] = "point"
    needs: ClassVar[frozenset[str]] = frozenset({"forward"})
    state_class: ClassVar[type[State]] = Ensemble
    steps: int = field(default=80, kw_only=True)
    particles: int = 64
    gamma: float = 2.0
    updates: int = 2
    ode_steps: int = 20
    start: float = 0.1
    end: float = 0.1
    chunk: int | None = None
    grid: Grid = field(default_factory=Karras)

    def __post_init__(self) -> None:
        require_positive(self, gamma=self.gamma)
        if min(self.particles, self.updates, self.ode_steps, 1 if self.chunk is None else self.chunk) < 1:
            got = ", ".join(map(str, (self.particles, self.updates, self.ode_steps, self.chunk)))
            raise ConfigError(f"EnKG: expected particles, updates, ode_steps and chunk >= 1, got {got}")
        if not (self.start >= 0.0 and self.end >= 0.0 and self.start + self.end <= 1.0):
            raise ConfigError(f"EnKG: expected start, end >= 0 and start + end <= 1, got {self.start} and {self.end}")

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, "EnKG")
        return prior

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Ensemble:
        """Pure noise of the highest level about the origin of the prior."""
        dtype, device = problem.y.real.dtype, problem.y.device
        sigma = levels(self.grid, self.steps, prior)[0]
        x = sigma * streams.normal(0, (self.particles, *problem.shape), "init", dtype, device)
        x = x + torch.as_tensor(prior.origin, dtype=dtype, device=device)
        return Ensemble(step=0, x=x[:, 0], sigma=sigma, particles=x)

    def step(self, problem: Problem, prior: Denoiser, state: Ensemble, streams: Streams) -> Ensemble:  # type: ignore[override]
        k, x = state.step, state.particles
        sigma, sigma_next = levels(self.grid, self.steps, prior)[k:][:2]
        if self.guided(k):
            y = flatten_real(problem.y / require_gaussian(problem, "EnKG"), problem.operator.out_complex)
            for _ in range(self.updates):
                x = kalman_update(x, self._predicted(problem, prior, x, k), y, self.gamma)
        x = self._in_parts(lambda u: _euler(prior, u, sigma, sigma_next), x)
        return Ensemble(step=k + 1, x=x[:, 0], sigma=sigma_next, particles=x)

    def describe(self, state: Ensemble) -> dict[str, Any]:  # type: ignore[override]
        return {"sigma": state.sigma}

    def guided(self, k: int) -> bool:
        """Whether there are updates before step k."""
        return self.start * self.steps <= k < (1.0 - self.end) * self.steps

    def inner(self, k: int, prior: Denoiser) -> tuple[float, ...]:
        """The levels of the ODE that ends in x0, from that before step k to zero."""
        sigmas = levels(self.grid, self.steps, prior)
        count = min(1 + (self.steps - k) // 4, self.ode_steps)
        if count == 1 or sigmas[k] <= sigmas[-2]:
            return sigmas[k], 0.0
        own = replace(self.grid, sigma_max=sigmas[k])
        return tuple(own(count, prior.sigma_min, prior.sigma_max).tolist())

    def _predicted(self, problem: Problem, prior: Denoiser, x: Tensor, k: int) -> Tensor:
        """G, (B, N, m)."""
        sigma_y, path = require_gaussian(problem, "EnKG"), self.inner(k, prior)

        def predict(u: Tensor) -> Tensor:
            for s, t in pairwise(path):
                u = _euler(prior, u, s, t)
            return flatten_real(problem.operator(u) / sigma_y, problem.operator.out_complex)

        return self._in_parts(predict, x)

    def _in_parts(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        out = torch.cat([function(part) for part in flat.split(self.chunk or len(flat))])
        return out.unflatten(0, x.shape[:2])


def _euler(prior: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    return ddim(prior(x, x.new_full((len(x),), sigma)), x, sigma, sigma_next, 0.0, lambda: x)
