"""Guidance: a denoiser conditioned on a measurement, one paper per file."""

from .guidance import Guidance, Jacobian, linearize, noise_level, require_gaussian, require_scalar_gaussian
from .mmps import MMPS
from .pigdm import PiGDM
from .tmpd import TMPD

__all__ = [
    "MMPS",
    "TMPD",
    "Guidance",
    "Jacobian",
    "PiGDM",
    "linearize",
    "noise_level",
    "require_gaussian",
    "require_scalar_gaussian",
]
