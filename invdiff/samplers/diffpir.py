"""Denoising diffusion models for plug-and-play image restoration (DiffPIR).

    x0 = argmin_v ||y - A v||^2 + rho ||v - D||^2 = D + (A^T A + rho)^{-1} A^T (y - A D),    rho = lam sigma_y^2 / sigma^2
    x' = x0 + sigma' (sqrt(1 - zeta) eps + sqrt(zeta) z),    eps = (x - x0) / sigma

the proximal step with the variance sigma^2 / lam for x0 given x. For a non-linear A one gradient step from D replaces it:
x0 = D + J_A^T (y - A(D)) / rho. The paper's bar sigma_t = sqrt(1 - bar alpha_t) / sqrt(bar alpha_t) is sigma here.

References: Zhu, Zhang, Liang, Cao, Wen, Timofte, Van Gool, Denoising diffusion models for plug-and-play image restoration,
CVPRW 2023, arXiv:2305.08995, Algorithm 1, Eq. 12 to 15.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import CapabilityError, ConfigError, Denoiser, LinearOperator, Memory, Problem, State, Streams
from ..guidance import require_scalar_gaussian
from .decoupled import Corrected, Decoupled

__all__ = ["DiffPIR"]


@dataclass(frozen=True)
class DiffPIR(Decoupled):
    """A proximal step on the data at each level; a point estimate.

    Args:
        zeta: share of fresh noise; the paper's 0.1 (deblurring), 0.25 (super-resolution), 1 (inpainting).
        lam: lambda, trust in the denoiser; 1 to 25 in the paper.

    Raises:
        CapabilityError: the noise is not Gaussian of one level.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vjp"})
    lam: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lam > 0:
            raise ConfigError(f"DiffPIR: expected lam > 0, got {self.lam}")

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_scalar_gaussian(problem, "DiffPIR")
        return prior

    def unroll(self, problem: Problem, prior: Denoiser, state: State, streams: Streams, memory: Memory) -> Tensor:
        operator = problem.operator
        if isinstance(operator, LinearOperator) and any(p.requires_grad for p in operator.parameters()):
            raise CapabilityError(
                f"DiffPIR: solve of {type(operator).__name__} has no derivative with respect to its parameters: DDNM has one"
            )
        return super().unroll(problem, prior, state, streams, memory)

    def correct(self, problem: Problem, x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Corrected:
        operator = problem.operator
        rho = self.lam * require_scalar_gaussian(problem, "DiffPIR").square() / sigma**2
        if isinstance(operator, LinearOperator):
            x0 = denoised + operator.solve(operator.adjoint(problem.y - operator(denoised)), rho)
        else:
            predicted, back = operator.vjp(denoised)
            x0 = denoised + back(problem.y - predicted) / rho
        return Corrected(x0, (x - x0) / sigma, sigma_next)
