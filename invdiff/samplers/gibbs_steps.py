"""The two conditionals between which samplers alternate that keep the measurement and the prior apart.

    data     x ~ N(y; A x, Sigma_y) N(x; c, r^2 I)     exactly, or by Langevin's equation
    prior    x ~ p(x0 | x0 + rho n = z)                by the reverse diffusion from rho to zero

Where A is linear, with x' ~ N(c, r^2 I) and n ~ N(0, Sigma_y),

    x = x' + (A^T Sigma_y^{-1} A + I / r^2)^{-1} A^T Sigma_y^{-1} (y - A x' - n)

is a draw of the first: its mean is that of the conditional, and the two perturbations have its covariance. Langevin's equation,

    x <- x - h (J^T Sigma_y^{-1} (A(x) - y) + (x - c) / r^2) + sqrt(2 h) z,    J the tangent of A at x,

takes any differentiable operator and is never exact. Where A is linear and the exponent has the curvature l in some direction,
its variance after K steps from a point is

    (1 - (1 - h l)^{2K}) / (l (1 - h l / 2)),    1 / l in the exact draw:

too wide by a share h l / 2 where l is largest, up to |A|^2 / sigma_y^2 + 1 / r^2; too narrow where K h l is small, down to
l = 1 / r^2; and without bound for h l > 2.

References: Papandreou, Yuille, Gaussian sampling by local perturbations, NeurIPS 2010; Orieux, Féron, Giovannelli, Sampling
high-dimensional Gaussian distributions for general linear inverse problems, IEEE SPL 19, 2012; Roberts, Tweedie, Exponential
convergence of Langevin distributions and their discrete approximations, Bernoulli 2, 1996.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, LinearOperator, NumericalError, Problem, Streams, cg
from .integrators import Integrator

__all__ = ["DataDraw", "ExactDraw", "LangevinDraw", "perturbation", "reverse"]


def reverse(
    prior: Denoiser, z: Tensor, rho: float, *, integrator: Integrator, inner: int, streams: Streams, step: int
) -> Tensor:
    """x0 from z = x0 + rho n, (B, *shape): the law of a draw or a point as the integrator is random or not.

    The levels go down from rho to the prior's lowest in `inner` geometric steps, the last of them to zero; one step of any of
    the integrators is D(z, rho).
    """
    low = prior.sigma_min
    grid = [rho * (low / rho) ** (i / inner) for i in range(inner)] if rho > low else [rho]
    x = z
    for i, (now, then) in enumerate(zip(grid, [*grid[1:], 0.0], strict=True)):

        def noise(i: int = i) -> Tensor:
            return streams.normal(step, z.shape[1:], f"u{i}", z.dtype, z.device)

        x = integrator.step(prior, x, now, then, noise)
    return x


def perturbation(problem: Problem, sigma_y: Tensor, streams: Streams, step: int) -> Tensor:
    """n ~ N(0, Sigma_y) where something is measured, (B, *out_shape)."""
    y, operator = problem.y, problem.operator
    n = sigma_y * streams.normal(step, operator.out_shape, "data", y.dtype, y.device)
    return n if operator.measured is None else n * operator.measured


@dataclass(frozen=True)
class DataDraw:
    """Base of the ways to draw of N(y; A x, Sigma_y) N(x; c, r^2 I).

    Attributes:
        needs: what the operator must offer.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(
        self, problem: Problem, sigma_y: Tensor, centre: Tensor, spread: float, streams: Streams, *, step: int, part: float
    ) -> Tensor:
        """A draw for each item, (B, *shape).

        Args:
            problem: operator and measurement.
            sigma_y: standard deviation of each real component of it, () or broadcastable to it.
            centre: c, (B, *shape); chains start there.
            spread: r, positive.
            streams, step: of the random numbers.
            part: of the sampler's run that lies behind, in [0, 1).
        """
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")


@dataclass(frozen=True)
class ExactDraw(DataDraw):
    """The draw itself, for linear operators: one `solve`, or conjugate gradients where measurements differ in their noise.

    Raises:
        NumericalError: conjugate gradients did not converge.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "solve"})

    def __call__(
        self, problem: Problem, sigma_y: Tensor, centre: Tensor, spread: float, streams: Streams, *, step: int, part: float
    ) -> Tensor:
        operator = problem.operator
        assert isinstance(operator, LinearOperator)  # by `needs`
        x = centre + spread * streams.normal(step, problem.shape, "centre", centre.dtype, centre.device)
        residual = problem.y - operator(x) - perturbation(problem, sigma_y, streams, step)
        if sigma_y.numel() == 1 or bool((sigma_y == sigma_y.flatten()[0]).all()):
            return x + operator.solve(operator.adjoint(residual), (sigma_y.flatten()[0] / spread).square())
        # in units of the least noise, as the solve above
        weight, rho = (sigma_y.min() / sigma_y).square(), float(sigma_y.min() / spread) ** 2
        right, tol = operator.adjoint(weight * residual), 1e-11 if x.dtype == torch.float64 else 1e-6
        result = cg(lambda t: operator.adjoint(weight * operator(t)) + rho * t, right, max_iter=2000, tol=tol)
        if bool((result.residual > 10.0 * tol).any()):
            raise NumericalError(
                f"ExactDraw: CG for {type(operator).__name__} stopped after {result.iterations} iterations at a "
                f"relative residual of {float(result.residual.max()):.1e}: a spread smaller than {spread:g} converges faster"
            )
        return x + result.x


@dataclass(frozen=True)
class LangevinDraw(DataDraw):
    """Unadjusted Langevin steps from c, for any differentiable operator.

    Args:
        steps: K.
        h: step size, in squared units of the unknown; of the order of 1 / (|A|^2 / sigma_y^2 + 1 / r^2), see above.
        last: share of h that is left at the end of the sampler's run, where r is smallest; in between h goes down linearly.

    Raises:
        ConfigError: an argument is out of its range.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vjp"})
    steps: int = 100
    h: float = 1e-4
    last: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0.0 < self.h < math.inf or not 0.0 < self.last <= 1.0:
            raise ConfigError(
                f"LangevinDraw: expected steps >= 1, h > 0 and 0 < last <= 1, got {self.steps}, {self.h} and {self.last}"
            )

    def __call__(
        self, problem: Problem, sigma_y: Tensor, centre: Tensor, spread: float, streams: Streams, *, step: int, part: float
    ) -> Tensor:
        x, h, variance = centre, self.h * (1.0 + part * (self.last - 1.0)), sigma_y.square()
        for i in range(self.steps):
            predicted, back = problem.operator.vjp(x)
            force = back((problem.y - predicted) / variance) + (centre - x) / spread**2
            x = x + h * force + math.sqrt(2.0 * h) * streams.normal(step, problem.shape, f"langevin{i}", x.dtype, x.device)
        return x
