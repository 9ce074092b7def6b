"""Orthonormal cosine and sine transforms of type II along one axis, by one FFT of the axis' own length.

    dct   X_k = s_k sum_j x_j cos(pi k (j + 1/2) / n),            even about both walls (Neumann)
    dst   X_k = s'_k sum_j x_j sin(pi (k + 1) (j + 1/2) / n),     odd about both walls (Dirichlet)

The points are the centres of n cells and the walls the outer faces, at j = -1/2 and n - 1/2. The rows are the eigenvectors of
the second difference with a mirrored, respectively a mirrored and negated, neighbour beyond the wall, with the eigenvalues
4 sin^2(pi k / 2n), respectively 4 sin^2(pi (k + 1) / 2n). Inverse and adjoint are the same.

References: Makhoul, A fast cosine transform in one and two dimensions, IEEE TASSP 28, 1980. Strang, The discrete cosine
transform, SIAM Review 41, 1999.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["dct", "dst", "idct", "idst"]


def dct(x: Tensor, dim: int = -1) -> Tensor:
    """DCT-II of a real tensor along an axis."""
    x = x.movedim(dim, -1)
    turn, scale = _factors(x)
    # even entries, then the odd ones backwards: the cosine sum is the real part of a turned FFT of the same length
    z = torch.fft.fft(torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1))
    return ((z * turn).real * scale).movedim(-1, dim)


def idct(x: Tensor, dim: int = -1) -> Tensor:
    """Inverse and adjoint of `dct` (DCT-III)."""
    x = x.movedim(dim, -1)
    turn, scale = _factors(x)
    c = x / scale
    mirrored = torch.cat([torch.zeros_like(c[..., :1]), c[..., 1:].flip(-1)], dim=-1)
    v = torch.fft.ifft(torch.complex(c, -mirrored) * turn.conj()).real
    half = (x.shape[-1] + 1) // 2
    out = torch.empty_like(v)
    out[..., ::2], out[..., 1::2] = v[..., :half], v[..., half:].flip(-1)
    return out.movedim(-1, dim)


def dst(x: Tensor, dim: int = -1) -> Tensor:
    """DST-II of a real tensor along an axis: sin(pi (n - k) t) = +-cos(pi k t) at the cell centres."""
    return dct(x.movedim(dim, -1) * _signs(x, dim)).flip(-1).movedim(-1, dim)


def idst(x: Tensor, dim: int = -1) -> Tensor:
    """Inverse and adjoint of `dst` (DST-III)."""
    return (idct(x.movedim(dim, -1).flip(-1)) * _signs(x, dim)).movedim(-1, dim)


def _factors(x: Tensor) -> tuple[Tensor, Tensor]:
    n = x.shape[-1]
    angle = torch.arange(n, dtype=torch.float64, device=x.device) * (-0.5 * math.pi / n)
    scale = torch.full_like(angle, math.sqrt(2.0 / n))
    scale[0] = math.sqrt(1.0 / n)
    turn = torch.polar(torch.ones_like(angle), angle)
    return turn.to(torch.promote_types(x.dtype, torch.complex64)), scale.to(x.dtype)


def _signs(x: Tensor, dim: int) -> Tensor:
    return 1.0 - 2.0 * (torch.arange(x.shape[dim], device=x.device) % 2).to(x.dtype)
