"""The free-space Green's function of the plane on square cells, for scattering.

    (lap + k^2) G = -delta,        G(x, x') = i/4 H0(k |x - x'|),        H0 = H0^(1), time as exp(-i omega t)

k^2 G integrated over a cell, taken as the disc of equal area (radius a, pi a^2 = h^2), is closed (Richmond):

    w H0(k r) at a distance r >= a from its centre,           w = (i pi / 2) k a J1(k a)
    (i pi / 2) k a H1(k a) - 1 at its centre

The matrix of all cells is a convolution: exact by FFT on the doubled grid. It is symmetric, and its imaginary part is
(pi / 2) k a J1(k a) J0(k r), diagonal included, so that the discrete equations keep the energy balance of the continuous ones.

References: Richmond, Scattering by a dielectric cylinder of arbitrary cross section shape, IEEE Trans. Antennas Propag. 13,
1965.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ...core.errors import ConfigError, ShapeError

__all__ = ["Layout", "Positions", "convolve", "ring"]

Positions = Tensor | Sequence[Sequence[float]]
Source = Literal["point", "plane"]


def ring(count: int, radius: float) -> Tensor:
    """Points at equal angles on a circle, (count, 2) float64, the first on the positive first axis."""
    angle = torch.arange(count, dtype=torch.float64) * (2.0 * math.pi / count)
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def convolve(kernel: Tensor, source: Tensor) -> Tensor:
    """k^2 int G source over all cells, (..., N, N) complex -> the same; `kernel` is that of `Layout.kernel`, (2N, 2N)."""
    n = source.shape[-1]
    # an axis at a time: rows of zeros need no transform, and those cut off no inverse
    spectrum = torch.fft.fft(torch.fft.fft(source, 2 * n, dim=-1), 2 * n, dim=-2) * kernel
    return torch.fft.ifft(torch.fft.ifft(spectrum, dim=-2)[..., :n, :], dim=-1)[..., :n]


@dataclass(frozen=True)
class Layout:
    """Where a scattering experiment takes place; lengths in metres, or any other one unit.

    Args:
        owner: name of the operator, for messages.
        size: number of cells N along each axis of the square, whose centre is the origin.
        length: its side.
        wavelength: that of the background.
        source: waves of "point" sources, i/4 H0(k |x - t|), or "plane" waves of amplitude one that travel from t to the origin.
    """

    owner: str
    size: int
    length: float
    wavelength: float
    source: Source

    def __post_init__(self) -> None:
        if 2.0 * self.length > self.size * self.wavelength:
            raise ConfigError(
                f"{self.owner}: expected at least two cells per wavelength, {2.0 * self.length / self.wavelength:.4g} along "
                f"an axis, got {self.size}"
            )
        if self.source not in get_args(Source):
            raise ConfigError(f"{self.owner}: expected source of {', '.join(get_args(Source))}, got {self.source!r}")

    @property
    def wavenumber(self) -> float:
        return 2.0 * math.pi / self.wavelength

    def points(self, what: str, where: int | Positions, radius: float) -> np.ndarray:
        """`where` as positions (m, 2) float64: given, or their number on a circle; all outside the square."""
        if isinstance(where, int) and where < 1:
            raise ConfigError(f"{self.owner}: expected {what} >= 1, got {where}")
        if isinstance(where, int):
            points = ring(where, radius)
        else:
            points = torch.as_tensor(where, dtype=torch.float64).detach().cpu()
        if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
            raise ShapeError(f"{self.owner}: expected {what} as a number or positions (m, 2), got {tuple(points.shape)}")
        if not bool(points.isfinite().all()):
            one = points[~points.isfinite().all(1)][0].tolist()
            raise ConfigError(f"{self.owner}: expected finite positions of {what}, found one at ({one[0]:.4g}, {one[1]:.4g})")
        inside = points.abs().amax(1) <= 0.5 * self.length
        if bool(inside.any()):
            one = points[inside][0].tolist()
            raise ConfigError(
                f"{self.owner}: expected {what} outside the square of side {self.length:.4g}, found one at "
                f"({one[0]:.4g}, {one[1]:.4g})"
            )
        return points.numpy()

    def _radius(self) -> float:
        """k a of the disc with the area of a cell."""
        return self.wavenumber * self.length / (self.size * math.sqrt(math.pi))

    def _weight(self) -> complex:
        from scipy.special import j1

        return 0.5j * math.pi * self._radius() * float(j1(self._radius()))

    def centres(self) -> Tensor:
        """Coordinates of the cells along one axis, (N,) float64."""
        return torch.from_numpy(self._axis())

    def _axis(self) -> np.ndarray:
        return (np.arange(self.size) - 0.5 * (self.size - 1)) * (self.length / self.size)

    def _distances(self, points: np.ndarray) -> np.ndarray:
        axis = self._axis()
        return np.hypot(axis[:, None] - points[:, 0, None, None], axis - points[:, 1, None, None])

    def kernel(self) -> Tensor:
        """The transform of k^2 G between cells, (2N, 2N) complex128."""
        from scipy.special import hankel1

        index = np.arange(2 * self.size)
        steps = np.minimum(index, 2 * self.size - index) * (self.length / self.size)
        distance = np.hypot(steps[:, None], steps)
        distance[0, 0] = 1.0
        values = self._weight() * hankel1(0, self.wavenumber * distance)
        values[0, 0] = 0.5j * math.pi * self._radius() * hankel1(1, self._radius()) - 1.0
        return torch.from_numpy(np.fft.fft2(values))

    def incident(self, transmitters: np.ndarray) -> Tensor:
        """The incident fields of transmitters (T, 2) at the cells, (T, N, N) complex128."""
        from scipy.special import hankel1

        if self.source == "point":
            return torch.from_numpy(0.25j * hankel1(0, self.wavenumber * self._distances(transmitters)))
        axis, towards = self._axis(), -transmitters / np.hypot(*transmitters.T)[:, None]
        path = axis[:, None] * towards[:, 0, None, None] + axis * towards[:, 1, None, None]
        return torch.from_numpy(np.exp(1j * self.wavenumber * path))

    def radiation(self, receivers: np.ndarray) -> Tensor:
        """k^2 G from the cells to receivers (R, 2), (R, N, N) complex128."""
        from scipy.special import hankel1

        return torch.from_numpy(self._weight() * hankel1(0, self.wavenumber * self._distances(receivers)))
