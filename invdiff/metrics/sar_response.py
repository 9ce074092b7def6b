"""The point response of a radar image: where the peak is, how wide, and how much leaks beside it.

A chip X of H x W complex pixels is interpolated as the band-limited periodic function it is the samples of,

    x(r, c) = 1 / (H W) sum over k, l of X_kl exp(2 pi j (k r / H + l c / W)),

the band centred on the spectrum first, so that a carrier or a Doppler centroid does not change |x|. Along each axis through the
peak, over one period,

    width   = distance of the two points of half power (the 3-dB width)
    PSLR    = 10 log10(highest power outside of the main lobe / power of the peak)
    ISLR    = 10 log10(energy outside of the main lobe / energy in it)

where the main lobe ends at the first minimum on either side. A uniform spectrum of M of N bins has the width .886 N / M, the
PSLR -13.26 dB and the ISLR -9.68 dB, from sin(x) / x.

References: Cumming, Wong, Digital processing of synthetic aperture radar data, 2005, section 2.8. Martinez, Marchand, SAR image
quality assessment, Revista de Teledeteccion 2, 1993.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import ConfigError, NumericalError, ShapeError

__all__ = ["PointResponse", "point_response"]


class PointResponse(NamedTuple):
    """What is measured of a point response, rows first.

    Args:
        position: of the peak in pixels, to a fraction of one.
        amplitude: |x| at the peak, in the units of the image.
        width: 3-dB widths in the direction of the row index and of the column index, in pixels.
        width_metres: the same in metres, None without a spacing.
        pslr: peak side lobe ratios in dB.
        islr: integrated side lobe ratios in dB.
    """

    position: tuple[float, float]
    amplitude: float
    width: tuple[float, float]
    width_metres: tuple[float, float] | None
    pslr: tuple[float, float]
    islr: tuple[float, float]


def point_response(
    image: Tensor,
    at: tuple[float, float] | None = None,
    oversample: int = 16,
    *,
    spacing: tuple[float, float] | None = None,
) -> PointResponse:
    """Measure the response to a point in a complex chip (H, W), at least 8 x 8 pixels.

    The chip is periodic to the interpolation: cut it wide enough that what is cut off does not matter, and with one target.

    Args:
        at: a pixel (row, column) within two pixels of the peak; None for the brightest one.
        oversample: points per pixel by which minima are found and energies are summed; positions, widths and peaks are
            refined from there.
        spacing: of rows and columns in metres.

    Raises:
        ShapeError: no complex matrix, or a small one.
        ConfigError: oversample below 4, `at` outside, or an image that is zero or not finite.
        NumericalError: the main lobe fills the chip: there are no points of half power, or no minimum.
    """
    if image.ndim != 2 or not image.is_complex() or min(image.shape) < 8:
        found = f"{tuple(image.shape)} {image.dtype}"
        raise ShapeError(f"point_response: expected a complex chip (H, W) of 8 x 8 pixels or more, got {found}")
    if oversample < 4:
        raise ConfigError(f"point_response: expected oversample >= 4, got {oversample}")
    power = image.abs()
    if not bool(power.isfinite().all()) or not bool((power > 0).any()):
        raise ConfigError("point_response: the chip is zero or not finite")
    rows, columns = _coarse(power, at)
    spectrum, frequencies = _centred(image.to(torch.complex128))
    row, column = _peak(spectrum, frequencies, float(rows), float(columns))
    cuts = (
        _Cut(spectrum @ _waves(frequencies[1], column)[0], frequencies[0], row),
        _Cut(_waves(frequencies[0], row)[0] @ spectrum, frequencies[1], column),
    )
    measured = [cut.measure(oversample) for cut in cuts]
    width = (measured[0][0], measured[1][0])
    metres = None if spacing is None else (width[0] * spacing[0], width[1] * spacing[1])
    position = (row % image.shape[0], column % image.shape[1])
    amplitude = math.sqrt(float(cuts[0].power(torch.tensor([row], dtype=torch.float64))))
    return PointResponse(position, amplitude, width, metres, (measured[0][1], measured[1][1]), (measured[0][2], measured[1][2]))


class _Cut:
    """The power of a trigonometric polynomial of one variable about its peak.

    Args:
        coefficients: (N,) complex.
        frequencies: (N,) in cycles per pixel.
        peak: position of the peak, in pixels.
    """

    def __init__(self, coefficients: Tensor, frequencies: Tensor, peak: float) -> None:
        self.coefficients, self.frequencies, self.peak = coefficients, frequencies, peak

    def power(self, positions: Tensor) -> Tensor:
        """|x|^2 at positions (M,)."""
        return (_waves(self.frequencies, positions) @ self.coefficients).abs().square()

    def measure(self, oversample: int) -> tuple[float, float, float]:
        """Width in pixels, PSLR and ISLR in dB."""
        size = len(self.coefficients)
        steps = torch.arange(size * oversample, dtype=torch.float64, device=self.coefficients.device) / oversample
        power = self.power(self.peak + steps)
        top = float(power[0])
        # to the right and, mirrored, to the left, half a period each
        half = len(steps) // 2
        sides = (power[: half + 1], power.flip(0).roll(1)[: half + 1])
        width, ends = 0.0, []
        for direction, side in zip((1.0, -1.0), sides, strict=True):
            rising = (side[1:] > side[:-1]).nonzero()
            below = (side < 0.5 * top).nonzero()
            if not len(rising) or not len(below) or int(below[0]) > int(rising[0]):
                raise NumericalError("point_response: the main lobe fills the chip: cut a wider one, or the image has no peak")
            ends.append(int(rising[0]))
            width += self._crossing(direction, (int(below[0]) - 1) / oversample, int(below[0]) / oversample, 0.5 * top)
        if ends[0] + ends[1] >= len(power) - 1:
            raise NumericalError("point_response: the main lobe fills the chip: there are no side lobes in it")
        outside = power[ends[0] + 1 : len(power) - ends[1]]
        where = ends[0] + 1 + int(outside.argmax())
        side_lobe = self._highest(self.peak + where / oversample, 1.0 / oversample)
        energy = float(power.sum())
        # the minima belong to both by halves
        main = energy - float(outside.sum()) - 0.5 * float(power[ends[0]] + power[len(power) - ends[1]])
        return width, 10.0 * math.log10(side_lobe / top), 10.0 * math.log10((energy - main) / main)

    def _crossing(self, direction: float, low: float, high: float, level: float) -> float:
        """Distance from the peak, between two, at which the power falls through a level."""
        for _ in range(40):
            middle = 0.5 * (low + high)
            position = torch.tensor([self.peak + direction * middle], dtype=torch.float64, device=self.frequencies.device)
            low, high = (middle, high) if float(self.power(position)) > level else (low, middle)
        return 0.5 * (low + high)

    def _highest(self, centre: float, reach: float) -> float:
        """The highest power near a position."""
        grid = torch.linspace(-1.0, 1.0, 17, dtype=torch.float64, device=self.frequencies.device)
        best = 0.0
        for _ in range(5):
            power = self.power(centre + reach * grid)
            best, centre, reach = float(power.max()), centre + reach * float(grid[int(power.argmax())]), reach / 8.0
        return best


def _coarse(power: Tensor, at: tuple[float, float] | None) -> tuple[int, int]:
    height, width = power.shape
    if at is None:
        index = int(power.argmax())
        return index // width, index % width
    if not (0 <= at[0] <= height - 1 and 0 <= at[1] <= width - 1):
        raise ConfigError(f"point_response: expected at within the chip {(height, width)}, got {at}")
    top, left = max(round(at[0]) - 2, 0), max(round(at[1]) - 2, 0)
    window = power[top : round(at[0]) + 3, left : round(at[1]) + 3]
    index = int(window.argmax())
    return top + index // window.shape[1], left + index % window.shape[1]


def _centred(image: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Fourier coefficients, and the frequencies of their axes about the middle of the band, in cycles per pixel."""
    spectrum = torch.fft.fft2(image) / image.numel()
    power = spectrum.abs().square()
    frequencies = []
    for axis in (0, 1):
        size = image.shape[axis]
        bins = torch.arange(size, dtype=torch.float64, device=image.device)
        moment = (power.sum(1 - axis) * torch.exp(2j * math.pi * bins / size)).sum() / power.sum()
        # a band that fills the axis has no middle to be found: it is centred already
        middle = round(float(moment.angle()) * size / (2.0 * math.pi)) if float(moment.abs()) > 0.05 else 0
        frequencies.append((torch.remainder(bins - middle + size // 2, size) - size // 2 + middle) / size)
    return spectrum, frequencies


def _waves(frequencies: Tensor, positions: Tensor | float) -> Tensor:
    """exp(2 pi j f x), (positions, frequencies)."""
    x = torch.as_tensor(positions, dtype=torch.float64, device=frequencies.device).reshape(-1, 1)
    return torch.exp(2j * math.pi * x * frequencies)


def _peak(spectrum: Tensor, frequencies: list[Tensor], row: float, column: float) -> tuple[float, float]:
    """The highest point within a pixel, by grids each eight times finer than the last."""
    grid = torch.linspace(-1.0, 1.0, 33, dtype=torch.float64, device=spectrum.device)
    reach = 1.0
    for _ in range(9):
        power = (_waves(frequencies[0], row + reach * grid) @ spectrum @ _waves(frequencies[1], column + reach * grid).T).abs()
        index = int(power.argmax())
        row, column = row + reach * float(grid[index // 33]), column + reach * float(grid[index % 33])
        reach /= 8.0
    return row, column
