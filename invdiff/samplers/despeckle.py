"""Despeckling as posterior sampling: draws of the log-reflectivity u of an image of L looks, with a prior on u.

    p(v, u | z)  ~  exp(-L' (v + e^(z' - v))) N(v; u, rho^2) p(u),      z = log I

    v | u, z    exactly, by rejection in every pixel (`split_gibbs`)
    u | v       the prior's own posterior at noise level rho, by the reverse diffusion from rho to 0

The law of u is the posterior of a likelihood that rho has made wider. With L' = L and z' = z its variance, as a density of u,
would be psi_1(L) + rho^2; so

    psi_1(L') = psi_1(L) - rho^2,      z' - (psi(L') - log L') = z - (psi(L) - log L)

keep the variance and the mean of the likelihood of L looks, and what is left is in the third cumulant. As rho -> 0, L' -> L.
rho goes down as in `SplitGibbs`, in units of the standard deviation psi_1(L)^(1/2) of the log-speckle; where it is above 0.7 of
them, psi_1(L') stays at half of psi_1(L).

Speckle that is correlated between pixels says less than its pixels one by one: whiten it (`whiten_spectrum`), or take the
likelihood to a power `temper` < 1, which is that of L temper looks at the same z.

References: Vono, Dobigeon, Chainais, Split-and-augmented Gibbs sampler, IEEE TSP 67, 2019. Xu, Chi, Provably robust score-based
diffusion posterior sampling for plug-and-play image reconstruction, 2024, arXiv:2403.17042. Xie, Pierce, Ulaby, Statistical
properties of logarithmically transformed speckle, IEEE TGRS 40, 2002.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core import CapabilityError, ConfigError, DataError, Denoiser, Problem, ShapeError, State, Streams
from ..core.speckle import LogIntensity, log_bias, log_variance, looks_of_log_variance
from ..operators.restoration import Identity
from .split_gibbs import Splitting, draw_log_reflectivity, require_levels

__all__ = ["Despeckle", "log_problem"]

Kind = Literal["complex", "intensity", "amplitude"]


def log_problem(observed: Tensor, *, kind: Kind, looks: float = 1.0, floor: float = 0.0) -> Problem:
    """The problem of a speckled image in its logarithm: the unknown is u = log R, the measurement z = log I.

    Args:
        observed: (H, W) or (1, H, W), complex for the kind "complex", else real and not negative.
        kind: the complex image, I = |y|^2, of one look; the intensity; or the amplitude, I = y^2.
        looks: (equivalent) number of looks, positive, not only integers.
        floor: intensities below it are raised to it, in the units of I. Zero has no logarithm: it is an error, unless a floor
            says what the smallest value is that the quantisation of the data distinguishes.

    Raises:
        ConfigError: an unknown kind, looks that are not positive, a complex image of other than one, or a negative floor.
        ShapeError: another shape or dtype.
        DataError: a value is not finite, negative, or zero without a floor.
    """
    if kind not in ("complex", "intensity", "amplitude") or not 0.0 <= floor < math.inf:
        raise ConfigError(
            f"log_problem: expected kind complex, intensity or amplitude and floor >= 0, got {kind!r} and {floor}"
        )
    if kind == "complex" and looks != 1.0:
        raise ConfigError(f"log_problem: a complex image has one look, got looks={looks}")
    y = observed[None] if observed.ndim == 2 else observed
    if y.ndim != 3 or len(y) != 1 or y.is_complex() != (kind == "complex") or not (y.is_complex() or y.is_floating_point()):
        numbers = "complex" if kind == "complex" else "real floating-point"
        raise ShapeError(
            f"log_problem: expected {numbers} values (H, W) or (1, H, W) for kind {kind!r}, "
            f"got {tuple(observed.shape)} {str(observed.dtype)[6:]}"
        )
    if (bad := int((~torch.isfinite(y)).sum())) or (not y.is_complex() and (bad := int((y < 0).sum()))):
        raise DataError(f"log_problem: {bad} of the {y.numel()} values are negative or not finite: cut them out")
    # twice the logarithm of a modulus, whose square may underflow
    z = y.log() if kind == "intensity" else 2.0 * y.abs().log()
    z = z.clamp_min(math.log(floor)) if floor else z
    if zeros := int(torch.isneginf(z).sum()):
        raise DataError(
            f"log_problem: {zeros} of the {y.numel()} values are zero, and have no logarithm: cut them out, or give as floor "
            "the smallest intensity that the data distinguish from zero"
        )
    return Problem(Identity(tuple(z.shape)), LogIntensity(looks), z)


@dataclass(frozen=True)
class Despeckle(Splitting):
    """Draws of the log-reflectivity of a speckled image, with a prior on u = log R, natural logarithm; see `log_problem`.

    Args:
        steps, inner, integrator: see `Splitting`.
        first, last: rho in units of the standard deviation of the log-speckle, 1.28 in u for one look, 0.5 for 4.4.
        temper: power of the likelihood in (0, 1], 1 for speckle that is independent from pixel to pixel.

    Raises:
        ConfigError: an argument is out of its range.
        CapabilityError: the operator is not the identity, the noise not `LogIntensity`, or the prior is not defined at rho.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"forward"})
    first: float = 1.5
    last: float = 0.2
    temper: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.temper <= 1.0:
            raise ConfigError(f"Despeckle: expected temper in (0, 1], got {self.temper}")

    @property
    def caveats(self) -> tuple[str, ...]:
        """How far the draws are from the posterior."""
        if self.temper == 1.0:
            return super().caveats
        power = (
            f"The likelihood of each pixel is taken to the power {self.temper:g} in place of the law of correlated speckle: "
            "the intervals are as wide as that guess makes them."
        )
        return (*super().caveats, power)

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> State:
        looks = _looks(problem)
        unit = math.sqrt(log_variance(self.temper * looks))
        require_levels(prior, unit * self.first, unit * self.last, self.name)
        u = (problem.y - log_bias(looks)).expand(len(streams.draws), *problem.shape)
        return State(0, u.clone())

    def step(self, problem: Problem, prior: Denoiser, state: State, streams: Streams) -> State:
        looks, k, part = self.temper * _looks(problem), state.step, self._rho(state.step)
        narrow = looks_of_log_variance(log_variance(looks) * max(0.5, 1.0 - part**2))
        rho, z = part * math.sqrt(log_variance(looks)), problem.y + (log_bias(narrow) - log_bias(looks))
        v = draw_log_reflectivity(z, state.x, rho, streams, k, narrow)
        return State(k + 1, self._denoised(prior, v, rho, streams, k))

    def describe(self, state: State) -> dict[str, Any]:
        return {"rho": self._rho(state.step - 1)}


def _looks(problem: Problem) -> float:
    """Of a problem that is one of despeckling."""
    if not isinstance(problem.operator, Identity) or not isinstance(problem.noise, LogIntensity):
        found = f"{type(problem.operator).__name__} and {type(problem.noise).__name__}"
        raise CapabilityError(
            f"Despeckle: expected the Identity with LogIntensity noise, which log_problem(image, kind=...) makes, got {found}; "
            "with other noise models problem.gaussian() may serve other samplers"
        )
    return problem.noise.looks
