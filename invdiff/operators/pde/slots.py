"""Equations with a forcing that is constant on each slot of time: what they share, whatever the scheme.

    u_t = G(u) + f(t, x),      f(t) = f_s for s T / slots <= t < (s + 1) T / slots

The unknown is the initial state and, behind it, the slots of f; a scheme gives one step under one f.

References: Hochbruck, Ostermann, Exponential integrators, Acta Numerica 19, 2010.
"""

from __future__ import annotations

from functools import partial
from math import inf

import torch
from torch import Tensor
from torch.func import debug_unwrap

from ...core.errors import ConfigError, require_positive
from ...core.memory import Memory, Tensors
from .spectral import Evolution

__all__ = ["Forced"]


class Forced(Evolution):
    """u(0) and the forcing -> u at equally spaced times, on an interval. Abstract: a scheme writes `advance`, and `into` and
    `back` where it steps something else than values.

    Args:
        size: number of points n, >= 4.
        viscosity: nu >= 0, length^2 / time.
        slots: equal time intervals on each of which f is constant, >= 0; divides `steps`. 0: no forcing.
        length: of the interval.
        time, steps, save, memory: see `Evolution`.

    Shapes: (B, 1 + slots, n), u(0), in length / time, before the slots of f, in length / time^2 -> (B, save, n).

    Raises:
        ConfigError: an argument is out of its range.
        NumericalError: an initial or a saved state too fast for the step (see `courant`), or not finite.
    """

    def __init__(
        self,
        size: int,
        viscosity: float,
        *,
        slots: int,
        length: float,
        time: float,
        steps: int,
        save: int,
        memory: str | Memory,
    ) -> None:
        super().__init__((size,), time=time, steps=steps, save=save, memory=memory)
        require_positive(self, length=length)
        if not 0.0 <= viscosity < inf:
            raise ConfigError(f"{type(self).__name__}: expected viscosity >= 0, got {viscosity}")
        if slots < 0 or (slots and steps % slots):
            raise ConfigError(f"{type(self).__name__}: expected slots >= 0 that divide steps, got {slots} and {steps}")
        self.in_shape = (1 + slots, size)
        self.size, self.viscosity, self.slots, self.length = size, viscosity, slots, length

    def advance(self, v: Tensor, force: Tensor | None) -> Tensors:
        """The state one step later under a forcing, both as `into` gives them."""
        raise NotImplementedError(f"{type(self).__name__} does not define advance(v, force)")

    def into(self, u: Tensor) -> Tensor:
        """What is stepped, of values (B, rows, n)."""
        return u

    def back(self, v: Tensor) -> Tensor:
        """Values (B, rows, n) of what is stepped."""
        return v

    def forward(self, x: Tensor) -> Tensor:
        states, force = [x[:, :1]], self.into(x[:, 1:])
        self._require_stable(states[0])
        for i in range(self.save):
            states.append(self._carry(states[-1], force, i))
            self._require_stable(states[-1])
        return torch.cat(states[1:], 1)

    def residual(self, x: Tensor, u: Tensor) -> Tensor:
        """What each saved state, (B, save, n), misses of the one before it (the first of x) carried on by the scheme."""
        self.check(x, "x")
        self.check(u, "y")
        before, force = torch.cat((x[:, :1], u[:, :-1]), 1), self.into(x[:, 1:])
        return u - torch.cat([self._carry(before[:, i : i + 1], force, i) for i in range(self.save)], 1)

    def step(self, u: Tensor, force: Tensor | None = None) -> Tensor:
        """The state one step later under a forcing, (B, 1, n) both."""
        return self.back(self.advance(self.into(u), None if force is None else self.into(force))[0])

    def _carry(self, u: Tensor, force: Tensor, i: int) -> Tensor:
        """The state at saved time i + 1 from that at i, the initial one being the first."""
        stretch = self.steps // self.save
        memory = self.memory if debug_unwrap(u) is u else Memory.parse("full")
        times = range(i * stretch, (i + 1) * stretch)
        forces = [force[:, k * self.slots // self.steps, None] if self.slots else None for k in times]
        return self.back(memory.chain([partial(self.advance, force=f) for f in forces], (self.into(u),))[0])
