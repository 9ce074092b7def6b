"""Steered diffusion: the estimate of x0 is projected on the data, or moved down the gradient of energies, N times per level.

    x0 <- D(x, sigma) - sum_j weight_j sigma grad_x L_j(D(x, sigma))        energies, through the network
    x0 <- x0 - B (A x0 - y)                                                 projection, linear A
    x' =  DDIM(1) from x0;    repeats start from x = x' + sqrt(sigma^2 - sigma'^2) z

B = A^+ makes x0 agree with y exactly (DDNM with time travel); with another B, as an up-sampler for a down-sampling A,
consistency is approximate. The measurement is taken for free of noise. In the paper an energy moves x0 by sqrt(1 - bar alpha)
grad_{x_t} L; with x_t = x / sqrt(1 + sigma^2) this is sigma grad_x L, which is sigma J^T grad L at x0 = D, J = dD/dx: one
product for all energies together. Each energy has its window, of steps as in the paper or of noise levels, outside of which it
is not evaluated. The re-noising kernel is the exact one between the two levels: in variance-preserving form x_t = sqrt(1 -
beta) x_{t-1} + sqrt(beta) z.

For a prior N(m, C) and energies w_j ||H_j x0 - t_j||^2 / 2 the step is affine: J = C (C + sigma^2)^-1 and x0 = D - sigma J
sum_j w_j H_j^T (H_j D - t_j). A likelihood would have sigma^2 in place of sigma: the draws are those of no posterior.

References: Nair, Cherian, Lohit, Wang, Koike-Akino, Patel, Marks, Steered diffusion: a generalized framework for plug-and-play
conditional image synthesis, ICCV 2023, arXiv:2310.00224, Algorithms 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, LinearOperator, Problem, ShapeError, Streams
from ..guidance import linearize
from .guided import DownLevels, Level
from .integrators import ddim

__all__ = ["Energy", "Steered", "half_squared_error"]

Loss = Callable[[Tensor, Tensor], Tensor]


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """||output - target||^2 / 2 of each item, (B,)."""
    return 0.5 * (output - target).abs().square().flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class Energy:
    """weight * loss(network(x0), target), or weight * network(x0), switched on in a window.

    Args:
        network: differentiable, on the unknown, (B, *shape) -> (B, ...), items apart: a condition network, an operator, or any
            function.
        target: what its output should be, broadcastable to it; None where the output is the energy of each item, (B,).
        weight: step size.
        sigma_low, sigma_high: the noise levels between which it acts.
        loss: (output, target) -> (B,), one value per item.
        first, last: the steps between which it acts, counted from 0 at the highest level, both included; None for the end.

    Raises:
        ConfigError: an empty window.
        ShapeError: on a call, the energy is not one value per item.
    """

    network: Callable[[Tensor], Tensor]
    target: Tensor | None = None
    weight: float = 1.0
    sigma_low: float = 0.0
    sigma_high: float = math.inf
    loss: Loss = field(default=half_squared_error, repr=False)
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        last = math.inf if self.last is None else self.last
        if not (0.0 <= self.sigma_low <= self.sigma_high and 0 <= self.first <= last):
            raise ConfigError(
                f"Energy: expected 0 <= sigma_low <= sigma_high and 0 <= first <= last, got {self.sigma_low}, "
                f"{self.sigma_high} and {self.first}, {self.last}"
            )

    def active(self, sigma: float, step: int) -> bool:
        """Whether it acts in a step from that level."""
        return self.sigma_low <= sigma <= self.sigma_high and self.first <= step <= (step if self.last is None else self.last)

    def gradient(self, x0: Tensor) -> Tensor:
        """weight * dL/dx0, (B, *shape)."""
        with torch.enable_grad():
            leaf = x0.detach().requires_grad_()
            out = self.network(leaf)
            value = out if self.target is None else self.loss(out, self.target)
            if value.shape != (len(x0),):
                raise ShapeError(f"Energy: expected one value for each of {len(x0)} items, got {tuple(value.shape)}")
            return torch.autograd.grad(self.weight * value.sum(), leaf)[0]


@dataclass(frozen=True)
class Steered(DownLevels):
    """Projection and energies on the estimate of x0; a point estimate.

    Args:
        projection: B: "pinv", "adjoint", a linear operator from the measurement to the unknown, or None for energies alone.
        energies: further energies.
        repeats: N, times that each level is visited.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        ConfigError: there is nothing to steer by, or B does not map the measurement to the unknown.
    """

    kind: ClassVar[str] = "point"
    projection: str | LinearOperator | None = "pinv"
    energies: Sequence[Energy] = ()
    repeats: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.projection, str) and self.projection not in ("pinv", "adjoint"):
            raise ConfigError(f"Steered: expected projection to be pinv, adjoint, an operator or None, got {self.projection!r}")
        if self.projection is None and not self.energies:
            raise ConfigError("Steered: neither a projection nor an energy: use Guided() for the prior alone")
        if self.repeats < 1:
            raise ConfigError(f"Steered: expected repeats >= 1, got {self.repeats}")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        named = {"pinv": {"adjoint", "solve"}, "adjoint": {"adjoint"}}
        return frozenset(named[self.projection] if isinstance(self.projection, str) else {"forward"})

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        back = self.projection
        if isinstance(back, LinearOperator) and (back.in_shape, back.out_shape) != (problem.operator.out_shape, problem.shape):
            raise ConfigError(
                f"Steered: expected projection to map {problem.operator.out_shape} to {problem.shape}, "
                f"{type(back).__name__} maps {back.in_shape} to {back.out_shape}"
            )
        return prior

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        sigma, sigma_next = self.between(prior, state)

        def normal(purpose: str) -> Tensor:
            return streams.normal(state.step + 1, problem.shape, purpose, state.x.dtype, state.x.device)

        x = new = state.x
        for k in range(self.repeats):
            if k > 0:
                x = new + math.sqrt(sigma**2 - sigma_next**2) * normal(f"renoise {k}")
            x0 = self.estimate(problem, prior, x, sigma, state.step)
            new = ddim(x0, x, sigma, sigma_next, 1.0, partial(normal, f"step {k}"))
        return Level(state.step + 1, new, sigma_next)

    def estimate(self, problem: Problem, prior: Denoiser, x: Tensor, sigma: float, step: int = 0) -> Tensor:
        """The steered x0 of a step from x, (B, *shape)."""
        level = x.new_full((len(x),), sigma)
        active = [energy for energy in self.energies if energy.active(sigma, step)]
        if active:
            x0, transposed = linearize(prior, x, level)
            x0 = x0 - sigma * transposed(torch.stack([energy.gradient(x0) for energy in active]).sum(0))
        else:
            with torch.no_grad():
                x0 = prior(x, level)
        if self.projection is None:
            return x0
        operator = problem.operator
        with torch.no_grad():
            back = getattr(operator, self.projection) if isinstance(self.projection, str) else self.projection
            return x0 - back(operator(x0) - problem.y)
