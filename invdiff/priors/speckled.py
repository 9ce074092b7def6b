"""The prior of a speckled image: one of the log-reflectivity, and white speckle.

p(u, a, b) = p(u) N(a; 0, I) N(b; 0, I),      D = (D_u(u, sigma), a / (1 + sigma^2), b / (1 + sigma^2))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import Denoiser, ShapeError
from ..core.linalg import expand
from ..operators.speckled import Speckled

__all__ = ["SpeckledPrior"]


class SpeckledPrior(Denoiser):
    """A denoiser of (u, a, b), (3, H, W), that stands for complex images (1, H, W); see `operators.Speckled`.

    Args:
        reflectivity: prior of u = log R, (1, H, W), natural logarithm.

    Raises:
        ShapeError: it is not of one channel on a plane.
    """

    image_complex = True

    def __init__(self, reflectivity: Denoiser) -> None:
        if len(reflectivity.shape) != 3 or reflectivity.shape[0] not in (None, 1):
            raise ShapeError(f"SpeckledPrior: expected a prior on (1, H, W), got {reflectivity.shape}")
        super().__init__((3, *reflectivity.shape[1:]), reflectivity.sigma_min, reflectivity.sigma_max)
        self.reflectivity, self.divisor, self.known = reflectivity, reflectivity.divisor, reflectivity.known

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        return (1, *self.shape[1:])

    @property
    def origin(self) -> Tensor:
        level = torch.as_tensor(self.reflectivity.origin)
        level = level.reshape(1, 1, 1) if level.ndim == 0 else level
        return torch.cat((level, torch.zeros_like(level), torch.zeros_like(level)))

    def synthesis(self, shape: Sequence[int]) -> Speckled:
        """From (u, a, b) to complex images of a shape (1, H, W)."""
        return Speckled((shape[1], shape[2]))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        speckle = x[:, 1:] / (1.0 + expand(sigma, x).square())
        return torch.cat((self.reflectivity(x[:, :1], sigma), speckle), 1)
