"""The Fourier-slice projector: line integrals of the band-limited image through its pixels.

    p(t, .) = F_1^-1 [ (F_2 f)(w cos t, w sin t) ]        (the projection-slice theorem)

F_2 f is read off the lines through the origin by Kaiser-Bessel interpolation on a grid oversampled 1.5 times, the image divided
by the kernel's transform beforehand. The weights are a real sparse matrix for the half plane that a real FFT stores, and a
second, small one for points of the other half, whose values are complex conjugates. The detector sees the projection low-passed
to its own Nyquist frequency, and its row is zero-padded so that no part of the object wraps onto it.

References: Fessler, Sutton, Nonuniform fast Fourier transforms using min-max interpolation, IEEE TSP 51, 2003; Beatty,
Nishimura, Pauly, Rapid gridding reconstruction with a minimal oversampling ratio, IEEE TMI 24, 2005 (the kernel's beta).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .sparse import csr_pair

__all__ = ["Slices", "backproject", "fourier_constants", "project"]

OVERSAMPLING, WIDTH = 1.5, 7


class Slices(NamedTuple):
    """What the projector is made of.

    Attributes:
        apodisation: (H, W), includes the scale of the transform.
        centre: (My / 2 + 1, Mx) phases that put the image's centre into the corner of the grid.
        near, near_t, far, far_t: interpolation from the grid to the slices, (views frequencies, My / 2 + 1 * Mx), and
        transposes. shift: (views, frequencies, 1) phases of the detector's first element and of the image's centre at (N - 1) /
        2.
    """

    apodisation: Tensor
    centre: Tensor
    near: Tensor
    near_t: Tensor
    far: Tensor
    far_t: Tensor
    shift: Tensor


def project(x: Tensor, k: Slices, *, detector: int, row: int) -> Tensor:
    """(B, 1, H, W) -> (B, 1, views, detector); `row` is the length of the padded detector row."""
    half, mx = k.centre.shape
    grid = torch.fft.fft(torch.fft.rfft((x * k.apodisation)[:, 0], n=2 * (half - 1), dim=1), n=mx, dim=2) * k.centre
    columns = _columns(grid)
    slices = torch.view_as_complex((k.near @ columns).unflatten(1, (-1, 2)))
    slices = slices + torch.view_as_complex((k.far @ columns).unflatten(1, (-1, 2))).conj()
    spectra = slices.unflatten(0, k.shift.shape[:2]) * k.shift
    return torch.fft.irfft(spectra.permute(2, 0, 1), n=row)[:, None, :, :detector]


def backproject(y: Tensor, k: Slices, *, row: int) -> Tensor:
    """The exact transpose of `project`."""
    half, mx = k.centre.shape
    h, w = k.apodisation.shape
    # the transpose of irfft: all but the zeroth and the Nyquist frequency stand for two
    spectra = torch.fft.rfft(y[:, 0], n=row) * (2.0 / row)
    spectra[..., 0] *= 0.5
    spectra[..., -1] *= 0.5
    slices = spectra.permute(1, 2, 0) * k.shift.conj()
    columns, mirrored = (_last(s.flatten(0, 1)) for s in (slices, slices.conj().resolve_conj()))
    grid = torch.view_as_complex((k.near_t @ columns + k.far_t @ mirrored).unflatten(1, (-1, 2)))
    grid = grid.unflatten(0, (half, mx)).permute(2, 0, 1) * k.centre.conj()
    # the transpose of rfft is a real inverse transform in which only the zeroth and the Nyquist frequency count fully
    lines = torch.fft.ifft(grid, dim=2, norm="forward")[:, :, :w] * 0.5
    lines[:, 0] *= 2.0
    lines[:, -1] *= 2.0
    return (torch.fft.irfft(lines, n=2 * (half - 1), dim=1, norm="forward")[:, :h] * k.apodisation)[:, None]


def _columns(grid: Tensor) -> Tensor:
    """(B, ...) complex -> (prod(...), 2 B) real."""
    return _last(grid.flatten(1).mT)


def _last(values: Tensor) -> Tensor:
    """(n, B) complex -> (n, 2 B) real, contiguous."""
    return torch.view_as_real(values.contiguous()).flatten(1)


def padded_row(size: tuple[int, int], detector: int, pixel: float, pitch: float) -> int:
    """Length of a detector row onto which no part of the image wraps: half the diagonal, half the detector, and a margin."""
    return _fast(math.ceil(0.5 * math.hypot(*size) * pixel / pitch + 0.5 * detector) + 8)


def fourier_constants(angles: Tensor, *, size: tuple[int, int], detector: int, pixel: float, pitch: float) -> Slices:
    """The projector's constants in float64 for angles in radians."""
    row = padded_row(size, detector, pixel, pitch)
    my, mx = (_fast(math.ceil(OVERSAMPLING * n)) for n in size)
    w = torch.arange(row // 2 + 1, dtype=torch.float64) * (pixel / (row * pitch))
    t = angles.double()[:, None]
    ux, uy = w * torch.cos(t), -w * torch.sin(t)
    near, far = _interpolation(ux.flatten(), uy.flatten(), mx, my)

    offset = [n // 2 - (n - 1) / 2 for n in size]
    turns = -(ux * offset[1] + uy * offset[0]) - w * ((detector - 1) / 2 * pitch / pixel)
    ky, kx = torch.arange(my // 2 + 1, dtype=torch.float64)[:, None], torch.arange(mx, dtype=torch.float64)
    centre = ky * (size[0] // 2) / my + kx * (size[1] // 2) / mx
    apodisation = torch.outer(_transform(size[0], my), _transform(size[1], mx)).reciprocal() * (pixel**2 / pitch)
    return Slices(apodisation, _phase(centre), *near, *far, _phase(turns)[..., None])


def _phase(turns: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(turns), 2.0 * torch.pi * (turns - turns.round()))


def _fast(n: int) -> int:
    """The next even length without prime factors beyond 5."""
    while n % 2 or _largest_factor(n) > 5:
        n += 1
    return n


def _largest_factor(n: int) -> int:
    for p in (2, 3, 5):
        while n % p == 0:
            n //= p
    return n


def _beta() -> float:
    return math.pi * math.sqrt((WIDTH / OVERSAMPLING) ** 2 * (OVERSAMPLING - 0.5) ** 2 - 0.8)


def _transform(n: int, grid: int) -> Tensor:
    """The kernel's Fourier transform at the pixels of an axis."""
    z = (torch.arange(n, dtype=torch.float64) - n // 2) * (math.pi * WIDTH / grid)
    root = torch.sqrt(_beta() ** 2 - z.square())
    return WIDTH * torch.sinh(root) / root


def _interpolation(ux: Tensor, uy: Tensor, mx: int, my: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Weights of the points (ux, uy), in cycles per pixel, on the stored half plane and on the conjugates of the other."""
    # beyond the pixels' own Nyquist frequency a band-limited image has nothing
    inside = (ux.abs() <= 0.5 + 1e-12) & (uy.abs() <= 0.5 + 1e-12)
    point = inside.nonzero()[:, 0]
    taps = torch.arange(WIDTH, dtype=torch.float64)
    axes = []
    for u, m in ((uy[point], my), (ux[point], mx)):
        first = torch.ceil(u * m - WIDTH / 2)
        index = first[:, None] + taps
        inner = 1.0 - ((index - (u * m)[:, None]) * (2.0 / WIDTH)).square()
        weight = torch.where(inner >= 0.0, torch.special.i0(_beta() * inner.abs().sqrt()), 0.0)
        axes.append((index.long() % m, weight))
    (iy, wy), (ix, wx) = axes
    shape = (len(point), WIDTH, WIDTH)
    iy, ix = iy[:, :, None].expand(shape), ix[:, None, :].expand(shape)
    values, rows = wy[:, :, None] * wx[:, None, :], point[:, None, None].expand(shape)
    mirrored = iy > my // 2
    iy, ix = torch.where(mirrored, my - iy, iy), torch.where(mirrored, (mx - ix) % mx, ix)
    columns, size = iy * mx + ix, (len(ux), (my // 2 + 1) * mx)
    pairs = []
    for part in (~mirrored, mirrored):
        triplet = [v[part].numpy().astype(kind) for v, kind in ((values, np.float64), (rows, np.int32), (columns, np.int32))]
        pairs.append(csr_pair(triplet[0], triplet[1], triplet[2], size))
    return pairs[0], pairs[1]
