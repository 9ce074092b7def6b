"""Priors: everything that becomes a Denoiser."""

from .gaussian import GaussianPrior, StationaryGaussian
from .mixture import GaussianMixture
from .network import EDMDenoiser, denoising_error, load_network
from .shipped import shipped
from .unet import UNet

__all__ = [
    "EDMDenoiser",
    "GaussianMixture",
    "GaussianPrior",
    "StationaryGaussian",
    "UNet",
    "denoising_error",
    "load_network",
    "shipped",
]
