"""A prior in other units.

    x = a u + b,    D_x(x, sigma) = b + a D_u((x - b) / a, sigma / |a|)

Exact: a scalar a keeps white noise white, and sigma / |a| is its level in the units of u. A network trained on [-1, 1] is a
prior of images in [0, 1] with a = b = 1/2. One a for each channel would make the noise of u different in each of them, which
no denoiser with one sigma knows how to remove; b may differ as it likes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ConfigError, ShapeError
from .adapter import Adapter, require_image

__all__ = ["Affine"]


class Affine(Adapter):
    """A prior on u as a prior on x = scale u + shift.

    Args:
        prior: on u.
        scale: units of x in a unit of u, one number that is not zero.
        shift: x where u = 0: a number, one for each channel, or a tensor that broadcasts to the prior's shape (a mean image).

    Shape and divisor are the prior's, its noise levels are multiplied by |scale|, and a condition is passed on as it is. The
    value range covers all channels.

    Raises:
        ConfigError: scale is zero, not finite, or more than one number; or the unknown is a latent.
        ShapeError: shift does not fit the prior's shape.
    """

    shift: Tensor

    def __init__(self, prior: Denoiser, scale: float = 1.0, shift: float | Sequence[float] | Tensor = 0.0) -> None:
        require_image(prior, "Affine")
        if not isinstance(scale, int | float):
            raise ConfigError(
                "Affine: expected one scale for all channels (white noise of x must be white noise of u), got "
                f"{type(scale).__name__}: whiten the data before training, or take one scale"
            )
        if scale == 0.0 or not math.isfinite(scale):
            raise ConfigError(f"Affine: expected a finite scale that is not zero, got {scale}")
        super().__init__(prior, prior.shape, scale=abs(scale))
        self.scale = float(scale)
        self.register_buffer("shift", _shift(torch.as_tensor(shift, dtype=torch.float64), prior.shape))
        if prior.value_range is not None:
            ends = sorted(scale * end for end in prior.value_range)
            self.value_range = ends[0] + float(self.shift.min()), ends[1] + float(self.shift.max())

    @property
    def origin(self) -> float | Tensor:
        return self.shift + self.scale * self.prior.origin

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """E[x0 | x] in the units of x."""
        shift = self.shift.to(x.dtype)
        return shift + self.scale * self.prior((x - shift) / self.scale, sigma / abs(self.scale), condition)

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}, shift={self.shift.item() if self.shift.ndim == 0 else tuple(self.shift.shape)}"


def _shift(shift: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    full = shift.reshape(-1, *[1] * (len(shape) - 1)) if shift.ndim == 1 else shift
    fits = full.ndim == 0 or (
        full.ndim == len(shape) and all(n == 1 or s in (None, n) for n, s in zip(full.shape, shape, strict=True))
    )
    if not fits or not bool(full.isfinite().all()):
        wants = ", ".join("any" if s is None else str(s) for s in shape)
        raise ShapeError(
            f"Affine: expected a finite shift: one number, one for each channel, or ({wants}); got shape {tuple(shift.shape)}"
        )
    return full
