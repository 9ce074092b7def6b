"""The memory policies; see `memory` for what they promise and what they cost."""

from __future__ import annotations

import math
import re
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import comb
from typing import Literal

import torch
from torch import Tensor, nn

from .errors import CapabilityError, ConfigError
from .memory import Blocks, Closed, Memory, Step, Tensors, joined, recomputed, run_steps
from .reversible import Move, Pair, drift, reversible
from .storage import is_fake, step_bytes

__all__ = ["Auto", "Checkpoint", "DriftWarning", "Full", "Invertible", "Offload", "Revolve", "parse"]


class DriftWarning(UserWarning):
    """A chain could not be undone exactly enough and is recomputed instead."""


@dataclass(frozen=True)
class Full(Memory):
    """Plain autograd."""

    def _chain(self, steps: Sequence[Step], state: Tensors) -> Tensors:
        return run_steps(steps, state)


@dataclass(frozen=True)
class Checkpoint(Memory):
    """Recompute each step, or each block of the networks in it, or both, nested.

    Args:
        over: "step", "block" or "both"; it sets `blocks` for the last two.
        every: steps that are recomputed at once, from one stored state.
    """

    over: Literal["step", "block", "both"] = "step"
    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over not in ("step", "block", "both"):
            raise ConfigError(f"Checkpoint: expected over to be step, block or both, got {self.over!r}")
        if not isinstance(self.every, int) or self.every < 1:
            raise ConfigError(f"Checkpoint: expected an integer every >= 1, got {self.every!r}")
        if self.over == "block" and self.every != 1:
            raise ConfigError(f"Checkpoint: expected every = 1 over blocks, which belong to one step each, got {self.every}")
        if self.over != "step" and self.blocks == "keep":
            object.__setattr__(self, "blocks", "recompute")

    def _chain(self, steps: Sequence[Step], state: Tensors) -> Tensors:
        if self.over == "block":
            return run_steps(steps, state)
        last = (len(steps) - 1) // self.every * self.every
        for k in range(0, last, self.every):
            state = recomputed(joined(steps[k : k + self.every]), state)
        # the last ones would be evaluated again at once
        return run_steps(steps[last:], state)


@dataclass(frozen=True)
class Revolve(Memory):
    """Binomial checkpointing: the fewest evaluations that are possible with so many stored states.

    Args:
        states: stored at a time, the first one included.
    """

    states: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.states, int) or self.states < 1:
            raise ConfigError(f"Revolve: expected an integer states >= 1, got {self.states!r}")

    def _chain(self, steps: Sequence[Step], state: Tensors) -> Tensors:
        return _revolve(steps, state, self.states)

    @staticmethod
    def evaluations(steps: int, states: int) -> int:
        """Evaluations of a step, those with a graph included: N + r N - C(c + r, c + 1), r the repetitions of any step."""
        if states < 1 or steps < 1:
            raise ConfigError(f"Revolve: expected steps >= 1 and states >= 1, got {steps} and {states}")
        r = _repetitions(steps, states)
        return steps + r * steps - comb(states + r, states + 1)


@dataclass(frozen=True)
class Invertible(Memory):
    """Reconstruct every state from the last; for chains of `Move`s. Reversible blocks are undone, the others recomputed.

    The first chain of a network, of coefficients and of a shape is run forth and back in its own precision; where fewer digits
    come back than asked for, it is recomputed step by step instead, and a DriftWarning says so.

    Args:
        digits: decimal digits of the first state that the inverse must return, > 0.

    Raises:
        CapabilityError: on a chain that can't be undone.
    """

    blocks: Blocks = field(default="invert", kw_only=True)
    digits: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.digits > 0.0:
            raise ConfigError(f"Invertible: expected digits > 0, got {self.digits}")

    def _chain(self, steps: Sequence[Step], state: Tensors) -> Tensors:
        moves = [s for s in steps if isinstance(s, Move) and not (isinstance(s.a, (int, float)) and s.a == 0)]
        if len(moves) != len(steps) or len(state) != 2:
            raise CapabilityError(
                "memory invertible: the steps of this chain can't be undone: use an invertible sampler (OBELM, BDIA, EDICT) or "
                "memory checkpoint(step)"
            )
        pair: Pair = (state[0], state[1])
        lost = _drift(moves, pair)
        if lost <= 10.0**-self.digits:
            return reversible(moves, pair, digits=self.digits - 1.0)
        warnings.warn(
            f"memory invertible: after {len(moves)} moves and back, {state[0].dtype} has a relative error of {lost:.1e}, more "
            f"than 1e-{self.digits:g}: the steps are recomputed instead (checkpoint)",
            DriftWarning,
            stacklevel=4,
        )
        return Checkpoint(blocks=self.blocks)._chain(steps, state)


