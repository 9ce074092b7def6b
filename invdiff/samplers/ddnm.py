"""Denoising diffusion null-space model (DDNM), and its noise-aware form without an SVD (DDNM+, simplified).

    x0 = D - lambda A^+ (A D - y),    x' = x0 + gamma (sqrt(1 - zeta) eps + sqrt(zeta) z),    eps = (x - D) / sigma
    DDNM:   lambda = 1,                       gamma = sigma'
    DDNM+:  lambda = min(1, sigma'/sigma_y),  gamma^2 = sigma'^2 - (lambda sigma_y)^2

The projection carries lambda sigma_y of the measurement's noise into x0, so only gamma is added to make sigma' in total.
Without an SVD the noise of A^+ y is taken for white of standard deviation sigma_y; in fact it is sigma_y / a_i along the i-th
singular vector and 0 in the null space, so the form is right for A A^T = I and too confident for small a_i. Observed
directions follow the data and not the prior until sigma' < sigma_y, and from there on no noise is added anywhere, so that the
null space loses variance too. The paper has x_t = alpha_t x with alpha_t = sqrt(bar alpha_t); lambda and gamma above are its
lambda_t and gamma_t / alpha_{t-1}, its eta is sqrt(zeta).

References: Wang, Yu, Zhang, Zero-shot image restoration using denoising diffusion null-space model, ICLR 2023,
arXiv:2212.00490, Algorithms 1 and 2, Eq. 17 to 19.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import Denoiser, Problem
from ..guidance import noise_level, require_scalar_gaussian
from .decoupled import Corrected, Decoupled

__all__ = ["DDNM"]


@dataclass(frozen=True)
class DDNM(Decoupled):
    """Replace what the measurement determines; a point estimate.

    Args:
        zeta: share of fresh noise; the paper's eta = 0.85 squared.
        noise_aware: DDNM+; False treats y as free of noise.

    Raises:
        CapabilityError: the operator is not linear; or noise_aware and the noise is not Gaussian of one level.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "solve"})
    zeta: float = 0.7225
    noise_aware: bool = True

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        if self.noise_aware:
            require_scalar_gaussian(problem, "DDNM+")
        return prior

    def correct(self, problem: Problem, x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Corrected:
        sigma_y = noise_level(problem, "DDNM+") if self.noise_aware else 0.0
        weight = min(1.0, sigma_next / sigma_y) if self.noise_aware else 1.0
        x0 = denoised - weight * problem.operator.pinv(problem.operator(denoised) - problem.y)
        gamma = math.sqrt(max(sigma_next**2 - (weight * sigma_y) ** 2, 0.0))
        return Corrected(x0, (x - denoised) / sigma, gamma)
