"""Compressed sensing with Gaussian matrices whose rows are orthonormal: A A^T = I.

    DenseCS   y = Phi x for the whole image             A^+ = A^T,   (A^T A + rho)^-1 = (I - A^T A / (1 + rho)) / rho
    BlockCS   y_b = Phi x_b for each block of the image, images of any size
    PermutedCS   the same after a random permutation of all pixels of the image

A border block sees only the pixels of Phi that lie inside the image, Phi_b = U diag(s) V^T, one of at most four kinds, for
which the inverse and the pseudo-inverse are exact as well.

References: Gan, Block compressed sensing of natural images, DSP 2007; block 33 as in Kulkarni et al., ReconNet, 2016,
arXiv:1601.06892; permuted pixels as in Chen, Zhang, Li, Zhang, Invertible diffusion models for compressed sensing, 2024,
arXiv:2403.17006.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from math import ceil, prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..core.errors import ConfigError
from ..core.linalg import expand
from ..core.operator import LinearOperator
from ..core.rng import Streams
from ..core.spectrum import Spectrum, flat_spectrum, given, reflect, reflect_back, reflectors, significant
from .constants import Constants

__all__ = ["BlockCS", "DenseCS", "PermutedCS"]


class DenseCS(LinearOperator):
    """m = round(ratio n) random projections of an image of n values, (*shape) -> (m,).

    The matrix takes 4 m n bytes and O(m^2 n) operations at the first call: for images up to about 64 x 64; BlockCS for larger
    ones.

    Args:
        shape: of the image without the batch.
        ratio: measurements per unknown, in (0, 1].
        seed: of the matrix.
    """

    def __init__(self, shape: tuple[int, ...], ratio: float = 0.25, seed: int = 0) -> None:
        n = prod(shape)
        super().__init__(shape, (_count(n, ratio, "DenseCS"),))
        self.seed = seed
        self.constants = Constants(partial(_orthonormal_rows, m=self.out_shape[0], n=n, seed=seed))
        self.basis = Constants(partial(_reflected, m=self.out_shape[0], n=n, seed=seed, parts=(n,)))

    def forward(self, x: Tensor) -> Tensor:
        (phi,) = self.constants(x)
        return x.flatten(1) @ phi.mT

    def adjoint(self, y: Tensor) -> Tensor:
        (phi,) = self.constants(y)
        return (y @ phi).reshape(-1, *self.in_shape)

    def solve(self, b: Tensor, rho: Tensor) -> Tensor:
        rho = expand(rho, b)
        return (b - self.normal(b) / (1.0 + rho)) / rho

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        return flat_spectrum(self.in_shape, *self.basis(given(like)))

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}, seed={self.seed}"


class BlockCS(LinearOperator):
    """The same m = round(ratio block^2) random projections of every block, (C, H, W) -> (C, rows, columns, m).

    The last row and column of blocks reach beyond an image whose sides are not multiples of the block; they see the part
    inside.

    Args:
        shape: of the image without the batch, (C, H, W).
        ratio: measurements per pixel of a full block, in (0, 1].
        block: side of a block in pixels.
        seed: of the matrix.
    """

    def __init__(self, shape: tuple[int, int, int], ratio: float = 0.25, block: int = 33, seed: int = 0) -> None:
        channels, h, w = shape
        m, self.grid = _count(block**2, ratio, "BlockCS"), (-(-h // block), -(-w // block))
        super().__init__(shape, (channels, *self.grid, m))
        self.block, self.seed = block, seed
        self.kinds = [(rows, columns) for rows in _spans(h, block) for columns in _spans(w, block)]
        self.constants = Constants(partial(_orthonormal_rows, m=m, n=block**2, seed=seed))
        extents = [(rows[1], columns[1]) for rows, columns in self.kinds]
        self.spectra = Constants(partial(_decompositions, m=m, block=block, seed=seed, extents=extents))
        self.bases = Constants(partial(_bases, m=m, block=block, seed=seed, extents=extents))

    def forward(self, x: Tensor) -> Tensor:
        (phi,) = self.constants(x)
        return self._split(x) @ phi.mT

    def adjoint(self, y: Tensor) -> Tensor:
        (phi,) = self.constants(y)
        return self._join(y @ phi)

    def solve(self, b: Tensor, rho: Tensor) -> Tensor:
        x, spectra = self._split(b), self.spectra(b)
        rho, out = expand(rho, x), torch.empty_like(x)
        for k, ((rows, _), (columns, _)) in enumerate(self.kinds):
            _, s, v = spectra[3 * k : 3 * k + 3]
            part, t = x[:, :, rows, columns], s.square()
            out[:, :, rows, columns] = (part - (part @ v * (t / (t + rho))) @ v.mT) / rho
        return self._join(out)

    def pinv(self, y: Tensor) -> Tensor:
        spectra, parts = self.spectra(y), []
        for k, ((rows, _), (columns, _)) in enumerate(self.kinds):
            u, s, v = spectra[3 * k : 3 * k + 3]
            parts.append((y[:, :, rows, columns] @ u / s) @ v.mT)
        per_row = len(self.kinds) // len({rows.start for (rows, _), _ in self.kinds})
        lines = [torch.cat(parts[i : i + per_row], dim=3) for i in range(0, len(parts), per_row)]
        return self._join(torch.cat(lines, dim=2))

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        values = []
        for (s, *_), (_, _, rows, columns), inside in self._each(given(like)):
            blocks = self.in_shape[0] * (rows.stop - rows.start) * (columns.stop - columns.start)
            values.append(torch.cat((s, s.new_zeros(len(inside) - len(s)))).repeat(blocks))
        return Spectrum(significant(torch.cat(values), self.block**2), self._coefficients, self._image)

    def _coefficients(self, x: Tensor) -> Tensor:
        blocks = self._split(x)
        return torch.cat([reflect(blocks[at][..., inside], h, tau).flatten(1) for (_, h, tau), at, inside in self._each(x)], 1)

    def _image(self, c: Tensor) -> Tensor:
        blocks, begin = c.new_zeros(len(c), self.in_shape[0], *self.grid, self.block**2), 0
        for (_, h, tau), at, inside in self._each(c):
            part = blocks[at]
            end = begin + part[0, ..., 0].numel() * len(inside)
            part[..., inside] = reflect_back(c[:, begin:end].reshape(*part.shape[:-1], -1), h, tau)
            begin = end
        return self._join(blocks)

    def _each(self, like: Tensor) -> Iterator[tuple[tuple[Tensor, ...], tuple[slice, ...], Tensor]]:
        """Of each kind of block: singular values and reflections, its place among the blocks, its pixels inside the image."""
        bases, k = self.bases(like), torch.arange(self.block, device=like.device)
        for i, ((rows, h), (columns, w)) in enumerate(self.kinds):
            inside = (k[:h, None] * self.block + k[:w]).flatten()
            yield bases[3 * i : 3 * i + 3], (slice(None), slice(None), rows, columns), inside

    def _split(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, rows, columns, block^2), zero outside the image."""
        (_, h, w), (rows, columns), k = self.in_shape, self.grid, self.block
        blocks = pad(x, (0, columns * k - w, 0, rows * k - h)).unflatten(3, (columns, k)).unflatten(2, (rows, k))
        return blocks.transpose(3, 4).flatten(4)

    def _join(self, blocks: Tensor) -> Tensor:
        image = blocks.unflatten(4, (self.block, self.block)).transpose(3, 4).flatten(4).flatten(2, 3)
        return image[:, :, : self.in_shape[1], : self.in_shape[2]]

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}, block={self.block}, seed={self.seed}"


