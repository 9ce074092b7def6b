"""What a trained prior says about itself: data, licence, recipe, its error at every noise level, its distance from the data.

    rms(sigma) = sqrt(mean |D(x0 + sigma n, sigma) - x0|^2)      over held-out items and their elements

beside the error of the best linear shift-invariant denoiser of the same items (the Wiener filter for their own power
spectrum P),

    wiener(sigma)^2 = mean_k P(k) sigma^2 / (P(k) + sigma^2),

which a network that has learnt no more than second moments can't beat. `spread` is the standard deviation of the rms between
items: what is normal, for the question how far another one is from the prior.

The two-sample table compares draws of the prior with half of the held-out items, and the other half of them with it: the floor,
what a perfect prior would get. Layouts (block means) and textures (second moments of patches) each by a kernel test, and the
ratio of the radially averaged power spectra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.denoiser import Condition
from ..core.errors import ConfigError
from ..core.files import atomic
from ..metrics.two_sample import coarse, patch_moments, radial_spectrum, two_sample_test
from ..priors.conditional import Given
from ..priors.network import EDMDenoiser, denoising_error
from .batches import Source, split
from .sheets import draw

__all__ = ["SIGMAS", "card_head", "describe", "distance_table", "error_table", "write_card"]

SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


def error_table(
    denoiser: EDMDenoiser, images: Tensor, conditions: Sequence[Condition | None] | None = None, *, seed: int = 0
) -> dict[str, list[float]]:
    """sigma, rms, spread and wiener (lists) on held-out items (N, C, *spatial), N >= 2, with their conditions if they have."""
    sigmas = [s for s in SIGMAS if denoiser.sigma_min <= s <= denoiser.sigma_max]
    rows = []
    for k, (image, condition) in enumerate(zip(images, conditions or [None] * len(images), strict=True)):
        prior = (
            denoiser if condition is None else Given(denoiser, {key: v[None].to(image.device) for key, v in condition.items()})
        )
        rows.append(denoising_error(prior, image[None], sigmas, seed=seed + k))
    each, dims = torch.tensor(rows), tuple(range(2, images.ndim))
    deviation = images - images.mean((0, *dims), keepdim=True)
    spectrum = torch.fft.fftn(deviation.double(), dim=dims, norm="ortho").abs().square().mean(0)
    wiener = [float((spectrum * s**2 / (spectrum + s**2)).mean().sqrt()) for s in sigmas]
    columns = {"rms": each.square().mean(0).sqrt(), "spread": each.std(0)}
    columns |= {"sigma": torch.tensor(sigmas), "wiener": torch.tensor(wiener)}
    return {key: [round(v, 6) for v in column.tolist()] for key, column in columns.items()}


def distance_table(draws: Tensor, images: Tensor, *, seed: int = 0) -> dict[str, Any]:
    """How far draws (n, C, *spatial) are from held-out items (2 n, C, *spatial): for layout and texture the squared kernel
    distance and its p-value, with the floor, and for the spectrum the ratio of the powers by frequency (cycles per pixel).
    """
    half, other = images[: len(images) // 2], images[len(images) // 2 :]
    if len(half) != len(draws) or len(other) != len(draws):
        raise ConfigError(f"distance_table: expected two items for each draw, got {len(images)} items and {len(draws)} draws")
    table: dict[str, Any] = {"draws": len(draws)}
    for name, feature in (("layout", coarse), ("texture", patch_moments)):
        found, floor = (two_sample_test(feature(x), feature(half), seed=seed) for x in (draws, other))
        table[name] = {"mmd2": round(found.mmd2, 6), "p": found.p, "floor_mmd2": round(floor.mmd2, 6), "floor_p": floor.p}
    (frequency, power), (_, first), (_, second) = (radial_spectrum(x) for x in (draws, half, other))
    ratios = {"frequency": frequency, "ratio": power / first, "floor": second / first}
    return table | {"spectrum": {key: [round(v, 5) for v in column.tolist()] for key, column in ratios.items()}}


def describe(
    denoiser: EDMDenoiser, held_out: Source, count: int, facts: Mapping[str, str], *, draws: int = 0, seed: int = 0
) -> EDMDenoiser:
    """Add to the facts the error on items 0, ..., count - 1 of a held-out source, and what the recipe says in words.

    Args:
        draws: of the prior, to compare with the first `draws` items, as the next `draws` of them are; 0 for no comparison. A
            conditional prior draws for the conditions of the latter, so that draws and floor have the same ones.
    """
    items, conditions = zip(*(split(held_out(k)) for k in range(max(count, 2 * draws))), strict=True)
    images, given = torch.stack(items), None if conditions[0] is None else list(conditions)
    device = next(denoiser.parameters()).device
    table = error_table(denoiser, images[:count].to(device), given and given[:count], seed=seed)
    denoiser.facts = {**denoiser.facts, **facts, "denoising_error": {**table, "images": count}}
    if draws:
        made = draw(denoiser, images.shape[1:], draws, given and given[draws : 2 * draws], seed=seed, steps=50)
        denoiser.facts["two_sample"] = distance_table(made, images[: 2 * draws], seed=seed)
    return denoiser


def card_head(name: str, facts: Mapping[str, Any], network: str) -> list[str]:
    """The lines that every card begins with: what it is, data, licence, limits, the network in words, training and cost."""
    start = facts.get("start")
    again = f" start={start['from']}" if start else ""
    return [
        f"# {name}",
        "",
        facts.get("about", ""),
        "",
        *(f"- **{key}**: {facts[key]}" for key in ("data", "held out", "licence", "limits") if key in facts),
        f"- **network**: {network}",
        f"- **training**: {facts['step']} steps, `{facts['training']}`",
        *([f"- **start**: {_start(start)}"] if start else []),
        *([f"- **cost**: {facts['cost']}"] if "cost" in facts else []),
        f"- **reproduce**: `invdiff train prior={name}{again}`",
        "",
    ]


def _start(start: Mapping[str, Any]) -> str:
    """What the run began with, as a line of the card."""
    origin = start["from"] + (f" (sha256 {start['sha256']})" if "sha256" in start else "")
    return f"from {origin}: {start['taken']} of {start['of']} tensors; {start['unused']} of its own fit nothing here"


def write_card(denoiser: EDMDenoiser, name: str, path: str | Path, *, figure: str | None = None) -> None:
    """The facts as a page of Markdown.

    Args:
        figure: name of the picture beside the page; None for a page without.
    """
    facts: dict[str, Any] = denoiser.facts
    errors = facts["denoising_error"]
    parameters = sum(p.numel() for p in denoiser.parameters())
    network = (
        f"{parameters / 1e6:.2f} M parameters, `{denoiser.net.architecture}`, sigma_data {denoiser.sigma_data:g}, noise levels "
        f"{denoiser.sigma_min:g} to {denoiser.sigma_max:g}"
    )
    lines = [
        *card_head(name, facts, network),
        *([f"![denoising error by noise level]({figure})", ""] if figure else []),
        f"Denoising error on {errors['images']} held-out images (root mean square, data units), and that of the Wiener filter "
        "for their own power spectrum:",
        "",
        "| sigma | network | spread between images | Wiener | network / Wiener |",
        "|---|---|---|---|---|",
    ]
    for s, rms, spread, wiener in zip(errors["sigma"], errors["rms"], errors["spread"], errors["wiener"], strict=True):
        lines.append(f"| {s:g} | {rms:.4f} | {spread:.4f} | {wiener:.4f} | {rms / wiener:.2f} |")
    if "two_sample" in facts:
        lines += ["", *_distances(facts["two_sample"])]
    with atomic(path, parents=True) as part:
        part.write_text("\n".join(lines) + "\n")


def _distances(table: Mapping[str, Any]) -> list[str]:
    n = table["draws"]
    lines = [
        f"Distance of {n} draws from {n} held-out images (squared kernel distance, p-value of the permutation test), and of "
        f"{n} other held-out images from the same:",
        "",
        "| | draws | p | held out | p |",
        "|---|---|---|---|---|",
    ]
    for name in ("layout", "texture"):
        row = table[name]
        lines.append(f"| {name} | {row['mmd2']:.4f} | {row['p']:.3f} | {row['floor_mmd2']:.4f} | {row['floor_p']:.3f} |")
    spectrum = table["spectrum"]
    return [
        *lines,
        "",
        f"Power spectrum of the draws over that of the images: between {min(spectrum['ratio']):.2f} and "
        f"{max(spectrum['ratio']):.2f} (held-out images: {min(spectrum['floor']):.2f} to {max(spectrum['floor']):.2f}).",
    ]
