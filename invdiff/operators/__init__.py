"""Forward operators, one physics per file."""

from . import pde
from .cs import BlockCS, DenseCS, PermutedCS
from .ct import ParallelBeamCT
from .ct_beams import ConeBeamCT, FanBeamCT
from .dwt import DWT
from .fourier import fft2c, ifft2c
from .masks import box_mask, equispaced_columns, random_columns, random_mask, variable_density
from .mri import CartesianMRI, birdcage_maps, cartesian_mri
from .pointwise import Clip, Exponential, Step
from .regrid import Every, Regrid
from .restoration import (
    Blur,
    Downsample,
    Identity,
    Mask,
    box_inpainting,
    gaussian_blur,
    gaussian_kernel,
    random_inpainting,
)
from .wavelet import WaveletSynthesis, band_rms

__all__ = [
    "DWT",
    "BlockCS",
    "Blur",
    "CartesianMRI",
    "Clip",
    "ConeBeamCT",
    "DenseCS",
    "Downsample",
    "Every",
    "Exponential",
    "FanBeamCT",
    "Identity",
    "Mask",
    "ParallelBeamCT",
    "PermutedCS",
    "Regrid",
    "Step",
    "WaveletSynthesis",
    "band_rms",
    "birdcage_maps",
    "box_inpainting",
    "box_mask",
    "cartesian_mri",
    "equispaced_columns",
    "fft2c",
    "gaussian_blur",
    "gaussian_kernel",
    "ifft2c",
    "pde",
    "random_columns",
    "random_inpainting",
    "random_mask",
    "variable_density",
]
