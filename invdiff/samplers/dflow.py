"""Optimisation of the noise that a deterministic flow turns into the image (D-Flow, DMPlug).

    minimise over z   ||y - A x0(z)||^2 / (2 sigma_y^2) + lam R(z),    x0(z) = flow from sigma_max z to level zero

by Adam, the gradient taken through the whole flow under a memory policy. R is

    gaussian   |z|^2 / 2                          minus the log-density of z
    chi        |z|^2 / 2 - (d - 1) log |z|        minus the log-density of its length, least at |z| = sqrt(d - 1)
    none       0                                  few steps and the flow's own bias regularise

For a Gaussian prior the flow is linear, x0 = m + F (sigma_max z - m), so that the minimiser is a ridge regression; with
lam = 1, R = gaussian and the exact flow it is the mean of the posterior. D-Flow takes L-BFGS, the chi regulariser and a start
that is blended from y; DMPlug takes Adam, no regulariser and three steps of DDIM. Here both start from noise, and Adam runs.

R is that of pure noise, of a sigma_max far above the scale of the data; from there the problem is ill-conditioned. From lower
levels z holds x0 / sigma_max besides noise, and Adam is faster: 100 steps at a rate of 0.3 through four levels bring a
photograph of 64 x 64 (a quarter of its projections, 2 % noise, chi) to 28.6 dB from sigma_max = 1 and to 30.0 dB from 0.5; with
gaussian, which does not fix the length, to 29.4 dB from 1. Adam does not stop at the noise: a rate of 0.6 through three levels
explains the measurement to a tenth of its noise and ends at 23.2 dB.

References: Ben-Hamu, Puny, Gat, Karrer, Singer, Lipman, D-Flow: differentiating through flows for controlled generation, ICML
2024, arXiv:2402.14017; Wang, Zhang, Li, Wan, Chen, Sun, DMPlug: a plug-in method for solving inverse
problems with diffusion models, NeurIPS 2024, arXiv:2405.16749; Kingma, Ba, Adam: a method for stochastic optimization, 2015,
arXiv:1412.6980, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Grid, Karras, Memory, Problem, Sampler, State, Streams, dot
from ..guidance import require_gaussian
from .guided import levels
from .integrators import Integrator
from .reversible import OBELM, Scheme

__all__ = ["DFlow", "NoiseState"]

REGULARISERS = ("gaussian", "chi", "none")


@dataclass(frozen=True)
class NoiseState(State):
    """x0(z) as x, z and Adam's running moments of its gradient, (B, *shape), and the misfit, a mean over the items."""

    z: Tensor = field(default_factory=lambda: torch.zeros(0))
    first: Tensor = field(default_factory=lambda: torch.zeros(0))
    second: Tensor = field(default_factory=lambda: torch.zeros(0))
    misfit: Tensor = field(default_factory=lambda: torch.zeros(()))


@dataclass(frozen=True)
class DFlow(Sampler):
    """The image of the noise that explains the measurement; any differentiable operator; a point estimate.

    Args:
        flow: an integrator, or a scheme that can be undone, for the memory policy "invertible".
        flow_steps: levels of the flow; DMPlug's 3, D-Flow's 6 to 20.
        lam: weight of the regulariser; 1 is that of the density.
        regulariser: R, see above.
        lr, beta1, beta2: Adam's.
        memory: policy for the derivative of the flow, see `core.memory`.
        grid: noise levels between the prior's limits; sigma_max near the scale of the data converges faster, see above.
        steps: evaluations of the objective; z moves after each but the last.

    Raises:
        CapabilityError: the noise is not Gaussian, or memory is invertible and the flow an integrator.
    """

    kind: ClassVar[str] = "point"
    needs: ClassVar[frozenset[str]] = frozenset({"vjp"})
    state_class: ClassVar[type[State]] = NoiseState
    flow: Integrator | Scheme = field(default_factory=OBELM)
    flow_steps: int = 6
    lam: float = 1.0
    regulariser: Literal["gaussian", "chi", "none"] = "chi"
    lr: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.99
    memory: str | Memory = "checkpoint(step)"
    grid: Grid = field(default_factory=Karras)

    def __post_init__(self) -> None:
        if self.regulariser not in REGULARISERS:
            raise ConfigError(f"DFlow: expected regulariser to be one of {', '.join(REGULARISERS)}, got {self.regulariser!r}")
        if not (self.flow_steps >= 2 and self.lam >= 0 and self.lr > 0 and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"DFlow: expected flow_steps >= 2, lam >= 0, lr > 0 and betas in [0, 1), got {self}")
        Memory.parse(self.memory)

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, "DFlow")
        return prior

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> NoiseState:
        z = streams.normal(0, problem.shape, "init", problem.y.real.dtype, problem.y.device)
        sigma = levels(self.grid, self.flow_steps, prior)[0]
        return NoiseState(0, sigma * z, z, torch.zeros_like(z), torch.zeros_like(z))

    def step(self, problem: Problem, prior: Denoiser, state: NoiseState, streams: Streams) -> NoiseState:  # type: ignore[override]
        t, last = state.step + 1, state.step + 1 == self.steps
        with torch.set_grad_enabled(not last):
            z = state.z.detach().requires_grad_(not last)
            x = self.decode(problem, prior, z, streams)
            misfit = self.misfit(problem, x)
            objective = (misfit + self.lam * self.penalty(z)).sum()
        value = misfit.detach().mean()
        if last:
            return NoiseState(t, x, z, state.first, state.second, value)
        (g,) = torch.autograd.grad(objective, z)
        first = self.beta1 * state.first + (1.0 - self.beta1) * g
        second = self.beta2 * state.second + (1.0 - self.beta2) * g.square()
        root = (second / (1.0 - self.beta2**t)).sqrt() + 1e-8
        z = z.detach() - self.lr / (1.0 - self.beta1**t) * first / root
        return NoiseState(t, x.detach(), z, first, second, value)

    def decode(self, problem: Problem, prior: Denoiser, z: Tensor, streams: Streams) -> Tensor:
        """x0(z), (B, *shape), with its graph where z has one; fresh noise of an integrator is the same in every call."""
        sigmas, memory = levels(self.grid, self.flow_steps, prior), Memory.parse(self.memory)
        x = sigmas[0] * z
        if isinstance(self.flow, Scheme):
            pair = memory.chain(self.flow.moves(prior, sigmas), self.flow.start(x))
            return self.flow.finish((pair[0], pair[1]))
        flow = self.flow

        def link(k: int) -> Callable[..., tuple[Tensor, ...]]:
            def noise() -> Tensor:
                return streams.normal(k + 1, problem.shape, "flow", z.dtype, z.device)

            return lambda x: (flow.step(prior, x, sigmas[k], sigmas[k + 1], noise),)

        return memory.chain([link(k) for k in range(self.flow_steps)], (x,))[0]

    def misfit(self, problem: Problem, x: Tensor) -> Tensor:
        """||y - A x||^2 / (2 sigma_y^2) of each item, (B,)."""
        residual = (problem.y - problem.operator(x)) / require_gaussian(problem, "DFlow")
        return 0.5 * dot(residual, residual)

    def penalty(self, z: Tensor) -> Tensor:
        """R of each item, (B,)."""
        square = dot(z, z)
        if self.regulariser == "none":
            return torch.zeros_like(square)
        return 0.5 * square - (0.5 * (z[0].numel() - 1) * square.log() if self.regulariser == "chi" else 0.0)

    def describe(self, state: NoiseState) -> dict[str, Any]:  # type: ignore[override]
        return {"misfit": state.misfit}
