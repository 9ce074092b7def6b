"""Whitening the speckle of a single-look complex image.

A processor weights the spectrum of white speckle sqrt(R) n, n ~ CN(0, 1), against sidelobes, leaves empty what the band of the
system does not fill, and may leave it off centre (a squint, a range offset):

    Z_kl = a_k b_l F(sqrt(R) n)_kl,    E |Z_kl|^2 = a_k^2 b_l^2 mean(R)    for every reflectivity R,

F the orthonormal FFT: the spectrum of white noise of any variance over the image is flat. Along one axis alone, the transform
of each line has the shape a^2 too, and that of a line through a point target is a^2 without noise. So a^2 is the mean over
lines of |Z|^2, where a line of more than the median energy counts as one of the median: no target outweighs the clutter, dark
lines, which may hold receiver noise, do not either, and the band stays empty outside, where clipping a target would fill it.
It is centred by its centroid on the circle, cut to the band around it where it is above `floor` of its largest value, and
smoothed by the first cosines of the band. The white image is

    w = F^-1 (Z / (a b)) on the grid of the band,    mean a^2 = mean b^2 = 1 over the whole spectrum,

so that E |w|^2 is the mean intensity of the image. Targets of 60 dB a pixel or two apart, whose spectra interfere and whose
sidelobes are above the clutter in most lines, still leave their mark: mask them out first.

References: Lapini, Bianchi, Argenti, Alparone, Blind speckle decorrelation for SAR image despeckling, IEEE TGRS 52, 2014;
Molini, Valsesia, Fracastoro, Magli, Speckle2Void, 2020, arXiv:2007.02075.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError, ShapeError

__all__ = ["SpeckleSpectrum", "coherence", "whiten_spectrum"]


@dataclass(frozen=True)
class SpeckleSpectrum:
    """The transfer function of an image and the band that it fills.

    Args:
        rows, columns: a and b on the band, (h,) and (w,), positive, in order of frequency.
        starts: the first bins of the band in the FFT of the image, which go on around its end.
        shape: (H, W) of the image.
    """

    rows: Tensor
    columns: Tensor
    starts: tuple[int, int]
    shape: tuple[int, int]

    def _bins(self, axis: int) -> Tensor:
        """Bins of the band in the order of an FFT on the band's grid, where its middle is frequency 0."""
        n = (self.rows, self.columns)[axis].numel()
        band = self.starts[axis] + torch.arange(n, device=self.rows.device)
        return torch.fft.ifftshift(band % self.shape[axis])

    def _weights(self) -> Tensor:
        return torch.fft.ifftshift(self.rows)[:, None] * torch.fft.ifftshift(self.columns)

    def whiten(self, slc: Tensor) -> Tensor:
        """(..., H, W) complex -> (..., h, w) complex, on the grid of the band.

        Raises:
            ShapeError: not a complex image of `shape`.
        """
        self._check("slc", slc, self.shape)
        z = torch.fft.fft2(slc, norm="ortho")[..., self._bins(0)[:, None], self._bins(1)]
        return torch.fft.ifft2(z / self._weights().to(slc.real.dtype), norm="ortho")

    def colour(self, white: Tensor) -> Tensor:
        """The inverse on the band, (..., h, w) complex -> (..., H, W) complex: the image but for what it has outside.

        Raises:
            ShapeError: not a complex image on the grid of the band.
        """
        self._check("white", white, (self.rows.numel(), self.columns.numel()))
        z = white.new_zeros((*white.shape[:-2], *self.shape))
        weights = self._weights().to(white.real.dtype)
        z[..., self._bins(0)[:, None], self._bins(1)] = torch.fft.fft2(white, norm="ortho") * weights
        return torch.fft.ifft2(z, norm="ortho")

    def _check(self, name: str, value: Tensor, shape: tuple[int, int]) -> None:
        if not value.is_complex() or value.shape[-2:] != shape:
            raise ShapeError(
                f"SpeckleSpectrum: expected {name} of shape (..., {shape[0]}, {shape[1]}) complex, "
                f"got {tuple(value.shape)} {str(value.dtype)[6:]}"
            )


