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

from functools import lru_cache, partial
from math import ceil, prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..core.errors import ConfigError
from ..core.linalg import expand
from ..core.operator import LinearOperator
from ..core.rng import Streams
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
