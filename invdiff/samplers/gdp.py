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

Unknown degradations, A_phi(x) = Phi(A(x)), are in `gdp_blind`: each draw has parameters phi of its own, which take a step down
the gradient at every level, before x does. A gain f of the data makes that zeta f^2 a^2 < 1.

Patches: the paper guides windows of an image of any size, each by its part of y, and averages their means. In form "x0" the
step is affine in D, so that for a linear operator on single pixels that is one step with the average of the windows' D: GDP on
`priors.Tiles`, whose weights replace the counts. Where windows see too little of the image, a coarse image guides them:
`hierarchical` adds w ||down(D) - coarse||^2 to the squared error, coarse a result for the down-sampled problem. The paper's
learned variances and quality terms are left out.

References: Fei, Lyu, Pan, Zhang, Yang, Luo, Zhang, Dai, Generative diffusion prior for unified image restoration and
enhancement, CVPR 2023, arXiv:2304.01247: Algorithms 1 and 2, the patch-based method and hierarchical guidance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core import CapabilityError, ConfigError, Denoiser, Gaussian, LinearOperator, Problem, ShapeError, State, Streams
from ..core.algebra import Stack
from ..guidance import linearize, require_gaussian
from .gdp_blind import Degradation
from .guided import DownLevels, Level
from .integrators import ddim

__all__ = ["GDP", "BlindLevel", "hierarchical"]


def hierarchical(problem: Problem, coarse: Tensor, down: LinearOperator, weight: float) -> Problem:
    """The problem with a coarse image as a further measurement, [A; sqrt(w) down] x = [y; sqrt(w) coarse].

    Its noise is the problem's (its root mean square, where that varies), so that to samplers that weigh by it the coarse image
    is known to sigma_y / sqrt(w) in each pixel.

    Args:
        problem: linear, with Gaussian noise.
        coarse: what down-sampling should give, (*out_shape) of `down` or (1, *out_shape).
        down: from the unknown to the coarse image.
        weight: w, of a coarse pixel to a measured value, positive.

    Raises:
        CapabilityError: the problem is not linear and Gaussian.
        ConfigError, ShapeError: the weight is not positive, or the parts do not fit together.
    """
    sigma, operator = require_gaussian(problem, "hierarchical"), problem.operator
    if not isinstance(operator, LinearOperator):
        raise CapabilityError(f"hierarchical needs a linear operator, {type(operator).__name__} is none")
    if not 0.0 < weight < math.inf:
        raise ConfigError(f"hierarchical: expected weight > 0, got {weight}")
    coarse = coarse[None] if coarse.ndim == len(down.out_shape) else coarse
    if tuple(coarse.shape) != (1, *down.out_shape):
        raise ShapeError(f"hierarchical: expected one coarse image {down.out_shape}, got {tuple(coarse.shape)}")
    rows = math.sqrt(weight) * down
    stacked = Stack([operator, rows])  # type: ignore[list-item]

    def joined(*parts: Tensor) -> Tensor:
        return torch.cat([p.flatten(1) if stacked.flat else p for p in parts], dim=1)

    y = joined(problem.y, math.sqrt(weight) * coarse.to(problem.y))
    if sigma.ndim > 0:
        if not bool((sigma == sigma.flatten()[0]).all()):
            rest = sigma.square().mean().sqrt().expand(1, *down.out_shape)
            sigma = joined(sigma.expand(1, *operator.out_shape), rest)[0]
        else:
            sigma = sigma.flatten()[0]
    return Problem(stacked, Gaussian(sigma), y)


@dataclass(frozen=True)
class BlindLevel(Level):
    """A level with the parameters of each draw's degradation, (B, P)."""

    parameters: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass(frozen=True)
class GDP(DownLevels):
    """The gradient of the squared error at a fixed weight; any differentiable operator; a point estimate.

    Args:
        zeta: weight, in units of (unknown / measurement)^2. The paper's w = 2,000 to 6,000 of restoration by "x0" are 0.01 to
            0.03 for its m = 196,608 values, in the same units; its 250,000 to 300,000 by "xt" are 1.3 to 1.5.
        form: "x0" or "xt", see above.
        blind: what the degradation is that comes after the operator, of parameters that are not known; None for none.
            `blind.fit(problem, draws)` are the parameters that belong to draws.
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
    blind: Degradation | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.zeta < math.inf:
            raise ConfigError(f"GDP: expected zeta > 0, got {self.zeta}")
        if self.form not in ("x0", "xt"):
            raise ConfigError(f'GDP: expected form to be "x0" or "xt", got {self.form!r}')

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, "GDP")
        return prior

    @property
    def state_class(self) -> type[State]:  # type: ignore[override]
        return Level if self.blind is None else BlindLevel

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Level:
        first = super().init(problem, prior, streams)
        if self.blind is None:
            return first
        return BlindLevel(0, first.x, first.sigma, self.blind.start(problem, len(first.x)))

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
            phi: Tensor | None = None
            residual = predicted - problem.y
            if self.blind is not None and isinstance(state, BlindLevel):
                phi = self.blind.update(problem, state.parameters, predicted)
                residual = self.blind.transposed(phi, self.blind.residual(problem, phi, predicted))
            gradient = 2.0 * back(residual)
            if self.form == "xt":
                gradient = transposed(gradient)
            new = ddim(denoised, x, sigma, sigma_next, 1.0, noise) - scale * gradient
        if phi is None:
            return Level(state.step + 1, new, sigma_next)
        return BlindLevel(state.step + 1, new, sigma_next, phi)
