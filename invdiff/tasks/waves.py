"""How the tasks of waves measure their items: scattered by a contrast, or travelling through the ground.

A setup takes an item and returns the operator on its image; its other arguments are those of the experiment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..core import ConfigError, Operator, ShapeError
from ..operators.pde.scattering import BornScattering, LippmannSchwinger
from ..operators.pde.wave import AcousticWave, line
from ..operators.pointwise import Clip
from .data import Item

__all__ = ["depth_gradient", "full_waveform", "inverse_scattering"]


def inverse_scattering(
    item: Item,
    *,
    model: Literal["full", "born"] = "full",
    wavelength: float = 0.2,
    transmitters: int = 20,
    receivers: int = 90,
    radius: float = 3.0,
    low: float = -0.5,
    high: float = 1.0,
    tol: float = 1e-4,
    max_iter: int = 2000,
) -> Operator:
    """The contrast of an object in a square of side 1, seen by transmitters and receivers on a circle around it.

    Args:
        model: "full" for the Lippmann-Schwinger equation with all multiple scattering, "born" for its linear approximation.
        wavelength: in sides of the square, as `radius`.
        low, high: bounds outside of which the full model cuts the contrast off; a sampler may try values that no object has.
        tol, max_iter: of the solver; a tolerance far below the noise is enough.
    """
    _, n, m = _image("inverse_scattering", item)
    if n != m or item.shape[0] != 1:
        raise ShapeError(f"inverse_scattering: expected a square image (1, N, N), got {item.shape}")
    if model == "born":
        return BornScattering(
            n, length=1.0, wavelength=wavelength, transmitters=transmitters, receivers=receivers, radius=radius
        )
    if model != "full":
        raise ConfigError(f"inverse_scattering: expected model to be full or born, got {model!r}")
    scattering = LippmannSchwinger(
        n,
        length=1.0,
        wavelength=wavelength,
        transmitters=transmitters,
        receivers=receivers,
        radius=radius,
        tol=tol,
        max_iter=max_iter,
    )
    return scattering @ Clip(item.shape, low, high)


def full_waveform(
    item: Item,
    *,
    shots: int = 5,
    receivers: int = 32,
    spacing: float = 20.0,
    frequency: float = 8.0,
    time: float = 1.152,
    dt: float = 2.4e-3,
    every: int = 4,
    layer: int = 10,
    order: int = 4,
    low: float = 1400.0,
    high: float = 4600.0,
    memory: str = "full",
) -> Operator:
    """The velocity of the ground from waves of shots near the surface, recorded there.

    Args:
        shots, receivers: their numbers, one point below the first row at equal distances across its width.
        spacing: of the points, metres.
        frequency: of the Ricker wavelet, Hz.
        time: seconds recorded.
        dt: seconds of a step.
        every: steps between samples.
        layer, order: of `AcousticWave`.
        low, high: bounds in metres per second outside of which the velocity is cut off; a sampler may try values that no ground
            has.
        memory: policy of the derivative; "full" lets all products of a linearisation share one run.
    """
    _, n, m = _image("full_waveform", item)
    if item.shape[0] != 1 or not 0.0 < low < high:
        raise ConfigError(f"full_waveform: expected an image (1, H, W) and 0 < low < high, got {item.shape}, {low} and {high}")
    width, steps = spacing * (m - 1), every * round(time / (dt * every))
    inset = 0.5 * width / shots
    waves = AcousticWave(
        (n, m),
        line((spacing, inset), (spacing, width - inset), shots),
        line((spacing, 0.0), (spacing, width), receivers),
        spacing=spacing,
        dt=dt,
        steps=steps,
        frequency=frequency,
        order=order,
        layer=layer,
        fastest=high,
        every=every,
        memory=memory,
    )
    return waves @ Clip((1, n, m), low, high)


def depth_gradient(shape: Sequence[int], top: float, bottom: float) -> Tensor:
    """A field (1, H, 1) for an image of that shape, linear in depth: `top` and `bottom` are its values at the outer faces."""
    z = (torch.arange(shape[-2], dtype=torch.float64) + 0.5) / shape[-2]
    return (top + (bottom - top) * z)[None, :, None]


def _image(who: str, item: Item) -> tuple[int, int, int]:
    if len(item.shape) != 3:
        raise ShapeError(f"{who}: expected an image (1, H, W), got {item.shape}")
    return item.shape[0], item.shape[1], item.shape[2]
