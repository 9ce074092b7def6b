"""Split Gibbs sampling of a complex image and its reflectivity: coherent imaging with a prior where there is structure.

    p(x, v, u | y)  ~  N(y; A x, sigma) CN(x; 0, e^v) N(v; u, rho^2) p(u)

    x | v, y    complex Gaussian, exactly: x = R^{1/2} z,  z = z0 + (B^H B + I)^-1 B^H (w y - B z0 - n0),
                B = w A R^{1/2},  w = 1 / (sigma sqrt 2),  z0, n0 ~ CN(0, I),  by conjugate gradients
    v | x, u    log-concave in every pixel, exactly: by the tangent of f = -L (v + |x|^2 e^-v) at the mode (here L = 1 look),
                N(mode, rho^2) is an envelope, from which draws mode + d are accepted with probability
                exp(f(v) - f(mode) - f'(mode) d) = exp(-c (e^-d - 1 + d)),  c = L |x|^2 e^-mode
    u | v       the prior's own posterior at noise level rho, by the reverse diffusion from rho to 0
    phi | x, y  errors of phase of the pulses, where asked for: von Mises about arg <A x, y>, concentration |<A x, y>| / sigma^2

rho goes down from `first` to `last` in geometric steps over the first half of the run and stays there. As rho -> 0 the
stationary law becomes the posterior of the hierarchical model, and the chain slow; that is what `first` is for. One draw is the
end of one chain.

The unknown is (u, a, b) of `operators.Speckled`; A must be linear.

References: Vono, Dobigeon, Chainais, Split-and-augmented Gibbs sampler, IEEE TSP 67, 2019. Xu, Chi, Provably robust score-based
diffusion posterior sampling for plug-and-play image reconstruction, 2024, arXiv:2403.17042. Best, Fisher, Efficient simulation
of the von Mises distribution, JRSS C 28, 1979.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core import CapabilityError, ConfigError, Denoiser, LinearOperator, NumericalError, Problem, Sampler, State, Streams, cg
from ..core.counting import Counted
from ..core.speckle_prox import prox_log
from ..guidance import require_gaussian
from ..operators.speckled import Speckled, speckle_of
from ..priors.speckled import SpeckledPrior
from .gibbs_steps import reverse
from .integrators import Churn, Integrator

__all__ = [
    "Chain",
    "Phased",
    "SplitGibbs",
    "Splitting",
    "draw_image",
    "draw_log_reflectivity",
    "first_level",
    "hierarchical",
    "log_intensity",
    "pulses_to_focus",
    "require_levels",
]


@dataclass(frozen=True)
class Phased(State):
    """A State with the errors of phase of the pulses, (B, P), no pulses without autofocus, and CG's worst residual."""

    phases: Tensor
    residual: float

    def focused(self, y: Tensor) -> Tensor:
        """The measurement (1, P, K) with the errors of phase taken off, (B, 1, P, K); as it is without autofocus."""
        if not self.phases.shape[1]:
            return y
        return y * torch.polar(torch.ones_like(self.phases), -self.phases)[:, None, :, None]

    def facts(self, last: bool) -> dict[str, Any]:
        """What a sampler reports of the step; the phases after the last one."""
        facts: dict[str, Any] = {"residual": self.residual}
        return facts | {"phases": self.phases.tolist()} if last and self.phases.shape[1] else facts


@dataclass(frozen=True)
class Chain(Phased):
    """A state of `SplitGibbs`: the auxiliary log-reflectivity v, (B, 1, H, W), and the coupling."""

    v: Tensor
    rho: float


