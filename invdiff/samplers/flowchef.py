"""FlowChef: a rectified flow steered by the gradient of the misfit that skips the network.

    X <- X - zeta grad_{x0} ||A(x0) - y||^2,    then Euler's step of the flow,    x0 = X - tau v

in the flow's time tau = sigma / (1 + sigma), X = (1 - tau) x0 + tau eps = (1 - tau) x, v = eps - x0 from X before the gradient:
the derivative of x0 with respect to X is taken for I, which is right for straight trajectories. Here, with x = (1 + sigma) X,

    x' = D + sigma' eps - (1 + sigma') zeta grad_D ||A(D) - y||^2,    eps = (x - D) / sigma

since Euler's step of the flow is DDIM's without noise. The paper has the mean over m values for the sum: zeta is its step size
over m. The noise level of the data does not enter, and nothing is random but the start.

For a prior N(0, 1), D = x / (1 + sigma^2), each singular vector a of A with datum yhat = u^T y / a has the recursion

    x' = k x + 2 zeta a^2 (1 + sigma') yhat,    k = (1 + sigma sigma' - 2 zeta a^2 (1 + sigma')) / (1 + sigma^2)

stable for zeta a^2 < 0.8: the draws follow the datum, and the spread that their start had along a decays. Directions that are
not observed are Euler's draws of the prior.

References: Patel, Wen, Metaxas, Yang, Steering rectified flow models in the vector field for controlled image generation,
ICCV 2025, arXiv:2412.00100, Algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..core import ConfigError, Denoiser, Problem, Streams
from ..guidance import require_gaussian
from .guided import DownLevels, Level

__all__ = ["FlowChef"]


@dataclass(frozen=True)
class FlowChef(DownLevels):
    """Gradient skipping along the flow's ODE; any differentiable operator; a point estimate.

    Args:
        zeta: step size, in units of (unknown / measurement)^2. The paper's 500 on m = 12,288 values of an image are 0.04.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        ConfigError: zeta is out of its range.
        CapabilityError: the noise is not Gaussian.
    """

    kind: ClassVar[str] = "point"
    needs: ClassVar[frozenset[str]] = frozenset({"vjp"})
    zeta: float = 0.04

    def __post_init__(self) -> None:
        if not 0.0 < self.zeta < math.inf:
            raise ConfigError(f"FlowChef: expected zeta > 0, got {self.zeta}")

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, "FlowChef")
        return prior

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        x = state.x
        sigma, sigma_next = self.between(prior, state)
        with torch.no_grad():
            denoised = prior(x, x.new_full((len(x),), sigma))
            predicted, back = problem.operator.vjp(denoised)
            gradient = 2.0 * back(predicted - problem.y)
            new = denoised + (sigma_next / sigma) * (x - denoised) - (1.0 + sigma_next) * self.zeta * gradient
        return Level(state.step + 1, new, sigma_next)
