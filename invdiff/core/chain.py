"""A sampler's run as a chain of functions of tensors, that a memory policy differentiates.

    s_{k+1} = step_k(s_k),    s = the tensors of the State; its numbers (the step index, the noise level) are constants

A step is evaluated again for its derivative with the same numbers and the same noise, a function of (seed, draw, step).

References: Clark, Vicol, Swersky, Fleet, Directly fine-tuning diffusion models on differentiable rewards, ICLR 2024,
arXiv:2309.17400 (what a differentiated chain is for).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .errors import CapabilityError, ShapeError
from .memory import Memory

if TYPE_CHECKING:
    from .denoiser import Denoiser
    from .problem import Problem
    from .rng import Streams
    from .sampler import Sampler, State

__all__ = ["require_differentiable", "started", "unrolled"]


def require_differentiable(sampler: Sampler) -> None:
    """Raise a CapabilityError where a sampler's steps cut the graph."""
    if not sampler.differentiable:
        raise CapabilityError(
            f"{sampler.name}: its steps pass no gradient on: Guided and Reversible without guidance, DDNM, DiffPIR and IDM "
            "can be differentiated"
        )


def started(state: State, start: Tensor | None) -> State:
    """The state with its first iterate replaced, (n, *shape), of its dtype and device."""
    if start is None:
        return state
    if start.shape != state.x.shape or start.dtype != state.x.dtype:
        raise ShapeError(
            f"differentiate: expected start of shape {tuple(state.x.shape)} {state.x.dtype}, got {tuple(start.shape)} "
            f"{start.dtype}"
        )
    return dataclasses.replace(state, x=start)


def unrolled(sampler: Sampler, problem: Problem, denoiser: Denoiser, state: State, streams: Streams, memory: Memory) -> Tensor:
    """x after all steps of `sampler`, each one link of the chain."""
    kind, fields = type(state), {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    names = [k for k, v in fields.items() if isinstance(v, Tensor)]
    # the numbers of the state before each step, known once the step before has run
    numbers: list[dict[str, Any]] = [{}] * sampler.steps
    numbers[0] = {k: v for k, v in fields.items() if k not in names}

    def link(k: int) -> Callable[..., tuple[Tensor, ...]]:
        def step(*tensors: Tensor) -> tuple[Tensor, ...]:
            before: dict[str, Any] = {**numbers[k], **dict(zip(names, tensors, strict=True))}
            after = sampler.step(problem, denoiser, kind(**before), streams)
            values = {f.name: getattr(after, f.name) for f in dataclasses.fields(after)}
            if k + 1 < sampler.steps:
                numbers[k + 1] = {key: v for key, v in values.items() if key not in names}
            return tuple(values[key] for key in names)

        return step

    out = memory.chain([link(k) for k in range(sampler.steps)], tuple(fields[key] for key in names))
    return out[names.index("x")]
