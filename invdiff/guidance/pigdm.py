"""Pseudoinverse-guided diffusion models (PiGDM).

The prior's posterior p(x0 | x) is approximated by N(D, r^2 I) with r^2 = sigma^2 s^2 / (s^2 + sigma^2), the variance that
data of standard deviation s would have, so that with J = dD/dx

    D_y = D + sigma^2 J^T A^T (r^2 A A^T + sigma_y^2 I)^{-1} (y - A D)
        = D + (sigma / r)^2 J^T (A^T A + (sigma_y / r)^2 I)^{-1} A^T (y - A D)

by the push-through identity. Exact for a prior N(m, s^2 I); any other s in r is a bias, and so is a weight w of the correction
other than 1, of which more follows the data closer than their noise allows.
The paper writes it for x_t = alpha_t x0 + sigma_t eps and s = 1; here x = x_t / alpha_t, sigma = sigma_t / alpha_t.

References: Song, Vahdat, Mardani, Kautz, Pseudoinverse-guided diffusion models for inverse problems, ICLR 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, LinearOperator, Problem, expand
from .guidance import Guidance, linearize, require_scalar_gaussian

__all__ = ["PiGDM"]


@dataclass(frozen=True)
class PiGDM(Guidance):
    """One vector-Jacobian product and one solve per call.

    Args:
        data_std: s, standard deviation of the unknown, in its units. There is no safe value for a multimodal prior.
        weight: w. Others than 1 make a point of the draws; with few steps 2 to 4 can be nearer to the truth.

    Raises:
        CapabilityError: the operator is not linear, the noise not Gaussian or of more than one level.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "solve"})
    data_std: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (self.data_std > 0 and self.weight > 0):
            raise ConfigError(f"PiGDM: expected data_std > 0 and weight > 0, got {self.data_std} and {self.weight}")

    @property
    def kind(self) -> str:  # type: ignore[override]
        return "posterior" if self.weight == 1.0 else "point"

    def __call__(self, prior: Denoiser, problem: Problem) -> Denoiser:
        return _Guided(prior, problem, self, require_scalar_gaussian(problem, "PiGDM"))


class _Guided(Denoiser):
    operator: LinearOperator

    def __init__(self, prior: Denoiser, problem: Problem, options: PiGDM, sigma_y: Tensor) -> None:
        super().__init__(prior.shape, prior.sigma_min, prior.sigma_max)
        self.prior, self.operator, self.y = prior, problem.operator, problem.y
        self.data_std, self.weight, self.sigma_y = options.data_std, options.weight, sigma_y

    @property
    def origin(self) -> float | Tensor:
        return self.prior.origin

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        denoised, transposed = linearize(self.prior, x, sigma)
        with torch.no_grad():
            inverse_r2 = 1.0 / sigma.square() + 1.0 / self.data_std**2
            misfit = self.operator.adjoint(self.y - self.operator(denoised))
            solved = self.operator.solve(misfit, self.sigma_y.square() * inverse_r2)
            return denoised + transposed(expand(self.weight * sigma.square() * inverse_r2, x) * solved)
