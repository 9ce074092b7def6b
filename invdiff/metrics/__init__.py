"""Metrics: how far an estimate is from the truth, and whether a spread means what it says."""

from .calibration import (
    chi2,
    coverage,
    crps,
    energy_score,
    rank_histogram,
    rank_p_value,
    ranks,
    sliced_wasserstein,
    z_cov,
    z_mean,
)
from .image import nrmse, psnr, ssim, ssim_uniform7
from .two_sample import TwoSample, coarse, patch_moments, radial_spectrum, two_sample_test

__all__ = [
    "TwoSample",
    "chi2",
    "coarse",
    "coverage",
    "crps",
    "energy_score",
    "nrmse",
    "patch_moments",
    "psnr",
    "radial_spectrum",
    "rank_histogram",
    "rank_p_value",
    "ranks",
    "sliced_wasserstein",
    "ssim",
    "ssim_uniform7",
    "two_sample_test",
    "z_cov",
    "z_mean",
]
