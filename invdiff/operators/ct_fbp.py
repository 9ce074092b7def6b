"""Filtered backprojection of parallel beams.

    f(r) = pi / N sum_t q(t, r . (cos t, sin t)),    q = d (h * p),    h_0 = 1 / (4 d^2), h_odd = -1 / (pi n d)^2, h_even = 0

for N angles over pi and detector pitch d. The ramp is sampled in space: its transform sampled in frequency would lose the mean.
Rays are read by linear interpolation, and beyond the detector as zero.

References: Kak, Slaney, Principles of computerized tomographic imaging, 1988, chapter 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.errors import ConfigError

__all__ = ["filtered_backprojection"]


def filtered_backprojection(
    y: Tensor, angles: Tensor, *, size: tuple[int, int], pixel: float, pitch: float, window: str = "ram-lak"
) -> Tensor:
    """(B, 1, views, detector) -> (B, 1, H, W) for angles in radians; windows: "ram-lak", "hann", "cosine"."""
    (h, w), detector = size, y.shape[-1]
    length = 2 ** math.ceil(math.log2(2 * detector))
    response = _ramp(length, pitch, window).to(y)
    filtered = torch.fft.irfft(torch.fft.rfft(y[:, 0], n=length) * response, n=length)[..., :detector]
    padded = torch.nn.functional.pad(filtered, (1, 1))

    column = (torch.arange(w, dtype=torch.float64) - (w - 1) / 2) * pixel
    line = ((h - 1) / 2 - torch.arange(h, dtype=torch.float64)) * pixel
    image = y.new_zeros(len(y), h, w)
    for view, t in enumerate(angles.double().tolist()):
        element = (column * math.cos(t) + line[:, None] * math.sin(t)) / pitch + (detector - 1) / 2
        element = (element + 1.0).clamp(0.0, detector + 1.0)
        lower = element.floor().clamp_max(detector).long()
        weight = (element - lower).to(y)
        lower = lower.to(y.device)
        image += torch.lerp(padded[:, view, lower], padded[:, view, lower + 1], weight)
    return image[:, None] * (math.pi / len(angles))


def _ramp(length: int, pitch: float, window: str) -> Tensor:
    """The transform of d h, real, (length / 2 + 1,) float64."""
    n = torch.arange(length, dtype=torch.float64)
    n = torch.minimum(n, length - n)
    kernel = torch.where(n % 2 == 1, -1.0 / (math.pi * n.clamp_min(1.0) * pitch).square(), 0.0)
    kernel[0] = 1.0 / (4.0 * pitch**2)
    response = torch.fft.rfft(kernel * pitch).real
    f = torch.linspace(0.0, 0.5, length // 2 + 1, dtype=torch.float64)
    if window == "hann":
        return response * torch.cos(math.pi * f).square()
    if window == "cosine":
        return response * torch.cos(math.pi * f)
    if window != "ram-lak":
        raise ConfigError(f"fbp: expected a window of ram-lak, hann, cosine, got {window!r}")
    return response
