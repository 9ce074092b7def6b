"""Stochastic control guidance (SCG): the best of n ancestral candidates, by values alone.

With D = D(x, sigma), c^2 = sigma'^2 (1 - (sigma' / sigma)^2) and the misfit l(x0) = |y - A(x0)|^2 in units of the noise,

    x'_j = (sigma' / sigma)^2 x + (1 - (sigma' / sigma)^2) D + c z_j,    j = 1 ... n
    x' = x'_k,    k = argmin_j l(D(x'_j, sigma'))

after the first levels, which are ancestral, and D at the end. Neither the operator nor the network is differentiated, and the
misfit need not even be continuous.

The control that is optimal weights the candidates by the likelihood of the data given each; the smallest misfit is its limit of
data without noise, and l(D) that of a point in the place of x0 given x'. Draws are points near a mode: the more candidates, the
less spread in what A sees. Measured on `validation.cases.white`, prior N(0, I_8), four measurements, 100 levels, n = 4, 16 and
128: the mean is off by 1.6, 1.9 and 2.6 norms of the exact one, and the variance over the exact one is 0.08, 0.06 and 0.03 in
the row space of A, 0.9 in its complement. With n = 1 the draws are those of the prior.

One value, y = a x0 + noise and a prior N(0, s^2): l is smallest where z_j is next to a target t, and for the chosen z

    P(|z - t| > r) = (1 - Phi(t + r) + Phi(t - r))^n,    t = (y / (a g) - m) / c,    g = s^2 / (s^2 + sigma'^2)

with m + c z_j the candidates.

References: Huang, Ghatare, Liu, Hu, Zhang, Sastry, Gururani, Oore, Yue, Symbolic music generation with non-differentiable rule
guided diffusion, ICML 2024, arXiv:2402.14285.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Problem, Streams
from ..guidance import require_gaussian
from .guided import DownLevels, Level

__all__ = ["SCG"]


@dataclass(frozen=True)
class SCG(DownLevels):
    """At each level the ancestral candidate whose denoised image fits the data best; any operator.

    Args:
        candidates: n, each a call of the network and of the operator at every level that is guided; up to
            512 are published.
        start: share of the levels that are ancestral, at the first ones.
        chunk: candidates that the network and the operator see at once; None for all.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        ConfigError: an option out of its range.
        CapabilityError: the noise is not Gaussian.
    """

    kind: ClassVar[str] = "point"
    needs: ClassVar[frozenset[str]] = frozenset({"forward"})
    candidates: int = 16
    start: float = 0.25
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.candidates < 1 or (self.chunk is not None and self.chunk < 1):
            raise ConfigError(f"SCG: expected candidates >= 1 and chunk >= 1, got {self.candidates} and {self.chunk}")
        if not 0.0 <= self.start <= 1.0:
            raise ConfigError(f"SCG: expected start in [0, 1], got {self.start}")

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, "SCG")
        return prior

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        x, k = state.x, state.step
        sigma, sigma_next = self.between(prior, state)
        denoised = prior(x, x.new_full((len(x),), sigma))
        if sigma_next == 0.0:
            return Level(k + 1, denoised, 0.0)
        ratio = (sigma_next / sigma) ** 2
        fresh = sigma_next * math.sqrt(1.0 - ratio)
        # the first of n has the noise of a single one
        count = self.candidates if k >= self.start * self.steps else 1
        z = streams.normal(k + 1, (count, *problem.shape), dtype=x.dtype, device=x.device)
        candidates = (denoised + (math.sqrt(sigma_next**2 - fresh**2) / sigma) * (x - denoised))[:, None] + fresh * z
        if count == 1:
            return Level(k + 1, candidates[:, 0], sigma_next)
        misfits = self.misfits(problem, prior, candidates, sigma_next)
        best = candidates[torch.arange(len(x), device=x.device), misfits.argmin(1)]
        # the loop reports draws of which no candidate has a misfit
        lost = misfits.isinf().all(1).reshape(-1, *[1] * len(problem.shape))
        return Level(k + 1, torch.where(lost, math.nan, best), sigma_next)

    def misfits(self, problem: Problem, prior: Denoiser, candidates: Tensor, sigma: float) -> Tensor:
        """l(D(x', sigma)) of candidates (B, n, *shape) at level sigma, (B, n); infinite where it is not a number."""
        flat = candidates.flatten(0, 1)
        parts = []
        for part in flat.split(self.chunk or len(flat)):
            predicted = problem.operator(prior(part, part.new_full((len(part),), sigma)))
            parts.append(problem.noise.chi2(problem.y, predicted))
        # a candidate that the operator fails on is not chosen where there is another
        return torch.cat(parts).nan_to_num(nan=math.inf, posinf=math.inf).unflatten(0, candidates.shape[:2])
