"""Decomposed diffusion sampling (DDS): a few conjugate-gradient steps on the data from the denoiser's estimate.

    x0 ~ argmin_v gamma ||y - A v||^2 + ||v - D||^2:    (gamma A^T A + I) v = D + gamma A^T y,   K steps of CG from v = D
    x' = x0 + sqrt(sigma'^2 - c^2) eps + c z,    eps = (x - D) / sigma,    c = eta sigma' sqrt(1 - sigma'^2 / sigma^2)

K steps give the best point of D + span{b, M b, ..., M^{K-1} b}, M = gamma A^T A + I and b = gamma A^T (y - A D), in the norm
of M: few steps stop in the directions that A sees best, in the tangent space of the data where the paper takes D to lie. As
many as A has different singular values solve the system: DiffPIR's proximal step with rho = 1 / gamma, which is the same at all
levels here, where that is lam sigma_y^2 / sigma^2. The noise level of the data does not enter.

For a prior N(0, 1) and a converged solver the estimate along a singular vector is (D + gamma a^2 yhat) / (1 + gamma a^2),
yhat = u^T y / a, at every level: the draws gather between the datum and the prior as gamma a^2 says, not as sigma_y does.
Directions that are not observed are DDIM's draws of the prior.
The paper has x_t = alpha_t x, and its eta beta_t is alpha_{t-1} c here.

References: Chung, Lee, Ye, Decomposed diffusion sampler for accelerating large-scale inverse problems, ICLR 2024,
arXiv:2303.05754, Algorithms 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import ConfigError, Denoiser, LinearOperator, Problem, Streams
from ..core.linalg import cg
from .guided import DownLevels, Level
from .integrators import ddim

__all__ = ["DDS"]


@dataclass(frozen=True)
class DDS(DownLevels):
    """Conjugate gradients on the data at each level; no product with the network's Jacobian; a point estimate.

    Args:
        cg_steps: K; the paper's 5.
        gamma: weight of the data, in units of (unknown / measurement)^2; the paper's 1 to 5 for operators of norm about 1.
        eta: share of the noise that is fresh, in [0, 1]; the paper's 0.85 with 20 to 100 steps.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        ConfigError: an argument is out of its range.
    """

    kind: ClassVar[str] = "point"
    needs: ClassVar[frozenset[str]] = frozenset({"adjoint"})
    cg_steps: int = 5
    gamma: float = 5.0
    eta: float = 0.85

    def __post_init__(self) -> None:
        if not (self.cg_steps >= 1 and self.gamma > 0.0 and 0.0 <= self.eta <= 1.0):
            raise ConfigError(
                f"DDS: expected cg_steps >= 1, gamma > 0 and eta in [0, 1], got {self.cg_steps}, {self.gamma} and {self.eta}"
            )

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        x = state.x
        sigma, sigma_next = self.between(prior, state)

        def noise() -> Tensor:
            return streams.normal(state.step + 1, problem.shape, dtype=x.dtype, device=x.device)

        denoised = prior(x, x.new_full((len(x),), sigma))
        # eps is that of D, so that the correction of x0 is added to the step unchanged
        new = ddim(denoised, x, sigma, sigma_next, self.eta, noise) + self.correction(problem, denoised)
        return Level(state.step + 1, new, sigma_next)

    def correction(self, problem: Problem, denoised: Tensor) -> Tensor:
        """x0 - D after K steps, (B, *shape)."""
        operator = problem.operator
        assert isinstance(operator, LinearOperator)  # by `needs`

        def matvec(v: Tensor) -> Tensor:
            return v + self.gamma * operator.normal(v)

        misfit = self.gamma * operator.adjoint(problem.y - operator(denoised))
        return cg(matvec, misfit, max_iter=self.cg_steps).x
