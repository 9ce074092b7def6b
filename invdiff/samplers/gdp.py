"""Generative diffusion prior (GDP): the gradient of the squared error, of the estimate or through it, with a fixed weight.

    "x0":  x' = ancestral(x) - zeta sqrt(1 + sigma'^2) grad_D ||A(D) - y||^2
    "xt":  x' = ancestral(x) - zeta c^2 sqrt((1 + sigma^2) / (1 + sigma'^2)) grad_x ||A(D(x, sigma)) - y||^2

c = sigma' sqrt(1 - sigma'^2 / sigma^2) is the noise of the ancestral step. The paper shifts the mean of x_{t-1} by
w grad_{x0} and by w Sigma grad_{x_t} of the mean squared error; with x_t = alpha_t x, alpha = 1 / sqrt(1 + sigma^2), Sigma =
alpha_{t-1}^2 c^2 and m values that are measured these are the steps above with zeta = w / m. "x0" needs no derivative of the
network; the last step of "xt" has no noise and therefore no guidance.

The noise level of the data does not enter. For a prior N(0, 1) both are affine along each singular vector a of A: with datum
yhat = u^T y / a and D = x / (1 + sigma^2) the shift is -2 zeta a^2 (D - yhat) times the factor above, and once more 1 / (1 +
sigma^2) for "xt". "x0" is stable for zeta a^2 < 1. The draws follow the datum, and their variance along a is that of a
relaxation towards it and not the posterior's; directions that are not observed are ancestral draws of the prior.
The paper's learned variances, patches, quality terms and unknown degradations are left out.

References: Fei, Lyu, Pan, Zhang, Yang, Luo, Zhang, Dai, Generative diffusion prior for unified image restoration and
enhancement, CVPR 2023, arXiv:2304.01247, Algorithms 1 and 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Problem, Streams
from ..guidance import linearize, require_gaussian
from .guided import DownLevels, Level
from .integrators import ddim

__all__ = ["GDP"]


@dataclass(frozen=True)
class GDP(DownLevels):
    """The gradient of the squared error at a fixed weight; any differentiable operator; a point estimate.

    Args:
        zeta: weight, in units of (unknown / measurement)^2. The paper's w = 2,000 to 6,000 of restoration by "x0" are 0.01 to
            0.03 for its m = 196,608 values, in the same units; its 250,000 to 300,000 by "xt" are 1.3 to 1.5.
        form: "x0" or "xt", see above.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        ConfigError: an argument is out of its range.
        CapabilityError: the noise is not Gaussian.
    """

    kind: ClassVar[str] = "point"
    needs: ClassVar[frozenset[str]] = frozenset({"vjp"})
    steps: int = field(default=1000, kw_only=True)
    zeta: float = 0.03
    form: Literal["x0", "xt"] = "x0"

    def __post_init__(self) -> None:
        if not 0.0 < self.zeta < math.inf:
            raise ConfigError(f"GDP: expected zeta > 0, got {self.zeta}")
        if self.form not in ("x0", "xt"):
            raise ConfigError(f'GDP: expected form to be "x0" or "xt", got {self.form!r}')

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, "GDP")
        return prior

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        x = state.x
        sigma, sigma_next = self.between(prior, state)

        def noise() -> Tensor:
            return streams.normal(state.step + 1, problem.shape, dtype=x.dtype, device=x.device)

        level = x.new_full((len(x),), sigma)
        if self.form == "x0":
            denoised, scale = prior(x, level), self.zeta * math.sqrt(1.0 + sigma_next**2)
        else:
            denoised, transposed = linearize(prior, x, level)
            variance = sigma_next**2 * (1.0 - (sigma_next / sigma) ** 2)
            scale = self.zeta * variance * math.sqrt((1.0 + sigma**2) / (1.0 + sigma_next**2))
        with torch.no_grad():
            predicted, back = problem.operator.vjp(denoised)
            gradient = 2.0 * back(predicted - problem.y)
            if self.form == "xt":
                gradient = transposed(gradient)
            new = ddim(denoised, x, sigma, sigma_next, 1.0, noise) - scale * gradient
        return Level(state.step + 1, new, sigma_next)
