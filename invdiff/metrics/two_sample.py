"""How far two sets of fields are from each other: spectra, and a kernel two-sample test.

    MMD^2(P, Q) = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(x, y) = exp(-|x - y|^2 / (2 h^2)),

which is zero only for P = Q; estimated without bias from the pairs of different items, h the median distance of all pairs. Its
null distribution comes from exchanging items between the sets at random: with m permutations the p-value

    p = (1 + number of permutations with a value at least as large) / (1 + m)

is exact for any sample size: P(p <= a) <= a for exchangeable items, with equality at multiples of 1 / (1 + m) without ties. The
items are exchanged whole, because the patches of one image are not independent of each other.

References: Gretton, Borgwardt, Rasch, Schoelkopf, Smola, A kernel two-sample test, JMLR 13, 2012. Phipson, Smyth, Permutation
p-values should never be zero, 2010.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import ConfigError, ShapeError, Streams

__all__ = ["TwoSample", "coarse", "patch_moments", "radial_spectrum", "two_sample_test"]


class TwoSample(NamedTuple):
    """Result of a test: the squared distance (estimated without bias, so that it can be negative), and its p-value."""

    mmd2: float
    p: float


def two_sample_test(
    a: Tensor, b: Tensor, *, permutations: int = 999, bandwidth: float | None = None, seed: int = 0
) -> TwoSample:
    """Whether two sets of items come from one distribution, (n, *shape), (m, *shape), n, m >= 2.

    Args:
        permutations: p is a multiple of 1 / (1 + permutations), and at least that.
        bandwidth: h; None for the median distance between the items of both sets.
        seed: of the permutations.
    """
    if a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 2:
        raise ShapeError(f"two_sample_test: expected two or more items of one shape, got {tuple(a.shape)}, {tuple(b.shape)}")
    if permutations < 1 or (bandwidth is not None and not bandwidth > 0):
        raise ConfigError(f"two_sample_test: expected permutations >= 1, bandwidth > 0, got {permutations} and {bandwidth}")
    n, m = len(a), len(b)
    items = torch.cat([a, b]).flatten(1).double()
    distance = torch.pdist(items)
    width = float(distance.median()) if bandwidth is None else bandwidth
    if not width > 0:
        raise ConfigError("two_sample_test: more than half of the pairs are equal: give a bandwidth")
    pairs = torch.triu_indices(n + m, n + m, 1, device=items.device)
    kernel = items.new_zeros(n + m, n + m)
    kernel[pairs[0], pairs[1]] = torch.exp(-0.5 * (distance / width).square())
    kernel = kernel + kernel.T
    order = Streams(seed, permutations).uniform(0, (n + m,), "permutation", torch.float64, items.device).argsort(1)
    own = torch.arange(n + m, device=items.device)[None]
    first = torch.zeros(permutations + 1, n + m, dtype=items.dtype, device=items.device)
    first.scatter_(1, torch.cat([own, order])[:, :n], 1.0)
    inside = first @ kernel
    within_a, within_b = (inside * first).sum(1), ((kernel.sum(0) - inside) * (1.0 - first)).sum(1)
    between = (inside * (1.0 - first)).sum(1)
    values = within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2.0 * between / (n * m)
    # a permutation that leaves the sets as they are has the observed value, but for rounding
    reached = int((values[1:] >= values[0] - 1e-12).sum())
    return TwoSample(float(values[0]), (1 + reached) / (1 + permutations))


def radial_spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Power of fields (N, C, *spatial) by spatial frequency, mean over items, channels and directions.

    Returns:
        Frequencies in cycles per pixel, the middle of bins of the width of 1 / the smallest size, up to 0.5; and the power in
        them, both (bins,) float64. White noise of variance v has the power v everywhere; the mean of a field is left out.
    """
    sizes = x.shape[2:]
    if x.ndim < 3 or min(sizes) < 2:
        raise ShapeError(f"radial_spectrum: expected fields (N, C, *spatial), got {tuple(x.shape)}")
    dims = tuple(range(2, x.ndim))
    power = torch.fft.fftn(x.double(), dim=dims, norm="ortho").abs().square().mean((0, 1))
    axes = [torch.fft.fftfreq(n, dtype=torch.float64, device=x.device).square() for n in sizes]
    frequency = sum(f.reshape([-1 if i == d else 1 for i in range(len(sizes))]) for d, f in enumerate(axes)).sqrt()
    bins = (frequency * min(sizes)).round().long()
    kept = (bins > 0) & (bins <= min(sizes) // 2)
    count = torch.bincount(bins[kept])[1:]
    total = torch.bincount(bins[kept], power[kept])[1:]
    middle = torch.arange(1, len(count) + 1, dtype=torch.float64, device=x.device) / min(sizes)
    return middle[count > 0], (total / count)[count > 0]


def coarse(x: Tensor, side: int = 16) -> Tensor:
    """Fields averaged over blocks to at most `side` in every dimension, (N, C, *spatial) -> (N, C, *coarse): their layout."""
    for dim in range(2, x.ndim):
        block = math.ceil(x.shape[dim] / side)
        whole = x.narrow(dim, 0, x.shape[dim] // block * block)
        x = whole.unflatten(dim, (-1, block)).mean(dim + 1)
    return x


def patch_moments(x: Tensor, side: int = 3) -> Tensor:
    """Second moments of the patches of each field about their means, (N, C, *spatial) -> (N, features): its texture.

    All overlapping patches of `side` in every dimension. The features are, channel by channel, the upper triangle of the
    covariance between the places of a patch, as square roots with their sign, in the units of the field.
    """
    dims = x.ndim - 2
    if dims < 1 or min(x.shape[2:]) < side:
        raise ShapeError(f"patch_moments: expected fields of at least {side} pixels, got {tuple(x.shape)}")
    patches = x
    for dim in range(2, x.ndim):
        patches = patches.unfold(dim, side, 1)
    patches = patches.flatten(-dims).flatten(2, -2)
    patches = patches - patches.mean(-1, keepdim=True)
    moments = patches.transpose(2, 3) @ patches / patches.shape[2]
    rows, columns = torch.triu_indices(side**dims, side**dims, device=x.device)
    features = moments[..., rows, columns].flatten(1)
    return features.sign() * features.abs().sqrt()