@dataclass(frozen=True)
class Offload(Memory):
    """Keep the states of a chain that is recomputed step by step elsewhere.

    Args:
        dtype: in which they are kept; None as they are. In a lower precision the gradient is not exact.
        device: where.
    """

    dtype: torch.dtype | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise ConfigError(f"Offload: expected a floating-point dtype, got {self.dtype}")
        try:
            torch.device(self.device)
        except RuntimeError:
            raise ConfigError(f"Offload: expected a device like cpu, got {self.device!r}") from None

    def _chain(self, steps: Sequence[Step], state: Tensors) -> Tensors:
        def pack(t: Tensor) -> tuple[Tensor, torch.dtype, torch.device]:
            dtype = self.dtype if self.dtype is not None and t.is_floating_point() else t.dtype
            target = torch.device(self.device)
            if t.is_cuda and target.type == "cpu":
                kept = torch.empty(t.shape, dtype=dtype, pin_memory=True).copy_(t)
            else:
                kept = t.to(device=target, dtype=dtype)
            return kept, t.dtype, t.device

        def unpack(packed: tuple[Tensor, torch.dtype, torch.device]) -> Tensor:
            kept, dtype, device = packed
            return kept.to(device=device, dtype=dtype, non_blocking=True)

        # only states cross from step to step, so that parameters stay where they are
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            for step in steps:
                state = recomputed(step, state)
        return state


@dataclass(frozen=True)
class Auto(Memory):
    """Measure one step, without computing it where that is possible, and take the cheapest policy that fits.

    In this order: full, checkpoint(step), checkpoint(both), invertible, revolve with as many states as fit.

    Args:
        budget: bytes for what is kept and for the derivative of one step; parameters and their gradients are not counted.
    """

    budget: int = 2**30

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.budget > 0:
            raise ConfigError(f"Auto: expected budget > 0 bytes, got {self.budget}")

    def _chain(self, steps: Sequence[Step], state: Tensors) -> Tensors:
        return self.choose(steps, state).chain(steps, state)

    def choose(self, steps: Sequence[Step], state: Tensors) -> Memory:
        """The policy for this chain.

        Raises:
            CapabilityError: the derivative of one step alone needs more than the budget.
        """
        kept = sum(t.untyped_storage().nbytes() for t in state)
        n, step = len(steps), _apart(steps[0])
        plain = step_bytes(step, state)
        options: list[tuple[Memory, int]] = [(Full(), (n - 1) * plain.held + plain.peak), (Checkpoint(), n * kept + plain.peak)]
        blockwise = Checkpoint(over="both")
        small = step_bytes(blockwise._within(step), state)
        options.append((blockwise, n * kept + small.peak))
        if all(isinstance(s, Move) for s in steps):
            inverse = Invertible()
            options.append((inverse, 2 * kept + step_bytes(inverse._within(step), state).peak))
        for policy, needed in options:
            if needed <= self.budget:
                return policy
        states = (self.budget - small.peak) // max(1, kept)
        if states >= 1:
            return Revolve(min(int(states), n), blocks="recompute")
        raise CapabilityError(
            f"memory auto: one step with its derivative needs {small.peak / 2**20:.1f} MiB even with its blocks recomputed, "
            f"the budget is {self.budget / 2**20:.1f} MiB"
        )


