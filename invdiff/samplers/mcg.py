"""Manifold constrained gradients (MCG): a step of DPS, then projection on the noisy measurement.

    v  = ancestral(x) - zeta sqrt((1 + sigma^2) (1 + sigma'^2)) grad_x ||y - A D(x, sigma)||
    x' = v - A^+ (A v - y_sigma'),    y_sigma' = y + sigma' A n,  n ~ N(0, I)

The gradient goes through the network and so along the tangent space of the data, which a projection alone leaves. What A sees
of x' is the measurement of a noisy image, at the last level y itself: the noise of y is not allowed for, draws have no spread
along what is observed and amplify the noise of y by A^+. A gradient in the row space of A, as for a prior N(0, I), is undone by
the projection, and what is not observed are ancestral draws of the prior then.

The paper has y_i ~ N(alpha_i y, sigma_i^2 I) and orthonormal rows of A, for which A n is such noise. Elsewhere y + sigma' n
would reach x' as noise of standard deviation sigma' / a along a singular vector of value a; with A n it is sigma', the level's
own.
The paper's step is alpha times the gradient of the squared norm; here it is that of DPS, alpha = zeta / (2 norm).

References: Chung, Sim, Ryu, Ye, Improving diffusion models for inverse problems using manifold constraints, NeurIPS 2022,
arXiv:2206.00941, Eq. 14 to 16, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..core import Denoiser, LinearOperator, Problem, Streams
from ..guidance import require_gaussian
from .dps import DPS
from .guided import Level

__all__ = ["MCG"]


@dataclass(frozen=True)
class MCG(DPS):
    """DPS with a projection, for linear operators; a point estimate.

    Args:
        zeta: step size of DPS.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        CapabilityError: the noise is not Gaussian.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vjp", "adjoint", "solve"})

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, "MCG")
        return prior

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        new, operator = super().step(problem, prior, state, streams), problem.operator
        assert isinstance(operator, LinearOperator)  # by `needs`
        with torch.no_grad():
            target = new.x
            if new.sigma > 0.0:
                n = streams.normal(new.step, problem.shape, "measurement", target.dtype, target.device)
                target = target - new.sigma * n
            return Level(new.step, new.x - operator.pinv(operator(target) - problem.y), new.sigma)
