"""Forward operators, one physics per file."""

from . import pde
from .blackbox import BlackBox, Subprocess
from .calibration import Calibrated, Multiplied
from .cs import BlockCS, DenseCS, PermutedCS
from .ct import ParallelBeamCT
from .ct_beams import ConeBeamCT, FanBeamCT
from .dwt import DWT
from .fourier import fft2c, ifft2c
from .masks import box_mask, equispaced_columns, random_columns, random_mask, variable_density
from .mri import CartesianMRI, birdcage_maps, cartesian_mri
from .nufft import NUFFT, radial_nufft, radial_points
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
from .sar import PhaseHistory, Radar
from .sar_geometry import circular_track, form_image, ground, kept_pulses, resolution, spotlight, straight_track
from .sar_modes import FourierAperture, PlaneWave, fourier_aperture, plane_wave
from .sar_polar import polar_format
from .sar_pulses import ChirpConvolution, VideoPhase, deskew, range_compress
from .speckle_whitening import SpeckleSpectrum, whiten_spectrum
from .speckled import Speckled, speckle_of
from .unknown import blind_blur, blind_mri, unknown_gains, unknown_kernel, unknown_maps, unknown_shift
from .wavelet import WaveletSynthesis, band_rms

__all__ = [
    "DWT",
    "NUFFT",
    "BlackBox",
    "BlockCS",
    "Blur",
    "Calibrated",
    "CartesianMRI",
    "ChirpConvolution",
    "Clip",
    "ConeBeamCT",
    "DenseCS",
    "Downsample",
    "Every",
    "Exponential",
    "FanBeamCT",
    "FourierAperture",
    "Identity",
    "Mask",
    "Multiplied",
    "ParallelBeamCT",
    "PermutedCS",
    "PhaseHistory",
    "PlaneWave",
    "Radar",
    "Regrid",
    "SpeckleSpectrum",
    "Speckled",
    "Step",
    "Subprocess",
    "VideoPhase",
    "WaveletSynthesis",
    "band_rms",
    "birdcage_maps",
    "blind_blur",
    "blind_mri",
    "box_inpainting",
    "box_mask",
    "cartesian_mri",
    "circular_track",
    "deskew",
    "equispaced_columns",
    "fft2c",
    "form_image",
    "fourier_aperture",
    "gaussian_blur",
    "gaussian_kernel",
    "ground",
    "ifft2c",
    "kept_pulses",
    "pde",
    "plane_wave",
    "polar_format",
    "radial_nufft",
    "radial_points",
    "random_columns",
    "random_inpainting",
    "random_mask",
    "range_compress",
    "resolution",
    "speckle_of",
    "spotlight",
    "straight_track",
    "unknown_gains",
    "unknown_kernel",
    "unknown_maps",
    "unknown_shift",
    "variable_density",
    "whiten_spectrum",
]
