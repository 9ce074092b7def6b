"""Invertible diffusion models (IDM) as a sampler: the T coupled steps of a network that was trained end to end.

    start x = A^T y, h = s x;    (h, x) <- (x, (1 - v_t) F_t(x) + v_t h),  t = T, ..., 1;    end x + m h

See `idm_network` for F_t. It is a point estimate, the same for every draw, near the median of the posterior (the loss is the
absolute error) where the measurement is one that the network was trained for, and without meaning elsewhere.

References: Chen, Zhang, Li, Zhang, Invertible diffusion models for compressed sensing, TPAMI 2025, arXiv:2403.17006.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from typing import ClassVar

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Problem, Sampler, State, Streams
from .idm_network import IDMNetwork, load_idm

__all__ = ["IDM", "PairState", "shipped_idm"]


@dataclass(frozen=True)
class PairState(State):
    """x, and h, the iterate before it, (B, *shape) both."""

    h: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass(frozen=True, kw_only=True)
class IDM(Sampler):
    """The network's estimate; the prior is not asked.

    Args:
        network: trained for the problem's measurement.
        steps: T, the network's; nothing else is possible.

    Raises:
        ConfigError: steps are not the network's.
        ShapeError: the network does not fit the operator.
    """

    kind: ClassVar[str] = "point"
    needs: ClassVar[frozenset[str]] = frozenset({"adjoint"})
    state_class: ClassVar[type[State]] = PairState
    network: IDMNetwork
    steps: int = 3

    def __post_init__(self) -> None:
        if self.steps != self.network.steps:
            raise ConfigError(f"IDM: the network has {self.network.steps} steps, got steps={self.steps}")

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> PairState:
        h, x = self._on(problem).begin(problem.operator, problem.y)  # type: ignore[arg-type]
        count = (len(streams.draws), *[1] * (x.ndim - 1))
        return PairState(0, x.repeat(count), h.repeat(count))

    def step(self, problem: Problem, prior: Denoiser, state: PairState, streams: Streams) -> PairState:  # type: ignore[override]
        network = self._on(problem)
        y = problem.y.expand(len(state.x), *problem.y.shape[1:])
        h, x = network.moves(problem.operator, y)[state.step](state.h, state.x)  # type: ignore[arg-type]
        if state.step + 1 == self.steps:
            x = network.end(h, x)
        return PairState(state.step + 1, x, h)

    def _on(self, problem: Problem) -> IDMNetwork:
        return self.network.to(device=problem.y.device, dtype=problem.y.real.dtype)


def shipped_idm(file: str, sha256: str) -> IDMNetwork:
    """A packaged network; its card lies beside the weights."""
    return load_idm(str(resources.files("invdiff.priors") / "weights" / file), sha256=sha256)
