"""Classical reconstructions, the baselines that a diffusion prior has to beat.

    Adjoint          A^H y, or the operator's filtered back-projection
    Tikhonov         argmin_x  1/2 |W (A x - y)|^2 + strength / 2 |x|^2   = (A^H W^2 A + strength)^-1 A^H W^2 y
    TotalVariation   argmin_x  1/2 |W (A x - y)|^2 + strength TV(x),  TV(x) = sum_i sqrt(sum_{c,d} |(D_d x_c)_i|^2)

D_d are forward differences along the spatial axes with nothing across the border; channels, and the real and imaginary parts of
a complex image, share their edges. W is 1 / sigma divided by its root mean square: 1 for uniform noise. Poisson data enter by
the Gaussian that they suggest (`Problem.gaussian`).

Where no strength is given the discrepancy principle chooses it: the strength with chi^2 = |(A x - y) / sigma|^2 / m = 1 for m
measured real values. For Tikhonov chi^2 grows with the strength and the root is found by regula falsi. For total variation

    min TV(x)   subject to   |(A x - y) / sigma|^2 <= m

is solved at once by the primal-dual iteration that also serves a given strength; the multiplier of the constraint gives the
strength. Where x = 0 (Tikhonov) or a flat image (TV) has chi^2 <= 1 already, it is the answer, and the strength is infinite.
Where chi^2 = 1 is out of reach a NumericalError says so: sigma is too small for the data, or the operator did not make them.

References: Chambolle, Pock, A first-order primal-dual algorithm for convex problems with applications to imaging, JMIV 40,
2011; Condat, A primal-dual splitting method for convex optimization, JOTA 158, 2013 (relaxation); Morozov, On the solution of
functional equations by the method of regularization, Soviet Math. Dokl. 7, 1966.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import CapabilityError, ConfigError, Gaussian, LinearOperator, NumericalError, Problem, ShapeError, operator_norm
from ..core.counting import Counter, counting, operator_call

__all__ = ["Adjoint", "Tikhonov", "TotalVariation"]

Facts = dict[str, Any]


@dataclass(frozen=True)
class Adjoint:
    """A^H y, the zero-filled image of MRI; filtered back-projection where the operator has one (`fbp`)."""

    name = "adjoint"

    def __call__(self, problem: Problem) -> tuple[Tensor, Facts]:
        """The image, (1, *shape), and facts: formula, chi2, operator_calls, seconds."""
        with Clock() as clock:
            data = Weighted.of(problem, "Adjoint")
            fbp = getattr(problem.operator, "fbp", None)
            with operator_call(1):
                x = problem.operator.adjoint(data.y) if fbp is None else fbp(data.y)
        return x, {"formula": "adjoint" if fbp is None else "fbp", "chi2": data.chi2(x), **clock.facts}


@dataclass(frozen=True)
class Tikhonov:
    """Least squares with a quadratic penalty on the values.

    Args:
        strength: weight of the penalty, in the units of |A|^2; None chooses it by the discrepancy principle, to 0.1 % in chi^2.
    """

    name = "tikhonov"
    strength: float | None = None

    def __call__(self, problem: Problem) -> tuple[Tensor, Facts]:
        """The image, (1, *shape), and facts: strength, chi2, iterations (solves), operator_calls, seconds."""
        _require_strength(self.strength, "Tikhonov")
        with Clock() as clock:
            data = Weighted.of(problem, "Tikhonov")
            b = data.operator.adjoint(data.y)
            if self.strength is not None:
                strength, solves = float(self.strength), 1
                x = data.operator.solve(b, strength)
            else:
                x, strength, solves = self._discrepancy(data, b)
        return x, {"strength": strength, "chi2": data.chi2(x), "iterations": solves, **clock.facts}

    @staticmethod
    def _discrepancy(data: Weighted, b: Tensor) -> tuple[Tensor, float, int]:
        """The root of log chi^2 as a function of log strength by regula falsi in its Illinois form, after steps of a decade."""
        x = torch.zeros_like(b)
        if data.chi2(x) <= 1.0 or _norm(b) == 0.0:
            return x, math.inf, 0
        # from above, because the smallest strengths are the dearest to solve for: a tenth of |A|^2, or less
        t = math.log(0.1 * (_norm(data.operator(b)) / _norm(b)) ** 2)
        floor = t - math.log(1e6 if b.real.dtype == torch.float32 else 1e10)
        ends: dict[bool, tuple[float, float]] = {}
        before = None
        for solves in range(1, 100):  # noqa: B007
            x = data.operator.solve(b, math.exp(t))
            f = math.log(max(data.chi2(x), 1e-12))
            if abs(f) <= 1e-3:
                break
            above = f > 0.0
            ends[above] = (t, f)
            if len(ends) == 2:
                if above == before:  # the other end stays for the second time: half its weight keeps this one from creeping
                    ends[not above] = (ends[not above][0], 0.5 * ends[not above][1])
                (u, fu), (v, fv) = ends.values()
                t = (u * fv - v * fu) / (fv - fu)
            elif above and t - math.log(10.0) < floor:
                raise NumericalError(_unreachable("Tikhonov", math.exp(f), f"at strength {math.exp(t):.1e}"))
            else:
                t += -math.log(10.0) if above else math.log(10.0)
            before = above
        return x, math.exp(t), solves


@dataclass(frozen=True)
class TotalVariation:
    """Least squares with a penalty on the length of edges, weighted by their height.

    Args:
        strength: weight of the penalty, in the units of |A|^2 |x|; None chooses it by the discrepancy principle.
        nonnegative: allow no negative values; for real unknowns.
        max_iter: iterations of the primal-dual method, each one call of A and one of A^H.
        tol: relative residual of the optimality conditions at which it stops.
    """

    name = "total variation"
    strength: float | None = None
    nonnegative: bool = False
    max_iter: int = 2000
    tol: float = 3e-4

    def __call__(self, problem: Problem) -> tuple[Tensor, Facts]:
        """The image, (1, *shape), and facts: strength, chi2, residual, iterations, operator_calls, seconds."""
        _require_strength(self.strength, "TotalVariation")
        if self.max_iter < 1 or not self.tol >= 0.0:
            raise ConfigError(f"TotalVariation: expected max_iter >= 1 and tol >= 0, got {self.max_iter} and {self.tol}")
        if self.nonnegative and problem.operator.in_complex:
            raise ConfigError(f"TotalVariation: nonnegative=True needs a real unknown; that of {_class(problem)} is complex")
        with Clock() as clock:
            data = Weighted.of(problem, "TotalVariation")
            x, strength, residual, iterations = self._solve(data)
            chi2 = data.chi2(x)
        if self.strength is None and chi2 > 1.02:
            raise NumericalError(_unreachable("TotalVariation", chi2, f"after {iterations} iterations"))
        return x, {"strength": strength, "chi2": chi2, "residual": residual, "iterations": iterations, **clock.facts}

    def _solve(self, data: Weighted) -> tuple[Tensor, float, float, int]:
        """min_x f(A x / a - b) + sum |D x / d| with a, d the norms of A and D, as a saddle point of x and the duals p, q."""
        start = data.operator.adjoint(data.y)
        if _norm(start) == 0.0:
            return start, math.inf, 0.0, 0
        a = 1.01 * operator_norm(data.operator, dtype=data.y.real.dtype)  # a power iteration gives a lower bound
        d = math.sqrt(4.0 * _axes(start))
        b = data.y / a
        # the steepest descent from zero: the right units for x, and for the ratio of the step sizes
        x = start * (_norm(start) / _norm(data.operator(start))) ** 2
        radius = data.sigma * math.sqrt(data.count) / a
        weight = None if self.strength is None else a * a / (self.strength * d)
        # where the data weigh little, only long primal steps follow them
        ratio = max(0.1 * _norm(x) / math.sqrt(x.numel()), 0.0 if weight is None else 0.05 / weight)
        tau, s = ratio / math.sqrt(2.0), 1.0 / (ratio * math.sqrt(2.0))
        ax, dx = data.operator(x) / a, _differences(x) / d
        p, q, back = torch.zeros_like(b), torch.zeros_like(dx), torch.zeros_like(x)
        for k in range(1, self.max_iter + 1):
            x1 = x - tau * back
            x1 = x1.clamp_min(0.0) if self.nonnegative else x1
            ax1, dx1 = data.operator(x1) / a, _differences(x1) / d
            v = p + s * (2.0 * ax1 - ax - b)
            # the conjugate of weight / 2 |.|^2, or that of the indicator of the ball
            p1 = v * max(0.0, 1.0 - s * radius / max(_norm(v), 1e-30)) if weight is None else v / (1.0 + s / weight)
            w = q + s * (2.0 * dx1 - dx)
            q1 = w / _magnitude(w).clamp_min(1.0)
            data_back, edge_back = data.operator.adjoint(p1) / a, _differences_adjoint(q1) / d
            back1 = data_back + edge_back
            if k % 10 == 0 or k == self.max_iter:
                primal = _norm((x - x1) / tau - (back - back1)) / max(math.hypot(_norm(data_back), _norm(edge_back)), 1e-30)
                dual = math.hypot(_norm((p - p1) / s - (ax - ax1)), _norm((q - q1) / s - (dx - dx1)))
                residual = max(primal, dual / max(math.hypot(_norm(ax1), _norm(dx1)), 1e-30))
                if residual <= self.tol:
                    break
            x, p, q, ax, dx, back = (
                old + 1.8 * (new - old) for old, new in ((x, x1), (p, p1), (q, q1), (ax, ax1), (dx, dx1), (back, back1))
            )
        if self.strength is not None:
            return x1, float(self.strength), residual, k
        multiplier = _norm(p1) / radius
        return x1, a * a / (multiplier * d) if multiplier > 0.0 else math.inf, residual, k


class Weighted(NamedTuple):
    """W A, W y, the standard deviation that the weighted noise has, and the number of measured real values."""

    operator: LinearOperator
    y: Tensor
    sigma: float
    count: int

    @classmethod
    def of(cls, problem: Problem, who: str) -> Weighted:
        if not isinstance(problem.operator, LinearOperator):
            raise CapabilityError(f"{who} needs a linear operator; {_class(problem)} is not")
        if len(problem.y) != 1:
            raise ShapeError(f"{who}: expected one measurement, got a batch of {len(problem.y)}: make a Problem for each")
        problem = problem.gaussian()
        operator, y, noise = problem.operator, problem.y, problem.noise
        assert isinstance(operator, LinearOperator) and isinstance(noise, Gaussian)
        count = operator.count_measured()
        sigma = noise.sigma.to(y.real.dtype)
        if sigma.numel() == 1 or bool((sigma == sigma.flatten()[0]).all()):
            return cls(operator, y, float(sigma.flatten()[0]), count)
        inverse = (1.0 / sigma).expand(operator.out_shape)
        inverse = inverse if operator.measured is None else inverse * operator.measured
        rms = float(inverse.square().sum().item() * (2.0 if operator.out_complex else 1.0) / count) ** 0.5
        weight = _Weight(inverse / rms, operator.out_complex)
        return cls(weight @ operator, weight(y), 1.0 / rms, count)  # type: ignore[arg-type]

    def chi2(self, x: Tensor) -> float:
        """|(A x - y) / sigma|^2 / m."""
        return _norm(self.operator(x) - self.y) ** 2 / (self.sigma**2 * max(self.count, 1))


class _Weight(LinearOperator):
    """Multiplication of each value by a positive number."""

    weight: Tensor

    def __init__(self, weight: Tensor, is_complex: bool) -> None:
        super().__init__(tuple(weight.shape), tuple(weight.shape), in_complex=is_complex, out_complex=is_complex)
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.weight * y


class Clock:
    """Counts operator calls and seconds of a block."""

    def __enter__(self) -> Clock:
        self.counter, self.start = Counter(), time.perf_counter()
        self._context = counting(self.counter)
        self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)
        self.seconds = time.perf_counter() - self.start

    @property
    def facts(self) -> Facts:
        return {"operator_calls": self.counter.operator, "seconds": self.seconds}


def _axes(x: Tensor) -> int:
    """Number of spatial axes: a vector has one, otherwise the first is the channel."""
    return max(x.ndim - 2, 1)


def _differences(x: Tensor) -> Tensor:
    """D x: (1, C, *spatial) -> (axes, 1, C, *spatial), zero at the far border."""
    out = x.new_zeros(_axes(x), *x.shape)
    for i, g in enumerate(out):
        axis, n = x.ndim - _axes(x) + i, x.shape[x.ndim - _axes(x) + i]
        torch.sub(x.narrow(axis, 1, n - 1), x.narrow(axis, 0, n - 1), out=g.narrow(axis, 0, n - 1))
    return out


def _differences_adjoint(g: Tensor) -> Tensor:
    """D^H g."""
    out = torch.zeros_like(g[0])
    for i, part in enumerate(g):
        axis, n = out.ndim - len(g) + i, out.shape[out.ndim - len(g) + i]
        inner = part.narrow(axis, 0, n - 1)
        out.narrow(axis, 1, n - 1).add_(inner)
        out.narrow(axis, 0, n - 1).sub_(inner)
    return out


def _magnitude(g: Tensor) -> Tensor:
    """Length of the gradient over axes and channels, in a shape that divides g."""
    square = torch.view_as_real(g).square().sum(-1) if g.is_complex() else g.square()
    return square.sum((0, 2) if g.ndim > 3 else (0,), keepdim=True).sqrt()


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


def _unreachable(who: str, chi2: float, where: str) -> str:
    return (
        f"{who}: no strength reaches chi^2 = 1 (it is {chi2:.3g} {where}): sigma is too small for the data, or the operator "
        "did not make them; give a strength"
    )


def _class(problem: Problem) -> str:
    return type(problem.operator).__name__


def _require_strength(strength: float | None, who: str) -> None:
    if strength is not None and not 0.0 < strength < math.inf:
        raise ConfigError(f"{who}: expected strength > 0 or None, got {strength}")
