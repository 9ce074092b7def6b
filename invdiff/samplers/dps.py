"""Diffusion posterior sampling (DPS).

    x' = ancestral(x) - zeta sqrt((1 + sigma^2) (1 + sigma'^2)) grad_x ||y - A(D(x, sigma))||,   norms per item

In the paper x_{t-1} = ancestral(x_t) - zeta grad_{x_t} ||y - A(D)||; with x_t = alpha_t x and alpha = 1 / sqrt(1 + sigma^2)
the step is divided by alpha_t alpha_{t-1}. The norm is not squared and the noise level does not enter: zeta has units and is
tuned for each task. p(y | x) is replaced by p(y | D), which lacks the variance of x0 given x: draws gather near a mode.

References: Chung, Kim, McCann, Klasky, Ye, Diffusion posterior sampling for general noisy inverse problems, ICLR 2023,
arXiv:2209.14687, Algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Problem, Streams, expand, norm
from ..guidance import linearize, require_gaussian
from .guided import DownLevels, Level
from .integrators import ddim

__all__ = ["DPS"]


@dataclass(frozen=True)
class DPS(DownLevels):
    """The gradient of the residual's norm through the network; any differentiable operator; a point estimate.

    Args:
        zeta: step size; the paper's 0.3 to 1, for images in [-1, 1].
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        CapabilityError: the noise is not Gaussian.
    """

    kind: ClassVar[str] = "point"
    needs: ClassVar[frozenset[str]] = frozenset({"vjp"})
    steps: int = field(default=1000, kw_only=True)
    zeta: float = 1.0

    def __post_init__(self) -> None:
        if not self.zeta > 0:
            raise ConfigError(f"DPS: expected zeta > 0, got {self.zeta}")

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, "DPS")
        return prior

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        x = state.x
        sigma, sigma_next = self.between(prior, state)

        def noise() -> Tensor:
            return streams.normal(state.step + 1, problem.shape, dtype=x.dtype, device=x.device)

        denoised, transposed = linearize(prior, x, x.new_full((len(x),), sigma))
        with torch.no_grad():
            predicted, back = problem.operator.vjp(denoised)
            residual = problem.y - predicted
            length = norm(residual)
            unit = residual / expand(torch.where(length > 0, length, 1.0), residual)
            gradient = -transposed(back(unit))
            scale = self.zeta * math.sqrt((1.0 + sigma**2) * (1.0 + sigma_next**2))
            new = ddim(denoised, x, sigma, sigma_next, 1.0, noise) - scale * gradient
        return Level(state.step + 1, new, sigma_next)
