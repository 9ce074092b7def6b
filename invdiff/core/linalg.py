"""Linear algebra on batches whose items never couple: inner products, conjugate gradients, power iteration.

The inner product of complex tensors is Re<a, b>, the one of the real space that they stand for.

References: Hestenes, Stiefel, Methods of conjugate gradients for solving linear systems, J. Res. NBS 49, 1952.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .rng import Streams

if TYPE_CHECKING:
    from .operator import LinearOperator

__all__ = ["CGResult", "cg", "dot", "expand", "norm", "operator_norm"]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Re<a, b> of each item, (B, ...), (B, ...) -> (B,)."""
    product = (a.conj() * b).real if a.is_complex() or b.is_complex() else a * b
    return product.flatten(1).sum(1)


def norm(a: Tensor) -> Tensor:
    """Euclidean norm of each item, (B, ...) -> (B,)."""
    return dot(a, a).sqrt()


def expand(weight: Tensor, x: Tensor) -> Tensor:
    """A weight per item, (B,), shaped to multiply x, (B, ...)."""
    return weight.reshape(-1, *([1] * (x.ndim - 1)))


class CGResult(NamedTuple):
    """Solution (B, ...), relative residual (B,) and the number of iterations."""

    x: Tensor
    residual: Tensor
    iterations: int


def cg(matvec: Callable[[Tensor], Tensor], b: Tensor, *, x0: Tensor | None = None, max_iter: int, tol: float = 0.0) -> CGResult:
    """Solve M x = b for a symmetric positive definite M, each item of the batch with its own step sizes.

    An item stops for itself when its relative residual reaches tol or when it meets a direction of non-positive curvature
    (an inexact Jacobian can have one). With tol = 0 the number of iterations is fixed and the host never waits for the device.
    """
    x = torch.zeros_like(b) if x0 is None else x0.clone()
    r = b - matvec(x) if x0 is not None else b.clone()
    p, rr, bb = r, dot(r, r), dot(b, b)
    active = rr > tol**2 * bb
    k = 0
    for k in range(1, max_iter + 1):
        if tol > 0.0 and not bool(active.any()):
            k -= 1
            break
        q = matvec(p)
        pq = dot(p, q)
        active = active & (pq > 0)
        alpha = torch.where(active, rr / torch.where(active, pq, 1.0), 0.0)
        x = x + expand(alpha, x) * p
        r = r - expand(alpha, x) * q
        new = dot(r, r)
        active = active & (new > tol**2 * bb)
        beta = torch.where(active, new / torch.where(rr > 0, rr, 1.0), 0.0)
        p, rr = r + expand(beta, x) * p, new
    return CGResult(x, (rr / torch.where(bb > 0, bb, 1.0)).sqrt(), k)


def operator_norm(
    operator: LinearOperator, *, max_iter: int = 100, tol: float = 1e-4, dtype: torch.dtype = torch.float32
) -> float:
    """Largest singular value of a linear operator by power iteration on A^H A (a lower bound, to about tol)."""
    buffers = [*operator.buffers(), *operator.parameters()]
    device = buffers[0].device if buffers else None
    kind = torch.promote_types(dtype, torch.complex64) if operator.in_complex else dtype
    x = Streams(0).normal(0, operator.in_shape, "operator_norm", kind, device)
    old = 0.0
    for _ in range(max_iter):
        x = operator.normal(x / expand(norm(x), x))
        value = float(norm(x).sqrt())
        if abs(value - old) <= tol * value:
            break
        old = value
    return value
