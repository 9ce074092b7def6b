"""What a trained autoencoder, or a reconstruction network, says about itself: data, licence, recipe, and its errors.

    rms = sqrt(mean |decode(encode(x)) - x|^2)       over held-out images and pixels, and the PSNR for the images' extent

with the mean and the root mean square about it of the latents, which a latent prior needs, and the noise that they bear. Of a
reconstruction network the PSNR, for the images' extent, of A^T y / L^2 and of the estimate, for each of its measurements. Of a
regression network the mean of |F(a) - u| / |u| and its standard deviation between items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.files import atomic
from ..priors.autoencoder import Autoencoder
from ..priors.regression import Regression
from .batches import Source, split
from .card import card_head
from .unrolled import EndToEnd

__all__ = [
    "describe_autoencoder",
    "describe_end_to_end",
    "describe_regression",
    "write_autoencoder_card",
    "write_end_to_end_card",
    "write_regression_card",
]


@torch.no_grad()
def describe_autoencoder(
    autoencoder: Autoencoder, held_out: Callable[[int], Tensor], count: int, facts: Mapping[str, str]
) -> Autoencoder:
    """Add to the facts the error on images 0, ..., count - 1 of a held-out source, and what the recipe says in words."""
    device = next(autoencoder.parameters()).device
    images = torch.stack([held_out(k) for k in range(count)])
    pairs = [autoencoder.posterior(x[None].to(device)) for x in images]
    z, v = (torch.cat(parts).cpu() for parts in zip(*pairs, strict=True))
    decoded = torch.cat([autoencoder.decode(m).cpu() for m, _ in pairs])
    error = (decoded - images).square().flatten(1).mean(1)
    extent = images.flatten(1).amax(1) - images.flatten(1).amin(1)
    found = {
        "rms": error.mean().sqrt(),
        "psnr": (10.0 * (extent.square() / error).log10()).mean(),
        "latent_mean": z.mean(),
        "latent_rms": (z - z.mean()).square().mean().sqrt(),
        "latent_noise": v.mean(),
    }
    table = {key: round(float(value), 5) for key, value in found.items()}
    autoencoder.facts = {**autoencoder.facts, **facts, "reconstruction": {**table, "images": count}}
    return autoencoder


def write_autoencoder_card(autoencoder: Autoencoder, name: str, path: str | Path) -> None:
    """The facts as a page of Markdown."""
    facts, found = autoencoder.facts, autoencoder.facts["reconstruction"]
    parameters = sum(p.numel() for p in autoencoder.parameters())
    network = (
        f"{parameters / 1e6:.2f} M parameters, `{autoencoder.architecture}`, sigma_data {autoencoder.sigma_data:g}, "
        f"fidelity {autoencoder.fidelity:g}"
    )
    lines = [
        *card_head(name, facts, network),
        f"On {found['images']} held-out images: error of decode(encode(x)) {found['rms']:.4f} (root mean square, data units), "
        f"{found['psnr']:.1f} dB for the images' extent. Latents: mean {found['latent_mean']:.3f}, root mean square about it "
        f"{found['latent_rms']:.3f}, noise {found['latent_noise']:.3f}.",
    ]
    with atomic(path, parents=True) as part:
        part.write_text("\n".join(lines) + "\n")


@torch.no_grad()
def describe_end_to_end(model: EndToEnd, held_out: Callable[[int], Tensor], count: int, facts: Mapping[str, str]) -> EndToEnd:
    """Add to the facts the errors on images 0, ..., count - 1 of a held-out source, and what the recipe says in words."""
    device = next(model.parameters()).device
    images = torch.stack([held_out(k) for k in range(count)]).to(device)
    extent = images.flatten(1).amax(1) - images.flatten(1).amin(1)
    rows = []
    for number, name in enumerate(model.names):
        rough, fine = model.errors(images, number)
        rows.append({"measurement": name} | {k: _decibels(extent, e) for k, e in (("adjoint", rough), ("network", fine))})
    model.facts = {**model.facts, **facts, "measurements": rows, "noise": model.noise, "images": count}
    return model


def write_end_to_end_card(model: EndToEnd, name: str, path: str | Path) -> None:
    """The facts as a page of Markdown."""
    facts, network = model.facts, model.network
    parameters = sum(p.numel() for p in network.parameters())
    about = f"{parameters / 1e6:.2f} M parameters, `{network.header['architecture']}`, of `{network.header['denoiser']}`"
    lines = [
        *card_head(name, facts, about),
        f"Mean PSNR in dB, for the images' extent, of {facts['images']} held-out images; noise {facts['noise']:g}:",
        "",
        "| measurement | A^T y / L^2 | network |",
        "|---|---|---|",
        *(f"| {r['measurement']} | {r['adjoint']:.2f} | {r['network']:.2f} |" for r in facts["measurements"]),
    ]
    with atomic(path, parents=True) as part:
        part.write_text("\n".join(lines) + "\n")


@torch.no_grad()
def describe_regression(model: Regression, held_out: Source, count: int, facts: Mapping[str, str]) -> Regression:
    """Add to the facts the errors on items 0, ..., count - 1 of a held-out source, and what the recipe says in words."""
    device = next(model.parameters()).device
    errors = []
    for k in range(count):
        field, told = split(held_out(k))
        if told is None:
            raise ConfigError("describe_regression: expected items (field, {concat: what is told})")
        errors.append(model.losses(field[None].to(device), told["concat"][None].to(device)))
    each = torch.cat(errors)
    table = {"mean": round(float(each.mean()), 6), "spread": round(float(each.std()), 6), "items": count}
    model.facts = {**model.facts, **facts, "relative_l2": table}
    return model


def write_regression_card(model: Regression, name: str, path: str | Path) -> None:
    """The facts as a page of Markdown."""
    found = model.facts["relative_l2"]
    parameters = sum(p.numel() for p in model.parameters())
    lines = [
        *card_head(name, model.facts, f"{parameters / 1e6:.2f} M parameters, `{model.header['architecture']}`"),
        f"Relative L2 error on {found['items']} held-out items: {found['mean']:.4f}, standard deviation between them "
        f"{found['spread']:.4f}.",
    ]
    with atomic(path, parents=True) as part:
        part.write_text("\n".join(lines) + "\n")


def _decibels(extent: Tensor, rms: Tensor) -> float:
    return round(float((20.0 * (extent / rms).log10()).mean()), 3)
