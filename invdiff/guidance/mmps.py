"""Moment-matching posterior sampling (MMPS).

The prior's posterior p(x0 | x) is approximated by N(D, V), D = D(x, sigma), V = sigma^2 dD/dx (Tweedie), so that

    E[x0 | x, y] ~ D + V A^T w,    (A V A^T + Sigma_y) w = y - A D,

solved by a few Krylov steps in the space of the measurement, each of them one vector-Jacobian product through the network.
Exact for every Gaussian prior once the solver has converged. The paper takes conjugate gradients. The Jacobian of a trained
network is neither symmetric nor positive, and at high noise, where V is sigma^2 times a small difference, CG can diverge within
three steps. Generalised conjugate residuals span the same Krylov space and make the residual least, each value in units of its
noise, which never grows; they need V A^T of each direction and not w, so K steps cost K products. With `data_std` the
directions are preconditioned by the inverse that PiGDM would use, V = r^2 I with r^2 = sigma^2 s^2 / (s^2 + sigma^2),

    p = (r^2 A A^T + sigma_y^2 I)^{-1} residual ~ residual - A (A^T A + sigma_y^2 / r^2)^{-1} A^T residual,

which changes the number of steps that are needed and not the limit: one step is exact for a prior N(m, s^2 I). The paper writes
it for x_t = alpha_t x0 + sigma_t eps; here x = x_t / alpha_t and sigma = sigma_t / alpha_t.

With `reference`, a Gaussian field with covariance C that resembles the prior, the directions are preconditioned by the exact
inverse for it, dense in the space of the measurement and factorised once per noise level,

    p = (A V_C A^T + Sigma_y)^{-1} residual,    V_C = sigma^2 C / (C + sigma^2),

so that one step is exact where the prior is that field, and a few serve a network trained on something like it, whatever the
condition number: smooth fields seen by hundreds of nearly noise-free sensors, say. Where A is not linear its tangent J stands
for it, at M products with J^T a linearisation for M measurements: dear, but a flow stretches what it carries, and no spectrum
describes J V J^T then.

An operator that is not linear is replaced by its tangent, first at D and, with `newton` > 1, again at each estimate x_k (the
iterated extended Kalman filter, which is Gauss-Newton's method for the mode):

    A(x0) ~ A(x_k) + J_k (x0 - x_k),    x_{k+1} = D + V J_k^T w,    (J_k V J_k^T + Sigma_y) w = y - A(x_k) - J_k (D - x_k).

This is our addition; it is an approximation also for Gaussian priors, good where A is nearly linear over the spread of V.

References: Rozet, Andry, Lanusse, Louppe, Learning diffusion priors from observations by expectation maximization, 2024,
arXiv:2405.13712, Eq. 12; Eisenstat, Elman, Schultz, Variational iterative methods for nonsymmetric systems of linear
equations, SIAM J. Numer. Anal. 20, 1983. Bell, Cathey, The iterated Kalman filter update as a Gauss-Newton method, IEEE Trans.
Automat. Control 38, 1993.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, LinearOperator, Problem, dot, expand
from ..priors.field import SpectralGaussian
from .dense import dense, dense_tangents, innermost, required
from .guidance import Guidance, Jacobian, linearize, require_gaussian

__all__ = ["MMPS"]


@dataclass(frozen=True)
class MMPS(Guidance):
    """The covariance that the network itself implies.

    Too few steps leave directions that the measurement determines too close to the prior. Measured for a 16 x 16 Gaussian field
    of standard deviation 1 and spectrum 1/|k|^3, Heun with 25 levels, 100 draws: distance of the mean from the true one in
    standard deviations of the posterior, and variance over the true one, both against draws with the exact posterior's denoiser
    from the same noise, by `python benchmarks/krylov_steps.py`.

        cg_steps                                1          2          3          5          8          20
        25 % of the pixels, sigma_y = 0.05   0.37 1.18  0.16 1.04  0.12 1.00  0.06 1.00  0.03 1.00  0.00 1.00
            data_std = 1                     0.37 1.18  0.16 1.04  0.12 1.00  0.06 1.00  0.03 1.00  0.00 1.00
        blur of 1.5 pixels, sigma_y = 0.1    0.38 1.22  0.25 1.09  0.16 1.02  0.10 0.97  0.00 1.00  0.00 1.00
            data_std = 1                     0.19 1.07  0.11 1.02  0.05 1.01  0.01 1.00  0.00 1.00  0.00 1.00
        blur of 1.5 pixels, sigma_y = 0.01   0.91 1.67  0.79 1.48  0.68 1.36  0.51 1.21  0.20 1.04  0.00 1.00
            data_std = 1                     0.25 1.06  0.15 1.02  0.10 1.01  0.04 1.00  0.00 1.00  0.00 1.00
        tomography, 8 views, sigma_y = 0.1   0.75 1.49  0.58 1.25  0.52 1.19  0.37 1.10  0.25 1.04  0.04 1.00
            data_std = 1                     0.32 1.07  0.20 1.02  0.13 1.01  0.07 1.00  0.02 1.00  0.00 1.00

    Args:
        cg_steps: Krylov steps per call, each one product with the network's Jacobian.
        newton: linearisations of an operator that is not linear; a linear one needs no second.
        newton_below: noise level, in units of the prior, from which on there is more than one; where x0 is known no better, the
            tangent at the first estimate leads nowhere in particular. None for at all levels.
        data_std: standard deviation of the unknown, in its units, for the preconditioner; a rough value does. None for no
            preconditioner. It pays for operators of large condition number with a fast `solve`: in tomography two steps with it
            do better than eight without. It changes nothing where A A^T is a multiple of the identity on what is measured.
        reference: a Gaussian field on the prior's grid for the preconditioner, or "prior" for the prior itself; None for none.
            For at most 4,096 real measurements.

    Raises:
        CapabilityError: the noise is not Gaussian (its sigma may differ between measurements), or with `data_std` the operator
            is not linear.
    """

    kind: ClassVar[str] = "posterior"
    cg_steps: int = 5
    data_std: float | None = None
    newton: int = 1
    newton_below: float | None = None
    reference: SpectralGaussian | Literal["prior"] | None = None

    def __post_init__(self) -> None:
        if self.cg_steps < 1 or self.newton < 1:
            raise ConfigError(f"MMPS: expected cg_steps >= 1 and newton >= 1, got {self.cg_steps} and {self.newton}")
        if self.data_std is not None and not self.data_std > 0:
            raise ConfigError(f"MMPS: expected data_std > 0 or none, got {self.data_std}")
        if self.newton_below is not None and not self.newton_below > 0:
            raise ConfigError(f"MMPS: expected newton_below > 0 or none, got {self.newton_below}")
        given = [name for name in ("data_std", "reference") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"MMPS: expected one preconditioner or none, got {' and '.join(given)}")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        if self.data_std is not None:
            return frozenset({"adjoint", "solve"})
        return frozenset({"vjp"})

    def __call__(self, prior: Denoiser, problem: Problem) -> Denoiser:
        return _Guided(prior, problem, self, require_gaussian(problem, "MMPS"))


class _Guided(Denoiser):
    def __init__(self, prior: Denoiser, problem: Problem, options: MMPS, sigma_y: Tensor) -> None:
        super().__init__(prior.shape, prior.sigma_min, prior.sigma_max)
        self.prior, self.operator, self.y = prior, problem.operator, problem.y
        self.options, self.variance = options, sigma_y.square()
        # one where all noises are alike
        self.weight = sigma_y.min() / sigma_y
        self.factors: Callable[[Tensor, Tensor], Tensor] | None = None
        self.field: SpectralGaussian | None = None
        if options.reference is not None:
            found = innermost(prior) if options.reference == "prior" else options.reference
            self.field = copy.deepcopy(required(found, problem.operator)).to(problem.y.device)
            if isinstance(problem.operator, LinearOperator):
                self.factors = dense(self.field, problem.operator, problem.y, sigma_y)

    @property
    def origin(self) -> float | Tensor:
        return self.prior.origin

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        denoised, transposed = linearize(self.prior, x, sigma)
        again = sigma <= (self.options.newton_below or math.inf)
        once = isinstance(self.operator, LinearOperator) or not bool(again.any())
        point, rounds = denoised, 1 if once else self.options.newton
        with torch.no_grad():
            for k in range(rounds):
                value, push, pull = self.operator.linearize(point)
                r = self.y - value
                if k:
                    r = r - push(denoised - point)

                def spread(v: Tensor, pull: Jacobian = pull) -> Tensor:
                    return expand(sigma.square(), x) * transposed(pull(v))

                update = denoised + self._update(r, sigma, push, spread, self._preconditioner(point, sigma))
                point = torch.where(expand(again, x), update, point) if k else update
        return point

    def _update(self, r: Tensor, sigma: Tensor, push: Jacobian, spread: Jacobian, precondition: Jacobian) -> Tensor:
        """V J^T w for (J V J^T + Sigma_y) w = r, with push = J and spread = V J^T."""
        total: Tensor | None = None
        before: list[tuple[Tensor, Tensor, Tensor]] = []
        r = self.weight * r
        for _ in range(self.options.cg_steps):
            p = precondition(_scaled(r))
            s = spread(p)
            q = self.weight * (push(s) + self.variance * p)
            size = dot(q, q)
            for s_j, q_j, inverse_j in before:
                beta = dot(q, q_j) * inverse_j
                s, q = s - expand(beta, s) * s_j, q - expand(beta, q) * q_j
            left = dot(q, q)
            # a direction that cancels to rounding is one already searched: the item has converged
            new = left > (1e3 * torch.finfo(left.dtype).eps) ** 2 * size
            inverse = torch.where(new, 1.0 / torch.where(new, left, 1.0), 0.0)
            alpha = dot(r, q) * inverse
            total = expand(alpha, s) * s if total is None else total + expand(alpha, s) * s
            r = r - expand(alpha, r) * q
            before.append((s, q, inverse))
        assert total is not None
        return total

    def _preconditioner(self, point: Tensor, sigma: Tensor) -> Jacobian:
        if self.field is None or isinstance(self.operator, LinearOperator):
            return lambda r: self.precondition(r, sigma)
        solve = dense_tangents(self.field, self.operator, point, sigma, self.variance)
        return lambda r: solve(r / self.weight)

    def precondition(self, r: Tensor, sigma: Tensor) -> Tensor:
        """The inverse that stands for (A V A^T + Sigma_y)^{-1}, of a weighted residual, up to a factor."""
        if self.options.data_std is None and self.factors is None:
            return self.weight * r
        r = r / self.weight
        if self.factors is not None:
            return self.factors(r, sigma)
        assert isinstance(self.operator, LinearOperator)  # by `needs`
        rho = self.variance.mean() * (1.0 / sigma.square() + 1.0 / self.options.data_std**2)
        return r - self.operator(self.operator.solve(self.operator.adjoint(r), rho))


def _scaled(r: Tensor) -> Tensor:
    """r of each item times the power of two that brings it near one, so that no square underflows; no digit changes."""
    if not r.numel():
        return r
    largest = r.abs().flatten(1).amax(1)
    return r * expand(torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent), r)
