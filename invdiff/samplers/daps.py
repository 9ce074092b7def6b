"""Decoupled annealing posterior sampling (DAPS).

Down the levels, x at sigma forgets how it came about:

    x0 ~ q(x0 | x, y) ~ N(y; A x0, Sigma_y) N(x0; m(x), V),    x' = x0 + sigma' z

If q were p(x0 | x, y), every x would have the law of the posterior plus noise, and x0 that of the posterior. What stands for
the prior's p(x0 | x) is one of

    noise        V = sigma^2 I                                     the paper's, with m(x) the end of a few steps of the ODE
    isotropic    V = r^2 I,  r^2 = v sigma^2 / (v + sigma^2)       exact for a prior N(., v I), with m(x) = D(x, sigma)
    jacobian     V = sigma^2 dD/dx, Tweedie's covariance           exact for every Gaussian prior, with m(x) = D(x, sigma)

one step of the ODE being D itself. In the last row, with products by Jacobians alone,

    x0 = x' + V A^T (A V A^T + Sigma_y)^{-1} (y - A x' - n),    x' = D + V^{1/2} z,  n ~ N(0, Sigma_y),

the inverse by conjugate gradients in the space of the measurement, and V^{1/2} z = |z| Q T^{1/2} e_1 from the Krylov space of V
and z, with its orthonormal basis Q and T the symmetric part of Q^T V Q, of which no negative values are kept.

For a prior of variance c along a singular vector of A with value a, datum b (in units of the unknown), and m(x) = g x, x is
Gaussian at every level, and with p = a^2 / sigma_y^2 + 1 / r^2

    E x' = (a^2 b / sigma_y^2 + g E x / r^2) / p,    Var x' = 1 / p + (g / (r^2 p))^2 Var x + sigma'^2.

g is the product of (sigma' / sigma + (1 - sigma' / sigma) c / (c + sigma^2)) over the steps of the ODE, and sqrt(c / (c +
sigma^2)) for many of them. The paper's V is too wide for any prior, and so are the draws. For the laboratory's problems (c = 1)
and 200 levels from 100 to 0.02 the variances in the observed and in the other directions are off by the factors

    1.18, 1.41  with 5 steps of the ODE,    1.28, 1.67  with 10,    1.42, 2.12  with many,

and the mean by 0.17, 0.26 and 0.37 of itself. The paper also puts a number tau = 0.01 in place of the noise level. A value that
is not finite ends a run here, the published code continues with zeros.

References: Zhang, Chu, Berner, Meng, Anandkumar, Song, Improving diffusion inverse problem solving with decoupled noise
annealing, CVPR 2025, arXiv:2407.01521, Algorithm 1, Eq. 5 to 9; Rozet, Andry, Lanusse, Louppe, Learning diffusion priors from
observations by expectation maximization, 2024, arXiv:2405.13712 (the covariance); Chow, Saad, Preconditioned Krylov subspace
methods for sampling multivariate Gaussian distributions, SIAM J. Sci. Comput. 36, 2014 (the root).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, LinearOperator, Problem, Streams, cg, dot, expand, norm
from ..guidance import linearize, require_gaussian
from .gibbs_steps import DataDraw, ExactDraw, perturbation, reverse
from .guided import DownLevels, Level
from .integrators import Euler

__all__ = ["DAPS", "root"]

COVARIANCES = ("noise", "isotropic", "jacobian")


def root(product: Callable[[Tensor], Tensor], z: Tensor, steps: int) -> Tensor:
    """V^{1/2} z of each item, (B, *shape), from `steps` products with V; exact once they span the Krylov space of V and z."""
    length = norm(z)
    basis, t = [z / expand(length, z)], z.new_zeros(len(z), steps, steps)
    for k in range(steps):
        w = product(basis[k])
        size = norm(w)
        # twice, as rounding leaves a part of the first directions
        for _ in range(2):
            for j, q in enumerate(basis):
                share = dot(q, w)
                t[:, j, k] += share
                w = w - expand(share, w) * q
        if k + 1 < steps:
            left = norm(w)
            new = left > 1e3 * torch.finfo(left.dtype).eps * size
            t[:, k + 1, k] = torch.where(new, left, 0.0)
            basis.append(w * expand(torch.where(new, 1.0 / torch.where(new, left, 1.0), 0.0), w))
    values, vectors = torch.linalg.eigh(0.5 * (t + t.mT))
    weights = (vectors * (values.clamp_min(0.0).sqrt() * vectors[:, 0])[:, None]).sum(2) * length[:, None]
    return sum((expand(weights[:, j], q) * q for j, q in enumerate(basis)), torch.zeros_like(z))


@dataclass(frozen=True)
class DAPS(DownLevels):
    """Draws given the level, and fresh noise of the next.

    Args:
        covariance: V, see above.
        data_std: sqrt(v) of "isotropic", standard deviation of the unknown in its units.
        krylov: of "jacobian", products with the network's Jacobian in the root, and again in the inverse.
        ode_steps: levels of the ODE that ends in m(x), the prior's flow by Euler's rule; 1 is D. The paper's 5 or 10.
        draw: how to draw x0; "jacobian" has its own way, for linear operators.
        tau: what stands for the noise level in the draw, in units of the measurement; None is the problem's own. The paper's
            0.01.
        grid: noise levels between the prior's limits.
        steps: number of levels.

    Raises:
        ConfigError: an argument is out of its range, or "jacobian" with another draw or more ODE steps.
        CapabilityError: the noise is not Gaussian.
    """

    kind: ClassVar[str] = "posterior"
    covariance: Literal["noise", "isotropic", "jacobian"] = "isotropic"
    data_std: float = 1.0
    krylov: int = 10
    ode_steps: int = 1
    draw: DataDraw = field(default_factory=ExactDraw)
    tau: float | None = None
    steps: int = field(default=200, kw_only=True)

    def __post_init__(self) -> None:
        if self.covariance not in COVARIANCES:
            raise ConfigError(f"DAPS: expected covariance to be one of {', '.join(COVARIANCES)}, got {self.covariance!r}")
        if not (0.0 < self.data_std < math.inf and self.krylov >= 1 and self.ode_steps >= 1):
            raise ConfigError(
                f"DAPS: expected data_std > 0, krylov >= 1 and ode_steps >= 1, got {self.data_std}, {self.krylov} and "
                f"{self.ode_steps}"
            )
        if self.tau is not None and not 0.0 < self.tau < math.inf:
            raise ConfigError(f"DAPS: expected tau > 0 or none, got {self.tau}")
        if self.covariance == "jacobian" and (self.ode_steps > 1 or not isinstance(self.draw, ExactDraw)):
            raise ConfigError(
                f'DAPS: covariance "jacobian" is that about D, drawn exactly: expected ode_steps = 1 and draw = ExactDraw(), '
                f"got {self.ode_steps} and {self.draw}"
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"adjoint"}) if self.covariance == "jacobian" else self.draw.needs

    @property
    def caveats(self) -> tuple[str, ...]:
        law = {
            "noise": "noise of the level about the end of the ODE, which is wider than that of any prior",
            "isotropic": f"N(D, r^2 I), as for a prior of standard deviation {self.data_std:g} everywhere",
            "jacobian": "a Gaussian with Tweedie's covariance, as for Gaussian priors",
        }[self.covariance]
        own = () if self.tau is None else (f"DAPS took a noise level of {self.tau:g} in place of the problem's.",)
        return (f"DAPS takes p(x0 | x) for {law}.", *own)

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, "DAPS")
        return prior

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        x, k = state.x, state.step
        sigma, sigma_next = self.between(prior, state)
        sigma_y = require_gaussian(problem, "DAPS")
        sigma_y = sigma_y if self.tau is None else sigma_y.new_full((), self.tau)
        if self.covariance == "jacobian":
            x0 = self._by_jacobian(problem, prior, x, sigma, sigma_y, streams, k)
        else:
            v = self.data_std**2
            spread = sigma if self.covariance == "noise" else sigma * math.sqrt(v / (v + sigma**2))
            centre = reverse(prior, x, sigma, integrator=Euler(), inner=self.ode_steps, streams=streams, step=k)
            x0 = self.draw(problem, sigma_y, centre, spread, streams, step=k, part=k / self.steps)
        if sigma_next > 0.0:
            x0 = x0 + sigma_next * streams.normal(k + 1, problem.shape, dtype=x.dtype, device=x.device)
        return Level(k + 1, x0, sigma_next)

    def _by_jacobian(
        self, problem: Problem, prior: Denoiser, x: Tensor, sigma: float, sigma_y: Tensor, streams: Streams, k: int
    ) -> Tensor:
        operator = problem.operator
        assert isinstance(operator, LinearOperator)  # by `needs`
        denoised, transposed = linearize(prior, x, x.new_full((len(x),), sigma))

        def spread(v: Tensor) -> Tensor:
            return sigma**2 * transposed(v)

        x = denoised + root(spread, streams.normal(k, problem.shape, "centre", x.dtype, x.device), self.krylov)
        residual = (problem.y - operator(x) - perturbation(problem, sigma_y, streams, k)) / sigma_y

        def gram(w: Tensor) -> Tensor:
            return operator(spread(operator.adjoint(w / sigma_y))) / sigma_y + w

        w = cg(gram, residual, max_iter=self.krylov).x
        return x + spread(operator.adjoint(w / sigma_y))
