"""Random measurements for end-to-end training: (shape of a real image, seed) -> operator.

permuted_cs    compressed sensing of permuted pixels, another permutation for every seed
block_cs       compressed sensing of blocks, as in the task cs_image, which the seed does not change
multicoil_mri  fastMRI's random columns of the k-space of a complex image with two channels, birdcage coils
few_views      parallel beams at a few angles, which the seed does not change
"""

from __future__ import annotations

import torch

from ..core import LinearOperator, ShapeError, ViewAsComplex
from ..operators.cs import BlockCS, PermutedCS
from ..operators.ct import ParallelBeamCT
from ..operators.masks import random_columns
from ..operators.mri import CartesianMRI, birdcage_maps

__all__ = ["block_cs", "few_views", "multicoil_mri", "permuted_cs"]

Shape = tuple[int, ...]


def permuted_cs(shape: Shape, *, ratio: float = 0.25, block: int = 32, seed: int = 0) -> LinearOperator:
    """`PermutedCS`, whose permutation is the seed's."""
    return PermutedCS(shape, ratio=ratio, block=block, seed=seed)


def block_cs(shape: Shape, *, ratio: float = 0.25, block: int = 33, seed: int = 0) -> LinearOperator:  # noqa: ARG001
    """`BlockCS` with the matrix of the task."""
    if len(shape) != 3:
        raise ShapeError(f"block_cs: expected images of shape (C, H, W), got {shape}")
    return BlockCS(shape, ratio=ratio, block=block)


def multicoil_mri(
    shape: Shape, *, coils: int = 8, acceleration: float = 4.0, center_fraction: float = 0.08, seed: int = 0
) -> LinearOperator:
    """Cartesian k-space of (2, H, W), whose columns are the seed's; coils as in the task mri_cartesian."""
    if len(shape) != 3 or shape[0] != 2:
        raise ShapeError(f"multicoil_mri: expected images of shape (2, H, W), real and imaginary part, got {shape}")
    size = (shape[1], shape[2])
    maps = birdcage_maps(coils, size, dtype=torch.complex128) if coils > 1 else None
    pattern = random_columns(size[1], acceleration, center_fraction, seed % 2**31)
    operator = CartesianMRI(pattern if maps is not None else pattern.expand(size), maps)
    return operator @ ViewAsComplex(operator.in_shape)  # type: ignore[return-value]


def few_views(shape: Shape, *, views: int = 20, pixel: float = 1.0, seed: int = 0) -> LinearOperator:  # noqa: ARG001
    """Line integrals along parallel beams as in the task ct_sparse_view, in units of the detector's pitch times water."""
    if len(shape) != 3 or shape[0] != 1:
        raise ShapeError(f"few_views: expected images of shape (1, H, W), got {shape}")
    return ParallelBeamCT(shape[1:], views, pixel=pixel, pitch=pixel)
