"""Blind split Gibbs: the image by exact draws, as for a linear operator, and its unknown parameters by draws of their own.

    p(x, z, phi | y)  ~  p(x) N(z; x, rho^2 I) N(y; A(phi) z, Sigma_y) N(phi; m, C)

    z | x, phi, y   exactly, A(phi) being linear                                             (`gibbs_steps.ExactDraw`)
    phi | z, y      N(phi + H^{-1} g, H^{-1}),  H = J^T Sigma_y^{-1} J + C^{-1},  J = d A(phi) z / d phi,
                    g = J^T Sigma_y^{-1} (y - A(phi) z) + C^{-1} (m - phi)
    x | z           the prior's own posterior at noise level rho, by the reverse diffusion   (`gibbs_steps.reverse`)

The second is exact where A(phi) z is linear in phi: gains, kernels, maps. Elsewhere (shifts) it is a Gauss-Newton step with
the noise of Laplace's approximation, and a proposal that Metropolis and Hastings take or refuse once rho has come down to
`last`; before that every one is taken, since the chain has to get there first. It is taken always where it is exact.

As rho -> 0 the stationary law becomes the posterior of image and parameters, with one phi for every draw, and the chain slow
(see `pnpdm`). It is slow too where image and parameters say the same: one sweep moves phi by the spread that it has for an
image that is known, which for a gain of all measurements is small beside its own: in `validation.blind_cases` the distance to
exact draws is 1.35, 1.25 and 1.32 times that between them for 60, 150 and 200 sweeps down to 0.1, 0.05 and 0.03. The centre of
a scan is found with its error (150 sweeps to 0.02: 1.3022 and 0.0105, exactly 1.3016 and 0.0110). `TDS` and guidance on the
packed vector (`priors.Independent`) take both in one; this is for operators whose adjoint and `solve` are worth it.

References: Vono, Dobigeon, Chainais, Split-and-augmented Gibbs sampler, IEEE TSP 67, 2019. Hastings, Monte Carlo sampling
methods using Markov chains and their applications, Biometrika 57, 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core import CapabilityError, Denoiser, LinearOperator, Operator, Problem, Streams
from ..core.algebra import flatten_real
from ..core.counting import Counted
from ..guidance import require_gaussian
from ..operators.calibration import Calibrated, Multiplied
from ..priors.gaussian import GaussianPrior
from ..priors.independent import Independent
from .guided import Level
from .pnpdm import PnPDM
from .split_gibbs import require_levels

__all__ = ["AlternatingGibbs"]


@dataclass(frozen=True)
class AlternatingGibbs(PnPDM):
    """Draws of an image and of the parameters of a `Calibrated` operator, for data that are noisier by `last`.

    Args:
        steps, integrator, first, last, inner, decay, hold: of `PnPDM`; rho is in the units of the image.
        draw: of z.

    Raises:
        ConfigError: an argument is out of its range.
        CapabilityError: the operator is not `Calibrated` with a linear one for known parameters, the prior not `Independent` of
            an image in units of 1 and of Gaussian parameters, the noise not Gaussian, or the prior is not defined at rho.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vjp"})

    @property
    def caveats(self) -> tuple[str, ...]:
        return (
            f"Blind split Gibbs draws are the ends of chains of {self.steps} sweeps with a coupling of "
            f"{self._rho(self.steps - 1):g}: of the posterior of image and parameters in the limit of many sweeps and of a "
            "coupling of zero.",
        )

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, self.name)
        own, operator = _parts(prior, self.name)[0], _calibrated(problem, self.name)
        fits = own.shapes[0] == operator.before.in_shape and own.shapes[1] == (operator.count,)
        if not fits or not isinstance(operator.at(problem.y.real.new_zeros(operator.count)), LinearOperator):
            raise CapabilityError(
                f"{self.name}: expected an operator that is linear for known parameters, on an image and parameters of "
                f"{own.shapes}, got {type(operator.before).__name__} on {operator.before.in_shape} and {operator.count} of them"
            )
        require_levels(prior, self.first, self.last, self.name)
        return prior

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        k, rho, sigma = state.step, self._rho(state.step), require_gaussian(problem, self.name)
        (own, image), operator = _parts(prior, self.name), _calibrated(problem, self.name)
        x, phi = own.split(state.x)
        if k == 0:
            # pure noise is no parameter of anything
            phi = torch.as_tensor(own.parts[1].origin).to(phi).expand_as(phi)
        seen = Problem(operator.at(phi), problem.noise, problem.y)
        z = self.draw(seen, sigma, x, rho, streams, step=k, part=k / self.steps)
        law = _Parameters(operator.given(z), problem.y, sigma, own.parts[1])  # type: ignore[arg-type]
        new, log_ratio = law.proposed(phi, streams.normal(k, phi.shape[1:], "phi", phi.dtype, phi.device))
        if rho <= self.last:
            chance = streams.uniform(k, (1,), "taken", phi.dtype, phi.device)
            new = torch.where(chance.log() < log_ratio[:, None], new, phi)
        return Level(k + 1, own.join(self._denoised(image, z, rho, streams, k), new), rho)

    def describe(self, state: Level) -> dict[str, Any]:  # type: ignore[override]
        return {"sigma": state.sigma}


