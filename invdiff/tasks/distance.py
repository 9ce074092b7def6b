"""How far an image is from what a prior was trained on.

    ratio(sigma) = rms of D(x + sigma n, sigma) - x   /   the same over the prior's own images

A prior denoises what it knows better than what it does not. The denominator comes from the prior's card (its `facts`), or from
draws where a prior can be drawn from exactly; where there is neither, nothing is said.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..core import Denoiser, Streams
from ..priors.network import denoising_error

__all__ = ["LIMIT", "distance_from_prior"]

LIMIT = 1.5
"""A ratio above it is called far, unless images of the prior itself spread that much (three standard deviations)."""

_DRAWS = 8


def distance_from_prior(prior: Denoiser, images: Tensor, *, seed: int = 0) -> dict[str, Any] | None:
    """Compare images on the prior's grid, (B, *shape), with what the prior expects.

    The card is `prior.facts["denoising_error"]`: lists `sigma` and `rms`, and `spread`, the standard deviation of the rms
    between images. Images should be truths or draws: a posterior mean is smoother than anything the prior knows.

    Returns:
        sigma, rms, expected and ratio (lists), the largest ratio as `worst`, whether that is `far`; None without a reference.
    """
    reference = _card(prior) or _draws(prior, images)
    if reference is None:
        return None
    sigmas, expected, spread = reference
    found = denoising_error(prior, images, sigmas, seed=seed)
    ratio = [a / b for a, b in zip(found, expected, strict=True)]
    far = any(r > max(LIMIT, 1.0 + 3.0 * s / e) for r, s, e in zip(ratio, spread, expected, strict=True))
    return {"sigma": sigmas, "rms": found, "expected": expected, "ratio": ratio, "worst": max(ratio), "far": far}


def _card(prior: Denoiser) -> tuple[list[float], list[float], list[float]] | None:
    card = getattr(prior, "facts", {}).get("denoising_error")
    if not card:
        return None
    # far below the data's scale every denoiser leaves x as it is, far above it the error is the image itself
    scale = float(getattr(prior, "sigma_data", 1.0))
    spread = card.get("spread", [0.0] * len(card["sigma"]))
    rows = [row for row in zip(card["sigma"], card["rms"], spread, strict=True) if 0.02 * scale < row[0] < 2.0 * scale]
    return tuple(map(list, zip(*rows, strict=True))) if rows else None  # type: ignore[return-value]


def _draws(prior: Denoiser, like: Tensor) -> tuple[list[float], list[float], list[float]] | None:
    sample = getattr(prior, "sample", None)
    if sample is None:
        return None
    draws = sample(Streams(0, range(_DRAWS))).to(like)
    scale = float(draws.std())
    sigmas = [f * scale for f in (0.05, 0.2, 0.8)]
    each = torch.tensor([denoising_error(prior, d[None], sigmas, seed=k) for k, d in enumerate(draws)], dtype=torch.float64)
    if not bool((each > 0).all()):
        return None
    rms = each.square().mean(0).sqrt()
    return sigmas, rms.tolist(), (each.std(0) * math.sqrt(1.0 + 1.0 / _DRAWS)).tolist()
