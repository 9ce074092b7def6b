"""Counts of network and operator evaluations, as every result reports them.

Evaluations are counted per item: a batched call of eight draws counts eight, so that calls divided by draws is the number
that papers print. Only the outermost operator of a composition counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor, nn

from .denoiser import Denoiser

__all__ = ["Counted", "Counter", "counting", "network_call", "operator_call"]


@dataclass
class Counter:
    """Evaluations so far: of the operator (forward, adjoint, solve), of the network, and its vector-Jacobian products."""

    operator: int = 0
    network: int = 0
    vjp: int = 0
    depth: int = 0


_current: ContextVar[Counter | None] = ContextVar("invdiff_counter", default=None)


@contextmanager
def counting(counter: Counter) -> Iterator[Counter]:
    """Count operator calls, and those of a sampler's own network, of this context into `counter`."""
    token = _current.set(counter)
    try:
        yield counter
    finally:
        _current.reset(token)


@contextmanager
def operator_call(items: int) -> Iterator[None]:
    """Mark the evaluation of an operator on `items` items; nested ones do not count."""
    counter = _current.get()
    if counter is None:
        yield
        return
    if counter.depth == 0:
        counter.operator += items
    counter.depth += 1
    try:
        yield
    finally:
        counter.depth -= 1


def network_call(items: int) -> None:
    """Count an evaluation, on `items` items, of a network that is not the prior, such as a sampler's own."""
    counter = _current.get()
    if counter is not None:
        counter.network += items


class Counted(Denoiser):
    """The same prior, with its evaluations and its vector-Jacobian products counted."""

    def __init__(self, prior: Denoiser, counter: Counter) -> None:
        nn.Module.__init__(self)
        self.prior, self.counter = prior, counter
        self.shape, self.sigma_min, self.sigma_max = prior.shape, prior.sigma_min, prior.sigma_max

    @property
    def origin(self) -> float | Tensor:
        return self.prior.origin

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.counter.network += len(x)
        out = self.prior(x, sigma)
        if out.requires_grad:
            out.register_hook(self._count_vjp)
        return out

    def _count_vjp(self, gradient: Tensor) -> None:
        self.counter.vjp += len(gradient)
