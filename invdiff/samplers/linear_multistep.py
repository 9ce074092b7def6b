"""Integrators that remember: DPM-Solver++(2M) and its SDE form, PNDM and PLMS, UniPC. One evaluation per step.

With D = D(x, sigma), eps = (x - D) / sigma and l = -log sigma the flow and its family of SDEs are

    dx / dsigma = eps,        dx = -(1 + eta) (x - D) dl + sqrt(2 eta) sigma dw,    eta = 0 the flow,

whose linear part is integrated exactly. From sigma to sigma' < sigma, h = log(sigma / sigma'), the step before from sigma^ to
sigma with h^ = log(sigma^ / sigma), D^ its evaluation, and a hat on the others likewise:

    DPMSolver(eta)   x' = a x + (1 - a) (D + h / (2 h^) (D - D^)) + sigma' sqrt(1 - e^{-2 eta h}) z,    a = e^{-(1 + eta) h}
    PNDM             x' = x + sum_j w_j eps_j,    w_j = int_sigma^sigma' L_j ds       (the last four eps, L_j of Lagrange)
    UniPC(p)         x' = e^{-h} x + sum_j w_j D_j,    w_j = int_0^1 h e^{-h (1 - u)} L_j(u) du    (u = (l - l_k) / h)
                     predictor: D_j of the last p evaluations; corrector, of the step before: these and the new one

- DPMSolver(0) is DPM-Solver++(2M), DPMSolver(1) its SDE form; the first step lacks a D^ and is Euler's, or the ancestral one.
  Its moments are of second order also with noise: D - D^ holds the noise of the step before, and what D's change with that
  noise adds to the covariance inside of a step comes in the next one.
- PNDM's paper has the weights (55, -59, 37, -9) / 24 of equal steps of its time t, on any schedule, and inserts their mean of
  eps into DDIM's step; as the integral is over sigma, it is of second order. The weights here are those of the levels'
  own distances: the classical rule of fourth order in sigma on every grid, and the paper's where the levels have equal
  distances. The first three steps are the classical Runge-Kutta rule, the paper's "pseudo" one with its middle at
  (sigma + sigma') / 2 (four evaluations each), or Adams-Bashforth of orders 1, 2, 3 (PLMS).
- UniPC corrects x_k once D is known at its prediction, and reuses that D for the next step. With two nodes the paper does not
  solve for the weight of D_j - D but sets it to (1 - e^{-h}) / (2 u_j), which agrees to its order (its variant B_2); with more
  it solves, and its B(h) cancels. UniPC(2)'s predictor is therefore DPM-Solver++(2M). The state of a run holds the
  predicted x; a correction of the last one would change nothing, as the last step does not read it.

The last step, to sigma' = 0, has no finite h; it returns D, whatever the rule: first order over a level at most sigma_min.

References: Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver++: Fast solver for guided sampling of diffusion probabilistic models, 2022,
arXiv:2211.01095, Algorithm 2. Liu, Ren, Lin, Zhao, Pseudo numerical methods for diffusion models on manifolds,
ICLR 2022, arXiv:2202.09778. Zhao, Bai, Rao, Zhou, Lu, UniPC: A unified predictor-corrector framework for fast sampling of
diffusion models, NeurIPS 2023, arXiv:2302.04867. Hochbruck, Ostermann, Exponential integrators, Acta Numerica 19, 2010.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser
from .integrators import Integrator

__all__ = ["PNDM", "DPMSolver", "UniPC"]


def interpolatory(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights int L_j(u) m(u) du of the Lagrange polynomials on n nodes, from the moments int u^i m(u) du, i = 0 ... n - 1."""
    weights = []
    for j, node in enumerate(nodes):
        polynomial = [1.0]
        for other in (*nodes[:j], *nodes[j + 1 :]):
            shifted = [0.0, *polynomial]
            polynomial = [(a - other * b) / (node - other) for a, b in zip(shifted, [*polynomial, 0.0], strict=True)]
        weights.append(sum(c * m for c, m in zip(polynomial, moments, strict=True)))
    return weights


def exponential_moments(h: float, count: int) -> list[float]:
    """int_0^1 h e^{-h (1 - u)} u^i du, i = 0 ... count - 1, to rounding for every h > 0."""
    if h > 1.0:
        moments = [-math.expm1(-h)]
        for i in range(1, count):
            moments.append(1.0 - i / h * moments[-1])
        return moments
    # the recursion divides rounding errors by h; the series converges as h^n / n!
    return [h * sum((-h) ** n * math.factorial(i) / math.factorial(n + i + 1) for n in range(20)) for i in range(count)]


