"""Options that are one for all axes of a grid, or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["per_axis"]

T = TypeVar("T")


def per_axis(value: T | Sequence[T], axes: int) -> tuple[T, ...]:
    """One value for each of the axes from one number or word, which is repeated, or from as many; the caller counts them."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(value)
    return (value,) * axes  # type: ignore[return-value]