def whiten_spectrum(slc: Tensor, *, floor: float = 2e-3, terms: int = 16) -> tuple[Tensor, SpeckleSpectrum]:
    """The image with white speckle, and the spectrum that it had, whose `colour` undoes it.

    Args:
        slc: (H, W) complex, one image: its spectrum belongs to its own sensor and processor.
        floor: power relative to the largest at which the band ends; -27 dB by default, just below the ends of a Hamming window.
            Where the edges of the band are soft, or receiver noise fills what is outside, 0.05 leaves less correlation.
        terms: cosines along each axis, the mean among them.

    Raises:
        ConfigError: floor not in (0, 1), or no terms.
        ShapeError: not a complex image of two dimensions, or smaller than 4 `terms` along one.
        DataError: the image is zero.
    """
    if not 0.0 < floor < 1.0 or terms < 1:
        raise ConfigError(f"whiten_spectrum: expected floor between 0 and 1 and terms >= 1, got {floor} and {terms}")
    if not slc.is_complex() or slc.ndim != 2 or min(slc.shape) < 4 * terms:
        raise ShapeError(
            f"whiten_spectrum: expected a complex image (H, W) of at least {4 * terms} pixels along each axis, "
            f"got {tuple(slc.shape)} {str(slc.dtype)[6:]}"
        )
    z = slc.detach().to(torch.complex128)
    if not bool((z != 0).any()):
        raise DataError("whiten_spectrum: the image is zero")
    (first, rows), (second, columns) = _axis(_profile(z.mT), floor, terms), _axis(_profile(z), floor, terms)
    spectrum = SpeckleSpectrum(rows, columns, (first, second), (slc.shape[0], slc.shape[1]))
    return spectrum.whiten(slc), spectrum


def _profile(lines: Tensor) -> Tensor:
    """Mean over lines, (m, n) complex, of the power spectra of at most the median energy of those that are not zero: (n,)."""
    power = torch.fft.fft(lines, norm="ortho").abs().square()
    energy = power.mean(1, keepdim=True)
    median = energy[energy > 0].median()
    return (power * (median / torch.maximum(energy, median))).mean(0)


def _axis(power: Tensor, floor: float, terms: int) -> tuple[int, Tensor]:
    """First bin of the band and the smooth amplitude on it, of mean square 1 over all bins."""
    n = power.numel()
    bins = torch.arange(n, dtype=power.dtype, device=power.device)
    moment = (power * torch.polar(torch.ones_like(bins), 2.0 * math.pi * bins / n)).sum()
    start = (round(float(moment.angle()) * n / (2.0 * math.pi)) - n // 2) % n
    # the median of three, against single low bins
    calm = torch.stack([power.roll(k - start) for k in (-1, 0, 1)]).median(0).values
    empty = (calm < floor * calm.quantile(0.95)).nonzero()[:, 0]
    low = int(empty[empty < n // 2].max()) + 1 if bool((empty < n // 2).any()) else 0
    high = int(empty[empty >= n // 2].min()) if bool((empty >= n // 2).any()) else n
    band = calm[low:high]
    k, x = torch.arange(terms, device=bins.device)[:, None], (bins[: high - low] + 0.5) / (high - low)
    cosines = torch.cos(math.pi * k * x)

    def first_cosines(values: Tensor) -> Tensor:
        return ((cosines @ values) / cosines.square().sum(1)) @ cosines

    smooth = first_cosines(band.log()).exp()
    # what the logarithm left: the ratio's own first cosines, which are the correlations at small lags
    for _ in range(4):
        smooth = smooth * first_cosines(band / smooth).clamp_min(0.1)
    smooth = smooth * (band.sum() / smooth.sum() / power.mean())
    return (start + low) % n, smooth.sqrt()


def coherence(slc: Tensor, *, lag: int = 1, dim: int = -1) -> float:
    """|sum z_j conj(z_(j + lag))| / (sum |z_j|^2 sum |z_(j + lag)|^2)^(1/2) along an axis.

    Of n pixels of white speckle, about (pi / 4 n)^(1/2).

    Args:
        slc: complex, all other axes are summed over.
        lag: in pixels, positive.
        dim: the axis.

    Raises:
        ShapeError: not complex, or too short.
    """
    if not slc.is_complex() or not 0 < lag < slc.shape[dim]:
        raise ShapeError(f"coherence: expected a complex image with more than {lag} pixels along {dim}, got {tuple(slc.shape)}")
    n = slc.shape[dim] - lag
    a, b = slc.narrow(dim, 0, n), slc.narrow(dim, lag, n)
    return float((a * b.conj()).sum().abs() / (a.abs().square().sum() * b.abs().square().sum()).sqrt())
