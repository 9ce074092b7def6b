"""Classifier two-sample test: how well a network that was trained for it tells two sets of draws apart.

Of k folds each is predicted by a network trained on the others: two hidden layers of ten units a dimension, on values in units
of the first set's mean and standard deviation, by Adam over the whole of the folds. The accuracy is 1/2 where the sets have one
law; the standard error of n independent predictions there is 1 / (2 sqrt n), and z counts in it.

An accuracy of 1/2 says that this network, so long trained, found nothing: it is blind to what is finer than the draws are
dense.

References: Lopez-Paz, Oquab, Revisiting classifier two-sample tests, ICLR 2017, arXiv:1610.06545. Lueckmann, Boelts, Greenberg,
Goncalves, Macke, Benchmarking simulation-based inference, AISTATS 2021, arXiv:2101.04653.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import ConfigError, ShapeError, Streams

__all__ = ["Classified", "c2st"]


class Classified(NamedTuple):
    """Part of the draws that were told rightly, and its excess over 1/2 in standard errors."""

    accuracy: float
    z: float


def c2st(a: Tensor, b: Tensor, *, folds: int = 5, iterations: int = 200, seed: int = 0) -> Classified:
    """Whether two sets of n draws each, (n, *shape), come from one law.

    Args:
        folds: parts of the cross-validation, from 2 to n.
        iterations: of Adam, for each fold.
        seed: of the folds and the initial weights.

    Raises:
        ShapeError: the sets differ in shape or number.
        ConfigError: folds or iterations are out of range.
    """
    if a.shape != b.shape or len(a) < 2:
        raise ShapeError(f"c2st: expected two sets of as many draws of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not 2 <= folds <= len(a) or iterations < 1:
        raise ConfigError(f"c2st: expected 2 to {len(a)} folds and iterations >= 1, got {folds} and {iterations}")
    a, b = a.flatten(1).float(), b.flatten(1).float()
    units = a.std(0).clamp_min(torch.finfo(a.dtype).tiny)
    x, label = (torch.cat([a, b]) - a.mean(0)) / units, torch.cat([a.new_zeros(len(a)), a.new_ones(len(b))])
    # the same split of both sets, so that no fold has more of one of them
    part = Streams(seed).uniform(0, (len(a),), "folds", torch.float64, a.device)[0].argsort().argsort() * folds // len(a)
    part = part.repeat(2)
    right = 0
    for fold in range(folds):
        inside = part == fold
        right += int(
            ((_trained(x[~inside], label[~inside], x[inside], iterations, seed + fold) > 0) == (label[inside] > 0.5)).sum()
        )
    n = len(x)
    return Classified(right / n, (right / n - 0.5) * 2.0 * n**0.5)


def _trained(x: Tensor, label: Tensor, other: Tensor, iterations: int, seed: int) -> Tensor:
    """Log-odds at `other` of a network trained on x."""
    width, streams, below = 10 * x.shape[1], Streams(seed), x.shape[1]
    weights: list[Tensor] = []
    for k, out in enumerate((width, width, 1)):
        scale = (2.0 if k < 2 else 1.0) ** 0.5 / below**0.5
        weights.append((scale * streams.normal(k, (below, out), "weights", x.dtype, x.device)[0]).requires_grad_())
        weights.append(x.new_zeros(out).requires_grad_())
        below = out

    def network(t: Tensor) -> Tensor:
        for k in (0, 2):
            t = F.relu(t @ weights[k] + weights[k + 1])
        return (t @ weights[4] + weights[5])[:, 0]

    # decoupled decay: what a few hundred draws can't teach is not learnt by heart
    optimizer = torch.optim.AdamW(weights, lr=3e-3, weight_decay=0.1)
    with torch.enable_grad():
        for _ in range(iterations):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(network(x), label).backward()
            optimizer.step()
    with torch.no_grad():
        return network(other)
