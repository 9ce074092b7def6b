"""The polar format algorithm: pulses interpolated from the polar sector to a rectangle of k-space, and one FFT.

    Y(k_pk) = y[p, k] e^{-s 4 pi j f_pk o_p / c - j phi_p} ~ sum_r g(r) exp(-s 2 pi j k_pk . r)

with k_pk and o_p of `sar_modes`. Let a be the axis of the ground that is closer to the look, b the other one, and
t_p = k_b / k_a the slope of pulse p. Samples go along each pulse to k_a = i / (M_a d_a), and for each i over the pulses to
k_b = j / (M_b d_b): to the grid of the image's discrete transform, for steps d on the ground. Both interpolations are by a sinc
under a Kaiser window of 16 samples. M d is at least the unambiguous extent, so that nothing folds into the image.

References: Walker, Range-Doppler imaging of rotating objects, IEEE TAES 16, 1980. Jakowatz, Wahl, Eichel, Ghiglia, Thompson,
Spotlight-mode synthetic aperture radar, 1996.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .sar import PhaseHistory
from .sar_cells import SPEED_OF_LIGHT
from .sar_geometry import taylor
from .sar_modes import Geometry, fft_pair, geometry_of, grid_steps, turned

__all__ = ["polar_format"]

# half the length of the windowed sinc, in samples, and its Kaiser window's parameter: 1e-3 up to .77 of the unambiguous extent
REACH, KAISER = 8, 5.65


def polar_format(
    operator: PhaseHistory, y: Tensor, *, window: Literal["none", "taylor"] = "taylor", screen: bool = True
) -> Tensor:
    """The polar format image of phase history (B, 1, P, K) on the operator's grid, (B, 1, H, W); a lone point keeps its value.

    The image of `form_image` under plane waves: a point at r lies off its place by about |r|^2 / 2 R, and is less sharp far
    from the origin (2 % of the norm in a scene of 24 m, measured). What lies beyond .77 of the unambiguous extents in either
    direction is interpolated to worse than 1e-3.

    Args:
        operator: of a plane scene, `ground(size, step)`, on an arc below 90 degrees. What its mask leaves out counts for
            nothing, its phases are taken off.
        window: over the pulses and over the frequencies.
        screen: take the phase of the mean curvature off the image (`sar_modes`).

    Raises:
        ConfigError: another grid, or directions of look that do not turn steadily.
    """
    if window not in ("none", "taylor"):
        raise ConfigError(f'polar_format: expected window "none" or "taylor", got {window!r}')
    operator.check(y, "y")
    seen, steps = geometry_of("polar_format", operator), grid_steps("polar_format", operator.points)
    weight = torch.ones_like(seen.frequencies)
    if window == "taylor":
        weight = taylor(weight.shape[0])[:, None] * taylor(weight.shape[1])
    weight = weight if seen.mask is None else weight * seen.mask
    phases = operator.phases.detach().cpu().double()[:, None] / (2.0 * math.pi)
    turn = (seen.carrier(operator.sign) * turned(phases)).conj() * weight
    # the weights go through the same interpolations, and say what a lone point would get
    samples = torch.cat((y[:, 0] * turn.to(y), weight.to(y)[None]))
    size = (operator.in_shape[1], operator.in_shape[2])
    spectra, total = _spectra(seen, samples, size, steps, operator.sign)
    image = fft_pair(spectra, operator.sign)[:, None, : size[0], : size[1]] / total
    return image * seen.screen(operator.points.cpu(), seen.looks, operator.sign).conj().to(image) if screen else image


def _spectra(
    seen: Geometry, samples: Tensor, size: tuple[int, int], steps: tuple[float, float], sign: int
) -> tuple[Tensor, Tensor]:
    """The spectra of the images, (B, M_y, M_x), and the sum of the last of the samples (B + 1, P, K), which are weights."""
    from scipy.fft import next_fast_len

    u, frequencies = seen.looks[:, :2], seen.frequencies
    a = 0 if float(u[:, 0].abs().mean()) >= float(u[:, 1].abs().mean()) else 1
    towards, slopes = u[:, a], u[:, 1 - a] / u[:, a]
    turns = slopes.diff()
    steady = len(turns) > 0 and bool((turns * turns[0] > 0.0).all()) and bool((towards * towards[0] > 0.0).all())
    if not steady:
        raise ConfigError("polar_format: expected looks that turn steadily, on an arc below 90 degrees: use form_image")
    if float(turns[0]) < 0.0:
        frequencies, samples = seen.frequencies.flip(0), samples.flip(1)
        towards, slopes = towards.flip(0), slopes.flip(0)
    pulses, k = frequencies.shape
    first, df = frequencies[:, :1], (frequencies[:, -1:] - frequencies[:, :1]) / (k - 1)
    unit = 2.0 / SPEED_OF_LIGHT * towards[:, None]
    # rows are y, columns x
    extents = [(size[1], steps[1]), (size[0], steps[0])]
    (n_a, d_a), (n_b, d_b) = extents[a], extents[1 - a]
    reach_a, reach_b = float((unit * df).abs().min()), float((unit * first).abs().min() * slopes.diff().min())
    m_a, m_b = (
        int(next_fast_len(max(2 * n, math.ceil(1.0 / (s * d))))) for n, d, s in ((n_a, d_a, reach_a), (n_b, d_b, reach_b))
    )
    # of a band that begins near 0 the lobes of the sinc would reach beyond it, where slopes mean nothing
    below, above = torch.maximum(first - REACH * df, 0.5 * first), first + (k - 1 + REACH) * df
    ends = torch.cat((unit * below, unit * above)) * (m_a * d_a)
    i = torch.arange(math.ceil(float(ends.min())), math.floor(float(ends.max())) + 1, dtype=torch.float64)
    k_a = i / (m_a * d_a)
    lines = _interpolated(samples, (k_a / unit - first) / df)
    wide = torch.stack((slopes[0] - REACH * (slopes[1] - slopes[0]), slopes[-1] + REACH * (slopes[-1] - slopes[-2])))
    edges = k_a[:, None] * wide * (m_b * d_b)
    j = torch.arange(math.ceil(float(edges.min())), math.floor(float(edges.max())) + 1, dtype=torch.float64)
    wanted = (j / (m_b * d_b)) / k_a[:, None]
    after = torch.searchsorted(slopes, wanted.contiguous()).clamp(1, pulses - 1)
    index = after - 1 + (wanted - slopes[after - 1]) / (slopes[after] - slopes[after - 1])
    sector = _interpolated(lines.mT.contiguous(), index)
    total = sector[-1].real.sum()
    # the grid's middle lies at (N - 1) / 2
    middle = turned(-sign * ((i * ((n_a - 1) / 2 / m_a))[:, None] + j * ((n_b - 1) / 2 / m_b)))
    where = (i.long() % m_a)[:, None] * m_b + j.long() % m_b
    spectra = sector.new_zeros(len(sector) - 1, m_a * m_b)
    spectra.index_add_(1, where.flatten().to(sector.device), (sector[:-1] * middle.to(sector)).flatten(1))
    spectra = spectra.unflatten(1, (m_a, m_b))
    return (spectra.mT if a == 0 else spectra), total


def _interpolated(t: Tensor, at: Tensor) -> Tensor:
    """(C, n, K) at fractional indices (n, M) of the last dimension, (C, n, M): zero before the first and after the last one."""
    out, low, k = t.new_zeros(len(t), *at.shape), at.floor(), t.shape[-1]
    scale = torch.special.i0(torch.tensor(KAISER, dtype=torch.float64))
    for tap in range(1 - REACH, REACH + 1):
        index = low + tap
        u = at - index
        window = torch.special.i0(KAISER * (1.0 - (u / REACH).square()).clamp_min(0.0).sqrt()) / scale
        value = torch.sinc(u) * window * ((index >= 0) & (index < k))
        chosen = index.long().clamp(0, k - 1).expand(len(t), -1, -1).to(t.device)
        out += t.gather(-1, chosen) * value.to(device=t.device, dtype=t.real.dtype)
    return out
