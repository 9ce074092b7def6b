"""Functions of single values as operators: bounds, positivity, two-valued media. They compose with any operator.

    Clip         min(max(x, low), high); its derivative is 0 where it bites
    Exponential  scale exp(x): a logarithm as the unknown of a positive coefficient
    Step         low + (high - low) Phi(x / width), Phi the normal distribution function: a level set with an edge of finite
                 width, whose derivative tells a method where the edge should go

References: Iglesias, Lu, Stuart, A Bayesian level set method for geometric inverse problems, Interfaces Free Bound. 18, 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..core.errors import ConfigError, require_positive
from ..core.operator import Operator

__all__ = ["Clip", "Exponential", "Step"]


class _Pointwise(Operator):
    """A function of each value alone; `slope` is its derivative."""

    def slope(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define slope(x)")

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        factor = self.slope(x)
        return self(x), lambda t: factor * t, lambda v: factor * v

    def vjp(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        y, _, pull = self.linearize(x)
        return y, pull

    def jvp(self, x: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        y, push, _ = self.linearize(x)
        return y, push(tangent)


class Clip(_Pointwise):
    """Values between two bounds.

    Args:
        shape: of the unknown, without the batch.
        low, high: bounds, low < high; infinite for none.
    """

    def __init__(self, shape: Sequence[int], low: float = -math.inf, high: float = math.inf) -> None:
        if not low < high:
            raise ConfigError(f"Clip: expected low < high, got {low} and {high}")
        super().__init__(tuple(shape), tuple(shape))
        self.low, self.high = float(low), float(high)

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    def slope(self, x: Tensor) -> Tensor:
        return ((x >= self.low) & (x <= self.high)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_shape}, [{self.low:g}, {self.high:g}]"


class Exponential(_Pointwise):
    """scale exp(x).

    Args:
        shape: of the unknown, without the batch.
        scale: the value at x = 0, positive.
    """

    def __init__(self, shape: Sequence[int], scale: float = 1.0) -> None:
        super().__init__(tuple(shape), tuple(shape))
        require_positive(self, scale=scale)
        self.scale = float(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.exp()

    def slope(self, x: Tensor) -> Tensor:
        return self.scale * x.exp()

    def extra_repr(self) -> str:
        return f"{self.in_shape}, scale={self.scale:g}"


class Step(_Pointwise):
    """From a level-set function to a medium of two values.

    Args:
        shape: of the unknown, without the batch.
        low, high: values far below and far above the level 0.
        width: standard deviation of the edge, in units of the unknown, positive.
    """

    def __init__(self, shape: Sequence[int], *, low: float, high: float, width: float) -> None:
        super().__init__(tuple(shape), tuple(shape))
        require_positive(self, width=width)
        self.low, self.high, self.width = float(low), float(high), float(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * torch.special.ndtr(x / self.width)

    def slope(self, x: Tensor) -> Tensor:
        z = x / self.width
        return (self.high - self.low) / (self.width * math.sqrt(2.0 * math.pi)) * (-0.5 * z * z).exp()

    def extra_repr(self) -> str:
        return f"{self.in_shape}, {self.low:g} to {self.high:g}, width={self.width:g}"