@dataclass(frozen=True)
class DPMSolver(Integrator):
    """DPM-Solver++(2M): exact in the linear part, D by a line through the last two evaluations.

    Args:
        eta: noise of the SDE, >= 0: 0 the flow, 1 the reverse diffusion (SDE-DPM-Solver++(2M)). Between them it is not the eta
            of DDIM, whose share is of the noise of one step and not of one SDE.
    """

    order: ClassVar[int] = 2
    keeps: ClassVar[int] = 1
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta < math.inf:
            raise ConfigError(f"DPMSolver: expected eta >= 0, got {self.eta}")

    def advance(
        self, denoise: Denoiser, x: Tensor, past: Tensor, sigmas: Sequence[float], k: int, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        denoised = _denoised(denoise, x, sigmas[k])
        if sigmas[k + 1] == 0.0:
            return denoised, past
        h = math.log(sigmas[k] / sigmas[k + 1])
        ahead = denoised
        if k > 0:
            ahead = denoised + (0.5 * h / math.log(sigmas[k - 1] / sigmas[k])) * (denoised - past[0])
        rate = (1.0 + self.eta) * h
        out = math.exp(-rate) * x - math.expm1(-rate) * ahead
        if self.eta > 0.0:
            out = out + sigmas[k + 1] * math.sqrt(-math.expm1(-2.0 * self.eta * h)) * noise()
        return out, denoised[None]


@dataclass(frozen=True)
class PNDM(Integrator):
    """Adams-Bashforth of order four in sigma, with the weights of the grid's own distances.

    Args:
        warm_up: "runge-kutta", of order four, with nine evaluations more than steps; or "multistep" (PLMS), the
            Adams-Bashforth rules of orders 1, 2 and 3, with none more: its first step leaves an error of order two.
    """

    keeps: ClassVar[int] = 3
    warm_up: Literal["runge-kutta", "multistep"] = "runge-kutta"

    def __post_init__(self) -> None:
        if self.warm_up not in ("runge-kutta", "multistep"):
            raise ConfigError(f'PNDM: expected warm_up to be "runge-kutta" or "multistep", got {self.warm_up!r}')

    @property
    def order(self) -> int:  # type: ignore[override]
        return 4 if self.warm_up == "runge-kutta" else 2

    def advance(
        self, denoise: Denoiser, x: Tensor, past: Tensor, sigmas: Sequence[float], k: int, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        sigma, sigma_next = sigmas[k], sigmas[k + 1]
        step = sigma_next - sigma
        denoised = _denoised(denoise, x, sigma)
        if sigma_next == 0.0:
            return denoised, past
        slope = (x - denoised) / sigma
        kept = torch.cat([slope[None], past[:-1]])
        if k < 3 and self.warm_up == "runge-kutta":
            middle = 0.5 * (sigma + sigma_next)
            second = _slope(denoise, x + 0.5 * step * slope, middle)
            third = _slope(denoise, x + 0.5 * step * second, middle)
            fourth = _slope(denoise, x + step * third, sigma_next)
            return x + (step / 6.0) * (slope + 2.0 * second + 2.0 * third + fourth), kept
        known = min(k, 3) + 1
        nodes = [(sigmas[k - j] - sigma) / step for j in range(known)]
        weights = interpolatory(nodes, [1.0 / (i + 1) for i in range(known)])
        return x + step * _sum(weights, [slope, *past[: known - 1]]), kept


@dataclass(frozen=True)
class UniPC(Integrator):
    """The unified predictor and corrector, in terms of D, variant B_2.

    Args:
        p: the paper's order, 1 to 3: evaluations that the predictor uses. Its corrector uses one more, so that the error is
            O(h^(p + 1)) but for that of the first step, O(h^3), which is small where the first levels are so high that D hardly
            changes there: UniPC(3) shows an order of 4 from levels of many standard deviations of the prior.
    """

    p: int = 2

    def __post_init__(self) -> None:
        if self.p not in (1, 2, 3):
            raise ConfigError(f"UniPC: expected p to be 1, 2 or 3, got {self.p!r}")

    @property
    def order(self) -> int:  # type: ignore[override]
        # that of the corrector, p + 1, as far as the first step, corrected with two evaluations, leaves it
        return min(self.p + 1, 3)

    @property
    def keeps(self) -> int:  # type: ignore[override]
        # the corrected x of the step before, and the evaluations that its correction uses
        return 1 + self.p

    def advance(
        self, denoise: Denoiser, x: Tensor, past: Tensor, sigmas: Sequence[float], k: int, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        denoised = _denoised(denoise, x, sigmas[k])
        if sigmas[k + 1] == 0.0:
            return denoised, past
        if k > 0:
            known = min(self.p, k)
            values, at = [*past[1 : known + 1], denoised], [*sigmas[k - 1 :: -1][:known], sigmas[k]]
            x = _exponential(past[0], sigmas[k - 1], sigmas[k], values, at)
        known = min(self.p, k + 1)
        kept = torch.cat([x[None], denoised[None], past[1:-1]])
        return _exponential(x, sigmas[k], sigmas[k + 1], [*kept[1 : known + 1]], sigmas[k::-1][:known]), kept


def _exponential(x: Tensor, sigma: float, sigma_next: float, values: Sequence[Tensor], at: Sequence[float]) -> Tensor:
    """x at sigma_next from x at sigma, D the polynomial in log sigma through `values` at the levels `at`, at[0] = sigma."""
    h = math.log(sigma / sigma_next)
    nodes = [math.log(sigma / level) / h for level in at]
    moments = exponential_moments(h, len(nodes))
    if len(nodes) == 2:
        second = 0.5 * moments[0] / nodes[1]
        weights = [moments[0] - second, second]
    else:
        weights = interpolatory(nodes, moments)
    return (sigma_next / sigma) * x + _sum(weights, values)


def _sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total


def _slope(denoise: Denoiser, x: Tensor, sigma: float) -> Tensor:
    return (x - _denoised(denoise, x, sigma)) / sigma


def _denoised(denoise: Denoiser, x: Tensor, sigma: float) -> Tensor:
    return denoise(x, x.new_full((len(x),), sigma))
