"""The exact inverse that a Gaussian field implies in the space of the measurement: a preconditioner of moment matching.

    (A V_C A^T + Sigma_y)^{-1},    V_C = sigma^2 C / (C + sigma^2)

for few measurements, dense, by a Cholesky factor in float64 for each noise level; where A is not linear, for each tangent.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core import CapabilityError, LinearOperator, Operator
from ..core.counting import Counted
from ..priors.coarse import Coarse
from ..priors.field import DENSE, SpectralGaussian, rows

__all__ = ["dense", "dense_tangents", "innermost", "required", "tangent_rows"]


def innermost(prior: object) -> object:
    """The Gaussian field inside of what only counts its calls, or lays it on another grid; else the prior."""
    while isinstance(prior, Counted | Coarse):
        prior = prior.prior
    return prior


def required(
    field: object, operator: Operator, who: str = "MMPS: expected as reference", instead: str = "use data_std, or more cg_steps"
) -> SpectralGaussian:
    """The field, if it is one, on the grid of the operator's unknown, and a dense inverse is possible."""
    if not isinstance(field, SpectralGaussian) or tuple(field.shape) != operator.in_shape:
        found = f"{type(field).__name__} on {getattr(field, 'shape', None)}"
        raise CapabilityError(f"{who} a Gaussian field on {operator.in_shape}, got {found}")
    if operator.out_complex or math.prod(operator.out_shape) > DENSE:
        raise CapabilityError(
            f"{who} a Gaussian field, for an operator with at most {DENSE} real measurements, {type(operator).__name__} has "
            f"{operator.out_shape}{' complex' if operator.out_complex else ''}: {instead}"
        )
    return field


def dense(field: SpectralGaussian, operator: LinearOperator, y: Tensor, sigma_y: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """(r, sigma) -> (A V_C A^T + Sigma_y)^{-1} r, the factors of the last sigmas kept."""
    gram = field.gram(rows(operator, y))
    noise = sigma_y.double().square().expand(operator.out_shape).flatten()
    factors: dict[float, Tensor] = {}

    def solve(r: Tensor, sigma: Tensor) -> Tensor:
        out = torch.empty_like(r)
        for level in sigma.unique().tolist():
            if level not in factors:
                # a run goes down the levels: what is asked for again is the last, or the one before
                while len(factors) > 1:
                    del factors[next(iter(factors))]
                factors[level] = _factor(gram, level, noise)
            here = sigma == level
            right = r[here].double().flatten(1).mT
            out[here] = torch.cholesky_solve(right, factors[level]).mT.reshape(r[here].shape).to(r.dtype)
        return out

    return solve


def dense_tangents(
    field: SpectralGaussian, operator: Operator, point: Tensor, sigma: Tensor, variance: Tensor
) -> Callable[[Tensor], Tensor]:
    """r -> (J V_C J^T + Sigma_y)^{-1} r with the tangent J at each item of `point`."""
    noise = variance.double().expand(operator.out_shape).flatten()
    items = zip(point.split(1), sigma.tolist(), strict=True)
    factors = torch.stack([_factor(field.gram(tangent_rows(operator, x)), level, noise) for x, level in items])

    def solve(r: Tensor) -> Tensor:
        return torch.cholesky_solve(r.double().flatten(1).unsqueeze(2), factors).reshape(r.shape).to(r.dtype)

    return solve


def _factor(gram: Callable[[float], Tensor], level: float, noise: Tensor) -> Tensor:
    matrix = gram(level)
    matrix.diagonal().add_(noise)
    return torch.linalg.cholesky(matrix)


def tangent_rows(operator: Operator, x: Tensor, block: int = 32) -> Tensor:
    """The matrix of the derivative at one item, (1, *in_shape) -> (M, *in_shape)."""
    count = math.prod(operator.out_shape)
    unit = torch.eye(count, dtype=x.dtype, device=x.device).reshape(count, *operator.out_shape)
    size, parts = min(block, count), []
    _, pull = operator.vjp(x.detach().expand(size, *operator.in_shape))
    for k in range(0, count, size):
        # the last block overlaps the one before
        first = min(k, count - size)
        parts.append(pull(unit[first : first + size])[k - first :])
    return torch.cat(parts)
