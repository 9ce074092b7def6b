"""Decoupled diffusion sequential Monte Carlo (DDSMC).

With D = D(x, sigma) for E[x0 | x], sigma' the next level, delta = sigma^2 - sigma'^2, f = delta / (eta sigma'^2 + delta) and a
rule r(sigma) for the standard deviation of x0 given x, the weighted particles follow

    transition    p(x' | x) = N(f D + (1 - f) x, f sigma'^2)                 eta = 1 is ancestral, eta = 0 is N(D, sigma'^2)
    likelihood    p(y | x) ~ N(y; A D, sigma_y^2 + r^2 A A^H)
    proposal      q(x' | x) = N(f mu + (1 - f) x, f sigma'^2 - f^2 s^2 + f^2 C),
                  N(mu, C) ~ N(x0; D, s^2) N(y; A x0, sigma_y^2)
    weight        p(y | x') p(x' | x) / (p(y | x) q(x' | x))

all diagonal in the basis V of A^H A = V diag(a^2) V^H: with d = V^H D, ybar = V^H A^+ y, b = sigma_y / a,

    mu = d + g (ybar - d),    C = (1 - g) s^2,    g = s^2 / (s^2 + b^2)      (g = 0 where nothing is measured)

The last step is x' = D with p(y | x') the likelihood itself, and one particle is drawn by its weight. r^2 = sigma^2 t^2 /
(sigma^2 + t^2), t = data_std, is what data N(m, t^2 I) have; s is r where f^2 r^2 fits into the transition's variance, s^2 =
min(r^2, sigma'^2 / f), so that the proposal is the transition where nothing is measured. The proposal and r change the variance
of the weights only.

As N grows the draws become those of the posterior of the prior that the transitions make: of eta = 1 and steps that become
short, the prior itself; an ancestral chain loses variance in proportion to its step (some 10 % at 100 levels of EDM's grid).
With eta = 0, D would have to be a draw of the prior given x (it halves the variance as it is).

With N = 1 there are no weights. For a prior N(m, diag(l)) in the basis V the draws are then Gaussian, by u' = k u + c + w z for
each coefficient with G = l / (l + sigma^2):

    k = f (1 - g) G + 1 - f,    c = f ((1 - g) (1 - G) m + g ybar),    w^2 = f sigma'^2 - f^2 s^2 g

References: Ekstroem Kelvinius, Zhao, Lindsten, Solving linear-Gaussian Bayesian inverse problems with decoupled diffusion
sequential Monte Carlo, ICML 2025, arXiv:2502.06379.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Problem
from ..guidance import require_scalar_gaussian
from .ddrm import Modes, modes
from .particles import Particles, Proposed, Transition

__all__ = ["DDSMC"]


@dataclass(frozen=True)
class DDSMC(Particles):
    """Weighted particles that follow the prior's reverse transitions, drawn to the data in the singular basis of A.

    Args:
        eta: 1 keeps the noise of the particles from level to level, 0 draws it anew about D.
        data_std: t, standard deviation of the unknown or of what is left of it in one of its modes, in its units; no bias.
        particles, resample, chunk, grid, steps: see `Particles`.

    Raises:
        ConfigError: an option out of its range.
        CapabilityError: the operator has no spectrum, or the noise is not Gaussian of one level.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "spectral"})
    eta: float = 1.0
    data_std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.eta <= 1.0 or not 0.0 < self.data_std < math.inf:
            raise ConfigError(f"DDSMC: expected eta in [0, 1] and data_std > 0, got {self.eta} and {self.data_std}")

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_scalar_gaussian(problem, "DDSMC")
        return prior

    def look(self, problem: Problem, prior: Denoiser, x: Tensor, at: Transition) -> tuple[Tensor, tuple[Tensor, ...]]:
        measured = modes(problem, "DDSMC")
        denoised = measured.spectrum.to(prior(x, x.new_full((len(x),), at.sigma)))
        log = self._log_likelihood(measured, denoised, at.sigma)
        return log, (denoised, log)

    def propose(
        self,
        problem: Problem,
        prior: Denoiser,
        x: Tensor,
        seen: tuple[Tensor, ...],
        history: Tensor,
        at: Transition,
        noise: Callable[..., Tensor],
    ) -> Proposed:
        denoised, log = seen
        measured = modes(problem, "DDSMC")
        spectrum, data, b = measured
        if at.sigma_next == 0.0:
            return Proposed(spectrum.back(denoised), self._log_likelihood(measured, denoised, 0.0) - log, history)
        delta = at.sigma**2 - at.sigma_next**2
        f = delta / (self.eta * at.sigma_next**2 + delta)
        s2 = min(self._variance(at.sigma), at.sigma_next**2 / f)
        variance = f * at.sigma_next**2
        gain = s2 / (s2 + b.square())
        narrow = variance - f**2 * s2 * gain
        free = f * denoised + (1.0 - f) * spectrum.to(x)
        shift = f * gain * (data - denoised)
        step = narrow.sqrt() * noise(tuple(b.shape))
        # both densities at the new particle, without what is the same for all
        increment = 0.5 * (step.square() / narrow - (shift + step).square() / variance)
        log_ratio = torch.where(gain > 0.0, increment, 0.0).flatten(1).sum(1)
        return Proposed(spectrum.back(free + shift + step), log_ratio - log, history)

    def _variance(self, sigma: float) -> float:
        """r^2."""
        return sigma**2 * self.data_std**2 / (sigma**2 + self.data_std**2)

    def _log_likelihood(self, measured: Modes, denoised: Tensor, sigma: float) -> Tensor:
        """log p(y | x), (M,), but for a constant of the level."""
        variance = measured.noise.square() + self._variance(sigma)
        return -0.5 * ((measured.data - denoised).square() / variance).flatten(1).sum(1)
