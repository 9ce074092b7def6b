"""Samplers: integrators on a guided denoiser, and methods with a step of their own, one paper per file."""

from .classical import Adjoint, Tikhonov, TotalVariation
from .ddnm import DDNM
from .decoupled import Decoupled
from .diffpir import DiffPIR
from .dps import DPS
from .guided import Guided, Level
from .integrators import DDIM, Ancestral, Euler, Heun, Integrator
from .reddiff import REDDiff
from .steered import Energy, Steered

__all__ = [
    "DDIM",
    "DDNM",
    "DPS",
    "Adjoint",
    "Ancestral",
    "Decoupled",
    "DiffPIR",
    "Energy",
    "Euler",
    "Guided",
    "Heun",
    "Integrator",
    "Level",
    "REDDiff",
    "Steered",
    "Tikhonov",
    "TotalVariation",
]
