"""Invertible diffusion models (IDM) as a sampler: the T coupled steps of a network that was trained end to end.

    start x = A^T y, h = s x;    (h, x) <- (x, (1 - v_t) F_t(x) + v_t h),  t = T, ..., 1;    end x + m h

See `idm_network` for F_t. It is a point estimate, the same for every draw, near the median of the posterior (the loss is the
absolute error) where the measurement is one that the network was trained for; elsewhere its error is unknown.

References: Chen, Zhang, Li, Zhang, Invertible diffusion models for compressed sensing, TPAMI 2025, arXiv:2403.17006.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from importlib import resources
from typing import ClassVar

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Memory, Problem, Sampler, State, Streams, norm
from ..core.counting import network_call
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
        ConfigError: steps are not the network's, or, in a run, the operator's norm is not the one that it was trained for.
        ShapeError: the network does not fit the operator.
    """

    kind: ClassVar[str] = "point"
    needs: ClassVar[frozenset[str]] = frozenset({"adjoint"})
    state_class: ClassVar[type[State]] = PairState
    deterministic: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    network: IDMNetwork
    steps: int = 3

    def __post_init__(self) -> None:
        if self.steps != self.network.steps:
            raise ConfigError(f"IDM: the network has {self.network.steps} steps, got steps={self.steps}")

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the network was trained for, as its file says."""
        names = [row["measurement"] for row in self.network.facts.get("measurements", ())]
        if not names:
            return ()
        noise = self.network.facts["noise"]
        return (
            f"IDM was trained for {', '.join(names)}, noise {noise:g}: with another measurement its error is unknown, however "
            "well it fits the data.",
        )

    @torch.no_grad()
    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        image, expected = problem.operator.adjoint(problem.y), self.network.norm  # type: ignore[attr-defined]
        found = float(norm(problem.operator(image)) / norm(image).clamp_min(torch.finfo(image.dtype).tiny))
        if found > 1.05 * expected:
            raise ConfigError(
                f"IDM: expected an operator of norm {expected:g}, as the network was trained for, got a "
                f"{type(problem.operator).__name__} that lengthens A^T y by {found:.3g}"
            )
        return prior

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> PairState:
        h, x = self._on(problem).begin(problem.operator, problem.y)  # type: ignore[arg-type]
        count = (len(streams.draws), *[1] * (x.ndim - 1))
        return PairState(0, x.repeat(count), h.repeat(count))

    def step(self, problem: Problem, prior: Denoiser, state: PairState, streams: Streams) -> PairState:  # type: ignore[override]
        network = self._on(problem)
        y = problem.y.expand(len(state.x), *problem.y.shape[1:])
        network_call(len(state.x))
        h, x = network.moves(problem.operator, y)[state.step](state.h, state.x)  # type: ignore[arg-type]
        if state.step + 1 == self.steps:
            x = network.end(h, x)
        return PairState(state.step + 1, x, h)

    def unroll(self, problem: Problem, prior: Denoiser, state: State, streams: Streams, memory: Memory) -> Tensor:
        assert isinstance(state, PairState)
        network, y = self._on(problem), problem.y.expand(len(state.x), *problem.y.shape[1:])
        return network.end(*memory.chain(network.moves(problem.operator, y), (state.h, state.x)))  # type: ignore[arg-type]

    def _on(self, problem: Problem) -> IDMNetwork:
        """The network in the problem's precision and on its device; the given one stays as it is."""
        own, device, dtype = self.network.log_sigma, problem.y.device, problem.y.real.dtype
        if own.device == device and own.dtype == dtype:
            return self.network
        return copy.deepcopy(self.network).to(device=device, dtype=dtype)


def shipped_idm(file: str, sha256: str) -> IDMNetwork:
    """A packaged network; its card lies beside the weights."""
    return load_idm(str(resources.files("invdiff.priors") / "weights" / file), sha256=sha256)
