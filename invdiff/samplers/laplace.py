"""The posterior of a Gaussian law by its mode and the curvature there: Gauss-Newton with dense tangents.

    minimise  |x - m|^2_{C^-1} + |(A(x) - y) / sigma|^2,       x ~ N(m, C), a Gaussian field

    mode      x' = m + C J^T w,    (J C J^T + Sigma) w = y - A(x) + J (x - m),    J = A'(x)
    draws     x* + d - C J^T (J C J^T + Sigma)^{-1} (J d + n),    d ~ N(0, C), n ~ N(0, Sigma)

Data assimilation calls the first strong-constraint 4D-Var in the space of the measurement. The draws have the covariance
(C^{-1} + J^T Sigma^{-1} J)^{-1} of Laplace's approximation, exact for a linear operator, where one step is enough.

Far from the mode a tangent is right over a short way only: of the noise as it is and of larger ones, that trust the measurement
less, and of whole and half steps, the one is taken that lowers the objective most. The same tangent serves again as long as it
helps (chord iterations), which costs evaluations of A alone; the tangent costs M products with J^T, for M measurements, the
factor of an M x M matrix, and some ten times the memory of M unknowns (6.5 GiB for 4,096 values of 128 x 128 points). The draws
of a batch share it.

References: Courtier, Dual formulation of four-dimensional variational assimilation, Q. J. R. Meteorol. Soc. 123, 1997. MacKay,
Information theory, inference and learning algorithms, 2003, chapter 27 (Laplace's method).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core import ConfigError, DataError, Denoiser, LinearOperator, NumericalError, Problem, Sampler, State, Streams
from ..guidance import require_gaussian
from ..guidance.dense import innermost, required, tangent_rows
from ..priors.field import SpectralGaussian, rows

__all__ = ["Laplace", "Mode"]


@dataclass(frozen=True)
class Mode(State):
    """A State with the objective at the iterate, of which all draws are copies until the last step."""

    objective: float


@dataclass(frozen=True)
class Laplace(Sampler):
    """Draws around the mode of the posterior of a Gaussian field.

    Args:
        steps: tangents, one for each step.
        start: "prior", the mean of the field, or "guess", the operator's own crude inverse of y.
        inflations: factors of the noise's standard deviation that a step tries.
        chords: how often a tangent may serve again.

    Raises:
        ConfigError: an argument is out of its range.
        CapabilityError: the prior is no Gaussian field on the grid of the unknown, the noise is not Gaussian, or there are more
            than 4,096 real measurements.
        NumericalError: the operator is defined neither at the start nor after a step from there, or the noise is too small to
            invert for in float64.
    """

    state_class: ClassVar[type[State]] = Mode
    needs: ClassVar[frozenset[str]] = frozenset({"vjp"})
    steps: int = 4
    start: Literal["prior", "guess"] = "prior"
    inflations: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
    chords: int = 6

    def __post_init__(self) -> None:
        object.__setattr__(self, "inflations", tuple(float(f) for f in self.inflations))
        if self.start not in ("prior", "guess"):
            raise ConfigError(f'Laplace: expected start to be "prior" or "guess", got {self.start!r}')
        if not self.inflations or min(self.inflations) < 1.0 or self.chords < 0:
            raise ConfigError(
                f"Laplace: expected inflations >= 1, at least one, and chords >= 0, got {self.inflations} and {self.chords}"
            )

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the intervals leave out."""
        return (
            "Laplace draws vary as the operator's tangent near the mode has it: where the operator bends within their spread, "
            "the intervals are too narrow, and other modes are not seen.",
        )

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Mode:
        field, sigma = _field(prior, problem), require_gaussian(problem, "Laplace")
        x = torch.full_like(problem.y.new_empty(1, *problem.shape), field.mean)
        if self.start == "guess":
            x = field.supported(problem.operator.guess(problem.y))
        value = _objective(field, problem, sigma, x)
        return Mode(0, x.repeat(len(streams.draws), *[1] * len(problem.shape)), value)

    def step(self, problem: Problem, prior: Denoiser, state: Mode, streams: Streams) -> Mode:  # type: ignore[override]
        field, sigma = _field(prior, problem), require_gaussian(problem, "Laplace")
        x, best = state.x[:1], state.objective
        tangent = _Tangent(field, problem, sigma, x)
        for _ in range(1 + self.chords):
            found = [(best, x)]
            r = (problem.y - problem.operator(x)).double() + tangent.push(x - field.mean)
            for inflation in self.inflations:
                whole = field.mean + tangent.gain(r, inflation).to(x)
                found += [(_objective(field, problem, sigma, t), t) for t in (whole, 0.5 * (x + whole))]
            before, (best, x) = best, min(found, key=lambda pair: pair[0])
            if not best < 0.9 * before:
                break
        if not math.isfinite(best):
            raise NumericalError("Laplace: the operator is defined neither at the start nor after a step from there")
        draws = x.expand_as(state.x)
        if state.step == self.steps - 1:
            draws = x + tangent.fluctuations(streams, x.dtype)
        return Mode(state.step + 1, draws.contiguous(), best)

    def describe(self, state: Mode) -> dict[str, Any]:  # type: ignore[override]
        return {"objective": state.objective}


