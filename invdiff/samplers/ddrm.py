"""Denoising diffusion restoration models (DDRM): DDIM in the singular basis of A, with the data for what they determine.

In the basis V of A^H A = V diag(a^2) V^H, with ybar = V^H A^+ y of noise b_i = sigma_y / a_i, u = V^H x, d = V^H D(x, sigma)
and eps = (u - d) / sigma, a step from sigma to sigma' is, coefficient by coefficient,

    a_i = 0         u'_i = d_i + sqrt(1 - eta^2) sigma' eps_i + eta sigma' z_i
    sigma' < b_i    u'_i = d_i + sqrt(1 - eta^2) sigma' (ybar_i - d_i) / b_i + eta sigma' z_i
    sigma' >= b_i   u'_i = (1 - eta_b) d_i + eta_b ybar_i + sqrt(sigma'^2 - eta_b^2 b_i^2) z_i

from u_i = ybar_i + sqrt(sigma_max^2 - b_i^2) z_i where b_i <= sigma_max, and from noise about the prior's origin elsewhere. The
paper's sigma_y / s_i is b_i, its Theta the denoiser.

It does not sample the posterior of any prior but a point mass: with eta_b = 1 a coefficient with b_i < sigma' is the datum with
noise, whatever the prior says of it, and with eta > 0 the null space loses variance as in every `decoupled` sampler. For a
prior N(m, diag(l)) in the basis V, D is affine and each coefficient follows u' = k u + c + s z, so that the law of the draws is
known: a Gaussian whose mean and variance are M' = k M + c and S' = k^2 S + s^2, with g = l / (l + sigma^2), h = (1 - g) m,

    a_i = 0         k = g + r (1 - g), r = sqrt(1 - eta^2) sigma' / sigma     c = (1 - r) h                  s = eta sigma'
    sigma' < b_i    k = (1 - q) g,     q = sqrt(1 - eta^2) sigma' / b_i       c = (1 - q) h + q ybar_i       s = eta sigma'
    sigma' >= b_i   k = (1 - eta_b) g                                         c = (1 - eta_b) h + eta_b ybar_i

References: Kawar, Elad, Ermon, Song, Denoising diffusion restoration models, NeurIPS 2022, arXiv:2201.11793, Eq. 7 and 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Grid, Karras, LinearOperator, Problem, Sampler, State, Streams
from ..core.spectrum import Spectrum
from ..guidance import require_scalar_gaussian
from .guided import Level, levels

__all__ = ["DDRM", "Modes", "modes"]


class Modes(NamedTuple):
    """What is measured, in the singular basis of the operator.

    Attributes:
        spectrum: A^H A = V diag(a^2) V^H.
        data: ybar = V^H A^+ y, (1, *coefficients), zero where nothing is measured.
        noise: b = sigma_y / a, (*coefficients), infinite where nothing is measured.
    """

    spectrum: Spectrum
    data: Tensor
    noise: Tensor


def modes(problem: Problem, who: str) -> Modes:
    """The measurement coefficient by coefficient, at the cost of one A^H y.

    Raises:
        CapabilityError: the operator has no spectrum, or the noise is not Gaussian of one level.
    """
    sigma_y, operator = require_scalar_gaussian(problem, who), problem.operator
    assert isinstance(operator, LinearOperator)
    spectrum = operator.spectrum(problem.y)
    a = spectrum.values
    return Modes(spectrum, spectrum.data(operator, problem.y), torch.where(a > 0.0, sigma_y / a, math.inf))


@dataclass(frozen=True)
class DDRM(Sampler):
    """DDIM with each singular direction's datum in the place of what it determines; a point estimate.

    Args:
        eta: share of fresh noise where nothing is measured, or less well than the level of noise; its square is `zeta` of DDNM.
        eta_b: weight of the datum where it is better than the level of noise.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        ConfigError: eta or eta_b outside [0, 1].
        CapabilityError: the operator has no spectrum, or the noise is not Gaussian of one level.
    """

    kind: ClassVar[str] = "point"
    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "spectral"})
    state_class: ClassVar[type[State]] = Level
    steps: int = 20
    eta: float = 0.85
    eta_b: float = 1.0
    grid: Grid = field(default_factory=Karras)

    def __post_init__(self) -> None:
        if not (0.0 <= self.eta <= 1.0 and 0.0 <= self.eta_b <= 1.0):
            raise ConfigError(f"DDRM: expected eta and eta_b in [0, 1], got {self.eta} and {self.eta_b}")

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_scalar_gaussian(problem, "DDRM")
        return prior

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Level:
        spectrum, data, b = modes(problem, "DDRM")
        sigma = levels(self.grid, self.steps, prior)[0]
        origin = torch.as_tensor(prior.origin, dtype=data.dtype, device=data.device).expand(1, *problem.shape)
        known = b <= sigma
        mean = torch.where(known, data, spectrum.to(origin))
        deviation = torch.where(known, (sigma**2 - b.square()).clamp_min(0.0).sqrt(), sigma)
        z = streams.normal(0, tuple(b.shape), "init", data.dtype, data.device)
        return Level(0, spectrum.back(mean + deviation * z), sigma)

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        x = state.x
        sigma, sigma_next = levels(self.grid, self.steps, prior)[state.step :][:2]
        spectrum, data, b = modes(problem, "DDRM")
        denoised = spectrum.to(prior(x, x.new_full((len(x),), sigma)))
        kept = math.sqrt(1.0 - self.eta**2) * sigma_next
        fine, coarse = b <= sigma_next, b.isfinite() & (b > sigma_next)
        eps = torch.where(coarse, (data - denoised) / b, (spectrum.to(x) - denoised) / sigma)
        new = denoised + torch.where(fine, self.eta_b * (data - denoised), kept * eps)
        if sigma_next > 0.0:
            noise = torch.where(fine, (sigma_next**2 - (self.eta_b * b).square()).clamp_min(0.0).sqrt(), self.eta * sigma_next)
            new = new + noise * streams.normal(state.step + 1, tuple(b.shape), dtype=x.dtype, device=x.device)
        return Level(state.step + 1, spectrum.back(new), sigma_next)

    def describe(self, state: Level) -> dict[str, Any]:  # type: ignore[override]
        return {"sigma": state.sigma}