class PermutedCS(LinearOperator):
    """m = ceil(ratio block^2) random projections of each run of block^2 pixels of a permuted image, (C, H, W) -> (runs, m).

    Every measurement sees pixels of the whole image, which block-wise sampling does not: results with the two don't compare.
    The last run is filled up with zeros where the number of pixels is no multiple of block^2.

    Args:
        shape: of the image without the batch.
        ratio: measurements per pixel, in (0, 1].
        block: root of the length of a run.
        seed: of the permutation.
        matrix_seed: of the matrix.
    """

    def __init__(
        self, shape: tuple[int, ...], ratio: float = 0.25, block: int = 32, seed: int = 0, matrix_seed: int = 0
    ) -> None:
        n, length = prod(shape), block**2
        _count(length, ratio, "PermutedCS")
        # 0.1 * 100 is a little more than 10 in floating point
        runs, m = -(-n // length), ceil(round(ratio * length, 6))
        super().__init__(shape, (runs, m))
        self.length, self.seed, self.full = length, seed, n == runs * length
        self.constants = Constants(partial(_orthonormal_rows, m=m, n=length, seed=matrix_seed))
        parts = (length,) * (n >= length) + (n % length,) * (n % length > 0)
        self.basis = Constants(partial(_reflected, m=m, n=length, seed=matrix_seed, parts=parts))
        order = Streams(seed).uniform(0, (n,), "permutation", torch.float64)[0].argsort()
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        (phi,) = self.constants(x)
        permuted = x.flatten(1)[:, self.order]
        return pad(permuted, (0, self.out_shape[0] * self.length - permuted.shape[1])).unflatten(1, (-1, self.length)) @ phi.mT

    def adjoint(self, y: Tensor) -> Tensor:
        (phi,) = self.constants(y)
        permuted = (y @ phi).flatten(1)[:, : len(self.order)]
        return torch.empty_like(permuted).index_copy_(1, self.order, permuted).reshape(-1, *self.in_shape)

    def solve(self, b: Tensor, rho: Tensor) -> Tensor:
        if not self.full:
            return super().solve(b, rho)
        rho = expand(rho, b)
        return (b - self.normal(b) / (1.0 + rho)) / rho

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y) if self.full else super().pinv(y)

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        values = []
        for (s, _, tau), runs, size in self._each(given(like)):
            values.append(torch.cat((s, s.new_zeros(size - len(tau)))).repeat(runs))
        return Spectrum(significant(torch.cat(values), self.length), self._coefficients, self._image)

    def _coefficients(self, x: Tensor) -> Tensor:
        permuted, parts, begin = x.flatten(1)[:, self.order], [], 0
        for (_, h, tau), runs, size in self._each(x):
            run = permuted[:, begin : begin + runs * size].unflatten(1, (runs, size))
            parts.append(reflect(run, h, tau).flatten(1))
            begin += runs * size
        return torch.cat(parts, 1)

    def _image(self, c: Tensor) -> Tensor:
        parts, begin = [], 0
        for (_, h, tau), runs, size in self._each(c):
            run = c[:, begin : begin + runs * size].unflatten(1, (runs, size))
            parts.append(reflect_back(run, h, tau).flatten(1))
            begin += runs * size
        permuted = torch.cat(parts, 1)
        return torch.empty_like(permuted).index_copy_(1, self.order, permuted).reshape(-1, *self.in_shape)

    def _each(self, like: Tensor) -> Iterator[tuple[tuple[Tensor, ...], int, int]]:
        """Singular values and reflections of full runs and of the last one, how many such runs, and the pixels of each."""
        bases, n = self.basis(like), len(self.order)
        kinds = [(n // self.length, self.length), (1, n % self.length)]
        for i, (runs, size) in enumerate(kind for kind in kinds if min(kind) > 0):
            yield bases[3 * i : 3 * i + 3], runs, size

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}, seed={self.seed}"


def _count(n: int, ratio: float, name: str) -> int:
    if not (0.0 < ratio <= 1.0 and round(ratio * n) >= 1):
        raise ConfigError(f"{name}: expected a ratio in (0, 1] with at least one measurement of {n} values, got {ratio}")
    return round(ratio * n)


def _spans(length: int, block: int) -> list[tuple[slice, int]]:
    """(blocks, pixels of each that lie inside) along one axis: the full blocks, and the one at the border."""
    full, rest = divmod(length, block)
    return [(slice(0, full), block)] * (full > 0) + [(slice(full, full + 1), rest)] * (rest > 0)


@lru_cache(maxsize=8)
def _orthonormal_rows(m: int, n: int, seed: int) -> tuple[Tensor]:
    streams = Streams(seed)
    rows = [streams.normal(i, (min(256, m - 256 * i), n), "matrix", torch.float64)[0] for i in range(-(-m // 256))]
    return (torch.linalg.qr(torch.cat(rows).mT).Q.mT.contiguous(),)


def _decompositions(m: int, block: int, seed: int, extents: list[tuple[int, int]]) -> tuple[Tensor, ...]:
    """U, s, V of what each kind of block sees; V has a row for every pixel of a full block, zero outside the image."""
    (phi,) = _orthonormal_rows(m, block**2, seed)
    parts: list[Tensor] = []
    for h, w in extents:
        inside = torch.zeros(block, block, dtype=torch.bool)
        inside[:h, :w] = True
        u, s, vt = torch.linalg.svd(phi[:, inside.flatten()], full_matrices=False)
        v = torch.zeros(block**2, len(s), dtype=torch.float64)
        v[inside.flatten()] = vt.mT
        parts += [u, s, v]
    return tuple(parts)


def _reflected(m: int, n: int, seed: int, parts: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Singular values and the reflections of the right vectors of the first so many columns of the matrix, part by part."""
    (phi,) = _orthonormal_rows(m, n, seed)
    return tuple(t for size in parts for t in _seen(phi[:, :size]))


def _bases(m: int, block: int, seed: int, extents: list[tuple[int, int]]) -> tuple[Tensor, ...]:
    """The same of what each kind of block sees."""
    (phi,) = _orthonormal_rows(m, block**2, seed)
    return tuple(t for h, w in extents for t in _seen(phi.unflatten(1, (block, block))[:, :h, :w].flatten(1)))


def _seen(matrix: Tensor) -> tuple[Tensor, ...]:
    _, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return s, *reflectors(vt.mT)