def _apart(step: Step) -> Step:
    """A move with tensors of its own: the derivative of one step would free the graph that they come from."""

    def alone(t: Tensor) -> Tensor:
        return t.detach().requires_grad_(t.requires_grad)

    if not isinstance(step, Move):
        return step
    a, b, c = (alone(v) if isinstance(v, Tensor) else v for v in (step.a, step.b, step.c))
    return replace(step, a=a, b=b, c=c, inputs=tuple(map(alone, step.inputs)))


def _repetitions(steps: int, states: int) -> int:
    """The smallest r with C(c + r, c) >= N: how often any step is evaluated again."""
    r = 0
    while comb(states + r, states) < steps:
        r += 1
    return r


def _revolve(steps: Sequence[Step], state: Tensors, states: int) -> Tensors:
    """The last steps with one stored state less, over the first ones, which are done again when those are through."""
    n = len(steps)
    if n == 1:
        return steps[0](*state)
    if states == 1:
        first = n - 1
    else:
        r = _repetitions(n, states)
        first = min(max(n - comb(states - 1 + r, states - 1), comb(states + r - 2, states), 1), n - 1)

    def begin(*s: Tensor) -> Tensors:
        return _revolve(steps[:first], s, states)

    beginning = Closed(begin) if all(isinstance(s, Closed) for s in steps[:first]) else begin
    return _revolve(steps[first:], recomputed(beginning, state), max(states - 1, 1))


# by what was measured, and on which network: its error, and the network's first tensor while it lives
_drifts: dict[tuple[object, ...], tuple[float, weakref.ref[Tensor] | None]] = {}


def _drift(moves: Sequence[Move], pair: Pair) -> float:
    """`drift`, measured once for chains of a network with the same numbers, to a digit, on tensors of the same kind."""
    if is_fake(pair[0]):
        return 0.0
    numbers = tuple(f"{float(torch.as_tensor(v).detach()):.0e}" for m in moves for v in (m.a, m.b, m.c))
    owner = next((t for m in moves for t in _tensors_of(m)), None)
    key = (numbers, pair[0].shape, pair[0].dtype, pair[0].device.type, id(owner))
    lost, reference = _drifts.get(key, (math.nan, None))
    # an address may be another tensor's by now
    if math.isnan(lost) or (owner is not None and (reference is None or reference() is not owner)):
        lost = drift(moves, pair)
        if len(_drifts) > 256:
            _drifts.clear()
        _drifts[key] = lost, None if owner is None else weakref.ref(owner)
    return lost


def _tensors_of(move: Move) -> Iterator[Tensor]:
    """Parameters and buffers of what a move evaluates."""
    yield from move.parameters or ()
    if isinstance(move.body, nn.Module):
        yield from move.body.parameters()
        yield from move.body.buffers()


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([KMGT]?)(i?B)?", text, re.IGNORECASE)
    if match is None:
        raise ValueError(text)
    base = 1024 if (match[3] or "iB").lower() == "ib" else 1000
    return int(float(match[1]) * base ** ["", "K", "M", "G", "T"].index(match[2].upper()))


def _offload(*words: str) -> Offload:
    kinds = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    dtypes = [kinds[w] for w in words if w in kinds]
    devices = [w for w in words if w not in kinds]
    if len(dtypes) > 1 or len(devices) > 1:
        raise ValueError(words)
    return Offload(dtypes[0] if dtypes else None, *devices)


_PARSERS: dict[str, Callable[..., Memory]] = {
    "full": lambda: Full(),
    "checkpoint": lambda over="step", every="1": Checkpoint(over, int(every)),
    "revolve": lambda states: Revolve(int(states)),
    "invertible": lambda: Invertible(),
    "offload": _offload,
    "auto": lambda budget: Auto(_bytes(budget)),
}


def parse(text: str) -> Memory:
    """See `Memory.parse`."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", str(text))
    name, inside = (match[1], match[2] or "") if match else ("", "")
    words = [w.strip() for w in inside.split(",") if w.strip()]
    try:
        return _PARSERS[name](*words)
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            "memory: expected full, checkpoint(step), checkpoint(step, N), checkpoint(block), checkpoint(both), "
            f"revolve(STATES), invertible, offload, offload(bfloat16) or auto(8GiB), got {text!r}"
        ) from None
