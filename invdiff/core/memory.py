"""What is kept of a computation for its derivative: memory policies, one object for samplers, guidance, training and solvers.

A chain s_{k+1} = f_k(s_k), k = 0, ..., N-1, has states of S bytes, and autograd keeps A bytes of one step. Inside a step a
network has blocks, of whose activations the same may be asked.

    policy               keeps              evaluations of a step, without its derivative
    full                 N A                N
    checkpoint(step)     N S + A            2 N - 1
    checkpoint(step, n)  N S / n + n A      2 N - n
    checkpoint(block)    the blocks' inputs of all N steps
    checkpoint(both)     N S + the blocks' inputs of one step + one block
    revolve(c)           c S + A            the fewest that are possible with c stored states (binomial)
    invertible           2 S + A            2 N, for chains that can be undone (`reversible`)
    offload(policy)      what the policy keeps, in main memory, in another precision if asked to (then not exact)
    auto(bytes)          measures S and A, and takes the cheapest in evaluations that fits

Every policy but offload in a lower precision gives the gradient of plain autograd: recomputed values are the same operations
on the same numbers, those of an inverse agree to rounding. torch's random state and autocast are replayed. checkpoint, revolve
and offload are nested `torch.utils.checkpoint`s without re-entrance: they work with `torch.autograd.grad`, hooks and
DistributedDataParallel; `invertible` too, but without second derivatives. `torch.compile` breaks its graph at a step. A
`Closed` step, which reads no random numbers and no parameters, is recomputed without their bookkeeping: for the short steps of
a solver that is half of the cost.

References: Griewank, Walther, Algorithm 799: revolve, ACM TOMS 26, 2000. Chen, Xu, Zhang, Guestrin, Training deep nets with
sublinear memory cost, 2016, arXiv:1604.06174.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from .errors import ConfigError
from .reversible import Move, Pair, reversible, run_moves

__all__ = ["Blocks", "Closed", "Memory", "Step", "Tensors", "joined", "recomputed", "run_block", "run_chain", "run_steps"]

Tensors = tuple[Tensor, ...]
Step = Callable[..., Tensors]
Blocks = Literal["keep", "recompute", "invert"]


class _Mode(threading.local):
    blocks: Blocks = "keep"


# what the policy in force says of a network's blocks; torch.compile can guard an attribute, not a context variable
_mode = _Mode()


@dataclass(frozen=True)
class Memory:
    """Base of the policies.

    Args:
        blocks: what is done about the blocks of a network inside a step: "keep" their activations, "recompute" them, or
            "invert" those of a reversible network and recompute the others.

    Raises:
        ConfigError: blocks are none of these.
    """

    blocks: Blocks = field(default="keep", kw_only=True)

    def __post_init__(self) -> None:
        if self.blocks not in ("keep", "recompute", "invert"):
            raise ConfigError(f"{type(self).__name__}: expected blocks to be keep, recompute or invert, got {self.blocks!r}")

    def chain(self, steps: Sequence[Step], state: Tensors) -> Tensors:
        """The state after all steps, each a function of the state's tensors; gradients flow to whatever the steps use."""
        if not (torch.is_grad_enabled() and steps):
            return run_steps([self._within(s) for s in steps], state)
        return self._chain([self._within(s) for s in steps], state)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Blocks of networks evaluated here follow the policy."""
        before, _mode.blocks = _mode.blocks, self.blocks
        try:
            yield
        finally:
            _mode.blocks = before

    def _chain(self, steps: Sequence[Step], state: Tensors) -> Tensors:
        raise NotImplementedError(f"{type(self).__name__} does not define _chain(steps, state)")

    def _within(self, step: Step) -> Step:
        """The step with the policy in force, in the backward pass too, which may run in another thread."""
        if self.blocks == "keep":
            return step
        if isinstance(step, Closed):
            return step
        if isinstance(step, Move):
            return step if step.body is None else dataclasses.replace(step, body=_Within(step.body, self))

        def run(*state: Tensor) -> Tensors:
            with self.active():
                return step(*state)

        return run

    @staticmethod
    def parse(text: str | Memory) -> Memory:
        """The policy that a text like "checkpoint(both)", "revolve(8)", "offload(bfloat16)" or "auto(8GiB)" names.

        Raises:
            ConfigError: it names none.
        """
        from .policies import parse

        return text if isinstance(text, Memory) else parse(str(text))


def run_block(block: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """block(*inputs) under the policy in force; a network calls its blocks through it."""
    if _mode.blocks != "keep" and torch.is_grad_enabled():
        out: Tensor = recompute(block, *inputs, use_reentrant=False)
        return out
    return block(*inputs)


def run_chain(moves: Sequence[Move], pair: Pair) -> Pair:
    """The moves of a reversible network under the policy in force."""
    if not torch.is_grad_enabled() or _mode.blocks == "keep":
        return run_moves(moves, pair)
    if _mode.blocks == "invert":
        return reversible(moves, pair)
    state: Tensors = pair
    for move in moves:
        state = recomputed(move, state)
    return state[0], state[1]


class _Within(nn.Module):
    """A body of a move, with a policy in force wherever it is evaluated."""

    def __init__(self, body: Callable[..., Tensor], policy: Memory) -> None:
        super().__init__()
        self.body, self.policy = body, policy

    def forward(self, *inputs: Tensor) -> Tensor:
        with self.policy.active():
            return self.body(*inputs)


def run_steps(steps: Sequence[Step], state: Tensors) -> Tensors:
    """The state after the steps, by plain autograd."""
    for step in steps:
        state = step(*state)
    return state


@dataclass(frozen=True)
class Closed:
    """A deterministic step that depends on the tensors of its state alone: a solver's, unlike that of a network.

    Args:
        step: state -> state.
    """

    step: Step

    def __call__(self, *state: Tensor) -> Tensors:
        return self.step(*state)


def joined(steps: Sequence[Step]) -> Step:
    """The steps as one, closed if they all are."""
    if len(steps) == 1:
        return steps[0]

    def run(*state: Tensor) -> Tensors:
        return run_steps(steps, state)

    return Closed(run) if all(isinstance(s, Closed) for s in steps) else run


class _Recomputed(torch.autograd.Function):
    """A closed step of which its state alone is kept."""

    @staticmethod
    def forward(ctx: Any, step: Step, *state: Tensor) -> Tensors:
        ctx.step = step
        ctx.save_for_backward(*state)
        # a step may return what it was given, which a function must not
        return tuple(t.view_as(t) for t in step(*state))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        twice, saved, needed = torch.is_grad_enabled(), ctx.saved_tensors, ctx.needs_input_grad[1:]
        with torch.enable_grad():
            # for a second derivative the graph has to reach the state that was given
            held = [t.view_as(t) if twice else t.detach().requires_grad_(n) for t, n in zip(saved, needed, strict=True)]
            pairs = [(o, c) for o, c in zip(ctx.step(*held), cotangents, strict=True) if o.requires_grad]
            wanted = [t for t, n in zip(held, needed, strict=True) if n]
            outs, weights = [o for o, _ in pairs], [c for _, c in pairs]
            found = iter(torch.autograd.grad(outs, wanted, weights, create_graph=twice, allow_unused=True))
        return None, *(next(found) if n else None for n in needed)


def recomputed(step: Step, state: Tensors) -> Tensors:
    """The state after a step, which is evaluated again for its derivative."""
    out: Tensors
    if isinstance(step, Closed):
        out = _Recomputed.apply(step, *state)  # type: ignore[no-untyped-call]
        return out
    if not isinstance(step, Move) or not step.inputs:
        out = recompute(step, *state, use_reentrant=False)
        return out
    # as arguments: in a closure they would outlive a checkpoint around the chain
    alone, inputs = dataclasses.replace(step, inputs=()), step.inputs

    def run(p: Tensor, x: Tensor, *inputs: Tensor) -> Tensors:
        return dataclasses.replace(alone, inputs=inputs)(p, x)

    out = recompute(run, *state, *inputs, use_reentrant=False)
    return out
