"""The samplers that the laboratory judges, what is claimed of each, and the biases that are known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..core import Denoiser, Karras, Problem, Sampler
from ..guidance import MMPS, Guidance, PiGDM
from ..samplers import (
    BDIA,
    DDNM,
    DPS,
    EDICT,
    OBELM,
    Ancestral,
    Despeckle,
    DFlow,
    DiffPIR,
    Euler,
    Guided,
    Heun,
    Laplace,
    Multistep,
    REDDiff,
    ReflectivityEM,
    Reversible,
    SplitGibbs,
    Steered,
)
from .cases import GAUSSIAN, MIXTURES

__all__ = ["Contender", "Doubled", "contenders"]


@dataclass(frozen=True)
class Doubled(Guidance):
    """A planted fault: twice the correction of another guidance.

    Args:
        guidance: the right one.
    """

    guidance: Guidance = MMPS(cg_steps=8)  # noqa: RUF009  # frozen

    def __call__(self, prior: Denoiser, problem: Problem) -> Denoiser:
        return _Doubled(prior, self.guidance(prior, problem))


class _Doubled(Denoiser):
    def __init__(self, prior: Denoiser, guided: Denoiser) -> None:
        super().__init__(prior.shape, prior.sigma_min, prior.sigma_max)
        self.prior, self.guided = prior, guided

    @property
    def origin(self) -> float | Tensor:
        return self.prior.origin

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return 2.0 * self.guided(x, sigma) - self.prior(x, sigma)


@dataclass(frozen=True)
class Contender:
    """A sampler, what is claimed of it, and where.

    Attributes:
        claim: "exact", "biased" or "wrong".
        cases: names in `MAKERS`.
        known: of a biased one, (lowest, highest) by name of a statistic: what 4,000 and 1,000 draws gave, with room for their
        spread. exact_prior: step with the closed-form posterior's own denoiser instead of the prior's.
    """

    name: str
    sampler: Sampler
    claim: str
    cases: tuple[str, ...]
    known: dict[str, tuple[float, float]] = field(default_factory=dict)
    exact_prior: bool = False


def _about(mean_error: float | None, observed: float, null: float) -> dict[str, tuple[float, float]]:
    """Intervals around known values: 7 % of a variance ratio is five standard errors of 12 directions and 1,000 draws."""
    ratios = {"observed": observed, "null": null}
    known = {key: (0.93 * v - 0.01, 1.07 * v + 0.01) for key, v in ratios.items()}
    return known if mean_error is None else known | {"mean_error": (0.93 * mean_error - 0.05, 1.07 * mean_error + 0.05)}


# on `white`: the ancestral rule loses variance in proportion to its step; the others as their equations say (tests/exact)
KNOWN_STEPS = {
    50: _about(None, 0.80, 0.82),
    100: _about(None, 0.897, 0.896),
    200: _about(None, 0.944, 0.943),
    400: _about(None, 0.972, 0.971),
}
DEVIATES = {"ratio": (1.2, math.inf)}
KNOWN = {
    "dps": _about(1.85, 0.363, 0.971),
    "ddnm+": _about(3.293, 0.0, 0.067),
    "diffpir": _about(0.05, 0.478, 0.482),
    "steered": _about(3.423, 0.0, 0.943),
    "dflow": _about(0.071, 0.0, 0.001),
    "edict": _about(0.038, 1.312, 1.258),
    "reddiff": _about(1.929, 0.009, 0.139),
}


def contenders() -> list[Contender]:
    """Every sampler of the package, with its claim."""
    return [*_guided(), *_radar(), *_distilled(), *_planted(), *_with_the_exact_denoiser(), *_known_biases()]


_FINE, _EDM, _FAR = (
    Karras(sigma_max=300.0, sigma_min=0.005),
    Karras(sigma_max=100.0, sigma_min=0.02),
    Karras(sigma_max=3000.0, sigma_min=0.02),
)
_MMPS, _PIGDM = MMPS(cg_steps=8), PiGDM()
_HEUN: dict[str, Any] = {"integrator": Heun(), "grid": _FINE, "steps": 60}


def _guided() -> list[Contender]:
    return [
        Contender("mmps, heun", Guided(guidance=_MMPS, **_HEUN), "exact", GAUSSIAN),
        Contender("pigdm, heun", Guided(guidance=_PIGDM, **_HEUN), "exact", ("white",)),
        Contender("mmps, o-belm", Reversible(_MMPS, OBELM(), _FINE, steps=60), "exact", GAUSSIAN),
        Contender("mmps, bdia", Reversible(_MMPS, BDIA(), _FINE, steps=60), "exact", ("white", "coloured")),
        Contender("laplace", Laplace(steps=1), "exact", ("field",)),
    ]


def _radar() -> list[Contender]:
    return [
        Contender("split gibbs", SplitGibbs(), "exact", ("speckle",)),
        Contender("split gibbs, 160 sweeps", SplitGibbs(steps=160), "exact", ("speckle",)),
        Contender("split gibbs, rho = 1", SplitGibbs(steps=40, last=1.0), "wrong", ("speckle",)),
        Contender("despeckle", Despeckle(), "exact", ("despeckling",)),
        Contender("despeckle, rho = 1", Despeckle(steps=40, last=1.0), "wrong", ("despeckling",)),
        Contender("reflectivity em", ReflectivityEM(), "biased", ("speckle",), known={"distance": (0.40, 0.48)}),
    ]


def _distilled() -> list[Contender]:
    return [
        Contender(f"multistep{name}", Multistep(steps=k), "exact", ("consistency",)) for k, name in ((1, ""), (4, ", 4 steps"))
    ]


def _planted() -> list[Contender]:
    return [Contender("mmps doubled", Guided(guidance=Doubled(), **_HEUN), "wrong", ("white", "coloured"))]


def _with_the_exact_denoiser() -> list[Contender]:
    """The integrators alone: with the posterior's own denoiser nothing but them can be wrong."""
    rows = []
    # the modes lie up to 45 apart: pure noise of level s instead of x0 + s n shifts their weights by about 45 / s where the
    # integrator is deterministic; the ancestral one forgets its start, and wants its steps at lower levels
    near = replace(_FAR, sigma_max=300.0)
    for integrator, grid, steps in ((Heun(), _FAR, 80), (Euler(), _FAR, 800), (Ancestral(), near, 800)):
        name = f"exact denoiser, {type(integrator).__name__.lower()}"
        exact = Guided(integrator=integrator, grid=grid, steps=steps)
        rows.append(Contender(name, exact, "exact", MIXTURES, exact_prior=True))
    undone = Reversible(None, OBELM(), _FAR, steps=80)
    return [*rows, Contender("exact denoiser, o-belm", undone, "exact", MIXTURES, exact_prior=True)]


