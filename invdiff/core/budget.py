"""How many draws fit into memory at once.

The second step of a run is computed with one draw and with two, and the bytes alive at its worst moment are counted:

    peak(b) = peak(1) + (b - 1) (peak(2) - peak(1)) <= budget

Steps whose needs grow on the way, and what `storage` does not see, the workspace of single operators, want some room. Draws
are the same whatever the batch.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import CapabilityError, ConfigError
from .policies import Auto, parse
from .rng import Streams
from .storage import LiveStorage

if TYPE_CHECKING:
    from .denoiser import Denoiser
    from .problem import Problem
    from .sampler import Sampler

__all__ = ["draws_within"]


def draws_within(budget: str, sampler: Sampler, problem: Problem, prior: Denoiser, n: int) -> int:
    """The largest batch, at most n, whose step needs no more than a budget like "8GiB".

    Raises:
        ConfigError: the budget is no number of bytes.
        CapabilityError: one draw needs more.
    """
    try:
        policy = parse(f"auto({budget})")
    except ConfigError:
        policy = None
    if not isinstance(policy, Auto):
        raise ConfigError(f"{sampler.name}: expected batch to be a number of draws or of bytes like 8GiB, got {budget!r}")
    one = peak(sampler, problem, prior, 1)
    if one > policy.budget:
        raise CapabilityError(
            f"{sampler.name}: a step of one draw needs {one / 2**20:.1f} MiB, the budget is {policy.budget / 2**20:.1f} MiB: "
            'memory="checkpoint(block)" lowers what derivatives of a network need'
        )
    more = peak(sampler, problem, prior, 2) - one if n > 1 else 1
    return min(n, 1 + (policy.budget - one) // max(more, 1))


@torch.no_grad()
def peak(sampler: Sampler, problem: Problem, prior: Denoiser, count: int) -> int:
    """Bytes that the second step of so many draws needs, its states included; the first fills caches."""
    streams = Streams(0, count)
    denoiser = sampler.condition(problem, prior)
    state = sampler.init(problem, denoiser, streams)
    if sampler.steps > 1:
        state = sampler.step(problem, denoiser, state, streams)
    held = (getattr(state, f.name) for f in dataclasses.fields(state))
    before = sum(t.untyped_storage().nbytes() for t in held if isinstance(t, Tensor))
    with LiveStorage() as meter:
        sampler.step(problem, denoiser, state, streams)
    return before + meter.peak