@dataclass(frozen=True)
class Splitting(Sampler):
    """Base of the samplers in which a log-reflectivity u, the prior's, is coupled to a copy v of it, the data's.

    Args:
        steps: sweeps.
        first, last: rho at the start, and from the middle on, in the units of the subclass.
        inner: levels of the reverse diffusion from rho to the prior's lowest.
        integrator: of the reverse diffusion; deterministic ones do not draw, the ancestral one loses variance in each sweep.

    Raises:
        ConfigError: an argument is out of its range.
    """

    steps: int = 80
    first: float = 2.0
    last: float = 0.2
    inner: int = 5
    integrator: Integrator = field(default_factory=Churn)

    def __post_init__(self) -> None:
        if not 0.0 < self.last <= self.first < math.inf or self.inner < 1:
            raise ConfigError(
                f"{self.name}: expected 0 < last <= first and inner >= 1, got {self.last}, {self.first} and {self.inner}"
            )

    @property
    def caveats(self) -> tuple[str, ...]:
        """How far the draws are from the posterior."""
        return (
            f"Split Gibbs draws are the ends of chains of {self.steps} sweeps with a coupling of {self.last:g}: of the "
            "posterior in the limit of many sweeps and of a coupling of zero.",
        )

    def _rho(self, step: int) -> float:
        part = min(1.0, step / max(1, (self.steps - 1) // 2))
        return self.first * (self.last / self.first) ** part

    def _denoised(self, prior: Denoiser, v: Tensor, rho: float, streams: Streams, k: int) -> Tensor:
        """A draw of u given v = u + rho n."""
        return reverse(prior, v, rho, integrator=self.integrator, inner=self.inner, streams=streams, step=k)


@dataclass(frozen=True)
class SplitGibbs(Splitting):
    """Draws of a complex image and its log-reflectivity; rho is in units of u: a factor of e^rho in reflectivity.

    Args:
        steps, first, last, inner, integrator: see `Splitting`.
        cg_steps: at most, in the draw of the image; it stops at a relative residual of 1e-4. What is left of it is recorded of
            each sweep, `info[k]["residual"]`: above some 1e-2 the draws of the image are not those of its conditional.
        autofocus: draw the errors of phase of the measurement's rows, (1, P, K), too; `info[-1]["phases"]` has those of the
            draws of the first batch, rad, (B, P). What they share with a global phase and a shift of the image remains unknown.

    Raises:
        ConfigError: an argument is out of its range.
        CapabilityError: the operator is not linear on a `Speckled` image, the prior no `SpeckledPrior`, the noise not Gaussian,
            or the prior is not defined at rho.
    """

    state_class: ClassVar[type[State]] = Chain
    needs: ClassVar[frozenset[str]] = frozenset({"forward"})
    cg_steps: int = 40
    autofocus: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cg_steps < 1:
            raise ConfigError(f"SplitGibbs: expected cg_steps >= 1, got {self.cg_steps}")

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Chain:
        a, own = hierarchical(problem, prior, self.name)
        pulses = pulses_to_focus(a, self.name) if self.autofocus else 0
        require_levels(own, self.first, self.last, self.name)
        u = problem.y.real.new_zeros(len(streams.draws), 1, *problem.shape[1:]) + first_level(a, problem.y, own)
        x = torch.cat((u, torch.zeros_like(u), torch.zeros_like(u)), 1)
        return Chain(0, x, u.new_zeros(len(u), pulses), 0.0, u, self.first)

    def step(self, problem: Problem, prior: Denoiser, state: Chain, streams: Streams) -> Chain:  # type: ignore[override]
        a, reflectivity = hierarchical(problem, prior, self.name)
        sigma, k, rho = require_gaussian(problem, "SplitGibbs"), state.step, self._rho(state.step)
        image, residual = draw_image(a, state.focused(problem.y), sigma, state.v, streams, k, self.cg_steps)
        phases = self._phases(a(image), problem.y, sigma, streams, k) if self.autofocus else state.phases
        v = draw_log_reflectivity(log_intensity(image), state.x[:, :1], rho, streams, k)
        u = self._denoised(reflectivity, v, rho, streams, k)
        return Chain(k + 1, speckle_of(u, image), phases, residual, v, rho)

    def describe(self, state: Chain) -> dict[str, Any]:  # type: ignore[override]
        return {"rho": state.rho} | state.facts(last=state.step == self.steps)

    @staticmethod
    def _phases(clean: Tensor, y: Tensor, sigma: Tensor, streams: Streams, k: int) -> Tensor:
        import numpy as np

        inner = (clean.conj() * y / sigma.square()).sum((1, 3)).cpu()
        drawn = [
            np.random.default_rng(g.initial_seed()).vonmises(row.angle().numpy(), row.abs().numpy())
            for row, g in zip(inner, streams.generators(k, "phases"), strict=True)
        ]
        return torch.from_numpy(np.stack(drawn)).to(y.real)


def draw_image(
    a: LinearOperator, y: Tensor, sigma: Tensor, v: Tensor, streams: Streams | None, step: int, cg_steps: int
) -> tuple[Tensor, float]:
    """x | v, y, (B, 1, H, W) complex: of variance e^v, measured through A with Gaussian noise of sigma per real component.

    Its mean where there are no streams.

    Returns:
        The image, and the worst relative residual that conjugate gradients left.
    """
    scale, weight, half = (0.5 * v).exp(), math.sqrt(0.5) / sigma, math.sqrt(0.5)

    def gram(t: Tensor) -> Tensor:
        return scale * a.adjoint(weight.square() * a(scale * t)) + t

    if streams is None:
        z = torch.zeros_like(scale, dtype=y.dtype)
        right = scale * a.adjoint(weight.square() * y.expand(len(v), *a.out_shape))
    else:
        z = half * streams.normal(step, a.in_shape, "image", y.dtype, y.device)
        noise = half * streams.normal(step, a.out_shape, "noise", y.dtype, y.device)
        noise = noise if a.measured is None else noise * a.measured
        right = scale * a.adjoint(weight * (weight * (y - a(scale * z)) - noise))
    solved = cg(gram, right, max_iter=cg_steps, tol=1e-4)
    return scale * (z + solved.x), float(solved.residual.max())


def log_intensity(image: Tensor) -> Tensor:
    """log |x|^2 of a complex image, real; a pixel of value zero, which has none, gets that of the smallest normal number."""
    return image.abs().square().clamp_min(torch.finfo(image.real.dtype).tiny).log()


def draw_log_reflectivity(z: Tensor, u: Tensor, rho: float, streams: Streams, step: int, looks: float = 1.0) -> Tensor:
    """v | z, u of density exp(-L (v + e^(z - v))) N(v; u, rho^2), by exact rejection.

    Where u and z agree the share of proposals that are taken is about (1 + L rho^2)^(-1/2).

    Args:
        z: log-intensity of L looks, broadcasts against u.
        u: the other copy of the log-reflectivity, (B, *shape), a stream for each item.

    Raises:
        NumericalError: z or u is not finite, or a thousand proposals were refused somewhere.
    """
    mode = prox_log(u, z, looks=looks, step=rho**2)
    weight = looks * (z - mode).exp()
    if bad := int((~weight.isfinite()).sum()):
        raise NumericalError(f"draw_log_reflectivity: z or u is not finite in {bad} of {weight.numel()} pixels")
    v, waiting = mode, torch.ones_like(mode, dtype=torch.bool)
    for trial in range(1000):
        apart = rho * streams.normal(step, u.shape[1:], f"v{trial}", u.dtype, u.device)
        chance = -weight * (torch.expm1(-apart) + apart)
        taken = waiting & (streams.uniform(step, u.shape[1:], f"w{trial}", u.dtype, u.device).log() < chance)
        v, waiting = torch.where(taken, mode + apart, v), waiting & ~taken
        if not bool(waiting.any()):
            return v
    raise NumericalError(
        f"draw_log_reflectivity: a thousand proposals were refused in {int(waiting.sum())} pixels of {looks:g} looks: take a "
        f"smaller rho than {rho:g}"
    )


def first_level(a: LinearOperator, y: Tensor, prior: Denoiser) -> float | Tensor:
    """Where u starts, everywhere: the logarithm of the mean intensity of A^H y over its gain |A A^H y|^2 / |A^H y|^2.

    Where A^H y is zero it says nothing about the level, and u starts at the prior's origin.
    """
    back = a.adjoint(y)
    energy, image = (x.abs().double().square().sum() for x in (back, a(back)))
    if not bool(energy > 0):
        return prior.origin
    return float(3.0 * energy.log() - 2.0 * image.log()) - math.log(back.numel())


def pulses_to_focus(a: LinearOperator, who: str) -> int:
    """Number of pulses P of a measurement (1, P, K).

    Raises:
        CapabilityError: the measurement has another shape.
    """
    if len(a.out_shape) != 3:
        raise CapabilityError(f"{who}: autofocus needs a measurement (1, P, K), got {a.out_shape}")
    return a.out_shape[-2]


def require_levels(prior: Denoiser, first: float, last: float, who: str) -> None:
    """Refuse a prior that is not defined for noise of a level that goes from first down to last.

    Raises:
        CapabilityError: it is not.
    """
    if not prior.sigma_min <= last <= first <= prior.sigma_max:
        raise CapabilityError(
            f"{who}: the prior is defined for noise of {prior.sigma_min:g} to {prior.sigma_max:g}, rho goes from {first:g} to "
            f"{last:g}"
        )


def hierarchical(problem: Problem, prior: Denoiser, who: str) -> tuple[LinearOperator, Denoiser]:
    """A on complex images, and the prior of u.

    Raises:
        CapabilityError: the operator is not linear on a `Speckled` image, or the prior no `SpeckledPrior`.
    """
    outer, inner = getattr(problem.operator, "outer", None), getattr(problem.operator, "inner", None)
    if not (isinstance(inner, Speckled) and isinstance(outer, LinearOperator)):
        raise CapabilityError(
            f"{who}: expected a linear operator on complex images through Speckled, problem.through(Speckled(size)), got "
            f"{type(problem.operator).__name__}"
        )
    speckled = prior.prior if isinstance(prior, Counted) else prior
    if not isinstance(speckled, SpeckledPrior):
        raise CapabilityError(f"{who}: expected a SpeckledPrior of the log-reflectivity, got {type(speckled).__name__}")
    own = speckled.reflectivity
    return outer, Counted(own, prior.counter) if isinstance(prior, Counted) else own
