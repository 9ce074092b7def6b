"""RePaint: inpainting by replacing what is known at every level, and travelling back up the levels.

    x' = m (y + sqrt(sigma'^2 - v^2) z_1) + (1 - m) ancestral(x),    v = 0, or sigma_y where noise is allowed for
    x  = x' + sqrt(sigma^2 - sigma'^2) z_2                                            back up, and down again

m is the mask. The hidden pixels are drawn from the prior given noisy known ones, which the next level replaces by others: what
is hidden and what is known agree only as far as a level lets them. After every `jump` levels the chain therefore goes back up
as many, and down again, `repeats` - 1 times, by the exact kernel between two levels. The last level of a run, whose x' is free
of noise, is not repeated.

y is taken for free of noise, as in the paper, or, with `noise_aware` (ours), for what it is: at level sigma' >= sigma_y it
lacks sqrt(sigma'^2 - sigma_y^2) of noise, and below sigma_y the known pixels are left to the prior as the hidden ones are.
Nothing is repeated there: up and down without replacement is a chain of the prior, which forgets y.

For a Gaussian prior with independent pixels the hidden ones are ancestral draws of the prior, as `Ancestral` makes them: exact
up to its loss of variance. Where pixels are correlated the hidden ones follow the known ones too little; every step is affine,
so that the law of the draws follows from that of the start, and its distance from the posterior falls with `repeats` to that
of the step: for eight pixels in a row that correlate by 0.9, every second one known, 200 levels and j = 10, the divergence of
Kullback and Leibler of the hidden ones is 0.49 without repeats and 0.09, 0.01 and 0.003 with r = 2, 5 and 20. With
`noise_aware` the posterior of noisy data is reached so too, by all pixels, as repeats and levels grow.

In the paper's variance-preserving form, x_t = alpha_t x, going up a level is x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z.

References: Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool, RePaint: inpainting using denoising diffusion probabilistic
models, CVPR 2022, arXiv:2201.09865, Algorithm 1 and Section 4.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core import CapabilityError, ConfigError, Denoiser, Problem, Streams
from ..guidance import noise_level, require_scalar_gaussian
from ..operators.restoration import Mask
from .guided import DownLevels, Level, levels
from .integrators import ddim

__all__ = ["RePaint"]


@dataclass(frozen=True)
class RePaint(DownLevels):
    """Known pixels replaced at every level, with resampling; for masks alone.

    Args:
        repeats: r, times that each block of levels is run; the paper's 10, and 1 for replacement alone. The cost of a run grows
            by it.
        jump: j, levels of a block, at most steps - 1; the paper's 10 of 250. The blocks end one level above zero.
        noise_aware: allow for the noise of y; False is the paper's, whose draws show y itself where it is known.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        ConfigError: an argument is out of its range.
        CapabilityError: the operator is no Mask; or noise_aware and the noise is not Gaussian of one level.
    """

    kind: ClassVar[str] = "posterior"
    needs: ClassVar[frozenset[str]] = frozenset({"adjoint"})
    steps: int = field(default=250, kw_only=True)
    repeats: int = 10
    jump: int = 10
    noise_aware: bool = False

    def __post_init__(self) -> None:
        if self.repeats < 1 or not 1 <= self.jump < self.steps:
            raise ConfigError(
                f"RePaint: expected repeats >= 1 and 1 <= jump < steps = {self.steps}, got {self.repeats} and {self.jump}"
            )

    @property
    def caveats(self) -> tuple[str, ...]:
        free = () if self.noise_aware else ("RePaint took the measurement for free of noise.",)
        return (f"RePaint nears the posterior as its repeats grow, of which it made {self.repeats}.", *free)

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        if not isinstance(problem.operator, Mask):
            raise CapabilityError(
                f"RePaint: expected a Mask, got {type(problem.operator).__name__}: DDNM and Steered replace what any linear "
                "operator measures"
            )
        if self.noise_aware:
            require_scalar_gaussian(problem, "RePaint")
        return prior

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        sigmas, k, x = levels(self.grid, self.steps, prior), state.step, state.x

        def normal(purpose: str) -> Tensor:
            return streams.normal(k + 1, problem.shape, purpose, x.dtype, x.device)

        def down(x: Tensor, first: int, name: str) -> Tensor:
            for i in range(first, k + 1):
                x = self._replaced(problem, prior, x, sigmas[i], sigmas[i + 1], lambda p, i=i: normal(f"{p}{name} {i}"))
            return x

        x = down(x, k, "")
        # blocks are counted from the last level above zero
        top = k + 1 - self.jump
        ends = k + 1 < self.steps and (self.steps - 1 - (k + 1)) % self.jump == 0
        if ends and top >= 0 and sigmas[k + 1] >= self._noise(problem):
            for repeat in range(1, self.repeats):
                x = x + math.sqrt(sigmas[top] ** 2 - sigmas[k + 1] ** 2) * normal(f"up {repeat}")
                x = down(x, top, f" {repeat}")
        return Level(k + 1, x, sigmas[k + 1])

    def _replaced(self, problem: Problem, prior: Denoiser, x: Tensor, sigma: float, sigma_next: float, normal: Any) -> Tensor:
        denoised = prior(x, x.new_full((len(x),), sigma))
        hidden = ddim(denoised, x, sigma, sigma_next, 1.0, lambda: normal("step"))
        sigma_y = self._noise(problem)
        if sigma_next < sigma_y:
            return hidden
        known = problem.y
        if sigma_next > sigma_y:
            known = known + math.sqrt(sigma_next**2 - sigma_y**2) * normal("known")
        return torch.where(problem.operator.measured, known, hidden)  # type: ignore[arg-type]

    def _noise(self, problem: Problem) -> float:
        return noise_level(problem, "RePaint") if self.noise_aware else 0.0
