"""Reversible stages: blocks of one shape, whose activations are reconstructed instead of kept.

A stage of blocks f_1, ..., f_L of one shape runs on two streams that start as (s z, z) and end as z_1 + m z_2,

    (p, x) -> (x, a p + b x + c f_k(x, inputs)),

the moves of `core.reversible` with one of three couplings:

    Affine(v)      (1 - v) f(x) + v p                       v, s, m learnable: the wiring of IDM. v = 0 would be the plain stage
    Additive()     p + (f(x) - x)                           the reversible residual network
    Momentum(g)    x + g (x - p) + (1 - g) (f(x) - x)       g = 0 would be the plain stage

A pretrained stage keeps its weights and, with small v or g and m = 0, nearly its function; for blocks near the identity the
inverse amplifies rounding up to 1 / v or 1 / g at every block (of an additive one it does not): v = 0.3 and four blocks cost
two digits. Under the memory policies
`invertible`, or any other with blocks="invert", the backward pass keeps nothing but the end of the stage; skips and conditions
are explicit inputs whose gradients are returned.

References: Chen, Zhang, Li, Zhang, Invertible diffusion models for compressed sensing, 2024, arXiv:2403.17006. Gomez, Ren,
Urtasun, Grosse, The reversible residual network, 2017, arXiv:1707.04585. Sander, Ablin, Blondel, Peyre, Momentum residual
neural networks, 2021, arXiv:2102.07870.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.memory import run_chain
from ..core.reversible import Move, Number

__all__ = ["Additive", "Affine", "Coupling", "Momentum", "ReversibleChain"]

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Coupling:
    """Base of the couplings.

    Attributes:
        learnable: the number that a chain learns for each of its blocks, at the start; None for none.
    """

    learnable = None

    def numbers(self, v: Tensor | None) -> tuple[Number, Number, Number]:
        """a, b, c."""
        raise NotImplementedError(f"{type(self).__name__} does not define numbers(v)")


@dataclass(frozen=True)
class Affine(Coupling):
    """(1 - v) f(x) + v p.

    Args:
        v: share of the older state, in (0, 1); learnable, one number for each block.
    """

    v: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.v < 1.0:
            raise ConfigError(f"Affine: expected v between 0 and 1, got {self.v}")

    @property
    def learnable(self) -> float:  # type: ignore[override]
        return self.v

    def numbers(self, v: Tensor | None) -> tuple[Number, Number, Number]:
        assert v is not None
        return v, 0.0, 1.0 - v


@dataclass(frozen=True)
class Additive(Coupling):
    """p + (f(x) - x), for blocks that are residual themselves."""

    def numbers(self, v: Tensor | None) -> tuple[Number, Number, Number]:
        return 1.0, -1.0, 1.0


@dataclass(frozen=True)
class Momentum(Coupling):
    """x + g (x - p) + (1 - g) (f(x) - x).

    Args:
        g: in (0, 1).
    """

    g: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.g < 1.0:
            raise ConfigError(f"Momentum: expected g between 0 and 1, got {self.g}")

    def numbers(self, v: Tensor | None) -> tuple[Number, Number, Number]:
        return -self.g, 2.0 * self.g, 1.0 - self.g


class ReversibleChain(nn.ModuleList):
    """Blocks of one shape, coupled so that the chain can be undone; in a state dictionary the blocks keep their names.

    Args:
        blocks: modules f(x, *inputs) that return a tensor of the shape of x.
        coupling: how a block's value is joined to the state before it.

    Parameters beside the blocks': `start` s (at 1) and `finish` m (at 0), (), and `v`, (number of blocks,), of an Affine one.

    Shapes: x (B, ...) -> the same.

    Raises:
        ConfigError: there are no blocks.
    """

    def __init__(self, blocks: Iterable[nn.Module], coupling: Coupling | None = None) -> None:
        super().__init__(blocks)
        if not len(self):
            raise ConfigError("ReversibleChain: expected at least one block")
        self.coupling = Affine() if coupling is None else coupling
        self.start, self.finish = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        own = self.coupling.learnable
        self.v = None if own is None else nn.Parameter(torch.full((len(self),), float(own)))

    def forward(self, x: Tensor, *inputs: Tensor, call: Call | None = None) -> Tensor:
        """The end of the chain.

        Args:
            inputs: tensors that every block gets after x.
            call: (block, x, *inputs) -> tensor, instead of block(x, *inputs), for blocks that need more than tensors.
        """
        pair = run_chain(self.moves(*inputs, call=call), (self.start * x, x))
        return pair[1] + self.finish * pair[0]

    def moves(self, *inputs: Tensor, call: Call | None = None) -> list[Move]:
        """The chain's moves, for `core.reversible`."""
        return [
            Move(
                *self.coupling.numbers(None if self.v is None else self.v[k]),
                body=block if call is None else _bound(call, block),
                inputs=inputs,
                parameters=tuple(block.parameters()),
            )
            for k, block in enumerate(self)
        ]


def _bound(call: Call, block: nn.Module) -> Call:
    def body(x: Tensor, *inputs: Any) -> Tensor:
        return call(block, x, *inputs)

    return body
