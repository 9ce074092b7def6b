"""`invdiff train`: a network prior from a configuration of the group `train`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..catalogue import require_device
from ..core.build import build, check
from ..core.errors import ConfigError
from ..core.files import require_writable
from ..learning import Training, describe, fit, write_card
from ..priors.network import EDMDenoiser

__all__ = ["from_config", "train"]


def from_config(config: Mapping[str, Any], out: Path, allow: Sequence[str] = ()) -> Path:
    """Build what the configuration describes and train it; the path of the weights."""
    for part in ("source", "network", "training", "card"):
        for key, value in (config.get(part) or {}).items():
            if value == "???":
                raise ConfigError(f"train prior={config['name']}: {part}.{key} has to be given, as in {part}.{key}=VALUE")
    options = {key: config[key] for key in ("device", "threads", "resume", "progress")}
    check(train, options, partial=True)
    options["progress"] = options["progress"] and sys.stderr.isatty()
    parts = {part: build(config.get(part), allow) for part in ("source", "network", "training", "card")}
    check(train, {"name": config["name"], "out": out} | parts | options)
    return train(config["name"], **parts, out=out, **options)


def train(
    name: str,
    source: Callable[[int], Tensor],
    network: EDMDenoiser,
    training: Training,
    *,
    out: Path,
    card: Mapping[str, Any] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    resume: bool = True,
    progress: bool = True,
) -> Path:
    """Train, or continue from the checkpoint in `out`; the path of the weights, which `load_network` reads.

    Args:
        card: `held_out`, a source of images that were not trained on, `images`, how many of them, and lines about data and
            licence. With it, the weights carry their denoising error, and NAME.md beside them is their model card.
        threads: of torch while it trains; None leaves its own choice.
    """
    require_device(device, "train")
    require_writable(out)
    images = 32 if card is None else card.get("images", 32)
    if not isinstance(images, int) or images < 1 or (card is not None and not callable(card.get("held_out"))):
        raise ConfigError(f"train: expected card to have a source held_out and images >= 1, got images={images!r}")
    with _threads(threads):
        trained = fit(network.to(device), source, training, out, progress=progress, resume=resume)
        if card is None:
            return out / "ema.safetensors"
        facts = {key: str(value) for key, value in card.items() if key not in ("held_out", "images")}
        trained.facts = {**trained.facts, "training": asdict(training), "step": training.steps}
        described = describe(trained.cpu(), card["held_out"], images, facts)
    described.save(out / f"{name}.safetensors")
    write_card(described, name, out / f"{name}.md")
    return out / f"{name}.safetensors"


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None and count < 1:
        raise ConfigError(f"train: expected threads >= 1, got {count}")
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
