"""What the closed-form posteriors have in common: a linear operator and Gaussian noise."""

from __future__ import annotations

from torch import Tensor

from ..core import CapabilityError, Gaussian, LinearOperator, Problem

__all__ = ["linear_gaussian"]


def linear_gaussian(problem: Problem, who: str) -> tuple[LinearOperator, Tensor]:
    """The operator and sigma of a problem that is linear with Gaussian noise; a CapabilityError otherwise."""
    if not isinstance(problem.operator, LinearOperator) or not isinstance(problem.noise, Gaussian):
        raise CapabilityError(
            f"{who}: the posterior is known for linear operators with Gaussian noise, not for "
            f"{type(problem.operator).__name__} with {type(problem.noise).__name__}"
        )
    return problem.operator, problem.noise.sigma
