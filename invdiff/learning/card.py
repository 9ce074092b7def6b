"""What a trained prior says about itself: data, licence, recipe, and its denoising error at every noise level.

    rms(sigma) = sqrt(mean |D(x0 + sigma n, sigma) - x0|^2)      over held-out images and pixels

beside the error of the best linear shift-invariant denoiser of the same images (the Wiener filter for their own power
spectrum P),

    wiener(sigma)^2 = mean_k P(k) sigma^2 / (P(k) + sigma^2),

which a network that has learnt no more than second moments can't beat. `spread` is the standard deviation of the rms between
images: what is normal, for the question how far another image is from the prior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.files import atomic
from ..priors.network import EDMDenoiser, denoising_error

__all__ = ["SIGMAS", "describe", "error_table", "write_card"]

SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


def error_table(denoiser: EDMDenoiser, images: Tensor, *, seed: int = 0) -> dict[str, list[float]]:
    """sigma, rms, spread and wiener (lists) on held-out images (N, C, H, W), N >= 2."""
    sigmas = [s for s in SIGMAS if denoiser.sigma_min <= s <= denoiser.sigma_max]
    each = torch.tensor([denoising_error(denoiser, x[None], sigmas, seed=seed + k) for k, x in enumerate(images)])
    deviation = images - images.mean((0, 2, 3), keepdim=True)
    spectrum = torch.fft.fft2(deviation.double(), norm="ortho").abs().square().mean(0)
    wiener = [float((spectrum * s**2 / (spectrum + s**2)).mean().sqrt()) for s in sigmas]
    columns = {"rms": each.square().mean(0).sqrt(), "spread": each.std(0)}
    columns |= {"sigma": torch.tensor(sigmas), "wiener": torch.tensor(wiener)}
    return {key: [round(v, 6) for v in column.tolist()] for key, column in columns.items()}


def describe(denoiser: EDMDenoiser, held_out: Callable[[int], Tensor], count: int, facts: Mapping[str, str]) -> EDMDenoiser:
    """Add to the facts the error on images 0, ..., count - 1 of a held-out source, and what the recipe says in words."""
    images = torch.stack([held_out(k) for k in range(count)])
    denoiser.facts = {**denoiser.facts, **facts, "denoising_error": {**error_table(denoiser, images), "images": count}}
    return denoiser


def write_card(denoiser: EDMDenoiser, name: str, path: str | Path) -> None:
    """The facts as a page of Markdown."""
    facts: dict[str, Any] = denoiser.facts
    errors = facts["denoising_error"]
    parameters = sum(p.numel() for p in denoiser.parameters())
    lines = [f"# {name}", "", facts.get("about", ""), ""]
    lines += [f"- **{key}**: {facts[key]}" for key in ("data", "held out", "licence", "limits") if key in facts]
    lines += [
        f"- **network**: {parameters / 1e6:.2f} M parameters, `{denoiser.net.architecture}`, "
        f"sigma_data {denoiser.sigma_data:g}, noise levels {denoiser.sigma_min:g} to {denoiser.sigma_max:g}",
        f"- **training**: {facts['step']} steps, `{facts['training']}`",
        *([f"- **cost**: {facts['cost']}"] if "cost" in facts else []),
        f"- **reproduce**: `invdiff train prior={name}`",
        "",
        f"Denoising error on {errors['images']} held-out images (root mean square, data units), and that of the Wiener filter "
        "for their own power spectrum:",
        "",
        "| sigma | network | spread between images | Wiener | network / Wiener |",
        "|---|---|---|---|---|",
    ]
    for s, rms, spread, wiener in zip(errors["sigma"], errors["rms"], errors["spread"], errors["wiener"], strict=True):
        lines.append(f"| {s:g} | {rms:.4f} | {spread:.4f} | {wiener:.4f} | {rms / wiener:.2f} |")
    with atomic(path, parents=True) as part:
        part.write_text("\n".join(lines) + "\n")
