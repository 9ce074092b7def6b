"""Range cells: sums of complex exponentials at equally spaced frequencies, by cells and a few transforms.

With b = 2 df dR n / c, its nearest integer c0, and t = 2 (b - c0) in [-1, 1],

    exp(s 2 pi j (k - k0) b / n) = exp(s 2 pi j (k - k0) c0 / n) sum_{m < D} a_m(k - k0) t^m + e,       |e| <= 2 J_D(pi / 16)

from the Chebyshev series of the exponential, on n >= 8 K cells. Points weighted by t^m are added up in their cells, and D
transforms of length n go to the frequencies; the adjoint transposes each of these steps.

References: Ruiz-Antolin, Townsend, A nonuniform fast Fourier transform based on low rank approximation, SIAM J. Sci. Comput.
40, 2018.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["SPEED_OF_LIGHT", "Cells", "Series", "Tables", "cells_for", "differential_range", "gather", "scatter", "terms"]

SPEED_OF_LIGHT = 299_792_458.0
OVERSAMPLING = 8


class Cells(NamedTuple):
    """Where the points of a scene fall, for some pulses, (P, N) each: the cell, twice the distance from it, and the carrier."""

    cell: Tensor
    offset: Tensor
    carrier: Tensor

    def block(self, first: int, last: int) -> Cells:
        """The cells of the pulses from `first` to `last`, the last not included."""
        return Cells(*(t[first:last] for t in self))


def differential_range(positions: Tensor, reference: Tensor, points: Tensor) -> Tensor:
    """dR, (P, N) in m, of phase centres (P, A, 3), reference ranges (P,) and points (3, N), in float64."""
    square = points.square().sum(0)
    each = [
        torch.addmm(square, q, points, alpha=-2.0).add_(q.square().sum(-1, keepdim=True)).sqrt_() for q in positions.unbind(1)
    ]
    distance = each[0] if len(each) == 1 else torch.stack(each).mean(0)
    return distance.sub_(reference[:, None])


def terms(accuracy: float) -> int:
    """D of the series, for which its remainder is below `accuracy`."""
    reach, d = math.pi / (2.0 * OVERSAMPLING), 1
    while 2.0 * (0.5 * reach) ** d / math.factorial(d) > accuracy:
        d += 1
    return d


def cells_for(frequencies: int) -> int:
    """Number of cells, n, of a length that transforms quickly."""
    from scipy.fft import next_fast_len

    return int(next_fast_len(OVERSAMPLING * frequencies))


class Tables:
    """Cells of all points for some pulses; ranges are float64, what is left of them after whole turns and cells is `dtype`."""

    def __init__(self, sign: int, n: int) -> None:
        self.sign, self.n = sign, n

    def __call__(
        self,
        positions: Tensor,
        reference: Tensor,
        points: Tensor,
        middle: Tensor,
        step: Tensor,
        *,
        dtype: torch.dtype = torch.float64,
    ) -> tuple[Tensor, Tensor, Tensor]:
        distance = differential_range(positions, reference, points)
        cycles = distance * (2.0 / SPEED_OF_LIGHT * self.sign * middle)
        turn = cycles.sub_(cycles.round()).to(dtype) * (2.0 * math.pi)
        bins = distance.mul_(2.0 / SPEED_OF_LIGHT * self.n * step)
        cell = bins.round()
        offset = bins.sub_(cell).to(dtype) * 2.0
        # the remainder, by what vectorises
        cell.sub_((cell * (1.0 / self.n) + 0.5 / self.n).floor_(), alpha=self.n)
        return cell.to(torch.int32), offset, torch.complex(turn.cos(), turn.sin())


class Series:
    """a_m(k - k0), (D, K): the powers of t in the Chebyshev series of exp(s j pi (k - k0) t / n)."""

    def __init__(self, count: int, sign: int, k: int, n: int) -> None:
        self.count, self.sign, self.k, self.n = count, sign, k, n

    def __call__(self) -> tuple[Tensor]:
        from numpy.polynomial.chebyshev import cheb2poly
        from scipy.special import jv

        order = torch.arange(self.count)
        kappa = torch.arange(self.k, dtype=torch.float64) - self.k // 2
        bessel = torch.from_numpy(jv(order[:, None].numpy(), (math.pi / self.n * kappa).numpy()))
        unit = torch.tensor([(self.sign * 1j) ** m for m in range(self.count)], dtype=torch.complex128)
        chebyshev = torch.where(order == 0, 1.0, 2.0)[:, None] * unit[:, None] * bessel
        powers = torch.zeros(self.count, self.count, dtype=torch.float64)
        for m in range(self.count):
            powers[: m + 1, m] = torch.from_numpy(cheb2poly([0.0] * m + [1.0]))
        return (powers.to(torch.complex128) @ chebyshev,)


def scatter(x: Tensor, cells: Cells, series: Tensor, *, n: int, sign: int) -> Tensor:
    """Frequencies (B, P, K) of the points' values (B, N).

    Args:
        series: (D, K), of `Series`. n: number of cells. sign: s, of the exponent.
    """
    where, count = _flat(cells.cell, n), len(cells.cell)
    sums = x.new_zeros(len(x), len(series), count * n)
    for image, sum_ in zip(x, sums, strict=True):
        weighted = image * cells.carrier
        for m in range(len(series)):
            sum_[m].index_add_(0, where, weighted.flatten())
            weighted = weighted * cells.offset if m + 1 < len(series) else weighted
    spectra = _transform(sums.view(len(x), len(series), count, n), -sign)
    k = series.shape[-1]
    # negative k - k0 lie at the end
    band = torch.cat((spectra[..., n - k // 2 :], spectra[..., : k - k // 2]), -1)
    return (band * series[:, None]).sum(1)


def gather(y: Tensor, cells: Cells, series: Tensor, *, n: int, sign: int) -> Tensor:
    """The exact transpose of `scatter` but for the sum over the pulses, (B, P, K) -> (B, P, N)."""
    where, k = _flat(cells.cell, n), series.shape[-1]
    weighted = y[:, None] * series.conj()[:, None]
    gap = y.new_zeros(*weighted.shape[:-1], n - k)
    profiles = _transform(torch.cat((weighted[..., k // 2 :], gap, weighted[..., : k // 2]), -1), sign).flatten(2)
    conjugate, images = cells.carrier.conj(), []
    for profile in profiles:
        image = profile[-1].index_select(0, where).view(conjugate.shape)
        for m in range(len(series) - 2, -1, -1):
            image = torch.addcmul(profile[m].index_select(0, where).view(conjugate.shape), image, cells.offset)
        images.append(conjugate * image)
    return torch.stack(images) if len(images) > 1 else images[0][None]


def _flat(cell: Tensor, n: int) -> Tensor:
    return (cell + n * torch.arange(len(cell), dtype=cell.dtype, device=cell.device)[:, None]).flatten()


def _transform(t: Tensor, direction: int) -> Tensor:
    """sum_i t[i] exp(-direction 2 pi j i k / n)."""
    return torch.fft.fft(t) if direction > 0 else torch.fft.ifft(t, norm="forward")
