"""Sheets of draws, to look at while a network trains: always the same noise, so that one sees the network change.

Draws on the probability-flow ODE by Heun's method. On the sheet black is the 1 % quantile of its values and white the 99 % one;
channels stand below each other, of volumes the middle slice is shown, curves are bands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..core.denoiser import Condition
from ..core.files import atomic
from ..core.problem import Problem
from ..priors.conditional import Given
from ..priors.network import EDMDenoiser
from ..samplers import Guided

__all__ = ["draw", "write_sheet"]


def draw(
    denoiser: EDMDenoiser,
    shape: Sequence[int],
    count: int,
    conditions: Sequence[Condition] | None = None,
    *,
    seed: int,
    steps: int,
) -> Tensor:
    """Draws of a prior, each for its condition, where it has one; (count, *shape), on the CPU."""
    device = next(denoiser.parameters()).device
    blank = Problem.unmeasured(tuple(shape))
    problem = Problem(blank.operator, blank.noise.to(device), blank.y.to(device))
    sampler = Guided(steps=steps)
    if conditions is None:
        return sampler(problem, denoiser, n=count, batch=16, seed=seed).x.cpu()
    condition = {key: torch.stack([c[key] for c in conditions]).to(device) for key in conditions[0]}
    return sampler(problem, Given(denoiser, condition), n=count, seed=seed).x.cpu()


def write_sheet(draws: Tensor, path: Path) -> None:
    """Write draws (n, C, *spatial) side by side as a grey PNG."""
    from PIL import Image

    low, high = torch.quantile(draws.flatten()[:: math.ceil(draws.numel() / 10**6)], torch.tensor([0.01, 0.99])).tolist()
    grey = ((draws - low) / max(high - low, 1e-30) * 255).clamp(0, 255).round().to(torch.uint8)
    planes = [torch.cat([torch.nn.functional.pad(_plane(c), (1, 1, 1, 1)) for c in item]) for item in grey]
    columns = math.ceil(math.sqrt(len(planes)))
    planes += [torch.zeros_like(planes[0])] * (-len(planes) % columns)
    rows = [torch.cat(planes[i : i + columns], dim=1) for i in range(0, len(planes), columns)]
    with atomic(path) as part:
        Image.fromarray(torch.cat(rows).numpy()).save(part, format="PNG")


def _plane(x: Tensor) -> Tensor:
    """One channel as an image."""
    while x.ndim > 2:
        x = x[len(x) // 2]
    return x.expand(16, -1) if x.ndim == 1 else x
