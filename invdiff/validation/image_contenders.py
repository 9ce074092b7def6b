"""The rows of `image_cases`: which samplers run there, and what is known of them.

On the toy no guidance is exact, but its modes lie three standard deviations apart, and what the exact samplers of a Gaussian
prior leave is less than a thousand draws show: they are held to `CLOSE`. On the images of five shapes they have to deviate.
Distances to the posterior of the random field are Wasserstein ones in the units of the field, whose draws have the total
variance (tr C)^(1/2) = 3.5 under the posterior.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..core import Karras
from ..guidance import MMPS, PiGDM
from ..samplers import DAPS, DDRM, DPS, TDS, DiffPIR, DPMSolver, Guided, Laplace, PnPDM, RFSolver
from .contender import DEVIATES, Contender
from .image_cases import FIELDS, IMAGES, TOYS

__all__ = ["image_contenders"]

CLOSE = {"ratio": (0.7, 1.5)}
_EDM = Karras(sigma_max=100.0, sigma_min=0.02)
_FINE = Karras(sigma_max=300.0, sigma_min=0.005)


def image_contenders() -> list[Contender]:
    """The rows of the toy, the random field, and the images of five shapes."""
    return [*_shapes_and_toys(), *_fields()]


def _shapes_and_toys() -> list[Contender]:
    solver: dict[str, Any] = {"integrator": DPMSolver(), "grid": _FINE, "steps": 60}
    own = DAPS("jacobian", krylov=8, grid=_EDM, steps=12)
    near = PnPDM(steps=40, first=3.0, last=0.1, decay=0.85, inner=20)
    exact = Guided(integrator=DPMSolver(), grid=Karras(sigma_max=1000.0, sigma_min=0.02), steps=100)
    particles = TDS(twist="pigdm", particles=32, grid=_EDM, steps=50)
    rows = [
        Contender("exact denoiser, dpm-solver++(2m)", exact, "exact", (*TOYS, *IMAGES), exact_prior=True),
        Contender("tds", TDS(particles=4, grid=_EDM, steps=50), "exact", ("toy, strong",)),
        # a thousand draws show what half as many do to the weights of the shapes: worst z of 5.4 for 16 in tomography
        Contender("tds, 16 particles", replace(particles, particles=16), "exact", IMAGES[:1]),
        Contender("tds, 32 particles", particles, "exact", IMAGES[1:]),
    ]
    close = {
        "mmps, dpm-solver++(2m)": Guided(guidance=MMPS(cg_steps=8), **solver),
        "pigdm, dpm-solver++(2m)": Guided(guidance=PiGDM(), **solver),
        "daps, jacobian": own,
        "pnp-dm": near,
    }
    far = {
        "dps": DPS(zeta=1.0, grid=_EDM, steps=200),
        "diffpir": DiffPIR(lam=1.0, zeta=1.0, grid=_EDM, steps=100),
    }
    rows += [Contender(name, sampler, "biased", TOYS, CLOSE) for name, sampler in close.items()]
    rows += [Contender(name, sampler, "biased", TOYS, DEVIATES) for name, sampler in far.items()]
    wide = close | {"mmps, dpm-solver++(2m)": Guided(guidance=MMPS(cg_steps=4, data_std=0.25), **solver)} | far
    return rows + [Contender(name, sampler, "biased", IMAGES, DEVIATES) for name, sampler in wide.items()]


def _fields() -> list[Contender]:
    # a posterior's mean 22 from the prior's, and pure noise of level s for its own: 22 / s of a deviation are left, which a
    # thousand draws show for s = 300
    guided = Guided(
        guidance=MMPS(cg_steps=1, reference="prior"), integrator=RFSolver(), grid=replace(_FINE, sigma_max=1000.0), steps=40
    )
    rows = [
        Contender("laplace", Laplace(steps=1), "exact", FIELDS),
        Contender("mmps, rf-solver", guided, "exact", FIELDS[1::2]),
    ]
    samplers = {
        "dps": DPS(zeta=1.0, grid=_EDM, steps=200),
        "diffpir": DiffPIR(lam=1.0, zeta=1.0, grid=_EDM, steps=100),
        "ddrm": DDRM(grid=_EDM, steps=100),
    }
    for name, distances in KNOWN_DISTANCES.items():
        rows += [
            Contender(name, replace(samplers[name]), "biased", (case,), {"distance": (0.9 * v, 1.1 * v)})
            for case, v in zip(FIELDS, distances, strict=True)
        ]
    return rows


# to the posterior of the random field, at shifts of 0.5, 1, 2 and 4 standard deviations
KNOWN_DISTANCES = {
    "dps": (1.89, 1.93, 1.95, 1.26),
    "diffpir": (1.15, 1.15, 1.16, 1.20),
    "ddrm": (3.58, 3.66, 3.92, 4.80),
}
