"""Cartesian multi-coil MRI (SENSE).

    y_c = M F S_c x,        A^H y = sum_c conj(S_c) F^H M y_c

F is the centred orthonormal FFT over the last two dimensions. The two shifts are folded into the maps and the mask once, so
that a call costs one FFT per coil and one multiplication on either side. With sum_c |S_c|^2 = 1 the norm of A is at most 1. A
single uniform coil has A A^H = M, hence closed forms of the inverse and the pseudo-inverse.

References: Pruessmann, Weiger, Scheidegger, Boesiger, SENSE: sensitivity encoding for fast MRI, MRM 42, 1999.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError, ShapeError
from ..core.linalg import expand
from ..core.operator import LinearOperator
from ..core.spectrum import Spectrum, given
from .constants import Constants
from .fourier import shift_factors
from .masks import equispaced_columns, random_columns, variable_density

__all__ = ["CartesianMRI", "birdcage_maps", "cartesian_mri"]


class CartesianMRI(LinearOperator):
    """Undersampled k-space of a complex image seen through coil sensitivities.

    Args:
        mask: sampling pattern, (H, W), or (W,) where the maps give H; boolean, True where k-space is measured.
        maps: coil sensitivities, (C, H, W), complex; None for a single uniform coil.

    Shapes: image (B, 1, H, W) complex -> k-space (B, C, H, W) complex, zero where not measured; the centre of k-space is
    element (H // 2, W // 2).

    Raises:
        ShapeError: maps and mask disagree, the mask is not boolean, the maps are not complex.
    """

    measured: Tensor

    def __init__(self, mask: Tensor, maps: Tensor | None = None) -> None:
        if mask.dtype != torch.bool or mask.ndim not in ((2,) if maps is None else (1, 2)):
            want = "(H, W)" if maps is None else "(H, W) or (W,)"
            raise ShapeError(
                f"CartesianMRI: expected a boolean mask of shape {want}, got {tuple(mask.shape)} {str(mask.dtype)[6:]}"
            )
        if maps is not None and (maps.ndim != 3 or not maps.is_complex()):
            raise ShapeError(
                f"CartesianMRI: expected complex maps of shape (C, H, W), got {tuple(maps.shape)} {str(maps.dtype)[6:]}"
            )
        size = tuple(mask.shape if maps is None else maps.shape[1:])
        if size[-mask.ndim :] != mask.shape:
            raise ShapeError(
                f"CartesianMRI: maps are {tuple(maps.shape)} but mask is {tuple(mask.shape)}: "
                "give maps on the mask's grid, or crop the mask"
            )
        coils = 1 if maps is None else len(maps)
        super().__init__((1, *size), (coils, *size), in_complex=True, out_complex=True)
        self.uniform = maps is None
        self.measured = mask.expand(size)
        self.constants = Constants(_folded, self.measured, torch.ones(1, 1, 1) if maps is None else maps)

    def forward(self, x: Tensor) -> Tensor:
        maps, _, weights, _, _ = self.constants(x)
        return torch.fft.fft2(maps * x, norm="ortho") * weights

    def adjoint(self, y: Tensor) -> Tensor:
        _, conjugate, _, weights, _ = self.constants(y)
        return (torch.fft.ifft2(y * weights, norm="ortho") * conjugate).sum(1, keepdim=True)

    def normal(self, x: Tensor) -> Tensor:
        maps, conjugate, _, _, mask = self.constants(x)
        k_space = torch.fft.fft2(maps * x, norm="ortho") * mask
        return (torch.fft.ifft2(k_space, norm="ortho") * conjugate).sum(1, keepdim=True)

    def solve(self, b: Tensor, rho: Tensor) -> Tensor:
        if not self.uniform:
            return LinearOperator.solve(self, b, rho)
        shift, conjugate, _, _, mask = self.constants(b)
        k_space = torch.fft.fft2(shift * b, norm="ortho") / (mask + expand(rho, b))
        return torch.fft.ifft2(k_space, norm="ortho") * conjugate

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y) if self.uniform else super().pinv(y)

    @property
    def spectral(self) -> bool:
        return self.uniform

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        if not self.uniform:
            return LinearOperator.spectrum(self, like)
        shift, conjugate, _, _, mask = self.constants(given(like))
        return Spectrum(mask[None], partial(_to_k_space, shift=shift), partial(_to_image, shift=conjugate))


def _folded(mask: Tensor, maps: Tensor) -> tuple[Tensor, ...]:
    """Maps and mask with the shifts of the transform in them, each with its conjugate, and the mask alone."""
    before, after = shift_factors(mask.shape)
    folded = maps * before, mask * after
    return *(t for f in folded for t in (f, f.conj().resolve_conj())), mask.double()


def _to_k_space(x: Tensor, shift: Tensor) -> Tensor:
    return torch.fft.fft2(shift * x, norm="ortho")


def _to_image(c: Tensor, shift: Tensor) -> Tensor:
    return torch.fft.ifft2(c, norm="ortho") * shift


def birdcage_maps(coils: int, size: tuple[int, int], *, radius: float = 1.5, dtype: torch.dtype = torch.complex64) -> Tensor:
    """Sensitivities of coils on a circle around the image, (coils, H, W), normalised to sum_c |S_c|^2 = 1.

    Each falls off with the inverse distance from its coil and turns its phase with the direction to it.

    Args:
        radius: of the circle, in half sides of the image.
    """
    if coils < 1 or not radius > 0.0:
        raise ConfigError(f"birdcage_maps: expected coils >= 1 and radius > 0, got {coils} and {radius}")
    y, x = ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / (n / 2) for n in size)
    angle = torch.arange(coils, dtype=torch.float64)[:, None, None] * (2.0 * torch.pi / coils)
    dx, dy = x - radius * torch.cos(angle), y[:, None] - radius * torch.sin(angle)
    # the field of a coil is expressed in its own frame, which is turned by its angle
    maps = torch.polar(1.0 / torch.hypot(dx, dy), torch.atan2(dy, dx) - angle)
    return (maps / maps.abs().square().sum(0).sqrt()).to(dtype)


def cartesian_mri(
    height: int,
    width: int,
    coils: int = 1,
    acceleration: float = 4,
    center_fraction: float = 0.08,
    seed: int = 0,
    pattern: Literal["random", "equispaced", "variable_density"] = "random",
) -> CartesianMRI:
    """Undersampled MRI with birdcage coils, or a single uniform coil for coils=1.

    Args:
        acceleration, center_fraction, seed, pattern: of the mask: fastMRI's "random" or "equispaced" columns, or points of
            "variable_density".
    """
    if pattern == "variable_density":
        mask = variable_density((height, width), acceleration, center_fraction, seed)
    elif pattern == "random":
        mask = random_columns(width, acceleration, center_fraction, seed).expand(height, width)
    elif pattern == "equispaced" and acceleration == int(acceleration):
        mask = equispaced_columns(width, int(acceleration), center_fraction, seed).expand(height, width)
    else:
        raise ConfigError(
            "cartesian_mri: expected a pattern of random, equispaced (with a whole acceleration), variable_density, "
            f"got {pattern!r} with acceleration {acceleration}"
        )
    return CartesianMRI(mask, birdcage_maps(coils, (height, width), dtype=torch.complex128) if coils > 1 else None)
