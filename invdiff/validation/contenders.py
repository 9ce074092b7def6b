"""The samplers that the laboratory judges, what is claimed of each, and the biases that are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..core import Karras
from ..guidance import MMPS, TMPD, PiGDM
from ..samplers import (
    ALD,
    BDIA,
    DAPS,
    DDNM,
    DDRM,
    DDS,
    DDSMC,
    DPS,
    EDICT,
    FPS,
    GDP,
    LGD,
    MCG,
    OBELM,
    PNDM,
    SCG,
    SITCOM,
    SKROCK,
    TDS,
    ULA,
    AlternatingGibbs,
    Ancestral,
    Despeckle,
    DFlow,
    DiffPIR,
    DPMSolver,
    EnKG,
    Euler,
    FlowChef,
    Guided,
    Heun,
    Integrator,
    Laplace,
    MCGdiff,
    Multistep,
    PnPDM,
    REDDiff,
    REDDiffParticles,
    ReflectivityEM,
    Reversible,
    RFSolver,
    SplitGibbs,
    Steered,
    UniPC,
)
from .contender import DEVIATES, Contender, Doubled
from .image_contenders import image_contenders
from .makers import GAUSSIAN, MIXTURES

__all__ = ["Contender", "Doubled", "contenders"]


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
    parts = (
        _guided,
        _gradients,
        _decoupled,
        _particles,
        _blind,
        _black_box,
        _langevin,
        _radar,
        _distilled,
        _planted,
        _with_the_exact_denoiser,
        _known_biases,
        image_contenders,
    )
    return [contender for part in parts for contender in part()]


_FINE, _EDM, _FAR = (
    Karras(sigma_max=300.0, sigma_min=0.005),
    Karras(sigma_max=100.0, sigma_min=0.02),
    Karras(sigma_max=3000.0, sigma_min=0.02),
)
_MMPS, _PIGDM = MMPS(cg_steps=8), PiGDM()
_HEUN: dict[str, Any] = {"integrator": Heun(), "grid": _FINE, "steps": 60}


def _mmps(integrator: Integrator, steps: int) -> Guided:
    return Guided(guidance=_MMPS, integrator=integrator, grid=_FINE, steps=steps)


def _guided() -> list[Contender]:
    return [
        Contender("mmps, heun", Guided(guidance=_MMPS, **_HEUN), "exact", GAUSSIAN),
        Contender("pigdm, heun", Guided(guidance=_PIGDM, **_HEUN), "exact", ("white",)),
        Contender("mmps, o-belm", Reversible(_MMPS, OBELM(), _FINE, steps=60), "exact", GAUSSIAN),
        Contender("mmps, bdia", Reversible(_MMPS, BDIA(), _FINE, steps=60), "exact", ("white", "coloured")),
        Contender("mmps, dpm-solver++(2m)", _mmps(DPMSolver(), 60), "exact", GAUSSIAN),
        Contender("mmps, sde-dpm-solver++(2m)", _mmps(DPMSolver(1.0), 200), "exact", ("white", "coloured")),
        Contender("mmps, unipc(2)", _mmps(UniPC(2), 60), "exact", GAUSSIAN),
        Contender("mmps, pndm", _mmps(PNDM(), 60), "exact", GAUSSIAN),
        Contender("mmps, rf-solver", _mmps(RFSolver(), 30), "exact", GAUSSIAN),
        Contender("laplace", Laplace(steps=1), "exact", ("field",)),
    ]


def _decoupled() -> list[Contender]:
    daps, near = DAPS(grid=_EDM, steps=50), PnPDM(steps=40, first=3.0, last=0.1, decay=0.85, inner=20)
    own = DAPS("jacobian", krylov=8, grid=_EDM, steps=12)
    published = DAPS("noise", ode_steps=5, grid=_EDM, steps=200)
    rows = [
        Contender("daps", daps, "exact", ("white",)),
        Contender("daps, jacobian", own, "exact", GAUSSIAN),
        Contender("daps, published", published, "biased", ("white",), _about(0.20, 1.18, 1.41)),
        # the posterior of data that are noisier by rho
        Contender("pnp-dm", near, "biased", ("white",), _about(0.05, 1.04, 1.01)),
        Contender("pnp-dm, rho = 0.3", PnPDM(steps=30, last=0.3, decay=0.8), "biased", ("white",), _about(0.06, 1.27, 1.0)),
        Contender("pnp-dm, rho = 1", PnPDM(steps=20, last=1.0, decay=0.8, inner=5), "wrong", ("white",)),
        Contender("sitcom", SITCOM(grid=_EDM), "biased", ("white",), _about(0.37, 0.36, 0.39)),
        Contender("ddrm", DDRM(grid=_EDM, steps=200), "biased", ("white",), _about(0.974, 0.122, 0.742)),
    ]
    wide = {
        "daps": DAPS(grid=_FAR, steps=100),
        "daps, jacobian": replace(own, grid=_FAR, steps=40),
        "pnp-dm": PnPDM(steps=60, last=0.1),
        "sitcom": SITCOM(grid=_FAR),
    }
    return rows + [Contender(name, sampler, "biased", MIXTURES, DEVIATES) for name, sampler in wide.items()]


def _gradients() -> list[Contender]:
    """The published guidances, with the laws of their own that tests/exact derives from their equations."""
    known = {
        "tmpd, ancestral": (Guided(guidance=TMPD(), integrator=Ancestral(), grid=_EDM, steps=200), _about(0.066, 0.944, 0.95)),
        "dds": (DDS(grid=_EDM, steps=200), _about(1.75, 0.064, 0.96)),
        "mcg": (MCG(grid=_EDM, steps=400), _about(3.423, 0.0, 0.975)),
        "gdp": (GDP(zeta=0.3, grid=_EDM, steps=400), _about(1.65, 0.078, 0.975)),
        "gdp, xt": (GDP(zeta=1.5, form="xt", grid=_EDM, steps=400), _about(0.25, 1.905, 0.975)),
        "flowchef": (FlowChef(zeta=0.1, grid=_EDM, steps=200), _about(2.06, 0.13, 0.963)),
        "lgd, 10 points": (LGD(grid=_EDM, steps=400), _about(0.066, 0.916, 0.975)),
    }
    return [Contender(name, sampler, "biased", ("white",), bias) for name, (sampler, bias) in known.items()]


def _particles() -> list[Contender]:
    """Exact as their number grows; of the first order in the steps, for the prior of their chain, which loses variance."""
    # the modes lie up to 45 apart
    above = replace(_EDM, sigma_max=300.0)
    return [
        Contender("tds", TDS(particles=4, grid=_EDM, steps=100), "exact", GAUSSIAN),
        Contender("tds, 16 particles", TDS(particles=16, grid=above, steps=50), "exact", MIXTURES),
        Contender("ddsmc", DDSMC(particles=32, grid=_EDM, steps=100), "biased", ("white",), _about(None, 0.93, 0.91)),
        # not exact however many: the levels of its path of data share one noise, and count as independent
        Contender("fps", FPS(grid=_EDM, steps=50), "biased", ("white",), _about(0.987, 0.289, 0.814)),
        Contender("mcgdiff", MCGdiff(particles=32, grid=_EDM, steps=100), "biased", ("white",), _about(None, 0.83, 0.89)),
    ]


def _blind() -> list[Contender]:
    """An unknown gain beside x, a bilinear pair: no guidance is exact there, particles are."""
    sde = Guided(guidance=_MMPS, integrator=DPMSolver(1.0), grid=_EDM, steps=100)
    gibbs = AlternatingGibbs(steps=60, first=3.0, last=0.1, decay=0.9, inner=10)
    case = ("blind gain",)
    return [
        Contender("tds", TDS(particles=4, grid=_EDM, steps=100), "exact", case),
        Contender("mmps, sde-dpm-solver++(2m)", sde, "biased", case, {"ratio": (0.8, 1.3)}),
        Contender("alternating gibbs", gibbs, "biased", case, {"distance": (0.027, 0.039)}),
        Contender("alternating gibbs, rho = 1", replace(gibbs, steps=30, last=1.0), "wrong", case),
    ]


def _black_box() -> list[Contender]:
    near = EnKG(particles=64, gamma=0.2, grid=_EDM, steps=40)
    return [
        Contender("enkg", near, "biased", ("white",), _about(1.884, 0.067, 1.012)),
        Contender("scg", SCG(grid=_EDM, steps=100), "biased", ("white",), _about(1.878, 0.056, 0.892)),
    ]


def _langevin() -> list[Contender]:
    """Their stationary laws have a bias of the step's order, of closed form (tests/exact/test_langevin.py)."""
    return [
        Contender("ald", ALD(inner=5, step_size=0.1, grid=_EDM, steps=100), "biased", ("white",), _about(0.189, 1.445, 1.305)),
        Contender("ula", ULA(sigma=0.02, step_size=0.02, steps=400), "biased", ("white",), _about(0.05, 1.036, 1.032)),
        Contender(
            "sk-rock",
            SKROCK(sigma=0.02, step_size=0.05, stages=5, steps=120),
            "biased",
            ("white",),
            _about(0.056, 1.018, 1.004),
        ),
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
    rules: list[tuple[str, Integrator, Karras, int]] = [
        ("heun", Heun(), _FAR, 80),
        ("euler", Euler(), _FAR, 800),
        ("ancestral", Ancestral(), near, 800),
        ("dpm-solver++(2m)", DPMSolver(), _FAR, 160),
        ("unipc(2)", UniPC(2), _FAR, 80),
    ]
    for title, integrator, grid, steps in rules:
        name = f"exact denoiser, {title}"
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
    near = Karras(sigma_max=3.0, sigma_min=0.005)
    # mean and covariance of a draw are the posterior's where Adam gets to the end: not, in as many steps, at a noise of 0.01
    repelling = REDDiffParticles(12, lr=0.2, grid=near, steps=400)
    rows.append(Contender("reddiff, 12 particles", repelling, "biased", ("white",), _about(0.03, 1.0, 1.0)))
    # the mode of a Gaussian posterior is its mean: the error is that of Adam
    mode = REDDiff(lam=1.0, weight="score", antithetic=True, lr=0.02, grid=Karras(sigma_max=10.0, sigma_min=0.005), steps=800)
    rows.append(Contender("reddiff, score weight", mode, "biased", ("white",), {"mean_error": (0.0, 0.01)}))
    wide = {
        "mmps, heun": Guided(guidance=_MMPS, integrator=Heun(), grid=_FAR, steps=60),
        "pigdm, heun": Guided(guidance=_PIGDM, integrator=Heun(), grid=_FAR, steps=60),
        **{name: replace(sampler, grid=_FAR) for name, sampler in biased.items()},
    }
    return rows + [Contender(name, sampler, "biased", MIXTURES, DEVIATES) for name, sampler in wide.items()]
