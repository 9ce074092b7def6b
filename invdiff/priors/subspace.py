"""Spectral images in the subspace of a few abundances: a prior of r channels for data of C bands.

    x = m + E a,    E^T E = I,    D_x(x, sigma) = m + E D_a(E^T (x - m), sigma)

E (C, r) has orthonormal columns, so that white noise of x is white noise of E^T x with the same sigma, and independent of what
lies outside: exact when the data lie in the subspace. What doesn't is shrunk to zero; `fit_subspace` says how much that is.

References: Zhuang, Bioucas-Dias, Fast hyperspectral image denoising and inpainting based on low-rank and sparse
representations, IEEE JSTARS 11, 2018.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ConfigError, ShapeError
from .adapter import Adapter, require_image

__all__ = ["SpectralFit", "Subspace", "fit_subspace"]


class Subspace(Adapter):
    """A prior of coefficients (r, *spatial) as a prior of images (C, *spatial).

    Args:
        prior: on the coefficients.
        basis: E, (C, r), orthonormal columns.
        mean: m, (C,); None for zero.

    Raises:
        ConfigError: the columns are not orthonormal to 1e-5, or the unknown of the prior is a latent.
        ShapeError: basis, mean and the prior's channels disagree.
    """

    basis: Tensor
    mean: Tensor

    def __init__(self, prior: Denoiser, basis: Tensor, mean: Tensor | None = None) -> None:
        require_image(prior, "Subspace")
        mean = basis.new_zeros(len(basis)) if mean is None else mean
        if basis.ndim != 2 or mean.shape != basis.shape[:1] or prior.shape[0] not in (None, basis.shape[1]):
            raise ShapeError(
                f"Subspace: expected a basis (C, {prior.shape[0] or 'r'}), the channels of the prior, and a mean (C,), got "
                f"{tuple(basis.shape)} and {tuple(mean.shape)}"
            )
        error = float((basis.T @ basis - torch.eye(basis.shape[1]).to(basis)).abs().max())
        if not error <= 1e-5:
            raise ConfigError(
                f"Subspace: E^T E differs from the identity by {error:.2g}, so that white noise would become coloured: "
                "orthonormalise the columns (fit_subspace gives such a basis)"
            )
        super().__init__(prior, (len(basis), *prior.shape[1:]))
        self.value_range = None  # that of coefficients says nothing of the images
        self.register_buffer("basis", basis)
        self.register_buffer("mean", mean)

    def coefficients(self, x: Tensor) -> Tensor:
        """E^T (x - m), (B, C, *spatial) -> (B, r, *spatial)."""
        basis, mean = self.basis.to(x.dtype), self.mean.to(x.dtype)
        return (basis.T @ (x.flatten(2) - mean[:, None])).unflatten(2, x.shape[2:])

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """E[x0 | x] of data in the subspace."""
        basis, mean = self.basis.to(x.dtype), self.mean.to(x.dtype)
        a = self.prior(self.coefficients(x), sigma, condition)
        return (mean[:, None] + basis @ a.flatten(2)).unflatten(2, x.shape[2:])

    def extra_repr(self) -> str:
        return f"basis={tuple(self.basis.shape)}"


class SpectralFit(NamedTuple):
    """basis (C, r), mean (C,), and the root mean square of what the subspace misses, in units of the data."""

    basis: Tensor
    mean: Tensor
    residual: float


def fit_subspace(images: Tensor, rank: int) -> SpectralFit:
    """The subspace of a rank that is nearest to the spectra of images: principal components about the mean spectrum.

    Args:
        images: (N, C, *spatial), real.
        rank: r, 1 ... C.

    The columns are in order of decreasing variance; the largest entry of each is positive.

    Raises:
        ShapeError: not images. ConfigError: no such rank.
    """
    if images.ndim < 2 or images.is_complex():
        raise ShapeError(f"fit_subspace: expected real images (N, C, *spatial), got {tuple(images.shape)} {images.dtype}")
    channels = images.shape[1]
    if not 1 <= rank <= channels:
        raise ConfigError(f"fit_subspace: expected a rank in 1 ... {channels}, got {rank}")
    spectra = images.transpose(0, 1).flatten(1).double()
    mean = spectra.mean(1)
    centred = spectra - mean[:, None]
    # the Gram matrix is C x C however many pixels there are; float64 leaves 1e-8 of the largest singular value
    variances, vectors = torch.linalg.eigh(centred @ centred.T / spectra.shape[1])
    basis = vectors.flip(1)[:, :rank]
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    missed = variances[: channels - rank].clamp_min(0.0).sum() / channels
    return SpectralFit(basis.to(images.dtype), mean.to(images.dtype), float(missed.sqrt()))
