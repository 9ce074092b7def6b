"""Multi-band denoisers: the coarsest low band first, then, level by level, the details given it.

One Haar level takes the pixels  a b / c d  to

    low = (a + b + c + d)/4,    H = (a + b - c - d)/4,    V = (a - b + c - d)/4,    D = (a - b - c + d)/4,

half of the orthonormal coefficients: low is the local mean, and white noise of level sigma is white in all bands with sigma/2.
The next level splits low. With J levels, x_J the low band and d_j the details of level j (0 the finest) of the noisy image,

    l_J = E[x_J | its noisy self],    l_j = merge(l_{j+1}, f_j(d_j, l_{j+1})),  j = J-1 ... 0,    D = l_0,

f_j(d, l) = E[details | noisy details d, low band l]. The f_j are trained with clean low bands and used with denoised ones, so D
is **not** the posterior mean, even if all networks are ideal: nothing in the noisy details informs the low bands. For Gaussian
data f is affine and that is the only loss: with one level, E[details | x] = f(d, E[low | all of x]), and D has f(d, E[low | low
of x]). The two agree where bands are independent, and as sigma -> 0. What is gained: f_j may be local where an image is not.

References: Kadkhodaie, Guth, Mallat, Simoncelli, Learning multi-scale local conditional probability models of images, ICLR
2023, arXiv:2303.02984.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.denoiser import Denoiser
from ..core.errors import ConfigError, ShapeError
from .adapter import require_conditional, require_multiples

__all__ = ["MultiScale", "haar_merge", "haar_split"]


def haar_split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Low band (B, C, H/2, W/2) and details (B, 3 C, H/2, W/2), H of all channels, then V, then D; H and W even."""
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return (a + b + c + d) / 4, torch.cat([a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 4


def haar_merge(low: Tensor, details: Tensor) -> Tensor:
    """The inverse of `haar_split`."""
    h, v, d = details.chunk(3, dim=1)
    pixels = torch.stack([low + h + v + d, low + h - v - d, low - h + v - d, low - h - v + d], dim=2)
    return torch.pixel_shuffle(pixels.flatten(1, 2), 2)


class MultiScale(Denoiser):
    """A prior of images from denoisers of their bands.

    Args:
        low: of the coarsest low band, (C, h, w), fixed or free in size.
        details: of the details at each level, the finest first: (3 C, ...), conditional on `concat`, the low band (C, ...).

    The noise levels are those at which every band is inside of its own: the band of level j is denoised at sigma / 2^(j+1), the
    low band at sigma / 2^J.

    Raises:
        ShapeError: a band's shape is not the one that the low band implies; on a call, H or W is not a multiple of `divisor`.
        ConfigError: no details, or the bands have no noise level in common. CapabilityError: details are not conditional.
    """

    def __init__(self, low: Denoiser, details: Sequence[Denoiser]) -> None:
        levels = len(details)
        if levels == 0 or len(low.shape) != 3 or low.shape[0] is None:
            raise ConfigError(f"MultiScale: expected details and a low band (C, h, w), got {levels} and {low.shape}")
        bands = [(2 ** (j + 1), band) for j, band in enumerate(details)]
        channels, sizes = low.shape[0], low.shape[1:]
        for factor, band in bands:
            require_conditional(band, "MultiScale")
            expected = (3 * channels, *(None if n is None else n * 2**levels // factor for n in sizes))
            if band.shape != expected:
                raise ShapeError(f"MultiScale: expected details {expected} at 1/{factor} of the size, got {band.shape}")
        bands.append((2**levels, low))
        sigma_min, sigma_max = max(f * band.sigma_min for f, band in bands), min(f * band.sigma_max for f, band in bands)
        if not sigma_min < sigma_max:
            ranges = ", ".join(f"[{f * band.sigma_min:g}, {f * band.sigma_max:g}]" for f, band in bands)
            raise ConfigError(f"MultiScale: the bands have no noise level of the image in common: {ranges}")
        shape = (channels, *(None if n is None else n * 2**levels for n in sizes))
        super().__init__(shape, sigma_min, sigma_max)
        self.low, self.details, self.value_range = low, nn.ModuleList(details), low.value_range
        self.divisor = math.lcm(*(f * band.divisor for f, band in bands))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The bands' estimates, put together."""
        require_multiples(self, x)
        low, noisy = x, []
        for _ in self.details:
            low, band = haar_split(low)
            noisy.append(band)
        clean = self.low(low, sigma / 2 ** len(noisy))
        for j in reversed(range(len(noisy))):
            clean = haar_merge(clean, self.details[j](noisy[j], sigma / 2 ** (j + 1), {"concat": clean}))
        return clean
