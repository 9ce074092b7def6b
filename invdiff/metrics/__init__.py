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

__all__ = [
    "chi2",
    "coverage",
    "crps",
    "energy_score",
    "nrmse",
    "psnr",
    "rank_histogram",
    "rank_p_value",
    "ranks",
    "sliced_wasserstein",
    "ssim",
    "ssim_uniform7",
    "z_cov",
    "z_mean",
]
