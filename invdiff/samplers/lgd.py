"""Loss-guided diffusion by Monte Carlo (LGD-MC).

    x^j = D + r z_j,  z_j ~ N(0, I),  j = 1 .. n,    r^2 = sigma^2 s^2 / (s^2 + sigma^2)
    D_y = D + zeta sigma^2 J^T grad_D log (1/n) sum_j exp(-l(x^j)),    l(x) = ||(y - A(x)) / sigma_y||^2 / 2,    J = dD/dx

p(y | x) is the mean of the likelihood over N(D, r^2 I), which stands for p(x0 | x), and is estimated from n points; the
gradient is the mean of the losses' own with the weights softmax(-l(x^j)). D_y takes the place of D in the ancestral step.

For a linear A and zeta = 1 the mean over infinitely many points is N(y; A D, r^2 A A^T + sigma_y^2), whose logarithm has the
gradient A^T (r^2 A A^T + sigma_y^2)^{-1} (y - A D): that of PiGDM, exact for a prior N(m, s^2 I). One point has the gradient
A^T (y - A x^1) / sigma_y^2, in the mean that of the likelihood at D itself: DPS with the weight of the likelihood, which
trusts D as if it were x0. Between them the bias falls as 1/n for large n, and n must be large where sigma_y is small against
r A. The step is stiff there too: for few points it overshoots, and errors grow, where (1 - sigma'^2 / sigma^2)
(a s / sigma_y)^2 exceeds about 8 near sigma = s, a the norm of A: take more steps, or zeta below 1.

References: Song, Zhang, Yin, Mardani, Liu, Kautz, Chen, Vahdat, Loss-guided diffusion models for plug-and-play controllable
generation, ICML 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Problem, Streams
from ..guidance import linearize, require_gaussian
from .guided import DownLevels, Level
from .integrators import ddim

__all__ = ["LGD"]


@dataclass(frozen=True)
class LGD(DownLevels):
    """The likelihood averaged over points about D; any differentiable operator.

    Args:
        points: n, of the mean; one network call and one vector-Jacobian product serve all, and each costs one call of the
            operator. The paper's 1 to 100.
        zeta: weight of the guidance; 1 is the likelihood's own.
        data_std: s, standard deviation of the unknown, in its units; the paper's 1.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        ConfigError: an argument is out of its range.
        CapabilityError: the noise is not Gaussian (its sigma may differ between measurements).
    """

    kind: ClassVar[str] = "posterior"
    needs: ClassVar[frozenset[str]] = frozenset({"vjp"})
    steps: int = field(default=1000, kw_only=True)
    points: int = 10
    zeta: float = 1.0
    data_std: float = 1.0

    def __post_init__(self) -> None:
        if not (self.points >= 1 and 0.0 < self.zeta < math.inf and 0.0 < self.data_std < math.inf):
            raise ConfigError(
                f"LGD: expected points >= 1, zeta > 0 and data_std > 0, got {self.points}, {self.zeta} and {self.data_std}"
            )

    @property
    def caveats(self) -> tuple[str, ...]:
        return (
            f"LGD took {self.points} points for p(x0 | x): draws of the posterior as they grow, for a prior of standard "
            f"deviation {self.data_std:g} everywhere.",
        )

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, "LGD")
        return prior

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        x = state.x
        sigma, sigma_next = self.between(prior, state)

        def noise() -> Tensor:
            return streams.normal(state.step + 1, problem.shape, dtype=x.dtype, device=x.device)

        denoised, transposed = linearize(prior, x, x.new_full((len(x),), sigma))
        with torch.no_grad():
            z = streams.normal(state.step + 1, (self.points, *problem.shape), "points", x.dtype, x.device)
            spread = sigma * self.data_std / math.hypot(sigma, self.data_std)
            gradient = self.gradient(problem, denoised[:, None] + spread * z)
            guided = denoised + self.zeta * sigma**2 * transposed(gradient)
            new = ddim(guided, x, sigma, sigma_next, 1.0, noise)
        return Level(state.step + 1, new, sigma_next)

    def gradient(self, problem: Problem, points: Tensor) -> Tensor:
        """Gradient of the log-mean-exp of -l over points (B, n, *shape) that move together, (B, *shape)."""
        sigma_y = require_gaussian(problem, "LGD")
        predicted, back = problem.operator.vjp(points.flatten(0, 1))
        residual = (problem.y - predicted) / sigma_y
        losses = 0.5 * residual.abs().square().flatten(1).sum(1)
        weights = torch.softmax(-losses.unflatten(0, points.shape[:2]), 1)
        shape = (*points.shape[:2], *[1] * len(problem.shape))
        return (weights.reshape(shape) * back(residual / sigma_y).unflatten(0, points.shape[:2])).sum(1)