class _Tangent:
    """J at one x with the covariances that it makes."""

    def __init__(self, field: SpectralGaussian, problem: Problem, sigma: Tensor, x: Tensor) -> None:
        operator = problem.operator
        found = rows(operator, problem.y) if isinstance(operator, LinearOperator) else tangent_rows(operator, x)
        # the weights w are large and cancel
        self.rows = found.double()
        self.field, self.shape, self.sigma = field, operator.out_shape, sigma.double().expand(operator.out_shape)
        self.gram = field.gram(self.rows)(math.inf)
        self.factors: dict[float, Tensor] = {}

    def push(self, t: Tensor) -> Tensor:
        """J t, (B, *shape) -> (B, *out_shape)."""
        return (t.double().flatten(1) @ self.rows.flatten(1).mT).reshape(len(t), *self.shape)

    def gain(self, r: Tensor, inflation: float = 1.0) -> Tensor:
        """C J^T (J C J^T + Sigma)^{-1} r, (B, *out_shape) -> (B, *shape)."""
        if inflation not in self.factors:
            matrix = self.gram.clone()
            matrix.diagonal().add_((inflation * self.sigma).square().flatten())
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if failed:
                raise NumericalError(
                    "Laplace: J C J^T + Sigma is not positive to float64: the noise is too small for a law this wide: raise it"
                )
            self.factors[inflation] = factor
        w = torch.cholesky_solve(r.double().flatten(1).mT, self.factors[inflation]).mT
        return self.field.covariance((w @ self.rows.flatten(1)).reshape(len(w), *self.rows.shape[1:]))

    def fluctuations(self, streams: Streams, dtype: torch.dtype) -> Tensor:
        """Draws of N(0, C - C J^T (J C J^T + Sigma)^{-1} J C), by Matheron's rule."""
        d = self.field.sample(streams, dtype) - self.field.mean
        noise = streams.normal(0, self.shape, "matheron", dtype, d.device) * self.sigma.to(d)
        return d - self.gain(self.push(d) + noise).to(dtype)


def _field(prior: Denoiser, problem: Problem) -> SpectralGaussian:
    return required(innermost(prior), problem.operator, "Laplace: expected as prior", "take MMPS")


def _objective(field: SpectralGaussian, problem: Problem, sigma: Tensor, x: Tensor) -> float:
    """Twice the negative logarithm of the posterior density, up to a constant; infinite where A is not defined."""
    try:
        misfit = ((problem.operator(x) - problem.y) / sigma).double().square()
    except (DataError, NumericalError):
        return math.inf
    if problem.operator.measured is not None:
        misfit = misfit * problem.operator.measured
    return float(misfit.sum() + field.distance(x).sum())
