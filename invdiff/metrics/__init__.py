"""Metrics: how far an estimate is from the truth, and whether a spread means what it says."""

from .calibration import (
    chi2,
    coverage,
    crps,
    distance_ranks,
    energy_score,
    rank_histogram,
    rank_p_value,
    ranks,
    sliced_wasserstein,
    wasserstein,
    z_cov,
    z_mean,
)
from .classifier import Classified, c2st
from .frechet import Frechet, RandomFeatures, fid, frechet_distance
from .image import nrmse, psnr, ssim, ssim_uniform7
from .sar import (
    RatioStatistics,
    edge_preservation,
    entropy,
    equivalent_looks,
    phase_aligned_nrmse,
    phase_rmse,
    ratio_statistics,
    target_to_clutter,
)
from .sar_response import PointResponse, point_response
from .stein import Stein, kernel_stein
from .two_sample import TwoSample, coarse, patch_moments, radial_spectrum, two_sample_test

__all__ = [
    "Classified",
    "Frechet",
    "PointResponse",
    "RandomFeatures",
    "RatioStatistics",
    "Stein",
    "TwoSample",
    "c2st",
    "chi2",
    "coarse",
    "coverage",
    "crps",
    "distance_ranks",
    "edge_preservation",
    "energy_score",
    "entropy",
    "equivalent_looks",
    "fid",
    "frechet_distance",
    "kernel_stein",
    "nrmse",
    "patch_moments",
    "phase_aligned_nrmse",
    "phase_rmse",
    "point_response",
    "psnr",
    "radial_spectrum",
    "rank_histogram",
    "rank_p_value",
    "ranks",
    "ratio_statistics",
    "sliced_wasserstein",
    "ssim",
    "ssim_uniform7",
    "target_to_clutter",
    "two_sample_test",
    "wasserstein",
    "z_cov",
    "z_mean",
]
