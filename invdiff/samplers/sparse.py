"""Baselines that take an image for a few bright points.

    SparseL1   argmin_x  1/2 |(A x - y) / sigma|^2 + strength |x|_1,    |x|_1 the sum of moduli, for complex images too
    SBL        sparse Bayesian learning: x ~ CN(0, diag R), R by expectation maximisation,
               R_i = |m_i|^2 + V_ii,  m and V the mean and the covariance of x given R and y

SparseL1 is FISTA with restarts. Where no strength is given it goes down from the one at which x = 0 by factors of .7, from the
solution before, until chi^2 <= 1. SBL estimates V_ii by draws of x given R and y, as many as `probes`.

References: Beck, Teboulle, A fast iterative shrinkage-thresholding algorithm, SIAM J. Imaging Sci. 2, 2009. Tipping, Sparse
Bayesian learning and the relevance vector machine, JMLR 1, 2001. Lin, Song, Bilgic, Ba, Covariance-free sparse Bayesian
learning, IEEE TSP 70, 2022 (the draws).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import CapabilityError, ConfigError, LinearOperator, NumericalError, Problem, Streams, operator_norm
from .classical import Clock, Facts, Weighted
from .split_gibbs import draw_image

__all__ = ["SBL", "SparseL1"]


@dataclass(frozen=True)
class SparseL1:
    """Least squares with a penalty on the sum of moduli.

    Args:
        strength: weight of the penalty, in units of 1 / |x|; None chooses it by the discrepancy principle.
        iterations: for each strength on the way, and ten times as many at a given one.
    """

    name = "sparse l1"
    strength: float | None = None
    iterations: int = 30

    def __call__(self, problem: Problem) -> tuple[Tensor, Facts]:
        """The image, (1, *shape), and facts: strength, chi2, residual (of the fixed point, relative), operator_calls,
        seconds.

        Raises:
            CapabilityError: the operator is not linear. NumericalError: no strength reaches chi^2 = 1.
        """
        if (self.strength is not None and not 0.0 < self.strength < math.inf) or self.iterations < 1:
            raise ConfigError(f"SparseL1: expected strength > 0 and iterations >= 1, got {self.strength} and {self.iterations}")
        with Clock() as clock:
            data = Weighted.of(problem, "SparseL1")
            lipschitz = (1.02 * operator_norm(data.operator, dtype=data.y.real.dtype) / data.sigma) ** 2
            back = data.operator.adjoint(data.y) / data.sigma**2
            top, x, residual = float(back.abs().max()), torch.zeros_like(back), 0.0
            if self.strength is not None:
                strength = float(self.strength)
                x, residual = self._fista(data, x, back, lipschitz, strength, 10 * self.iterations)
            else:
                strength = top
                while data.chi2(x) > 1.0:
                    strength *= 0.7
                    if strength < 1e-6 * top:
                        raise NumericalError(
                            f"SparseL1: no strength reaches chi^2 = 1 (it is {data.chi2(x):.3g}): sigma is too small"
                        )
                    x, residual = self._fista(data, x, back, lipschitz, strength, self.iterations)
            chi2 = data.chi2(x)
        return x, {"strength": strength, "chi2": chi2, "residual": residual, **clock.facts}

    @staticmethod
    def _fista(
        data: Weighted, x: Tensor, back: Tensor, lipschitz: float, strength: float, iterations: int
    ) -> tuple[Tensor, float]:
        t, ahead, residual = 1.0, x, 0.0
        for _ in range(iterations):
            slope = data.operator.normal(ahead) / data.sigma**2 - back
            moved = ahead - slope / lipschitz
            size = moved.abs()
            new = moved * ((size - strength / lipschitz).clamp_min(0.0) / size.clamp_min(torch.finfo(size.dtype).tiny))
            residual = float((new - ahead).abs().square().sum() / new.abs().square().sum().clamp_min(1e-30)) ** 0.5
            # a restart where the momentum points uphill
            t = 1.0 if float(((ahead - new).conj() * (new - x)).real.sum()) > 0.0 else t
            faster = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * t * t))
            ahead, x, t = new + (t - 1.0) / faster * (new - x), new, faster
        return x, residual


@dataclass(frozen=True)
class SBL:
    """Sparse Bayesian learning of a complex image.

    Args:
        iterations: of expectation maximisation.
        probes: draws that estimate the variances in each of them.
        cg_steps: at most, of each solve.
        seed: of the draws.
    """

    name = "sparse Bayesian learning"
    iterations: int = 30
    probes: int = 4
    cg_steps: int = 60
    seed: int = 0

    def __call__(self, problem: Problem) -> tuple[Tensor, Facts]:
        """The posterior mean, (1, *shape), and facts: chi2, residual (of the worst solve), operator_calls, seconds.

        Raises:
            CapabilityError: the operator is not linear on complex images.
        """
        if min(self.iterations, self.probes, self.cg_steps) < 1:
            raise ConfigError("SBL: expected iterations, probes and cg_steps >= 1")
        a = problem.operator
        if not (isinstance(a, LinearOperator) and a.in_complex and a.out_complex):
            raise CapabilityError(f"SBL needs a linear operator on complex images; {type(a).__name__} is none")
        with Clock() as clock:
            gaussian = problem.gaussian()
            y, sigma = gaussian.y, gaussian.noise.sigma.to(problem.y.real)  # type: ignore[union-attr]
            back = a.adjoint(y)
            gain = a(back).abs().square().sum() / back.abs().square().sum()
            v = (back / gain).abs().square().mean().log().expand(1, *a.in_shape).clone()
            streams, residual = Streams(self.seed, self.probes), 0.0
            for k in range(self.iterations):
                mean, left = draw_image(a, y, sigma, v, None, k, self.cg_steps)
                drawn, other = draw_image(a, y, sigma, v.expand(self.probes, *a.in_shape), streams, k, self.cg_steps)
                spread = (drawn - mean).abs().square().mean(0, keepdim=True)
                # what is 120 dB below the brightest is zero to float32
                power = mean.abs().square() + spread
                v = power.clamp_min(1e-12 * float(power.max())).log()
                residual = max(residual, left, other)
            x, left = draw_image(a, y, sigma, v, None, self.iterations, self.cg_steps)
            chi2 = float(problem.chi2(x))
        return x, {"chi2": chi2, "residual": max(residual, left), **clock.facts}
