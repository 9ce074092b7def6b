"""A student beside its teacher on held-out items: errors, distance of the laws, and time; the card of a distilled model.

Of one draw for each item, given its condition: PSNR and SSIM against the item, and the Frechet distance between the quarters of
the draws and those of the items, so that 64 items are 256 images. PSNR and Frechet distance disagree by nature: the mean of the
posterior has the best PSNR and no texture. Both are reported. Seconds are those of the whole sampler for one item, the median
over batches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import Problem, Sampler
from ..core.denoiser import Condition, Denoiser
from ..core.files import atomic
from ..metrics import fid, psnr, ssim
from ..priors.conditional import Given
from ..priors.consistency import ConsistencyModel
from ..priors.network import EDMDenoiser
from ..samplers import Euler, Guided, Multistep
from .batches import Source, split
from .card import card_head

__all__ = ["compare", "describe_student", "write_student_card"]

STEPS = (1, 2, 4, 8)


def compare(
    teacher: Denoiser,
    student: ConsistencyModel,
    images: Tensor,
    conditions: Sequence[Condition | None],
    *,
    teacher_steps: int = 250,
    steps: Sequence[int] = STEPS,
    data_range: float = 1.0,
    batch: int = 8,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows of model, steps, psnr, ssim, fid (with its bias for this number of images) and seconds for each image.

    Args:
        images: (N, C, H, W), at least 25 of 16 x 16 pixels; of less than 49 the bias of the distance is nan. conditions: of
            each, or None for all.
        teacher_steps: of the probability flow by Euler's rule (DDIM), an evaluation each.
        data_range: of PSNR and SSIM.
        batch: draws made at once; another one is another set of draws.

    Raises:
        ShapeError: too few images or too small ones, or conditions for some of them only.
    """
    samplers: list[tuple[str, Denoiser, Sampler]] = [("teacher", teacher, Guided(steps=teacher_steps, integrator=Euler()))]
    samplers += [("student", student, Multistep(steps=k)) for k in steps]
    rows, tiles = [], _quarters(images)
    for name, model, sampler in samplers:
        drawn, seconds = _draws(model, sampler, images, conditions, batch, seed)
        found = fid(_quarters(drawn), tiles)
        rows.append(
            {
                "model": name,
                "steps": sampler.steps,
                "psnr": float(psnr(drawn, images, data_range).mean()),
                "ssim": float(ssim(drawn, images, data_range).mean()),
                "fid": found.distance,
                # not known of few images
                "fid_bias": None if math.isnan(found.bias) else found.bias,
                "seconds": seconds,
            }
        )
    return rows


def _draws(
    model: Denoiser, sampler: Sampler, images: Tensor, conditions: Sequence[Condition | None], batch: int, seed: int
) -> tuple[Tensor, float]:
    """One draw for each item, and seconds for one, the median over batches."""
    device = next(model.parameters()).device
    blank = Problem.unmeasured(tuple(images.shape[1:]), device=device)
    made, seconds = [], []
    for first in range(0, len(images), batch):
        told = [c for c in conditions[first : first + batch] if c is not None]
        count, prior = len(images[first : first + batch]), model
        if told:
            prior = Given(model, {key: torch.stack([c[key] for c in told]).to(device) for key in told[0]})
        drawn = sampler(blank, prior, count, seed=seed + first)
        made.append(drawn.x.cpu())
        seconds.append(drawn.seconds / count)
    return torch.cat(made), statistics.median(seconds)


def _quarters(images: Tensor) -> Tensor:
    """Four tiles of each image."""
    rows, columns = (n // 2 for n in images.shape[2:])
    tiles = images[..., : 2 * rows, : 2 * columns].unfold(2, rows, rows).unfold(3, columns, columns)
    return tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def describe_student(
    student: ConsistencyModel, teacher: EDMDenoiser, held_out: Source, count: int, facts: Mapping[str, str]
) -> ConsistencyModel:
    """Add to the facts the comparison on items 0, ..., count - 1 of a held-out source, and what the recipe says in words."""
    items, conditions = zip(*(split(held_out(k)) for k in range(count)), strict=True)
    rows = compare(teacher.to(next(student.parameters()).device), student, torch.stack(items), list(conditions))
    student.facts = {**student.facts, **facts, "comparison": rows, "images": count}
    return student


def write_student_card(student: ConsistencyModel, name: str, path: str | Path) -> None:
    """The facts as a page of Markdown."""
    facts: dict[str, Any] = student.facts
    parameters = sum(p.numel() for p in student.parameters())
    network = (
        f"{parameters / 1e6:.2f} M parameters, `{student.net.architecture}`, sigma_data {student.sigma_data:g}, noise levels "
        f"{student.sigma_min:g} to {student.sigma_max:g}"
    )
    lines = [
        *card_head(name, facts, network),
        f"One draw for each of {facts['images']} held-out items: PSNR (range 1), SSIM, Frechet distance of 96 random "
        "convolutional features (not Inception's) between quarters of draws and of items, seconds for an item:",
        "",
        "| model | evaluations | PSNR, dB | SSIM | Frechet | seconds | times faster |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = facts["comparison"]
    for row in rows:
        numbers = f"{row['psnr']:.2f} | {row['ssim']:.3f} | {row['fid']:.4f} | {row['seconds']:.3f}"
        lines.append(f"| {row['model']} | {row['steps']} | {numbers} | {rows[0]['seconds'] / row['seconds']:.0f} |")
    with atomic(path, parents=True) as part:
        part.write_text("\n".join(lines) + "\n")
