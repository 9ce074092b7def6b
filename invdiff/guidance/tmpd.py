"""Tweedie moment projected diffusion (TMPD), with its diagonal covariance.

The prior's posterior p(x0 | x) is approximated by N(D, sigma^2 J), J = dD/dx (Tweedie), and the covariance of the measurement
under it by the diagonal matrix of its row sums, which cost one vector-Jacobian product:

    D_y = D + sigma^2 J^T A^T C^{-1} (y - A D),    C = diag(sigma^2 max(A J^T A^T 1, 0) + Sigma_y)

Exact for Gaussian priors wherever A J A^T is diagonal: a mask or a permutation of independent unknowns. Elsewhere the row sums
count covariances as if they were variances: positively correlated measurements are trusted too little, negatively correlated
ones too much. Row sums of a matrix with entries of both signs can be negative, where the paper's C has no inverse worth having;
they are taken for zero there (ours). For a Gaussian prior N(m, V), J = V (V + sigma^2)^{-1} does not depend on x, D_y is affine
in x and the law of the draws follows from that of the start.

A complex measurement is two real ones: the vector of ones is 1 + i, and C has an entry for each real and each imaginary part.
The paper writes it for x_t = alpha_t x0 + sigma_t eps; here x = x_t / alpha_t and sigma = sigma_t / alpha_t.

References: Boys, Girolami, Pidstrigach, Reich, Mosca, Akyildiz, Tweedie moment projected diffusions for inverse problems, 2023,
arXiv:2310.06721.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Denoiser, LinearOperator, Problem, expand
from .guidance import Guidance, linearize, require_gaussian

__all__ = ["TMPD"]


@dataclass(frozen=True)
class TMPD(Guidance):
    """The covariance that the network itself implies, made diagonal; two vector-Jacobian products per call.

    Raises:
        CapabilityError: the operator is not linear, or the noise not Gaussian (its sigma may differ between measurements).
    """

    kind: ClassVar[str] = "posterior"
    needs: ClassVar[frozenset[str]] = frozenset({"adjoint"})

    def __call__(self, prior: Denoiser, problem: Problem) -> Denoiser:
        return _Guided(prior, problem, require_gaussian(problem, "TMPD"))


class _Guided(Denoiser):
    def __init__(self, prior: Denoiser, problem: Problem, sigma_y: Tensor) -> None:
        super().__init__(prior.shape, prior.sigma_min, prior.sigma_max)
        assert isinstance(problem.operator, LinearOperator)  # by `needs`
        self.prior, self.operator, self.y = prior, problem.operator, problem.y
        self.variance = sigma_y.square()

    @property
    def origin(self) -> float | Tensor:
        return self.prior.origin

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        denoised, transposed = linearize(self.prior, x, sigma)
        with torch.no_grad():
            level = expand(sigma.square(), x)
            ones = torch.ones_like(self.y)
            ones = torch.complex(ones.real, ones.real) if ones.is_complex() else ones
            sums = self.operator(level * transposed(self.operator.adjoint(ones.expand(len(x), *ones.shape[1:]))))
            scaled = _divided(self.y - self.operator(denoised), sums, self.variance)
            return denoised + level * transposed(self.operator.adjoint(scaled))


def _divided(residual: Tensor, sums: Tensor, variance: Tensor) -> Tensor:
    """residual / (max(sums, 0) + variance), the real and the imaginary parts each for itself."""
    if residual.is_complex():
        return torch.complex(
            _divided(residual.real, sums.real, variance),
            _divided(residual.imag, sums.imag, variance),
        )
    return residual / (sums.clamp_min(0.0) + variance)
