"""Fourier coefficients of a periodic field in a band of wave numbers.

    y_k = (F u)_k,    low <= |k| <= high,    F the centred orthonormal FFT
    A^T A = F^H diag(w) F,    w = 1 for a mode that is its own mirror image, 1/2 for a pair of which one is measured

in the inner product Re<a, b>, so that the regularised solve and the pseudo-inverse are known.

References: Strang, The discrete cosine transform, SIAM Review 41, 1999 (transforms and their grids).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...core.linalg import expand
from ...core.operator import LinearOperator
from ...core.spectrum import Spectrum, given
from ..constants import Constants, as_given
from ..fourier import hartley
from .observe import domain

__all__ = ["FourierBand"]


class FourierBand(LinearOperator):
    """Real periodic fields (C, *grid) to the coefficients of the modes in a band, (C, K) complex.

    Of a mode and its mirror image, whose coefficients are conjugates, one is measured. Phases are those of a grid with its
    origin at the point n // 2 of each axis; orthonormal, so that the noise of a coefficient is in the unit of u.

    Args:
        shape: (C, *grid) with one to three axes.
        low, high: bounds of the angular wave number |k|, radians per unit of length, both included.
        length: of the period; one number, or one per axis.

    Attributes:
        modes: (K, axes), the whole periods of each mode along each axis, as integers.

    Raises:
        ShapeError: another number of axes.
        ConfigError: a length that is not positive, or no mode in the band.
    """

    modes: Tensor
    places: Tensor
    own: Tensor

    def __init__(self, shape: Sequence[int], low: float, high: float, *, length: float | Sequence[float] = 1.0) -> None:
        grid = tuple(shape)[1:]
        lengths, _ = domain("FourierBand", shape, length, "periodic")
        lines = [torch.fft.fftfreq(n, 1.0 / n, dtype=torch.float64).round().long() for n in grid]
        every = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).reshape(-1, len(grid))
        k = (2.0 * math.pi * every / torch.tensor(lengths, dtype=torch.float64)).norm(dim=1)
        strides = torch.tensor([math.prod(grid[i + 1 :]) for i in range(len(grid))])
        mirror = (-every % torch.tensor(grid) * strides).sum(1)
        itself = torch.arange(len(every))
        slack = 1e-9 * k.max()
        chosen = (k >= low - slack) & (k <= high + slack) & (itself <= mirror)
        count = int(chosen.sum())
        if not count:
            raise ConfigError(
                f"FourierBand: expected modes with {low} <= |k| <= {high}, the grid's lie in [0, {float(k.max()):.4g}]"
            )
        super().__init__(tuple(shape), (shape[0], count), out_complex=True)
        self.length, self.low, self.high = lengths, float(low), float(high)
        self.register_buffer("modes", every[chosen], persistent=False)
        self.register_buffer("places", itself[chosen], persistent=False)
        self.register_buffer("own", (itself == mirror)[chosen], persistent=False)
        weight = torch.zeros(len(every), dtype=torch.float64)
        weight[itself[chosen]] += 0.5
        weight[mirror[chosen]] += 0.5
        self.constants = Constants(as_given, weight.reshape(grid))
        self._axes = tuple(range(2, 2 + len(grid)))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fftn(torch.fft.ifftshift(x, self._axes), dim=self._axes, norm="ortho")
        return spectrum.flatten(2)[..., self.places]

    def adjoint(self, y: Tensor) -> Tensor:
        spectrum = y.new_zeros(*y.shape[:2], math.prod(self.in_shape[1:]))
        spectrum[..., self.places] = y
        field = torch.fft.ifftn(spectrum.reshape(-1, *self.in_shape), dim=self._axes, norm="ortho")
        return torch.fft.fftshift(field.real, self._axes)

    def normal(self, x: Tensor) -> Tensor:
        (w,) = self.constants(x)
        return self._filter(x, w)

    def solve(self, b: Tensor, rho: Tensor | float) -> Tensor:
        (w,) = self.constants(b)
        return self._filter(b, 1.0 / (w + expand(torch.as_tensor(rho), b)))

    def pinv(self, y: Tensor) -> Tensor:
        # a mode and its mirror image come back from the one that was measured
        return self.adjoint(torch.where(self.own, y, 2.0 * y))

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        (w,) = self.constants(given(like))
        basis = partial(hartley, axes=self._axes)
        return Spectrum(w.sqrt().expand(self.in_shape), basis, basis)

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}, {self.low} <= |k| <= {self.high}, length={self.length}"

    def _filter(self, x: Tensor, weight: Tensor) -> Tensor:
        # symmetric weights need no shift
        return torch.fft.ifftn(torch.fft.fftn(x, dim=self._axes) * weight, dim=self._axes).real
