"""Whether draws come from the distribution that they should, and whether a spread means what it says.

    coverage        part of the elements with low <= t <= high; the nominal level where the intervals are calibrated
    chi2            mean ((t - m) / s)^2; 1 where the standard deviations are right
    CRPS            E|X - t| - E|X - X'| / 2,   in one dimension
    energy score    the same with Euclidean norms; both are smallest in expectation for draws of the true posterior
    z_mean, z_cov   largest deviation of the draws' moments from a known Gaussian's, in Monte Carlo standard errors
    ranks           number of draws below the truth; uniform over problems for a calibrated sampler (SBC)
    distance_ranks  number of draws nearer than the truth to a point that knows neither; uniform likewise (TARP)

A z-score is compared with a constant, not with a percentage: for n draws of N(m, C) the mean of element i has the standard
error sqrt(C_ii / n), the covariance (i, j) sqrt((C_ii C_jj + C_ij^2) / (n - 1)).

References: Gneiting, Raftery, Strictly proper scoring rules, prediction, and estimation, JASA 102, 2007; Ferro, Fair scores for
ensemble forecasts, QJRMS 140, 2014; Talts, Betancourt, Simpson, Vehtari, Gelman, Validating Bayesian inference algorithms with
simulation-based calibration, 2018, arXiv:1804.06788; Lemos, Coogan, Hezaveh, Perreault-Levasseur, Sampling-based accuracy
testing of posterior estimators for general inference, ICML 2023, arXiv:2302.03026; Bonneel, Rabin, Peyre, Pfister, Sliced and
Radon Wasserstein barycenters of measures, JMIV 51, 2015.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..core import ConfigError, ShapeError, Streams

__all__ = [
    "chi2",
    "coverage",
    "crps",
    "distance_ranks",
    "energy_score",
    "rank_histogram",
    "rank_p_value",
    "ranks",
    "sliced_wasserstein",
    "wasserstein",
    "z_cov",
    "z_mean",
]


class Moments(Protocol):
    """A distribution with a known mean, (*shape), and covariance of the flattened unknown, (N, N)."""

    @property
    def mean(self) -> Tensor: ...
    @property
    def cov(self) -> Tensor: ...


def coverage(low: Tensor, high: Tensor, truth: Tensor) -> Tensor:
    """Part of the elements that lie in their interval, limits included, three times (B, ...) -> (B,)."""
    _same("coverage", low, high, truth)
    return ((low <= truth) & (truth <= high)).flatten(1).double().mean(1)


def chi2(mean: Tensor, std: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error in units of the stated variance, three times (B, ...) -> (B,); about 1 where std is right.

    With mean and std of n draws of a Gaussian the expectation is (1 + 1/n)(n - 1)/(n - 3). The misfit to a measurement is
    `Problem.chi2`.
    """
    _same("chi2", mean, std, truth)
    return ((truth - mean) / std).square().flatten(1).mean(1)


