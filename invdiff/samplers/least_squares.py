"""Classical solutions of problems that are not linear: by one tangent, and by as many as it takes.

`Linearised` replaces A by its tangent at one x_0 and leaves the rest to a linear baseline, y - A(x_0) = J (x - x_0): the Born
approximation of scattering, from x_0 = 0. `LeastSquares` solves

    minimise  chi^2(x) = |(A(x) - y) / sigma|^2 / m,       m measured real values,

by Gauss-Newton: A is replaced by its tangent at x_k, a few steps of conjugate gradients on the normal equations,

    J^H W^2 J d = J^H W^2 (y - A(x_k)),      W = 1 / sigma,      x_{k+1} = x_k + s d,

give a direction, and s is halved from 1 until chi^2 falls. chi^2 decreases in every iteration. What regularises is where it
starts and that it stops: Krylov steps search the directions that the measurement determines best first, and the iteration
ends where chi^2 <= `target`, the discrepancy principle. With as many Krylov steps as a linear operator has rank, one iteration
gives the pseudoinverse of what the start leaves unexplained.

References: Hanke, Regularizing properties of a truncated Newton-CG algorithm for nonlinear inverse problems, Numer. Funct.
Anal. Optim. 18, 1997. Pratt, Shin, Hicks, Gauss-Newton and full Newton methods in frequency-space seismic waveform inversion,
Geophys. J. Int. 133, 1998.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import ConfigError, DataError, LinearOperator, NumericalError, Operator, Problem, ShapeError
from ..core.counting import Counter, counting
from ..guidance import require_gaussian
from .classical import Tikhonov

__all__ = ["LeastSquares", "Linearised"]


class _Tangent(LinearOperator):
    """J(x_0) for one item."""

    def __init__(self, operator: Operator, products: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]) -> None:
        super().__init__(
            operator.in_shape, operator.out_shape, in_complex=operator.in_complex, out_complex=operator.out_complex
        )
        self.products, self.measured = products, operator.measured

    def forward(self, x: Tensor) -> Tensor:
        return self.products[0](x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.products[1](y)


@dataclass(frozen=True)
class Linearised:
    """Tikhonov's solution of the problem's tangent.

    Args:
        at: x_0, a number or a tensor that broadcasts to the unknown.
        strength: of Tikhonov's penalty on x - x_0, in the units of |J|^2; None chooses it by the discrepancy principle,
            which the error of the tangent often keeps from being met.

    Raises:
        CapabilityError: the noise is not Gaussian.
        NumericalError: Tikhonov's, or the operator is not defined at the result.
    """

    name = "linearised"
    at: float | Tensor = 0.0
    strength: float | None = None

    @torch.no_grad()
    def __call__(self, problem: Problem) -> tuple[Tensor, dict[str, Any]]:
        """The image, (1, *shape), and facts: those of `Tikhonov`, chi2 by the operator itself."""
        began, operator = time.perf_counter(), problem.operator
        require_gaussian(problem, "Linearised")
        x = _start(self.at, problem)
        value, *products = operator.linearize(x)
        tangent = _Tangent(operator, (products[0], products[1]))
        shift, facts = Tikhonov(self.strength)(Problem(tangent, problem.noise, problem.y - value))
        x = x + shift
        return x, {**facts, "chi2": float(problem.chi2(x)), "seconds": time.perf_counter() - began}


@dataclass(frozen=True)
class LeastSquares:
    """The nearest x from a start that explains the measurement.

    Args:
        start: x_0, a number or a tensor that broadcasts to the unknown.
        iterations: the most linearisations.
        krylov: the most steps of conjugate gradients in each of them, two products with the derivative each.
        tol: relative residual of the normal equations at which they end.
        target: chi^2 at which the iteration ends; 0 for never.
        halvings: the most of a step; a step to where the operator is not defined counts as too long.

    Raises:
        CapabilityError: the noise is not Gaussian.
        NumericalError: the misfit at the start is not finite.
    """

    name = "least squares"
    start: float | Tensor = 0.0
    iterations: int = 10
    krylov: int = 10
    tol: float = 1e-2
    target: float = 1.0
    halvings: int = 12

    def __post_init__(self) -> None:
        if min(self.iterations, self.krylov, self.halvings) < 1 or not (self.tol >= 0.0 and self.target >= 0.0):
            raise ConfigError(
                f"LeastSquares: expected iterations, krylov, halvings >= 1 and tol, target >= 0, got {self.iterations}, "
                f"{self.krylov}, {self.halvings}, {self.tol}, {self.target}"
            )

    @torch.no_grad()
    def __call__(self, problem: Problem) -> tuple[Tensor, dict[str, Any]]:
        """The image, (1, *shape), and facts: chi2, history (chi^2 at the start and after each iteration), iterations, stopped,
        operator_calls, seconds.
        """
        if len(problem.y) != 1:
            raise ShapeError(f"LeastSquares: expected one measurement, got {len(problem.y)}: make a Problem for each")
        began, counter = time.perf_counter(), Counter()
        with counting(counter):
            x, history, why = self._descend(problem, require_gaussian(problem, "LeastSquares"))
        return x, {
            "chi2": history[-1],
            "history": history,
            "iterations": len(history) - 1,
            "stopped": why,
            "operator_calls": counter.operator,
            "seconds": time.perf_counter() - began,
        }

    def _descend(self, problem: Problem, sigma: Tensor) -> tuple[Tensor, list[float], str]:
        operator, y, x = problem.operator, problem.y, _start(self.start, problem)
        history = [float(problem.chi2(x))]
        if not math.isfinite(history[0]):
            raise NumericalError(f"LeastSquares: the misfit at the start is {history[0]}")
        for _ in range(self.iterations):
            if history[-1] <= self.target:
                return x, history, "target"
            value, push, pull = operator.linearize(x)
            d = self._direction((y - value) / sigma, lambda t: push(t) / sigma, lambda v: pull(v / sigma))  # noqa: B023
            step, moved = 1.0, False
            for _ in range(self.halvings):
                chi2 = _misfit(problem, x + step * d)
                if chi2 < history[-1]:
                    x, moved = x + step * d, True
                    history.append(chi2)
                    break
                step *= 0.5
            if not moved:
                return x, history, "no descent"
        return x, history, "target" if history[-1] <= self.target else "iterations"

    def _direction(self, r: Tensor, push: Callable[[Tensor], Tensor], pull: Callable[[Tensor], Tensor]) -> Tensor:
        """Conjugate gradients for least squares (CGLS): |J d - r| from d = 0, where r is all that is left to explain."""
        s = pull(r)
        d, p, gamma = torch.zeros_like(s), s, _square(s)
        first = gamma
        for _ in range(self.krylov):
            if gamma <= self.tol**2 * first or gamma == 0.0:
                break
            q = push(p)
            length = _square(q)
            if length == 0.0:
                break
            d, r = d + (gamma / length) * p, r - (gamma / length) * q
            s = pull(r)
            gamma, before = _square(s), gamma
            p = s + (gamma / before) * p
        return d


def _start(value: float | Tensor, problem: Problem) -> Tensor:
    y = problem.y
    dtype = y.dtype if problem.operator.in_complex else y.real.dtype
    return torch.as_tensor(value, dtype=dtype, device=y.device).expand(1, *problem.shape).clone()


def _misfit(problem: Problem, x: Tensor) -> float:
    try:
        return float(problem.chi2(x))
    except (DataError, NumericalError):
        return math.inf


def _square(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) ** 2
