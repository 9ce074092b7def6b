"""Sampling patterns, boolean, True where something is measured; each is a function of its seed.

References: Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, 2018, arXiv:1811.08839 (the column
masks); Efraimidis, Spirakis, Weighted random sampling with a reservoir, Inf. Process. Lett. 97, 2006.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.rng import Streams

__all__ = ["box_mask", "equispaced_columns", "random_columns", "random_mask", "variable_density"]


def random_mask(shape: tuple[int, ...], keep: float, seed: int) -> Tensor:
    """Each element is True with probability `keep`, (*shape)."""
    if not 0.0 < keep <= 1.0:
        raise ConfigError(f"random_mask: expected 0 < keep <= 1, got {keep}")
    return Streams(seed).uniform(0, shape, "mask", torch.float64)[0] < keep


def box_mask(shape: tuple[int, int], size: int) -> Tensor:
    """True but for a square of size x size in the middle, (H, W)."""
    if not 0 < size <= min(shape):
        raise ConfigError(f"box_mask: expected a size from 1 to {min(shape)}, got {size}")
    mask = torch.ones(shape, dtype=torch.bool)
    top, left = ((s - size) // 2 for s in shape)
    mask[top : top + size, left : left + size] = False
    return mask


def random_columns(width: int, acceleration: float, center_fraction: float, seed: int) -> Tensor:
    """fastMRI's "random" pattern, (W,): a fully sampled centre, and other columns each with the probability that makes W /
    acceleration columns in the mean.

    Args:
        center_fraction: of the columns that the centre takes; 0.08 at acceleration 4, 0.04 at 8.
    """
    mask = _centre(width, acceleration, center_fraction, "random_columns")
    low = int(mask.sum())
    probability = (width / acceleration - low) / (width - low)
    return mask | (Streams(seed).uniform(0, (width,), "mask", torch.float64)[0] < probability)


def equispaced_columns(width: int, acceleration: int, center_fraction: float, seed: int) -> Tensor:
    """fastMRI's "equispaced" pattern, (W,): every acceleration-th column from a random offset, and a fully sampled centre."""
    mask = _centre(width, acceleration, center_fraction, "equispaced_columns")
    offset = int(Streams(seed).uniform(0, (1,), "mask", torch.float64) * acceleration)
    mask[offset::acceleration] = True
    return mask


def variable_density(
    shape: tuple[int, int], acceleration: float, center_fraction: float, seed: int, power: float = 2.0
) -> Tensor:
    """Exactly round(H W / acceleration) points of k-space, (H, W), drawn without replacement with weights (1 + 10 r)^-power.

    r is the distance from the centre of k-space, 1 at the edges; a centred box of center_fraction of each side is fully
    sampled.
    """
    h, w = shape
    box = torch.outer(*(_centre(n, acceleration, center_fraction, "variable_density") for n in shape))
    ky, kx = ((torch.arange(n, dtype=torch.float64) - n // 2) / (n / 2) for n in shape)
    weights = (1.0 + 10.0 * torch.hypot(ky[:, None], kx)) ** -power
    # the largest u^(1/w) are a weighted sample without replacement
    keys = Streams(seed).uniform(0, shape, "mask", torch.float64)[0].log() / weights
    keys[box] = torch.inf
    mask = torch.zeros(h * w, dtype=torch.bool)
    mask[keys.flatten().topk(round(h * w / acceleration)).indices] = True
    return mask.reshape(shape)


def _centre(n: int, acceleration: float, fraction: float, name: str) -> Tensor:
    low = round(n * fraction)
    if not (acceleration >= 1.0 and 0 <= low <= n / acceleration and low < n):
        raise ConfigError(
            f"{name}: expected acceleration >= 1 and a centre of at most {n / max(acceleration, 1.0):g} of {n} columns, got "
            f"acceleration {acceleration} and a centre of {low}: lower center_fraction"
        )
    mask, start = torch.zeros(n, dtype=torch.bool), (n - low + 1) // 2
    mask[start : start + low] = True
    return mask
