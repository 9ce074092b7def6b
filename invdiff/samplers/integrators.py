"""From one noise level to the next: rules that take any denoiser, the prior's own or a guided one.

With D = D(x, sigma), eps = (x - D) / sigma, the next level sigma' < sigma and fresh noise z:

    Euler      x' = D + sigma' eps                                                        order 1, deterministic
    Heun       x' = x + (sigma' - sigma) (eps + eps') / 2, eps' at Euler's x'             order 2, deterministic
    DDIM(eta)  x' = D + sqrt(sigma'^2 - c^2) eps + c z, c = eta sigma' sqrt(1 - sigma'^2 / sigma^2)       order 1
    Ancestral  DDIM(1): x' = (sigma'/sigma)^2 x + (1 - (sigma'/sigma)^2) D + c z
    Churn(s)   Heun from x + sqrt(up^2 - sigma^2) z at up^2 = sigma^2 + s (sigma^2 - sigma'^2)
    RFSolver   x' = (1 + sigma') (x / (1 + sigma) + (tau' - tau) (eps_m - D_m)),    D_m, eps_m at x_m = D + sigma_m eps,
               tau = sigma / (1 + sigma), tau_m = (tau + tau') / 2, sigma_m = tau_m / (1 - tau_m)     order 2, deterministic

The last is the midpoint rule in a rectified flow's own time: its X = (1 - tau) x0 + tau eps is (1 - tau) x, its velocity
dX/dtau = eps - x0, and the paper's second-order Taylor step, the derivative of the velocity by a difference over half the
step, is X' = X + (tau' - tau) v_m. Rules that remember evaluations are in `linear_multistep.py`.

The last step has sigma' = 0 and returns D, so the draws lack the variance that is left at the smallest level, at most
sigma_min^2. The ancestral kernel uses D for x0 and therefore loses variance in proportion to the step: 2 to 5 % of the
standard deviation at 200 Karras steps. In variance-preserving form x_t = alpha_t x the rules are DDIM's and DDPM's with sigma
= sigma_t / alpha_t.

References: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022,
arXiv:2206.00364, Algorithms 1 and 2; Song, Meng, Ermon, Denoising diffusion implicit models, 2021, arXiv:2010.02502, Eq. 12 and
16; Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020, arXiv:2006.11239; Wang, Pu, Qi, Guo, Ma, Huang, Chen,
Li, Shan, Taming rectified flow for inversion and editing, 2024, arXiv:2411.04746 (RF-Solver).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import CapabilityError, ConfigError, Denoiser

__all__ = ["DDIM", "Ancestral", "Churn", "Euler", "Heun", "Integrator", "RFSolver", "ddim", "fresh_noise"]


def fresh_noise(sigma: float, sigma_next: float, eta: float) -> float:
    """c of DDIM(eta), the standard deviation of its fresh noise, in data units."""
    return eta * sigma_next * math.sqrt(1.0 - (sigma_next / sigma) ** 2)


def ddim(denoised: Tensor, x: Tensor, sigma: float, sigma_next: float, eta: float, noise: Callable[[], Tensor]) -> Tensor:
    """x' of DDIM(eta) for an estimate of x0; `noise` is called only where its coefficient is not zero."""
    c = fresh_noise(sigma, sigma_next, eta)
    out = denoised + (math.sqrt(sigma_next**2 - c**2) / sigma) * (x - denoised)
    return out + c * noise() if c > 0 else out


@dataclass(frozen=True)
class Integrator:
    """Base of all integrators.

    A rule of one step writes `step`; one that remembers writes `advance` and sets `keeps`.

    Attributes:
        order: p of the global error O(h^p) at a fixed level above zero: of x for a rule without noise, of the moments of the
            draws (weak order) for one with noise.
        keeps: number of tensors that it remembers from one step to the next.
    """

    order: ClassVar[int] = 1
    keeps: ClassVar[int] = 0

    def step(self, denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float, noise: Callable[[], Tensor]) -> Tensor:
        """x at sigma_next from x at sigma, (B, *shape); `noise()` draws standard normals of the shape of x."""
        if self.keeps:
            raise CapabilityError(
                f"{type(self).__name__} remembers earlier evaluations and has no step of its own: expected an integrator of "
                "one step (Heun, Euler, DDIM, Ancestral, Churn, RFSolver) here, or Guided, which runs it on a grid of levels"
            )
        raise NotImplementedError(f"{type(self).__name__} does not define step")

    def advance(
        self, denoise: Denoiser, x: Tensor, past: Tensor, sigmas: Sequence[float], k: int, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """x at sigmas[k + 1] from x at sigmas[k], and what is remembered.

        Args:
            x: (B, *shape). past: (keeps, B, *shape), of a meaning of the rule's own; not read at k = 0.
            sigmas: the whole decreasing grid, of which only the last level may be 0. k: the step, from 0.
            noise: draws standard normals of the shape of x.
        """
        return self.step(denoise, x, sigmas[k], sigmas[k + 1], noise), past


@dataclass(frozen=True)
class Euler(Integrator):
    """The probability-flow ODE by Euler's rule: one evaluation per step."""

    def step(self, denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float, noise: Callable[[], Tensor]) -> Tensor:
        return ddim(_denoised(denoise, x, sigma), x, sigma, sigma_next, 0.0, noise)


@dataclass(frozen=True)
class Heun(Integrator):
    """The probability-flow ODE by Heun's rule: two evaluations per step, one for the last."""

    order: ClassVar[int] = 2

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


@dataclass(frozen=True)
class RFSolver(Integrator):
    """The probability-flow ODE by the midpoint rule in a rectified flow's time: two evaluations per step, one for the last.

    On a Gaussian prior of that unit or any other the order is three: X is there, to a factor, the square root of a quadratic q
    in tau, and the midpoint rule for X' = q' / (2 q) X agrees with the series of that root, of q = 1 + b t + c t^2, up to its
    term (b^3 / 16 - b c / 4) t^3.

    Args:
        unit: of the time, tau = sigma / (unit + sigma), in data units, positive: 1 for a flow's own data; of other data about
            their standard deviation. The rule is that of x / unit and sigma / unit.
    """

    order: ClassVar[int] = 2
    unit: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.unit < math.inf:
            raise ConfigError(f"RFSolver: expected unit > 0, got {self.unit}")

    def step(self, denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float, noise: Callable[[], Tensor]) -> Tensor:
        denoised = _denoised(denoise, x, sigma)
        if sigma_next == 0.0:
            return denoised
        # 1 - tau, which does not cancel at high levels
        rest, rest_next = self.unit / (self.unit + sigma), self.unit / (self.unit + sigma_next)
        middle = self.unit * (2.0 / (rest + rest_next) - 1.0)
        point = denoised + (middle / sigma) * (x - denoised)
        ahead = _denoised(denoise, point, middle)
        velocity = (self.unit / middle) * (point - ahead) - ahead
        return (rest / rest_next) * x + ((rest - rest_next) / rest_next) * velocity


def _denoised(denoise: Denoiser, x: Tensor, sigma: float) -> Tensor:
    return denoise(x, x.new_full((len(x),), sigma))
