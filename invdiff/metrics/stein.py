"""Kernel Stein discrepancy: whether draws have a given score, without draws of the law itself.

    KSD^2 = E u(x, x'),    u(x, y) = s(x)^T s(y) k + s(x)^T d_y k + s(y)^T d_x k + tr d_x d_y k,    s = grad log p

with independent x, x' of the law of the draws; zero only where it is p, for the inverse multiquadric kernel k(x, y) = (c^2 +
|x - y|^2)^b, -1 < b < 0, and p with tails that are not too heavy. With q = c^2 + r^2, r = |x - y|, in d dimensions

    d_x k = 2 b q^(b-1) (x - y) = -d_y k,    tr d_x d_y k = -2 b d q^(b-1) - 4 b (b - 1) r^2 q^(b-2).

The statistic is the mean of u over the pairs of different draws; the distribution that it has for exact, independent draws
comes from random signs w_i w_j u(x_i, x_j) (the wild bootstrap), and p = (1 + number at least as large) / (1 + number of
signs).

It sees what the score sees: weights of modes that lie far apart hardly enter, so that half of a posterior may be missing. Use
it beside a test of samples against samples.

References: Gorham, Mackey, Measuring sample quality with kernels, ICML 2017, arXiv:1703.01717. Chwialkowski, Strathmann,
Gretton, A kernel test of goodness of fit, ICML 2016, arXiv:1602.02964. Liu, Lee, Jordan, A kernelized Stein discrepancy for
goodness-of-fit tests, ICML 2016, arXiv:1602.03253.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core import ConfigError, ShapeError, Streams

__all__ = ["Stein", "kernel_stein"]


class Stein(NamedTuple):
    """The squared discrepancy (estimated without bias, so that it can be negative), and its p-value."""

    ksd2: float
    p: float


def kernel_stein(
    draws: Tensor, score: Tensor, *, scale: float | None = None, power: float = -0.5, signs: int = 999, seed: int = 0
) -> Stein:
    """Whether independent draws (n, *shape), n >= 2, come from the law whose score at them is `score`, (n, *shape).

    Memory is of order n^2.

    Args:
        scale: c; None for the median distance between the draws.
        power: b.
        signs: vectors of random signs; p is a multiple of 1 / (1 + signs).
        seed: of the signs.

    Raises:
        ShapeError: fewer than two draws, or scores of another shape.
        ConfigError: an option is out of its range, or more than half of the draws are equal.
    """
    if draws.shape != score.shape or len(draws) < 2:
        raise ShapeError(
            f"kernel_stein: expected two or more draws and their scores, got {tuple(draws.shape)} and {tuple(score.shape)}"
        )
    if not -1.0 < power < 0.0 or signs < 1 or (scale is not None and not scale > 0.0):
        raise ConfigError(f"kernel_stein: expected -1 < power < 0, signs >= 1 and scale > 0, got {power}, {signs} and {scale}")
    x, s = draws.flatten(1).double(), score.flatten(1).double()
    n, d = x.shape
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    c = float(distance[torch.ones_like(distance, dtype=torch.bool).triu(1)].median()) if scale is None else scale
    if not c > 0.0:
        raise ConfigError("kernel_stein: more than half of the pairs are equal: give a scale")
    r2 = distance.square()
    q = c**2 + r2
    # s(x_i)^T (x_i - x_j), whose transpose is s(x_j)^T (x_j - x_i)
    along = (s * x).sum(1, keepdim=True) - s @ x.T
    u = (s @ s.T) * q**power - 2.0 * power * q ** (power - 1.0) * (along + along.T + d)
    u = (u - 4.0 * power * (power - 1.0) * r2 * q ** (power - 2.0)).fill_diagonal_(0.0)
    flips = torch.where(Streams(seed, signs).uniform(0, (n,), "signs", torch.float64, x.device) < 0.5, -1.0, 1.0).to(u)
    values = (flips @ u * flips).sum(1)
    statistic = float(u.sum())
    return Stein(statistic / (n * (n - 1)), (1 + int((values >= statistic).sum())) / (1 + signs))
