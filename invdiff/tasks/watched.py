"""What is seen of an orbit u, M(u), M(M(u)), ... of a model, as an operator of its first state.

    A u = (H_1 M^{t_1} u, H_2 M^{t_2} u, ...),    t_1 <= t_2 <= ...,    J^T v = sum_j (M'^T)^{t_j} H_j'^T v_j

The adjoint goes back through the orbit once. Each part keeps a way of its own to its derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..core import LinearOperator, Operator

__all__ = ["Scaled", "Seen", "watched"]

Map = Callable[[Tensor], Tensor]
Seen = tuple[int, Operator]


def watched(model: Operator, seen: Sequence[Seen]) -> Operator:
    """(B, *state) -> (B, sum of sizes), linear where all parts are.

    Args:
        model: from a state to the next.
        seen: (t, H) in the order of their times t >= 0, the outputs of H flat.
    """
    linear = all(isinstance(o, LinearOperator) for o in (model, *(o for _, o in seen)))
    return _LinearlyWatched(model, seen) if linear else _Watched(model, seen)  # type: ignore[arg-type]


class Scaled(LinearOperator):
    """Weights of the points, (B, *shape) -> (B, N)."""

    weight: Tensor

    def __init__(self, weight: Tensor, measured: Tensor | None = None) -> None:
        super().__init__(tuple(weight.shape), (weight.numel(),))
        self.register_buffer("weight", weight.contiguous())
        if measured is not None:
            self.measured = measured.expand(weight.shape).flatten()

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).flatten(1)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.weight * y.reshape(-1, *self.in_shape)


class _Watched(Operator):
    """See `watched`."""

    def __init__(self, model: Operator, seen: Sequence[Seen]) -> None:
        super().__init__(model.in_shape, (sum(o.out_shape[0] for _, o in seen),))
        self.model, self.parts = model, nn.ModuleList({id(o): o for _, o in seen}.values())
        self.seen, self.sizes = tuple(seen), [o.out_shape[0] for _, o in seen]
        self.measured = _measured(seen)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(_watch(self.model, self.seen, x), 1)

    def vjp(self, x: Tensor) -> tuple[Tensor, Map]:
        y, _, pull = self._chain(x, lambda o, u: (*o.vjp(u), None))
        return y, pull

    def linearize(self, x: Tensor) -> tuple[Tensor, Map, Map]:
        return self._chain(x, _turned)

    def _chain(self, x: Tensor, differentiate: Callable[[Operator, Tensor], tuple]) -> tuple[Tensor, Map, Map]:  # type: ignore[type-arg]
        """By the chain rule, so that each part keeps a way of its own to its derivative."""
        u, now, values, steps, views = x, 0, [], [], []
        for t, o in self.seen:
            for _ in range(t - now):
                u, pull, push = differentiate(self.model, u)
                steps.append((pull, push))
            now = t
            value, pull, push = differentiate(o, u)
            values.append(value)
            views.append((t, pull, push))

        def forth(d: Tensor) -> Tensor:
            out, now = [], 0
            for t, _, push in views:
                for _, along in steps[now:t]:
                    d = along(d)
                now = t
                out.append(push(d))
            return torch.cat(out, 1)

        def back(v: Tensor) -> Tensor:
            total, now = torch.zeros_like(x), len(steps)
            for (t, pull, _), part in reversed(list(zip(views, v.split(self.sizes, 1), strict=True))):
                for along, _ in reversed(steps[t:now]):
                    total = along(total)
                now, total = t, total + pull(part)
            for along, _ in reversed(steps[:now]):
                total = along(total)
            return total

        return torch.cat(values, 1), forth, back


class _LinearlyWatched(LinearOperator):
    """See `watched`."""

    def __init__(self, model: LinearOperator, seen: Sequence[Seen]) -> None:
        super().__init__(model.in_shape, (sum(o.out_shape[0] for _, o in seen),))
        self.model, self.parts = model, nn.ModuleList({id(o): o for _, o in seen}.values())
        self.seen, self.sizes = tuple(seen), [o.out_shape[0] for _, o in seen]
        self.measured = _measured(seen)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(_watch(self.model, self.seen, x), 1)

    def adjoint(self, y: Tensor) -> Tensor:
        total, now = y.new_zeros(len(y), *self.in_shape), self.seen[-1][0]
        for (t, o), part in reversed(list(zip(self.seen, y.split(self.sizes, 1), strict=True))):
            for _ in range(now - t):
                total = self.model.adjoint(total)
            now, total = t, total + o.adjoint(part)
        for _ in range(now):
            total = self.model.adjoint(total)
        return total


def _watch(model: Operator, seen: Sequence[Seen], x: Tensor) -> list[Tensor]:
    out, now = [], 0
    for t, o in seen:
        for _ in range(t - now):
            x = model(x)
        now = t
        out.append(o(x))
    return out


def _turned(operator: Operator, u: Tensor) -> tuple[Tensor, Map, Map]:
    value, push, pull = operator.linearize(u)
    return value, pull, push


def _measured(seen: Sequence[Seen]) -> Tensor | None:
    if all(o.measured is None for _, o in seen):
        return None
    at = next(o.measured.device for _, o in seen if o.measured is not None)
    masks = (torch.ones(o.out_shape, dtype=torch.bool, device=at) if o.measured is None else o.measured for _, o in seen)
    return torch.cat(list(masks))
