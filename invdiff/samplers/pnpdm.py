"""Plug-and-play diffusion models as priors (PnP-DM), and diffusion plug-and-play (DPnP): split Gibbs sampling of any unknown.

    p(x, z | y)  ~  p(x) N(z; x, rho^2 I) N(y; A z, Sigma_y)

    z | x, y    the measurement's: exactly where A is linear, else by Langevin's equation
    x | z       the prior's own posterior at noise level rho, by the reverse diffusion from rho to zero

    rho_k = max(last, first decay^max(0, k - hold))

PnP-DM has hold = 0; DPnP holds rho for a fifth of the sweeps and reaches `last` at the end. The draw is the x of the last
sweep. Eliminating z, the stationary law of x at a fixed rho is

    p(x) N(y; A x, Sigma_y + rho^2 A A^T)

for linear A, with Gaussian priors of closed form: the posterior of data that are noisier by rho. It becomes the posterior as
rho -> 0, and the chain slow: along a direction of prior variance c and precision of the data l one sweep keeps the share
c / (c + rho^2) / (1 + rho^2 l) of the way to the mean. Between modes that lie farther apart than rho it does not move, so that
their weights are those of the sweep in which they parted.

Where nothing but the coupling is wrong, a prior of variance one, data at a distance of one from its mean, and rho from 10 down
to `last`, give as distance of the mean from the posterior's, in standard deviations of it, and as variance over its own,

    last, decay, steps      l = 1           10            100           1000          10000
    0.1   0.9    100     -0.02 1.01    -0.03 1.09    -0.10 1.98    -0.31 10.9    -0.99 100
    0.03  0.9    100     -0.03 1.02    -0.04 1.05    -0.01 1.09    -0.03 1.90    -0.09 9.99
    0.01  0.9    100     -0.04 1.03    -0.05 1.08    -0.02 1.07     0.00 1.10    -0.01 2.00
    0.01  0.97   300     -0.01 1.01    -0.01 1.02     0.00 1.02     0.00 1.10    -0.01 2.00

`last` is to be a fraction of sigma_y / |A|, and what rho^2 l has become small for is frozen: a slow decay helps there.

The reverse diffusion is run in few steps in every sweep, and what it does to the law in one of them adds up over 1 / (1 -
share^2) of them: the ancestral rule loses variance (half of it, with five steps from 0.1 to 0.001), the ODE does not draw at
all. `Churn` keeps it to second order in the ratio of neighbouring levels: 0.8 is good, at 0.5 directions of small variance
become too wide by up to a third.

References: Wu, Sun, Chen, Zhang, Yue, Bouman, Principled probabilistic imaging using diffusion models as plug-and-play priors,
NeurIPS 2024, arXiv:2405.18782, Algorithm 1, Eq. 4 to 7; Xu, Chi, Provably robust score-based diffusion posterior sampling for
plug-and-play image reconstruction, 2024, arXiv:2403.17042, Algorithm 1; Vono, Dobigeon, Chainais, Split-and-augmented Gibbs
sampler, IEEE TSP 67, 2019.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..core import ConfigError, Denoiser, Problem, State, Streams
from ..guidance import require_gaussian
from .gibbs_steps import DataDraw, ExactDraw
from .guided import Level, pure_noise
from .split_gibbs import Splitting, require_levels

__all__ = ["PnPDM"]


@dataclass(frozen=True)
class PnPDM(Splitting):
    """Draws of a posterior whose data are noisier by `last`; rho is in units of the unknown.

    Args:
        steps, integrator: see `Splitting`.
        first, last: rho at the start, and where it stays; the paper's 10 and 0.3 (linear) or 0.1 for images in [-1, 1].
        inner: levels of the reverse diffusion from rho to the prior's lowest; (sigma_min / last)^(1 / inner) near 0.8 is good.
        decay: of rho from one sweep to the next, in (0, 1].
        hold: sweeps before it begins.
        draw: how to draw z.

    Raises:
        ConfigError: an argument is out of its range.
        CapabilityError: the noise is not Gaussian, or the prior is not defined at rho.
    """

    state_class: ClassVar[type[State]] = Level
    steps: int = 100
    first: float = 10.0
    last: float = 0.1
    inner: int = 10
    decay: float = 0.9
    hold: int = 0
    draw: DataDraw = field(default_factory=ExactDraw)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.decay <= 1.0 or self.hold < 0:
            raise ConfigError(f"PnPDM: expected 0 < decay <= 1 and hold >= 0, got {self.decay} and {self.hold}")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return self.draw.needs

    @property
    def caveats(self) -> tuple[str, ...]:
        rho = self._rho(self.steps - 1)
        return (
            f"PnP-DM draws are the ends of chains of {self.steps} sweeps with a coupling of {rho:g}, of a posterior whose data "
            f"are noisier by {rho:g} |A|; chains do not move between modes farther apart than that.",
        )

    def _rho(self, step: int) -> float:
        return max(self.last, self.first * self.decay ** max(0, step - self.hold))

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_gaussian(problem, "PnPDM")
        require_levels(prior, self.first, self.last, "PnPDM")
        return prior

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Level:
        return pure_noise(self.first, problem, prior.origin, streams)

    def step(self, problem: Problem, prior: Denoiser, state: Level, streams: Streams) -> Level:  # type: ignore[override]
        k, rho = state.step, self._rho(state.step)
        z = self.draw(problem, require_gaussian(problem, "PnPDM"), state.x, rho, streams, step=k, part=k / self.steps)
        return Level(k + 1, self._denoised(prior, z, rho, streams, k), rho)

    def describe(self, state: Level) -> dict[str, Any]:  # type: ignore[override]
        return {"sigma": state.sigma}