class _Parameters:
    """p(phi | z, y): Gauss-Newton proposals and their log-ratio of Metropolis and Hastings."""

    def __init__(self, operator: Operator, y: Tensor, sigma: Tensor, prior: GaussianPrior) -> None:
        self.operator, self.y, self.sigma = operator, y, sigma
        self.mean, self.precision = prior.mean.to(y.real.dtype), torch.linalg.inv(prior.cov).to(y.real.dtype)

    def proposed(self, phi: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """phi', (B, P), and log p(phi') q(phi | phi') / (p(phi) q(phi' | phi)), (B,); phi and standard normals (B, P)."""
        log, mean, factor = self._expanded(phi)
        new = mean + torch.linalg.solve_triangular(factor.mT, noise[..., None], upper=True)[..., 0]
        log_new, mean_new, factor_new = self._expanded(new)
        return new, log_new - log + _log_normal(phi - mean_new, factor_new) - _log_normal(new - mean, factor)

    def _expanded(self, phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(phi | z, y) but for a constant, phi + H^{-1} g, and the Cholesky factor of H."""
        value, push, _ = self.operator.linearize(phi)
        is_complex = self.operator.out_complex
        r = flatten_real((self.y - value) / self.sigma, is_complex)
        unit = torch.eye(phi.shape[1], dtype=phi.dtype, device=phi.device)
        columns = [flatten_real(push(e.expand_as(phi)) / self.sigma, is_complex) for e in unit]
        j, off = torch.stack(columns, 2), self.mean - phi
        factor = torch.linalg.cholesky(j.mT @ j + self.precision)
        pulled = off @ self.precision
        g = (j.mT @ r[..., None])[..., 0] + pulled
        log = -0.5 * (r.square().sum(1) + (pulled * off).sum(1))
        return log, phi + torch.cholesky_solve(g[..., None], factor)[..., 0], factor


def _log_normal(x: Tensor, factor: Tensor) -> Tensor:
    """log N(x; 0, (L L^T)^{-1}) but for a constant."""
    return factor.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * (factor.mT @ x[..., None]).square().sum((1, 2))


def _calibrated(problem: Problem, who: str) -> Calibrated:
    """The operator on parts in their own units: the outer one where the unknown is in those of the prior."""
    operator = problem.operator
    if isinstance(getattr(operator, "inner", None), Multiplied):
        operator = operator.outer  # type: ignore[assignment]
    if not isinstance(operator, Calibrated):
        raise CapabilityError(f"{who}: expected a Calibrated operator, got {type(problem.operator).__name__}")
    return operator


def _parts(prior: Denoiser, who: str) -> tuple[Independent, Denoiser]:
    """The prior of both, and that of the image, counted where the first is."""
    own = prior.prior if isinstance(prior, Counted) else prior
    if not (
        isinstance(own, Independent)
        and len(own.parts) == 2
        and own.units[0] == 1.0
        and isinstance(own.parts[1], GaussianPrior)
        and len(own.shapes[1]) == 1
    ):
        raise CapabilityError(
            f"{who}: expected an Independent prior of an image in units of 1 and of parameters (P,) with a GaussianPrior, got "
            f"{type(own).__name__}"
        )
    image: Denoiser = own.parts[0]  # type: ignore[assignment]
    return own, Counted(image, prior.counter) if isinstance(prior, Counted) else image