def crps(draws: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score of each element, (n, *shape), (*shape) -> (*shape), in the units of the unknown.

    The fair estimator, whose expectation does not depend on the number of draws n >= 2.
    """
    n = _draws("crps", draws, truth)
    ordered = draws.sort(0).values
    weight = 2.0 * torch.arange(1, n + 1, dtype=draws.dtype, device=draws.device) - n - 1.0
    pairs = torch.tensordot(weight, ordered, dims=1)  # sum over i < j of |x_i - x_j|
    return (draws - truth).abs().mean(0) - pairs / (n * (n - 1))


def energy_score(draws: Tensor, truth: Tensor) -> Tensor:
    """Energy score of one item, (n, *shape), (*shape) -> (); fair as `crps`."""
    n = _draws("energy_score", draws, truth)
    flat = draws.flatten(1)
    # the direct distances: |a|^2 + |b|^2 - 2ab cancels where draws are close
    pairs = torch.pdist(flat).sum()
    return (flat - truth.reshape(1, -1)).norm(dim=1).mean() - pairs / (n * (n - 1))


def z_mean(draws: Tensor, exact: Moments) -> float:
    """Largest |mean of the draws - mean| in standard errors of n independent draws; (n, *shape).

    The maximum over N elements of exact draws is about sqrt(2 log N); 5 is exceeded once in 10^6 / N runs.
    """
    flat, mean, cov = _moments("z_mean", draws, exact)
    return float(((flat.mean(0) - mean).abs() / (cov.diagonal() / len(flat)).sqrt()).max())


def z_cov(draws: Tensor, exact: Moments) -> float:
    """Largest |covariance of the draws - covariance| over all pairs, in standard errors of n independent draws; (n, *shape)."""
    flat, _, cov = _moments("z_cov", draws, exact)
    variance = cov.diagonal()
    error = ((variance[:, None] * variance + cov.square()) / (len(flat) - 1)).sqrt()
    return float(((flat.T.cov().reshape(cov.shape) - cov).abs() / error).max())


def sliced_wasserstein(a: Tensor, b: Tensor, *, directions: int = 256, order: int = 2, seed: int = 0) -> float:
    """Sliced Wasserstein distance of two sets of draws, (n, *shape), (m, *shape).

    The p-th root of the mean over random directions of W_p^p between the projections, which is exact for any n and m. It does
    not vanish for finite sets of the same law: compare with two sets of exact draws.

    Args:
        directions: number of unit vectors; the same for a given seed.
        order: p, 1 or 2.
    """
    if a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 1:
        raise ShapeError(f"sliced_wasserstein: expected draws of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if order not in (1, 2) or directions < 1:
        raise ConfigError(f"sliced_wasserstein: expected order 1 or 2 and directions >= 1, got {order} and {directions}")
    a, b = a.flatten(1).double(), b.flatten(1).double()
    rays = Streams(seed).normal(0, (a.shape[1], directions), "directions", torch.float64, a.device)[0]
    rays = rays / rays.norm(dim=0)
    a, b = (a @ rays).sort(0).values, (b @ rays).sort(0).values
    n, m = len(a), len(b)
    # the quantile functions are constant between the multiples of 1/n and 1/m; in units of 1/(n m) those are integers
    ends = torch.cat([m * torch.arange(1, n + 1), n * torch.arange(1, m + 1)]).unique().to(a.device)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    gaps = (a[starts // m] - b[starts // n]).abs() ** order
    weight = (ends - starts).double() / (n * m)
    return float((weight[:, None] * gaps).sum(0).mean() ** (1.0 / order))


def wasserstein(a: Tensor, b: Tensor, *, order: int = 2) -> float:
    """Wasserstein distance of two sets of n draws, (n, *shape), by the best assignment; its time grows as n^3, 1 s at 1,000.

    In many dimensions it stays far from zero for sets of the same law: compare with two sets of exact draws. That of Gaussians
    from their moments is the square root of `frechet_distance`.

    Args:
        order: p, 1 or 2.
    """
    if a.shape != b.shape or len(a) < 1:
        raise ShapeError(f"wasserstein: expected two sets of as many draws, got {tuple(a.shape)} and {tuple(b.shape)}")
    if order not in (1, 2):
        raise ConfigError(f"wasserstein: expected order 1 or 2, got {order}")
    from scipy.optimize import linear_sum_assignment

    x, y = a.flatten(1).double(), b.flatten(1).double()
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").cpu() ** order
    rows, columns = linear_sum_assignment(cost.numpy())
    return float(cost[rows, columns].mean() ** (1.0 / order))


def ranks(draws: Tensor, truth: Tensor) -> Tensor:
    """Number of draws below the truth for each element, (n, *shape), (*shape) -> (*shape), from 0 to n."""
    _draws("ranks", draws, truth)
    return (draws < truth).sum(0)


def distance_ranks(draws: Tensor, truth: Tensor, reference: Tensor) -> Tensor:
    """Number of draws nearer to a point than the truth is, (n, *shape), (*shape), (*shape) -> (), from 0 to n.

    Over independent problems it is uniform for draws of the posterior, whatever law the points have, as long as they depend on
    neither truth nor draws. Uniform ranks for points that depend on the measurement prove the draws right, in the limit; for
    points that do not, draws of the prior pass too.
    """
    _draws("distance_ranks", draws, truth)
    if reference.shape != truth.shape:
        raise ShapeError(f"distance_ranks: expected a point {tuple(truth.shape)}, got {tuple(reference.shape)}")
    far = (truth - reference).norm()
    return ((draws - reference).flatten(1).norm(dim=1) < far).sum()


def rank_histogram(values: Tensor, n: int, bins: int) -> Tensor:
    """Counts of ranks in `bins` equal classes, any shape -> (bins,).

    Args:
        values: ranks from 0 to n, of a scalar functional of each of many independent problems.
        n: number of draws of each; bins divides n + 1.
    """
    if (n + 1) % bins or bins < 2:
        raise ConfigError(f"rank_histogram: expected bins >= 2 that divides n + 1 = {n + 1}, got {bins}")
    if values.numel() == 0 or int(values.min()) < 0 or int(values.max()) > n:
        raise ConfigError(f"rank_histogram: expected ranks from 0 to n = {n}")
    return torch.bincount(values.reshape(-1) * bins // (n + 1), minlength=bins)


def rank_p_value(counts: Tensor) -> float:
    """Probability that uniform ranks give a histogram as uneven as this one (Pearson's chi-squared test), (bins,) -> float.

    Only for ranks of independent problems: those of neighbouring pixels of one image are correlated.
    """
    counts = counts.double()
    expected = counts.mean()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor(0.5 * (len(counts) - 1), dtype=torch.float64), 0.5 * statistic.cpu()))


def _same(name: str, *tensors: Tensor) -> None:
    if len({t.shape for t in tensors}) > 1 or tensors[0].ndim < 2:
        raise ShapeError(
            f"{name}: expected batches (B, ...) of one shape, got {', '.join(str(tuple(t.shape)) for t in tensors)}"
        )


def _draws(name: str, draws: Tensor, truth: Tensor) -> int:
    if draws.shape[1:] != truth.shape or len(draws) < 2:
        raise ShapeError(
            f"{name}: expected (n, *shape) with n >= 2 and (*shape), got {tuple(draws.shape)} and {tuple(truth.shape)}"
        )
    return len(draws)


def _moments(name: str, draws: Tensor, exact: Moments) -> tuple[Tensor, Tensor, Tensor]:
    _draws(name, draws, exact.mean)
    flat, mean, cov = draws.flatten(1).double(), exact.mean.reshape(-1).double(), exact.cov.double()
    if cov.shape != (len(mean), len(mean)) or not bool((cov.diagonal() > 0).all()):
        raise ShapeError(
            f"{name}: expected a covariance ({len(mean)}, {len(mean)}) with positive variances, got {tuple(cov.shape)}"
        )
    return flat, mean, cov
