"""What the tables of `pde_orders` share: a row, and the points of an axis."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from invdiff.core import Operator

PI, F64 = math.pi, torch.float64
KINDS = ("periodic", "dirichlet", "neumann")
ROUNDING, SLACK = 1e-11, 0.1


def measure(
    operator: str,
    scheme: str,
    declared: float | None,
    sizes: Sequence[int],
    pair: Callable[[int], tuple[Tensor, Tensor]],
    walls: bool = False,
    **more: str,
) -> dict:
    """A row: the errors of the solution against the one wanted, at each size; None is the order of what is exact.

    With `walls` the first and the last interval end where there is no point: there is one more of them than points.
    """
    start, errors = time.perf_counter(), []
    for size in sizes:
        got, want = pair(size)
        errors.append(float((got - want).norm() / want.norm()))
    finer = (sizes[-1] + walls) / (sizes[-2] + walls)
    slope = None if declared is None else math.log(errors[-2] / errors[-1]) / math.log(finer)
    return {
        "operator": operator,
        "scheme": scheme,
        "declared": declared,
        "refined": "points",
        "against": "closed form",
        **more,
        "sizes": list(sizes),
        "errors": errors,
        "slope": slope,
        "ok": errors[-1] <= ROUNDING if slope is None or declared is None else abs(slope - declared) <= SLACK,
        "seconds": time.perf_counter() - start,
    }


def in_steps(
    name: str, scheme: str, declared: float, steps: Sequence[int], make: Callable[[int], Operator], u: Tensor, finer: int = 4
) -> dict:
    """The row of a method's steps of time, against a run of more of them on the same points."""
    reference = make(finer * steps[-1])(u)
    more = {"refined": "steps", "against": f"{finer * steps[-1]} steps"}
    return measure(name, scheme, declared, steps, lambda s: (make(s)(u), reference), **more)


def axis(n: int, kind: str) -> Tensor:
    """The points of an axis of unit length, as `poisson` has them."""
    first, cells = {"periodic": (0.0, n), "dirichlet": (1.0, n + 1), "neumann": (0.5, n)}[kind]
    return (torch.arange(n, dtype=F64) + first) / cells
