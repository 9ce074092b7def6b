"""Separable discrete wavelet transform of any axes, with PyWavelets' filter banks and boundary modes.

Along an axis of n values one level is a matrix W to approximations and details, and an inverse V with V W = I:

    c = W x    `analysis`        x = V c      `inverse`
    W^T c      `adjoint`         V^T x        `inverse_adjoint`

and each further level does the same to the approximations of all axes. For orthonormal filters V = W^T in the modes
periodization and zero; otherwise the four differ. V is the same in the modes symmetric and zero.

References: Mallat, A theory for multiresolution signal decomposition, IEEE TPAMI 11, 1989; Cohen, Daubechies, Feauveau,
Biorthogonal bases of compactly supported wavelets, Comm. Pure Appl. Math. 45, 1992; Lee et al., PyWavelets, JOSS 4, 2019 (the
conventions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from math import prod

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, ShapeError
from ..kernels.dispatch import use_triton
from ..kernels.wavelet import wavelet_down, wavelet_up
from .filterbank import Axis, Mode, filters, half_length

__all__ = ["DWT", "Mode"]

Shape = tuple[int, ...]
# values that are transformed together on one CPU thread: their intermediate results stay in its cache
_CHUNK = 2**20


class DWT(nn.Module):
    """The transform of tensors of one shape, its inverse, and the adjoints of both.

    Coefficients are one tensor of `coefficient_shape`. Where the bands tile a box (one level in any mode, or more levels of
    sizes that halve exactly) it is Mallat's layout: along each transformed axis the approximations come before the details,
    and further levels replace the corner of the approximations. Elsewhere the dimensions from the first transformed axis on
    become one, the bands one after the other in the order of `split`.

    Args:
        shape: of the tensor without the batch, (C, *spatial).
        wavelet: name of a discrete wavelet of PyWavelets.
        levels: number of levels J >= 1.
        mode: "periodization" (as many coefficients as values for even sizes), "symmetric" (half-sample) or "zero".
        axes: dimensions of `shape` to transform; None for all but the first.

    Attributes:
        coefficient_shape: of the coefficients without the batch.
        tight: whether the filters are orthonormal; then V V^T = I in every mode.
        names: of the bands in their order, ("2aa", "2ad", ..., "1dd"): level and one letter per axis.

    Raises:
        ConfigError: an unknown wavelet or mode, filters that do not reconstruct (dmey), levels < 1.
        ShapeError: an axis is not one of the shape's.
    """

    def __init__(
        self,
        shape: Sequence[int],
        wavelet: str = "db4",
        levels: int = 1,
        mode: Mode = "periodization",
        axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.wavelet, self.mode = tuple(shape), wavelet, mode
        rank = len(self.shape)
        given = tuple(range(1, rank)) if axes is None else tuple(axes)
        self.axes = tuple(sorted({a % rank for a in given if -rank <= a < rank}))
        if not given or len(self.axes) != len(given):
            raise ShapeError(f"DWT: expected different axes of a shape with {rank} dimensions, got {given}")
        if mode not in ("periodization", "symmetric", "zero"):
            raise ConfigError(f"DWT: expected mode periodization, symmetric or zero, got {mode!r}")
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
            raise ConfigError(f"DWT: expected levels >= 1, got {levels!r}")
        analysis, dual = filters(wavelet)
        self.tight = torch.allclose(analysis, dual, rtol=0.0, atol=1e-12)
        primal, second = (tuple(bank.flatten().tolist()) for bank in (analysis, dual))
        edge = "crop" if mode == "periodization" else "zero"
        self._banks = dict.fromkeys(("analysis", "adjoint"), (primal, str(mode)))
        self._banks |= dict.fromkeys(("inverse", "inverse_adjoint"), (second, edge))
        self.levels = nn.ModuleList()
        self._halves: list[Shape] = []
        sizes = tuple(self.shape[a] for a in self.axes)
        for _ in range(levels):
            self.levels.append(nn.ModuleList(Axis(n, analysis, dual, mode) for n in sizes))
            sizes = tuple(half_length(n, analysis.shape[1], mode) for n in sizes)
            self._halves.append(sizes)
        self._box = all(fine == tuple(2 * n for n in coarse) for fine, coarse in pairwise(self._halves))
        letters = ["".join(word) for word in product("ad", repeat=len(self.axes))]
        self.names = (f"{levels}{letters[0]}", *(f"{j}{word}" for j in range(levels, 0, -1) for word in letters[1:]))
        if self._box:
            self.coefficient_shape = self._band_shape(0, 2)
        else:
            first = self.axes[0]
            sizes_of = [prod(self._band_shape(j)[first:]) for j in range(levels)]
            self.coefficient_shape = (*self.shape[:first], sizes_of[-1] + (len(letters) - 1) * sum(sizes_of))

    def analysis(self, x: Tensor) -> Tensor:
        """W x, (B, *shape) -> (B, *coefficient_shape)."""
        return self._chunked(lambda v: self._down(v, "analysis"), x, self.shape, self.coefficient_shape)

    def adjoint(self, c: Tensor) -> Tensor:
        """W^T c, the exact transpose of `analysis`, (B, *coefficient_shape) -> (B, *shape)."""
        return self._chunked(lambda v: self._up(v, "adjoint"), c, self.coefficient_shape, self.shape)

    def inverse(self, c: Tensor) -> Tensor:
        """V c, (B, *coefficient_shape) -> (B, *shape), which undoes `analysis`."""
        return self._chunked(lambda v: self._up(v, "inverse"), c, self.coefficient_shape, self.shape)

    def inverse_adjoint(self, x: Tensor) -> Tensor:
        """V^T x, the exact transpose of `inverse`, (B, *shape) -> (B, *coefficient_shape)."""
        return self._chunked(lambda v: self._down(v, "inverse_adjoint"), x, self.shape, self.coefficient_shape)

    def split(self, c: Tensor) -> list[Tensor]:
        """The bands in the order of `names`, (B, *band) each; the order of PyWavelets' wavedecn."""
        return self._ordered(self._unpack(c))

    def join(self, bands: Sequence[Tensor]) -> Tensor:
        """Coefficients from their bands, the inverse of `split`."""
        if len(bands) != len(self.names):
            raise ShapeError(f"DWT.join: expected {len(self.names)} bands {self.names}, got {len(bands)}")
        first = bands[0]
        cubes = [first.new_zeros(len(first), *self._band_shape(j, 2)) for j in range(len(self.levels))]
        for view, band, name in zip(self._ordered(cubes), bands, self.names, strict=True):
            if band.shape != view.shape:
                raise ShapeError(f"DWT.join: expected band {name} of shape {tuple(view.shape)}, got {tuple(band.shape)}")
            view.copy_(band)
        return self._pack(cubes)

    def band_index(self) -> Tensor:
        """Which of `names` each coefficient belongs to, (*coefficient_shape), int64."""
        shapes = [band.shape for band in self.split(torch.empty(1, *self.coefficient_shape))]
        return self.join([torch.full(shape, i) for i, shape in enumerate(shapes)])[0]

    def bands_as_channels(self, c: Tensor) -> Tensor:
        """One level as networks want it, (B, C, 2 m, ...) -> (B, C 2^d, m, ...): channel c 2^d + i is band `names[i]` of c."""
        self._require_one_level("bands_as_channels")
        return torch.stack(self._bands(c), dim=2).flatten(1, 2)

    def channels_as_bands(self, c: Tensor) -> Tensor:
        """The inverse of `bands_as_channels`, (B, C 2^d, m, ...) -> (B, C, 2 m, ...)."""
        self._require_one_level("channels_as_bands")
        return self.join(c.unflatten(1, (-1, len(self.names))).unbind(2))

    def _require_one_level(self, who: str) -> None:
        if len(self.levels) > 1 or self.axes[0] == 0:
            raise ConfigError(
                f"DWT.{who}: expected one level along axes after the channels, got {len(self.levels)} along {self.axes}"
            )

    def _down(self, x: Tensor, which: str) -> Tensor:
        cubes = []
        for level in self.levels:
            x = self._level(x, level, which)
            cubes.append(x)
            x = self._bands(x)[0]
        return self._pack(cubes)

    def _up(self, c: Tensor, which: str) -> Tensor:
        x = None
        for cube, level in zip(reversed(self._unpack(c)), reversed(self.levels), strict=True):
            if x is not None:
                cube = cube.clone()
                self._bands(cube)[0].copy_(x)
            x = self._level(cube, level, which)
        return x

    def _level(self, x: Tensor, level: nn.ModuleList, which: str) -> Tensor:
        """One of the four maps of one level, along all axes."""
        if use_triton(x, kernel="wavelet"):
            dims = [a + 1 for a in self.axes]
            if which in ("analysis", "inverse_adjoint"):
                return wavelet_down(x, dims, *self._banks[which])
            return wavelet_up(x, dims, [axis.analysis.source[1] for axis in level], *self._banks[which])
        for a, axis in zip(self.axes, level, strict=True):
            x = getattr(axis, which)(x, a + 1)
        return x

    def _chunked(self, transform: Callable[[Tensor], Tensor], v: Tensor, source: Shape, target: Shape) -> Tensor:
        if v.shape[1:] != source or not v.is_floating_point():
            want = ", ".join(map(str, source))
            raise ShapeError(f"DWT: expected a real tensor of shape (B, {want}), got {tuple(v.shape)} {v.dtype}")
        size = max(1, _CHUNK // max(prod(source), 1))
        # several threads meet after every product: the fewer the better
        if v.device.type != "cpu" or torch.get_num_threads() > 1 or len(v) <= size:
            return transform(v)
        out = v.new_empty(len(v), *target)
        for start in range(0, len(v), size):
            out[start : start + size] = transform(v[start : start + size])
        return out

    def _band_shape(self, level: int, factor: int = 1) -> Shape:
        shape = list(self.shape)
        for a, n in zip(self.axes, self._halves[level], strict=True):
            shape[a] = factor * n
        return tuple(shape)

    def _bands(self, cube: Tensor) -> list[Tensor]:
        """Views of the 2^d halves of one level."""
        views = [cube]
        for a in self.axes:
            views = [half for view in views for half in view.chunk(2, dim=a + 1)]
        return views

    def _ordered(self, cubes: list[Tensor]) -> list[Tensor]:
        """Views of the approximations and of the details from coarse to fine."""
        return [self._bands(cubes[-1])[0], *(band for cube in reversed(cubes) for band in self._bands(cube)[1:])]

    def _pack(self, cubes: list[Tensor]) -> Tensor:
        """One tensor from the levels, fine to coarse; the corners of all but the last are void."""
        if self._box:
            corner = cubes[0]
            for cube in cubes[1:]:
                corner = self._bands(corner)[0]
                corner.copy_(cube)
            return cubes[0]
        return torch.cat([band.flatten(self.axes[0] + 1) for band in self._ordered(cubes)], dim=-1)

    def _unpack(self, c: Tensor) -> list[Tensor]:
        if self._box:
            corners = [c]
            for _ in self.levels[1:]:
                corners.append(self._bands(corners[-1])[0])
            return corners
        cubes = [c.new_zeros(len(c), *self._band_shape(j, 2)) for j in range(len(self.levels))]
        views = self._ordered(cubes)
        sizes = [prod(view.shape[self.axes[0] + 1 :]) for view in views]
        for view, part in zip(views, c.split(sizes, dim=-1), strict=True):
            view.copy_(part.reshape(view.shape))
        return cubes