def _known_biases() -> list[Contender]:
    # of first order: it asks for e of the second iterate at the level that the first one has left
    coupled = Reversible(_MMPS, EDICT(), _EDM, steps=100)
    # the ridge regression of a flow of 12 steps: next to the posterior mean
    flow = DFlow(flow_steps=12, regulariser="gaussian", lr=0.1, memory="full", grid=_EDM, steps=100)
    rows = [
        Contender("mmps, edict, 100 steps", coupled, "biased", ("white",), KNOWN["edict"]),
        Contender("d-flow", flow, "biased", ("white",), KNOWN["dflow"]),
    ]
    for steps, known in KNOWN_STEPS.items():
        known_bias = Guided(guidance=_MMPS, integrator=Ancestral(), grid=_EDM, steps=steps)
        rows.append(Contender(f"mmps, ancestral, {steps} steps", known_bias, "biased", ("white",), known))
    biased: dict[str, Any] = {
        "dps": DPS(zeta=1.0, grid=_EDM, steps=400),
        "ddnm+": DDNM(grid=_EDM, steps=200),
        "diffpir": DiffPIR(lam=1.0, zeta=1.0, grid=_EDM, steps=200),
        "steered": Steered(grid=_EDM, steps=200),
        "reddiff": REDDiff(grid=_EDM, steps=1000),
    }
    rows += [Contender(name, sampler, "biased", ("white",), KNOWN[name]) for name, sampler in biased.items()]
    # the mode of a Gaussian posterior is its mean: the error is that of Adam
    mode = REDDiff(lam=1.0, weight="score", antithetic=True, lr=0.02, grid=Karras(sigma_max=10.0, sigma_min=0.005), steps=800)
    rows.append(Contender("reddiff, score weight", mode, "biased", ("white",), {"mean_error": (0.0, 0.01)}))
    wide = {
        "mmps, heun": Guided(guidance=_MMPS, integrator=Heun(), grid=_FAR, steps=60),
        "pigdm, heun": Guided(guidance=_PIGDM, integrator=Heun(), grid=_FAR, steps=60),
        **{name: replace(sampler, grid=_FAR) for name, sampler in biased.items()},
    }
    return rows + [Contender(name, sampler, "biased", MIXTURES, DEVIATES) for name, sampler in wide.items()]
