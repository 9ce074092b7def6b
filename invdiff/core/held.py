"""Numbers that the host reads from a tensor on the device once, and not at every step, where it would have to wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

__all__ = ["Held"]

T = TypeVar("T")


class Held(Generic[T]):
    """What was read from a tensor, until there is another tensor or this one was written to."""

    def __init__(self) -> None:
        self._known: tuple[Tensor, int, T] | None = None

    def __call__(self, tensor: Tensor, read: Callable[[Tensor], T]) -> T:
        """read(tensor), or what it gave before."""
        # a tensor of inference mode counts no writes
        written = 0 if tensor.is_inference() else tensor._version
        if self._known is None or self._known[0] is not tensor or self._known[1] != written:
            self._known = (tensor, written, read(tensor))
        return self._known[2]
