"""Expectation maximisation for the reflectivity of a complex image, the prior entering as a denoiser: a point estimate.

    E    P_i = E |x_i|^2 given y and R = e^u: |m_i|^2 + V_ii, the exact conditional mean m and variances from a few draws
    M    max over u of  sum_i -u_i - P_i e^-u_i + log p(u), by half-quadratic splitting at a level rho that goes down:
         v = argmin  P e^-v + v + (v - u)^2 / (2 rho^2),   u = D(v, rho)

Without a prior the M-step is u = log P, and the iteration is sparse Bayesian learning (`SBL`). The draws of each step have the
same noise, so that the map is one and the same, and there is a fixed point to go to. Errors of phase, where asked for, are put
at the maximum given the mean, phi_p = arg <(A m)_p, y_p>.

The image that it returns is the conditional mean m: the point that loses least in mean square if R is right.

References: Dempster, Laird, Rubin, Maximum likelihood from incomplete data via the EM algorithm, JRSS B 39, 1977. Geman, Yang,
Nonlinear image recovery with half-quadratic regularization, IEEE TIP 4, 1995.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core import ConfigError, Denoiser, Problem, Sampler, State, Streams
from ..core.speckle_prox import prox_log
from ..guidance import require_gaussian
from ..operators.speckled import speckle_of
from .split_gibbs import Phased, draw_image, first_level, hierarchical, pulses_to_focus, require_levels

__all__ = ["ReflectivityEM"]


@dataclass(frozen=True)
class ReflectivityEM(Sampler):
    """A complex image and its log-reflectivity; every draw is the same but for the probes' noise.

    Args:
        steps: iterations.
        first, last: rho, at the start and at the end, geometric; in units of u.
        probes: draws that the variances are estimated from.
        cg_steps: of each solve, at most; it stops at a relative residual of 1e-4, and the worst one is recorded of each step.
        autofocus: as of `SplitGibbs`.

    Raises:
        ConfigError: an argument is out of its range.
        CapabilityError: as of `SplitGibbs`.
    """

    state_class: ClassVar[type[State]] = Phased
    kind: ClassVar[str] = "point"
    needs: ClassVar[frozenset[str]] = frozenset({"forward"})
    steps: int = 30
    first: float = 1.5
    last: float = 0.3
    probes: int = 2
    cg_steps: int = 40
    autofocus: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.last <= self.first or min(self.probes, self.cg_steps) < 1:
            raise ConfigError(
                "ReflectivityEM: expected 0 < last <= first, probes >= 1 and cg_steps >= 1, got "
                f"{self.last}, {self.first}, {self.probes} and {self.cg_steps}"
            )

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Phased:
        a, own = hierarchical(problem, prior, self.name)
        pulses = pulses_to_focus(a, self.name) if self.autofocus else 0
        require_levels(own, self.first, self.last, self.name)
        x = problem.y.real.new_zeros(len(streams.draws), *problem.shape)
        x[:, :1] += first_level(a, problem.y, own)
        return Phased(0, x, x.new_zeros(len(x), pulses), 0.0)

    def step(self, problem: Problem, prior: Denoiser, state: Phased, streams: Streams) -> Phased:  # type: ignore[override]
        a, own = hierarchical(problem, prior, self.name)
        sigma, u = require_gaussian(problem, "ReflectivityEM"), state.x[:, :1]
        rho = self.first * (self.last / self.first) ** (state.step / max(1, self.steps - 1))
        y = state.focused(problem.y).expand(len(u), *a.out_shape)
        mean, residual = draw_image(a, y, sigma, u, None, 0, self.cg_steps)
        power = mean.abs().square()
        for k in range(self.probes):
            drawn, left = draw_image(a, y, sigma, u, streams, k, self.cg_steps)
            power, residual = power + (drawn - mean).abs().square() / self.probes, max(residual, left)
        floor = 1e-12 * power.amax((1, 2, 3), keepdim=True)
        v = prox_log(u, power.clamp_min(floor).log(), looks=1.0, step=rho**2)
        u = own(v, v.new_full((len(v),), rho))
        phases = state.phases
        if self.autofocus:
            phases = (a(mean).conj() * problem.y / sigma.square()).sum((1, 3)).angle()
        return Phased(state.step + 1, speckle_of(u, mean), phases, residual)

    def describe(self, state: Phased) -> dict[str, Any]:  # type: ignore[override]
        return state.facts(last=state.step == self.steps)
