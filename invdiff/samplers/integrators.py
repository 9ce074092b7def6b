"""From one noise level to the next: rules that take any denoiser, the prior's own or a guided one.

With D = D(x, sigma), eps = (x - D) / sigma, the next level sigma' < sigma and fresh noise z:

    Euler      x' = D + sigma' eps                                                        order 1, deterministic
    Heun       x' = x + (sigma' - sigma) (eps + eps') / 2, eps' at Euler's x'             order 2, deterministic
    DDIM(eta)  x' = D + sqrt(sigma'^2 - c^2) eps + c z, c = eta sigma' sqrt(1 - sigma'^2 / sigma^2)       order 1
    Ancestral  DDIM(1): x' = (sigma'/sigma)^2 x + (1 - (sigma'/sigma)^2) D + c z
    Churn(s)   Heun from x + sqrt(up^2 - sigma^2) z at up^2 = sigma^2 + s (sigma^2 - sigma'^2)

The last step has sigma' = 0 and returns D, so the draws lack the variance that is left at the smallest level, at most
sigma_min^2. The ancestral kernel uses D for x0 and therefore loses variance in proportion to the step: 2 to 5 % of the
standard deviation at 200 Karras steps. In variance-preserving form x_t = alpha_t x the rules are DDIM's and DDPM's with sigma
= sigma_t / alpha_t.

References: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022,
arXiv:2206.00364, Algorithms 1 and 2; Song, Meng, Ermon, Denoising diffusion implicit models, 2021, arXiv:2010.02502, Eq. 12 and
16; Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020, arXiv:2006.11239.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..core import ConfigError, Denoiser

__all__ = ["DDIM", "Ancestral", "Churn", "Euler", "Heun", "Integrator", "ddim"]


def ddim(denoised: Tensor, x: Tensor, sigma: float, sigma_next: float, eta: float, noise: Callable[[], Tensor]) -> Tensor:
    """x' of DDIM(eta) for an estimate of x0; `noise` is called only where its coefficient is not zero."""
    c = eta * sigma_next * math.sqrt(1.0 - (sigma_next / sigma) ** 2)
    out = denoised + (math.sqrt(sigma_next**2 - c**2) / sigma) * (x - denoised)
    return out + c * noise() if c > 0 else out


@dataclass(frozen=True)
class Integrator:
    """Base of all integrators."""

    def step(self, denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float, noise: Callable[[], Tensor]) -> Tensor:
        """x at sigma_next from x at sigma, (B, *shape); `noise()` draws standard normals of the shape of x."""
        raise NotImplementedError(f"{type(self).__name__} does not define step")


@dataclass(frozen=True)
class Euler(Integrator):
    """The probability-flow ODE by Euler's rule: one evaluation per step."""

    def step(self, denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float, noise: Callable[[], Tensor]) -> Tensor:
        return ddim(_denoised(denoise, x, sigma), x, sigma, sigma_next, 0.0, noise)


@dataclass(frozen=True)
class Heun(Integrator):
    """The probability-flow ODE by Heun's rule: two evaluations per step, one for the last."""

    def step(self, denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float, noise: Callable[[], Tensor]) -> Tensor:
        slope = (x - _denoised(denoise, x, sigma)) / sigma
        ahead = x + (sigma_next - sigma) * slope
        if sigma_next == 0.0:
            return ahead
        slope_ahead = (ahead - _denoised(denoise, ahead, sigma_next)) / sigma_next
        return x + 0.5 * (sigma_next - sigma) * (slope + slope_ahead)


@dataclass(frozen=True)
class DDIM(Integrator):
    """Between the ODE (eta = 0) and ancestral sampling (eta = 1).

    Args:
        eta: share of the noise that is fresh, in [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ConfigError(f"DDIM: expected eta in [0, 1], got {self.eta}")

    def step(self, denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float, noise: Callable[[], Tensor]) -> Tensor:
        return ddim(_denoised(denoise, x, sigma), x, sigma, sigma_next, self.eta, noise)


@dataclass(frozen=True)
class Ancestral(Integrator):
    """Ancestral sampling, the reverse of adding noise: DDIM(1)."""

    def step(self, denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float, noise: Callable[[], Tensor]) -> Tensor:
        return ddim(_denoised(denoise, x, sigma), x, sigma, sigma_next, 1.0, noise)


@dataclass(frozen=True)
class Churn(Integrator):
    """Noise up, and down again by Heun's rule: two evaluations per step, one for the last.

    The ODE keeps the law of x to second order, so that many short runs one after the other do not lose variance, as by the
    ancestral rule; the law of x' given x is that of the reverse diffusion to first order, for a share of 1.

    Args:
        share: of the reverse diffusion's noise, s >= 0; the level before the ODE is at most the denoiser's highest.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < math.inf:
            raise ConfigError(f"Churn: expected share >= 0, got {self.share}")

    def step(self, denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float, noise: Callable[[], Tensor]) -> Tensor:
        added = min(self.share * (sigma**2 - sigma_next**2), max(denoise.sigma_max**2 - sigma**2, 0.0))
        up = x + math.sqrt(added) * noise() if added > 0.0 else x
        return Heun().step(denoise, up, math.sqrt(sigma**2 + added), sigma_next, noise)


def _denoised(denoise: Denoiser, x: Tensor, sigma: float) -> Tensor:
    return denoise(x, x.new_full((len(x),), sigma))
