"""One level of a wavelet transform along one axis: the filter banks, the four matrices, and how they are applied.

    analysis    (a_k, d_k) = sum_j (h_j, g_j) x(2k + s - j),  j = 0 ... F - 1,  s = 1, in periodization F / 2

is a banded matrix W from n values to 2 m coefficients; the inverse V is the transpose of the same with the synthesis filters
reversed, extended by zeros where W is not periodic. A matrix is applied in tiles of 64 values as dense products, which keep a
CPU busy for filters of any length, where one pass per filter tap waits for memory.

References: Lee et al., PyWavelets: a Python package for wavelet analysis, JOSS 4, 2019 (the conventions).
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from .constants import Constants, as_given

__all__ = ["Axis", "Mode", "filters", "half_length"]

Mode = Literal["periodization", "symmetric", "zero"]
_BLOCK = 32


class Axis(nn.Module):
    """The four maps of one level along one axis of n values."""

    def __init__(self, n: int, analysis: Tensor, dual: Tensor, mode: Mode) -> None:
        super().__init__()
        m = half_length(n, analysis.shape[1], mode)
        primal = _entries(n, analysis, mode)
        second = _entries(n, dual, "crop" if mode == "periodization" else "zero")
        self.analysis, self.adjoint = Blocks(primal, (2, m), (1, n)), Blocks(_swap(primal), (1, n), (2, m))
        self.inverse_adjoint, self.inverse = Blocks(second, (2, m), (1, n)), Blocks(_swap(second), (1, n), (2, m))


class Blocks(nn.Module):
    """A banded matrix along one dimension: for each tile of outputs, dense blocks on the runs of inputs that it depends on.

    Args:
        entries: band and position of the output, band and position of the input, (4, E), and the values, (E,).
        target, source: (bands, length) of outputs and inputs.
    """

    def __init__(self, entries: tuple[Tensor, Tensor], target: tuple[int, int], source: tuple[int, int]) -> None:
        super().__init__()
        self.target, self.source = target, source
        index, value = entries
        step = 2 * _BLOCK // target[0]
        order = index[1].argsort(stable=True)
        index, value = index[:, order], value[order]
        starts = list(range(0, target[1], step))
        bounds = torch.searchsorted(index[1], torch.tensor([*starts, target[1]])).tolist()
        self.tiles: list[tuple[int, int, list[tuple[int, int, int]]]] = []
        unique: dict[tuple[tuple[int, ...], bytes], int] = {}
        blocks: list[Tensor] = []
        for start, (low, high) in zip(starts, pairwise(bounds), strict=True):
            stop, runs = min(start + step, target[1]), []
            (out_band, out, in_band, position), v = index[:, low:high], value[low:high]
            used = position.unique()
            # inputs far apart, as the two ends of a period, are two runs
            cuts = (used.diff() > _BLOCK).nonzero()[:, 0].tolist()
            for i, j in zip([0, *(c + 1 for c in cuts)], [*cuts, len(used) - 1], strict=True):
                first, last = int(used[i]), int(used[j]) + 1
                here = (position >= first) & (position < last)
                block = value.new_zeros(target[0], stop - start, source[0], last - first)
                at = (out_band[here], out[here] - start, in_band[here], position[here] - first)
                block = block.index_put(at, v[here], accumulate=True).flatten(2).flatten(0, 1)
                # tiles inside the signal are all the same
                key = (tuple(block.shape), block.numpy().tobytes())
                if key not in unique:
                    unique[key] = len(blocks)
                    blocks.append(block)
                runs.append((first, last, unique[key]))
            self.tiles.append((start, stop, runs))
        self.blocks = Constants(as_given, *blocks)

    def forward(self, x: Tensor, dim: int) -> Tensor:
        """The product along dimension `dim`, whose size is bands times length."""
        before, after = x.shape[:dim], x.shape[dim + 1 :]
        outer, inner, blocks = prod(before), prod(after), self.blocks(x)
        x = x.reshape(outer, *self.source, inner)
        y = x.new_empty(outer, *self.target, inner)
        for start, stop, runs in self.tiles:
            total = None
            for first, last, i in runs:
                part = x[:, :, first:last]
                if inner == 1:
                    term = part.reshape(outer, -1) @ blocks[i].mT
                else:
                    term = blocks[i] @ part.reshape(outer, -1, inner)
                total = term if total is None else total + term
            y[:, :, start:stop] = total.reshape(outer, self.target[0], stop - start, inner)
        return y.reshape(*before, -1, *after)


def half_length(n: int, taps: int, mode: Mode) -> int:
    """Number of approximations, and of details, of n values by filters of length `taps`."""
    return (n + 1) // 2 if mode == "periodization" else (n + taps - 1) // 2


def _entries(n: int, bank: Tensor, edge: str) -> tuple[Tensor, Tensor]:
    """Nonzeros of the 2 m x n matrix of an analysis; "crop" is periodization that drops the value added to an odd n."""
    taps = bank.shape[1]
    periodic = edge in ("periodization", "crop")
    m = half_length(n, taps, "periodization" if periodic else "zero")
    band, k, j = (v.flatten() for v in torch.meshgrid(torch.arange(2), torch.arange(m), torch.arange(taps), indexing="ij"))
    position = 2 * k + (taps // 2 if periodic else 1) - j
    if periodic:
        position = position % (2 * m)
        if edge == "periodization":
            position = position.clamp_max(n - 1)  # an odd length repeats its last value
    elif edge == "symmetric":
        position = position % (2 * n)
        position = torch.minimum(position, 2 * n - 1 - position)
    keep = (position >= 0) & (position < n)
    return torch.stack([band, k, torch.zeros_like(k), position])[:, keep], bank[band, j][keep]


def _swap(entries: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    index, value = entries
    return index[[2, 3, 0, 1]], value


def filters(wavelet: str) -> tuple[Tensor, Tensor]:
    """Low- and high-pass filters of the analysis and, reversed, of the synthesis, (2, F) float64 each."""
    import pywt

    if wavelet not in pywt.wavelist(kind="discrete"):
        raise ConfigError(f"DWT: PyWavelets has no discrete wavelet {wavelet!r}: pywt.wavelist(kind='discrete') names them")
    bank = pywt.Wavelet(wavelet)
    analysis = torch.tensor([bank.dec_lo, bank.dec_hi], dtype=torch.float64)
    dual = torch.tensor([bank.rec_lo, bank.rec_hi], dtype=torch.float64).flip(1)
    if (error := _biorthogonality(analysis, dual)) > 1e-6:
        raise ConfigError(f"DWT: the filters of {wavelet!r} reconstruct only to {error:.0e}: use a wavelet with exact filters")
    return analysis, dual


def _biorthogonality(analysis: Tensor, dual: Tensor) -> float:
    """Largest deviation of <analysis_a, dual_b shifted by 2 s> from 1 for a = b, s = 0 and from 0 elsewhere."""
    taps, half = analysis.shape[1], analysis.shape[1] // 2
    shifted = torch.stack([torch.nn.functional.pad(dual, (2 * s, 2 * taps - 2 * s)) for s in range(2 * half)])
    gram = torch.einsum("al,sbl->sab", torch.nn.functional.pad(analysis, (taps, taps)), shifted)
    gram[half] -= torch.eye(2, dtype=gram.dtype)
    return float(gram.abs().max())
