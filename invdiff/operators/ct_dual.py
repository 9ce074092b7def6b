"""Sparse-view CT solved exactly among its rays, of which there are fewer than pixels.

    (A^T A + rho)^-1 = (I - A^T (A A^T + rho)^-1 A) / rho,        A^+ = A^T (A A^T)^+

A A^T is decomposed once, so that every rho costs two projections. It commutes with the symmetries of the geometry: the
reflection in the image's centre, (t, s) -> (t, -s), and, where the views allow it, the mirror (t, s) -> (pi - t, -s). In a
basis of rays that are even or odd under each it falls into two or four blocks, and their eigenvectors cost 1/4 or 1/16 of those
of the whole.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .ct_joseph import joseph_csr
from .sparse import to_torch

__all__ = ["dual_inverse", "dual_spectrum", "largest_block"]

# of the identity, the reflection, the mirror, and both; the first two alone where there is no mirror
_CHARACTERS = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [1.0, -1.0, -1.0, 1.0]])


def largest_block(angles: Tensor, detector: int) -> int:
    """About how many rays the largest block has."""
    return math.ceil(len(angles) * detector / (2 if _mirrored(angles.double().cpu().numpy()) is None else 4))


def dual_spectrum(angles: Tensor, *, size: tuple[int, int], detector: int, pixel: float, pitch: float) -> tuple[Tensor, ...]:
    """The symmetric basis Q (rays, rays) and Q^T, sparse; the eigenvalues (rays,); the eigenvectors of each block, float64."""
    from scipy.sparse import csr_array, hstack

    matrix = joseph_csr(angles, size=size, detector=detector, pixel=pixel, pitch=pitch)
    rays = np.arange(matrix.shape[0])
    group = _group(angles.double().numpy(), detector)
    orbits = rays[np.minimum.reduce(group) == rays]
    index = np.concatenate([image[orbits] for image in group]), np.tile(np.arange(len(orbits)), len(group))
    bases, values, vectors = [], [], []
    for signs in _CHARACTERS[: len(group)]:
        entries = np.repeat(signs[: len(group)], len(orbits))
        basis = csr_array((entries, index), shape=(len(rays), len(orbits))).tocsc()
        # a ray that a symmetry leaves in place has no odd part
        norms = np.sqrt(basis.multiply(basis).sum(0))
        basis = (basis[:, norms > 0] / norms[norms > 0]).tocsc()
        reduced = (basis.T @ matrix).tocsr()
        eigenvalues, eigenvectors = torch.linalg.eigh(torch.from_numpy((reduced @ reduced.T).toarray()))
        bases.append(basis)
        values.append(eigenvalues)
        vectors.append(eigenvectors)
    q = hstack(bases).tocsr()
    return to_torch(q), to_torch(q.T.tocsr()), torch.cat(values), *vectors


def dual_inverse(r: Tensor, rho: Tensor, spectrum: tuple[Tensor, ...]) -> Tensor:
    """(A A^T + rho)^-1 r, (rays, B); where rho = 0 the pseudo-inverse, with eigenvalues below rays eps max|.| taken as zero."""
    q, qt, values, *vectors = spectrum
    shifted = values[:, None] + rho
    cut = len(values) * torch.finfo(values.dtype).eps * values.max()
    weights = torch.where(shifted > cut, 1.0 / shifted, 0.0)
    sizes = [len(v) for v in vectors]
    parts = zip(vectors, (qt @ r).split(sizes), weights.split(sizes), strict=True)
    return q @ torch.cat([v @ (w * (v.mT @ z)) for v, z, w in parts])


def _group(angles: np.ndarray, detector: int) -> list[np.ndarray]:
    """Where the identity, the reflection, and the mirror and both together if there is one, take each ray."""
    view, element = np.divmod(np.arange(len(angles) * detector), detector)
    reflected = detector - 1 - element
    group = [view * detector + element, view * detector + reflected]
    mirrored = _mirrored(angles)
    if mirrored is not None:
        partner, turned = mirrored
        flip = turned[view]
        group.append(partner[view] * detector + np.where(flip, reflected, element))
        group.append(partner[view] * detector + np.where(flip, element, reflected))
    return group


def _mirrored(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The view that the mirror y -> -y makes of each, and whether its detector is turned; None where a view has no partner."""
    gap = np.mod(angles[:, None] + angles[None, :] + 1e-9, 2 * np.pi)
    same, turned = gap < 2e-9, np.abs(gap - np.pi - 1e-9) < 1e-9
    match = same | turned
    if not (match.sum(1) == 1).all():
        return None
    partner = match.argmax(1)
    return partner, turned[np.arange(len(angles)), partner]
