"""Twisted diffusion sampler (TDS): particles that are guided, and weighted so that the guidance may be wrong.

The target at level sigma_k is the law of the reverse chain times a twist p~_k(y | x), an approximation of p(y | x) that is the
true likelihood p(y | x0) at sigma = 0:

    weight   p~_{k+1}(y | x') p(x' | x) / (p~_k(y | x) q(x' | x)),      q ~ p(x' | x) p~_{k+1}(y | x')

so that at the end all twists have cancelled: draws are exact for the reverse chain's own prior as N grows, whatever the twist.
With D = D(x, sigma), J = dD/dx, r = y - A(D), in units of the noise of y:

    moment   N(r; 0, I + sigma^2 A J A^T)           Tweedie's covariance, M products with J for M measurements
    pigdm    N(r; 0, I + v A A^T), v = sigma^2 s^2 / (sigma^2 + s^2), s = data_std        one product, one solve
    dps      N(r; 0, I)                             one product; any operator

A is its tangent at D where it is not linear. `pigdm` needs no determinant: it is the same for all particles.

The chain. With rho = (sigma' / sigma)^2 and c^2 = sigma'^2 (1 - rho),

    p(x' | x) = N(rho x + (1 - rho) (D + e), c^2 I),    e = (h / h_before) (D - D_before) / 2,    h = log(sigma / sigma')

order 1 has e = 0: the ancestral rule, which loses variance in proportion to its step. Order 2 extrapolates D along the path
(the stochastic two-step rule of DPM-Solver++): for a prior N(0, I) its variance is right to 2 % at 50 Karras levels from 100,
where the ancestral one lacks 18 %, at the same cost. The last step returns D.

The proposal. `moment` draws from the product above with a twist at x' that is linear in x', y = A D + H (x' - E x') + n', where

    H = s A J,   n' ~ N(0, I + sigma'^2 s A J A^T),   s = 1 / (rho + (1 - rho) j),   j = |A J|^2 / tr(A J A^T)

by perturb and solve in the space of the measurement; s turns J at sigma into that at sigma', exactly where J = j I on the range
of A^T. Then p / q = N(r; 0, c^2 H H^T + Cov n') / N(r - H (x' - E x'); 0, Cov n'), without densities in the space of x. The
others shift the mean of p by (1 - rho) sigma^2 grad log p~(y | x), at most by c times the root of the number of measurements:
the twist of `dps` is far too sharp at high noise.

Modes are lost where particles are resampled often before a twist can tell modes apart, and found again by no later step: at
every step (`resample` = 1) is too often, half of the particles, the default, a good share.

The paper writes it for x_t = alpha_t x0 + sigma_t eps and shifts by the full gradient, here also `moment` without the
derivative of J.

References: Wu, Trippe, Naesseth, Blei, Cunningham, Practical and asymptotically exact conditional sampling in diffusion models,
2023, arXiv:2306.17775, Algorithm 1; Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver++, 2022, arXiv:2211.01095 (order 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core import CapabilityError, ConfigError, Denoiser, LinearOperator, Problem, dot, expand, norm
from ..core.algebra import flatten_real
from ..core.errors import require_positive
from ..guidance import linearize, require_gaussian, require_scalar_gaussian
from .particles import Particles, Proposed, Transition

__all__ = ["TDS"]

# measurements of the moment twist, each a product with the network's Jacobian for every particle
MOST = 64


@dataclass(frozen=True)
class TDS(Particles):
    """Exact for every prior and operator as the particles grow, up to the steps of the reverse chain.

    On the mixture suite of MCGdiff (25 modes up to 45 apart; `validation.cases.mixture`), the sliced Wasserstein distance of
    1,000 draws to exact ones over that between exact ones is 1.03 to 1.07 for d = 8 with eight particles and a hundred levels
    from 300 to 0.02, means of three problems; for d = 80 it is 1.2 with one measurement and 1.4 with two, one problem of which
    has lost a mode: there more particles are needed. `benchmarks/mixtures.py` has the rows.

    Args:
        twist: "moment", for at most 64 real measurements; "pigdm", for a linear operator and one noise level; "dps", for any.
        order: 2, or 1 for the ancestral chain of the paper.
        data_std: s of the pigdm twist, in the units of the unknown; it changes the variance of the weights and not their limit.

    Raises:
        ConfigError: an option is out of its range.
        CapabilityError: the noise is not Gaussian, not of one level ("pigdm"), or there are too many measurements ("moment").
    """

    kind: ClassVar[str] = "posterior"
    twist: Literal["moment", "pigdm", "dps"] = "moment"
    order: Literal[1, 2] = 2
    data_std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.twist not in ("moment", "pigdm", "dps"):
            raise ConfigError(f'TDS: expected twist to be "moment", "pigdm" or "dps", got {self.twist!r}')
        if self.order not in (1, 2):
            raise ConfigError(f"TDS: expected order 1 or 2, got {self.order!r}")
        require_positive(self, data_std=self.data_std)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"adjoint", "solve"} if self.twist == "pigdm" else {"vjp"})

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, "TDS")
        if self.twist == "pigdm":
            require_scalar_gaussian(problem, "TDS with the pigdm twist")
        count = math.prod(problem.operator.out_shape) * (2 if problem.operator.out_complex else 1)
        if self.twist == "moment" and count > MOST:
            raise CapabilityError(
                f"TDS: the moment twist takes at most {MOST} real measurements, {type(problem.operator).__name__} has {count}: "
                'use twist="pigdm" (linear operators) or twist="dps"'
            )
        return prior

    def look(self, problem: Problem, prior: Denoiser, x: Tensor, at: Transition) -> tuple[Tensor, tuple[Tensor, ...]]:
        denoised, transposed = linearize(prior, x, x.new_full((len(x),), at.sigma))
        with torch.no_grad():
            if self.twist == "moment":
                return self._moments(problem, denoised, transposed, at)
            log, slope = self._scalar(problem, denoised, at)
            return log, (log, denoised, transposed(slope))

    def propose(
        self,
        problem: Problem,
        prior: Denoiser,
        x: Tensor,
        seen: tuple[Tensor, ...],
        history: Tensor,
        at: Transition,
        noise: Callable[..., Tensor],
    ) -> Proposed:
        log, denoised, *rest = seen
        ratio = (at.sigma_next / at.sigma) ** 2
        if at.sigma_next == 0.0:
            return Proposed(denoised, -0.5 * _residual(problem, denoised)[1] - log, history)
        c = at.sigma_next * math.sqrt(1.0 - ratio)
        mean, ahead = ratio * x + (1.0 - ratio) * denoised, torch.zeros_like(x)
        if self.order == 2 and at.step > 0:
            stretch = 0.5 * math.log(at.sigma / at.sigma_next) / math.log(at.before / at.sigma)
            ahead = (1.0 - ratio) * stretch * (denoised - history)
        z = c * noise(problem.shape)
        if self.twist == "moment":
            r, values, pushed = rest
            e, gain = _twisted(r, values, pushed, ahead.flatten(1), z.flatten(1), noise((r.shape[1],), "twist"), at)
            e = e.reshape(x.shape)
        else:
            shift = (1.0 - ratio) * at.sigma**2 * rest[0]
            longest = c * math.sqrt(min(problem.operator.count_measured(), x[0].numel()))
            if longest > 0.0:
                shift = shift * expand(longest / norm(shift).clamp_min(longest), x)
            e = z + shift
            gain = 0.5 * (dot(z, z) - dot(e, e)) / c**2
        return Proposed(mean + ahead + e, gain - log, denoised if self.order == 2 else history)

    def _moments(
        self, problem: Problem, denoised: Tensor, transposed: Callable[[Tensor], Tensor], at: Transition
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """log p~, D, and in the eigenbasis of A J A^T: r (M, m), its eigenvalues (M, m), A J (M, m, n)."""
        r, _ = _residual(problem, denoised)
        rows = _rows(problem, denoised)
        products = [transposed(row.expand_as(denoised)).flatten(1) for row in rows.unbind(1)]
        pushed = torch.stack(products, 1) if products else r.new_zeros(len(r), 0, denoised[0].numel())
        inner = pushed @ rows.flatten(2).mT
        # decompositions raise errors of their own; the weight reports an item, and the loop its step
        finite = inner.isfinite().flatten(1).all(1) & r.isfinite().all(1)
        inner = torch.where(finite[:, None, None], inner, 0.0)
        # a covariance, which that of a trained network is but nearly
        values, basis = torch.linalg.eigh(0.5 * (inner + inner.mT)) if inner.shape[1] != 1 else (inner[..., 0], inner**0)
        values, r, pushed = values.clamp_min(0.0), (basis.mT @ r[..., None])[..., 0], basis.mT @ pushed
        log = torch.where(finite, _log_normal(r, 1.0 + at.sigma**2 * values), math.nan)
        return log, (log, denoised, r, values, pushed)

    def _scalar(self, problem: Problem, denoised: Tensor, at: Transition) -> tuple[Tensor, Tensor]:
        """log p~, (M,), and its gradient with respect to D, (M, *shape)."""
        operator, variance = problem.operator, require_gaussian(problem, "TDS").square()
        value, pull = operator.vjp(denoised)
        r = problem.y - value
        if self.twist == "dps":
            return -0.5 * problem.noise.chi2(problem.y, value), pull(r / variance)
        assert isinstance(operator, LinearOperator)  # by `needs`
        # (v A A^T + sigma_y^2)^-1 r = (r - A w) / sigma_y^2,  w = (A^T A + sigma_y^2 / v)^-1 A^T r
        level = variance.flatten()[0]
        w = operator.solve(pull(r), level * (1.0 / at.sigma**2 + 1.0 / self.data_std**2))
        solved = (r - operator(w)) / level
        return -0.5 * dot(r, solved), pull(solved)


def _twisted(
    r: Tensor, values: Tensor, pushed: Tensor, ahead: Tensor, z: Tensor, n: Tensor, at: Transition
) -> tuple[Tensor, Tensor]:
    """x' - E x', (M, n), of the proposal, and log p / q, (M,), from z ~ N(0, c^2 I) and standard normals n, (M, m)."""
    ratio = (at.sigma_next / at.sigma) ** 2
    c2 = at.sigma_next**2 * (1.0 - ratio)
    trace = values.sum(1)
    j = torch.where(trace > 0, pushed.square().sum((1, 2)) / torch.where(trace > 0, trace, 1.0), 0.0)
    s = 1.0 / (ratio + (1.0 - ratio) * j)
    h, left = s[:, None, None] * pushed, 1.0 + at.sigma_next**2 * s[:, None] * values
    r = r - _times(h, ahead)
    # an item without a factor has no weight: the loop reports it, and the host does not wait for the others
    factor, failed = torch.linalg.cholesky_ex(c2 * (h @ h.mT) + torch.diag_embed(left))
    w = torch.cholesky_solve((r - _times(h, z) - left.sqrt() * n)[..., None], factor)[..., 0]
    e = z + c2 * _times(h.mT, w)
    misfit = torch.linalg.solve_triangular(factor, r[..., None], upper=False)[..., 0]
    log = -0.5 * misfit.square().sum(1) - factor.diagonal(dim1=1, dim2=2).log().sum(1)
    return e, torch.where(failed == 0, log - _log_normal(r - _times(h, e), left), math.nan)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _log_normal(r: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * (r.square() / variance + variance.log()).sum(1)


def _residual(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
    """y - A(x) in units of the noise as real values, (M, m), and the sum of their squares, (M,)."""
    operator, sigma_y = problem.operator, require_gaussian(problem, "TDS")
    r = flatten_real((problem.y - operator(x)) / sigma_y, operator.out_complex)
    return r, r.square().sum(1)


def _rows(problem: Problem, x: Tensor) -> Tensor:
    """The real rows of A, or of its tangent at each item, in units of the noise, (1 or M, m, *shape)."""
    operator, y = problem.operator, problem.y
    unit = torch.eye(y.numel(), dtype=y.dtype, device=y.device).reshape(y.numel(), *operator.out_shape)
    unit = torch.cat([unit, 1j * unit]) if operator.out_complex else unit
    unit = unit / require_gaussian(problem, "TDS")
    if isinstance(operator, LinearOperator):
        return operator.adjoint(unit)[None]
    _, pull = operator.vjp(x)
    return torch.stack([pull(u.expand(len(x), *u.shape)) for u in unit], 1)
