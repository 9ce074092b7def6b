"""What a case of the laboratory is, and the random numbers that they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Denoiser, Problem, Streams

__all__ = ["F64", "Case", "Quadrature", "measurement", "normal"]

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """A problem whose posterior is known.

    Attributes:
        name: the key in `MAKERS`.
        prior: the denoiser that samplers get.
        exact: the exact posterior, with `sample(streams)`; the closed forms of `invdiff.priors` where there is one.
    """

    name: str
    problem: Problem
    prior: Denoiser
    exact: Any

    @classmethod
    def of(cls, name: str, problem: Problem, prior: Any) -> Case:
        """The case of a prior that knows its posterior."""
        return cls(name, problem, prior, prior.posterior(problem))


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers of a seed, float64."""
    return Streams(seed).normal(0, shape, "validation", F64)[0]


def measurement(seed: int, m: int, d: int) -> Tensor:
    """A Gaussian (m, d) matrix with its singular values replaced by sorted U(0, 1) ones."""
    u, _, vh = torch.linalg.svd(normal(seed, m, d), full_matrices=False)
    s = Streams(seed).uniform(0, (m,), "singular values", F64)[0].sort(descending=True).values
    return (u * s) @ vh


class Quadrature:
    """Densities of single values on a common grid u, (G,), as their logarithms, (N, G)."""

    def __init__(self, u: Tensor, log_density: Tensor) -> None:
        density = (log_density - log_density.amax(1, keepdim=True)).exp()
        self.u, self.cumulative = u, density.cumsum(1) / density.sum(1, keepdim=True)

    def sample(self, streams: Streams) -> Tensor:
        """Independent draws, (n, N)."""
        uniform = streams.uniform(0, (len(self.cumulative),), "quantiles", F64)
        return self.u[torch.searchsorted(self.cumulative, uniform.T.contiguous()).clamp_max(len(self.u) - 1)].T
