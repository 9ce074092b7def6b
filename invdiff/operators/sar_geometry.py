"""Tracks, scenes and apertures of a radar, and the image that a window forms of its pulses.

    ground       r = (x, y, z),  rows along y, columns along x, the middle of the grid at (N - 1) / 2
    resolution   ground range  c / (2 B cos e),   cross range  lambda / (4 sin(D / 2) cos e)   at elevation e, over azimuths D
    image        A^H W y / sum W,   W[p, k] = w_p w_k f_pk   (f undoes the density of polar samples)

A 3-dB width is .886 of a resolution where nothing is weighted.

References: Jakowatz, Wahl, Eichel, Ghiglia, Thompson, Spotlight-mode synthetic aperture radar, 1996. Taylor, Design of
line-source antennas, IRE Trans. AP 3, 1955.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError, ShapeError
from ..core.rng import Streams
from .sar import PhaseHistory, Radar
from .sar_cells import SPEED_OF_LIGHT

__all__ = [
    "circular_track",
    "form_image",
    "ground",
    "image_weights",
    "kept_pulses",
    "resolution",
    "spotlight",
    "straight_track",
    "taylor",
]


def ground(
    size: tuple[int, int],
    spacing: float | tuple[float, float],
    *,
    centre: tuple[float, float] = (0.0, 0.0),
    height: Tensor | None = None,
) -> Tensor:
    """Points of a scene, (H, W, 3), m.

    Args:
        size: H, W.
        spacing: between rows and between columns, m.
        centre: x and y of the middle.
        height: of each point, (H, W), m: a digital elevation model; None for a plane.
    """
    dy, dx = (spacing, spacing) if isinstance(spacing, float | int) else spacing
    if not (0.0 < dy < math.inf and 0.0 < dx < math.inf):
        raise ConfigError(f"ground: expected spacing > 0, got {spacing}")
    if height is not None and tuple(height.shape) != tuple(size):
        raise ShapeError(f"ground: expected height {tuple(size)}, got {tuple(height.shape)}")
    y = (torch.arange(size[0], dtype=torch.float64) - (size[0] - 1) / 2) * dy + centre[1]
    x = (torch.arange(size[1], dtype=torch.float64) - (size[1] - 1) / 2) * dx + centre[0]
    z = torch.zeros(*size, dtype=torch.float64) if height is None else height.double()
    return torch.stack((x.expand(*size), y[:, None].expand(*size), z), -1)


def circular_track(azimuths: Tensor, *, distance: float, elevation: float) -> Tensor:
    """Phase centres on a circle around the vertical, (P, 3), m: spotlight and circular collections.

    Args:
        azimuths: (P,), rad, from the x axis.
        distance: from the origin, m. elevation: above the plane, rad.
    """
    a = azimuths.double()
    flat = distance * math.cos(elevation)
    return torch.stack((flat * a.cos(), flat * a.sin(), torch.full_like(a, distance * math.sin(elevation))), -1)


def straight_track(positions: Tensor, *, offset: float, altitude: float) -> Tensor:
    """Phase centres on a line along y, (P, 3), m: stripmap collections.

    Args:
        positions: along the track, (P,), m. offset: x of the track, m. altitude: its z, m.
    """
    along = positions.double()
    return torch.stack((torch.full_like(along, offset), along, torch.full_like(along, altitude)), -1)


def resolution(positions: Tensor, frequencies: Tensor) -> tuple[float, float]:
    """Ground range and cross range resolution at the origin, m, of phase centres (P, 3), in order, and frequencies (K,).

    Beyond half a circle, D = pi, nothing is gained across.
    """
    look = positions / positions.norm(dim=-1, keepdim=True)
    flat = look[:, :2]
    # the band that K frequencies cover has K steps, as P pulses cover P
    bandwidth = float(frequencies[-1] - frequencies[0]) * len(frequencies) / (len(frequencies) - 1)
    cosine = float(flat.norm(dim=-1).mean())
    angle = torch.atan2(flat[:, 1], flat[:, 0])
    turns = torch.remainder(angle.diff() + math.pi, 2.0 * math.pi) - math.pi
    swept = min(abs(float(turns.sum())) * len(look) / max(len(look) - 1, 1), math.pi)
    wavelength = SPEED_OF_LIGHT / float(frequencies.double().mean())
    return SPEED_OF_LIGHT / (2.0 * bandwidth * cosine), wavelength / (4.0 * math.sin(swept / 2.0) * cosine)


def kept_pulses(
    pulses: int,
    frequencies: int,
    *,
    pattern: Literal["all", "random", "gap", "band"] = "all",
    share: float = 0.25,
    seed: int = 0,
) -> Tensor:
    """What a sparse aperture measures, (P, K), boolean.

    Args:
        pattern: "all"; "random", `share` of the pulses; "gap", all but the `share` of pulses in the middle; "band", all but the
            `share` of frequencies in the middle.
    """
    if pattern not in ("all", "random", "gap", "band") or not 0.0 < share < 1.0:
        raise ConfigError(f"kept_pulses: expected all, random, gap or band, and 0 < share < 1, got {pattern!r} and {share}")
    mask = torch.ones(pulses, frequencies, dtype=torch.bool)
    if pattern == "random":
        chosen = Streams(seed).normal(0, (pulses,), "pulses", torch.float64)[0].argsort()[: max(1, round(share * pulses))]
        mask[:] = False
        mask[chosen] = True
    elif pattern == "gap":
        mask[_middle(pulses, share)] = False
    elif pattern == "band":
        mask[:, _middle(frequencies, share)] = False
    return mask


def spotlight(
    size: tuple[int, int],
    spacing: float,
    *,
    pulses: int = 128,
    frequencies: int = 128,
    azimuth: float = 0.0,
    aperture: float = 0.035,
    elevation: float = 0.785,
    distance: float = 10_000.0,
    centre_frequency: float = 9.6e9,
    bandwidth: float = 6e8,
    pattern: Literal["all", "random", "gap", "band"] = "all",
    share: float = 0.25,
    seed: int = 0,
    accuracy: float = 1e-5,
    memory: int = 1 << 30,
) -> PhaseHistory:
    """A plane scene seen from an arc of a circle; angles in rad, lengths in m, frequencies in Hz; the sign is -1."""
    angles = azimuth + aperture * ((torch.arange(pulses, dtype=torch.float64) + 0.5) / pulses - 0.5)
    band = centre_frequency + bandwidth * ((torch.arange(frequencies, dtype=torch.float64) + 0.5) / frequencies - 0.5)
    track = circular_track(angles, distance=distance, elevation=elevation)
    mask = None if pattern == "all" else kept_pulses(pulses, frequencies, pattern=pattern, share=share, seed=seed)
    points = ground((size[0], size[1]), spacing)
    return PhaseHistory(track, band, points, sign=-1, mask=mask, accuracy=accuracy, memory=memory)


def taylor(n: int, *, sidelobes: float = 35.0, constant: int = 4) -> Tensor:
    """Taylor's window of n values, mean 1: `constant` - 1 nearly equal lobes on each side, `sidelobes` dB below the peak."""
    level = math.acosh(10.0 ** (sidelobes / 20.0)) / math.pi
    stretch = constant**2 / (level**2 + (constant - 0.5) ** 2)
    m = torch.arange(1, constant, dtype=torch.float64)
    numerator = (1.0 - m[:, None] ** 2 / (stretch * (level**2 + (m - 0.5) ** 2))).prod(1)
    others = 1.0 - m[:, None] ** 2 / m**2
    others.fill_diagonal_(1.0)
    weights = (-1.0) ** (m + 1) * numerator / (2.0 * others.prod(1))
    phase = 2.0 * math.pi * (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / n
    window = 1.0 + 2.0 * (weights[:, None] * torch.cos(m[:, None] * phase)).sum(0)
    return window / window.mean()


def form_image(operator: Radar, y: Tensor, *, window: Literal["none", "taylor"] = "taylor") -> Tensor:
    """The back-projected image of phase history (B, 1, P, K), (B, 1, H, W); a lone point keeps its reflectivity.

    Args:
        operator: the exact model, or a mode of it.
        window: over the pulses and over the frequencies.
    """
    if window not in ("none", "taylor"):
        raise ConfigError(f'form_image: expected window "none" or "taylor", got {window!r}')
    return operator.adjoint(y * image_weights(operator, window=window).to(device=y.device, dtype=y.real.dtype))


def image_weights(operator: Radar, *, window: Literal["none", "taylor"] = "taylor") -> Tensor:
    """W / sum W of `form_image`, (P, K), float64; zero where nothing is measured."""
    weights = operator.frequencies.double().expand(operator.out_shape[1:]).clone()
    if window == "taylor":
        weights *= taylor(weights.shape[0])[:, None].to(weights) * taylor(weights.shape[1]).to(weights)
    weights = weights if operator.measured is None else weights * operator.measured[0]
    return weights / weights.sum()


def _middle(n: int, share: float) -> slice:
    width = max(1, round(share * n))
    return slice((n - width) // 2, (n - width) // 2 + width)
