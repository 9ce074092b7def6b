"""`invdiff train`: a network prior from a configuration of the group `train`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..catalogue import load, names, require_device
from ..core.build import build, check
from ..core.errors import ConfigError
from ..core.files import atomic, require_writable
from ..learning import (
    Distillation,
    EndToEnd,
    Start,
    Training,
    describe,
    describe_autoencoder,
    describe_end_to_end,
    describe_regression,
    describe_student,
    distil,
    fit,
    write_autoencoder_card,
    write_card,
    write_end_to_end_card,
    write_regression_card,
    write_student_card,
)
from ..learning.batches import Batch, Item, Source, split
from ..learning.distributed import Team, processes
from ..learning.interrupts import termination_interrupts
from ..learning.objectives import KINDS, Model, item_losses
from ..priors.autoencoder import Autoencoder
from ..priors.despeckler import Despeckler
from ..priors.network import EDMDenoiser
from ..priors.regression import Regression
from ..priors.shipped import shipped_file
from .options import require_given, torch_threads

__all__ = ["beginning", "from_config", "train"]

_PARTS = ("source", "network", "training", "card")


def from_config(config: Mapping[str, Any], out: Path, allow: Sequence[str] = ()) -> Path:
    """Build what the configuration describes and train it; the path of the weights."""
    if "distillation" in config:
        # a student's settings stand in place of those that every training has
        config = {**config, "training": config["distillation"]}
    require_given(config, _PARTS, f"train prior={config['name']}")
    options = {key: config[key] for key in ("device", "threads", "resume", "start", "progress")}
    check(train, options, partial=True)
    options["progress"] = options["progress"] and sys.stderr.isatty()
    parts = {part: build(config.get(part), allow) for part in _PARTS}
    check(train, {"name": config["name"], "out": out} | parts | options)
    return train(config["name"], **parts, out=out, **options)


def train(
    name: str,
    source: Source,
    network: Model,
    training: Training | Distillation,
    *,
    out: Path,
    card: Mapping[str, Any] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    resume: bool = True,
    start: str | None = None,
    progress: bool = True,
) -> Path:
    """Train, or continue from the checkpoint in `out`; the path of the weights, which `load_network` reads,
    `load_autoencoder` those of an autoencoder, `load_idm` those of a reconstruction network, `load_regression` those of a
    regression network. Where `training` is a `Distillation`, `network` is the teacher, and `load_consistency` reads the weights
    of its student.

    Started by torchrun, the processes share the work, and process 0 writes.

    Args:
        card: `held_out`, a source of images that were not trained on, `images`, how many of them, at least 2, `draws`, how many
            draws of the prior to compare with twice as many of them (not of an autoencoder), and lines about data and licence.
            With it, the weights carry their denoising error, and NAME.md beside them, with the curve NAME.png, is their model
            card.
        threads: of torch while it trains; None leaves its own choice.
        start: weights to begin with, those that fit: the name of a packaged prior, or a file that an earlier training wrote.

    Raises:
        InvdiffError: the held-out images do not fit the network, before it is trained; and what `fit` raises.
    """
    require_device(device, "train")
    require_writable(out)
    origin = None if start is None else beginning(start)
    images, draws = (32, 0) if card is None else (card.get("images", 32), card.get("draws", 0))
    if not _count(images) or not (draws == 0 or _count(draws)) or (card is not None and not callable(card.get("held_out"))):
        found = f"images={images!r}, draws={draws!r}"
        raise ConfigError(f"train: expected card to have a source held_out, images >= 2, and draws 0 or >= 2, got {found}")
    if not isinstance(network, EDMDenoiser) and draws:
        raise ConfigError(f"train: {KINDS[type(network)]} makes no draws: leave card.draws out")
    if isinstance(network, Despeckler) and card is not None:
        raise ConfigError("train: there is no card of a despeckler, whose training has no clean image: leave card out")
    if isinstance(training, Distillation) and (start is not None or "WORLD_SIZE" in os.environ):
        raise ConfigError("train: a student begins with its teacher, in one process: leave start and torchrun out")
    facts = {key: str(value) for key, value in (card or {}).items() if key not in ("held_out", "images", "draws")}
    with torch_threads(threads, "train"), termination_interrupts(), processes(device) as own:
        if isinstance(training, Distillation):
            return _distil(name, source, network.to(own), training, out, card, facts, resume=resume, progress=progress)
        if card is not None:
            _try(network.to(own), card["held_out"](0), training, own)
        trained = fit(network.to(own), source, training, out, progress=progress, resume=resume, start=origin)
        if card is None:
            return out / "ema.safetensors"
        if not Team.here(torch.device(own)).writes:
            return out / f"{name}.safetensors"
        trained.facts = {**trained.facts, "training": asdict(training), "step": training.steps}
        if isinstance(trained, Autoencoder):
            write_autoencoder_card(describe_autoencoder(trained, card["held_out"], images, facts), name, out / f"{name}.md")
        elif isinstance(trained, EndToEnd):
            write_end_to_end_card(describe_end_to_end(trained, card["held_out"], images, facts), name, out / f"{name}.md")
        elif isinstance(trained, Regression):
            write_regression_card(describe_regression(trained, card["held_out"], images, facts), name, out / f"{name}.md")
        else:
            described = describe(trained, card["held_out"], images, facts, draws=draws)
            _curve(described, out / f"{name}.png")
            write_card(described, name, out / f"{name}.md", figure=f"{name}.png")
    trained.save(out / f"{name}.safetensors")
    return out / f"{name}.safetensors"


def _distil(
    name: str,
    source: Source,
    teacher: Model,
    settings: Distillation,
    out: Path,
    card: Mapping[str, Any] | None,
    facts: Mapping[str, str],
    **options: bool,
) -> Path:
    """The student of a teacher, with its card."""
    if not isinstance(teacher, EDMDenoiser):
        raise ConfigError(f"train: expected network to be the teacher, an EDMDenoiser, got {type(teacher).__name__}")
    student = distil(teacher, source, settings, out, **options)
    if card is None:
        return out / "ema.safetensors"
    student.facts = {**student.facts, "training": asdict(settings), "step": settings.steps}
    student.bf16, teacher.bf16 = False, False
    write_student_card(
        describe_student(student, teacher, card["held_out"], card.get("images", 32), facts), name, out / f"{name}.md"
    )
    student.save(out / f"{name}.safetensors")
    return out / f"{name}.safetensors"


def _count(value: object) -> bool:
    """Whether it is a number of images, of which one has no spread."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 2


def beginning(start: str) -> Start:
    """The file that a name or a path stands for."""
    known = names("prior")
    if start not in known:
        if not Path(start).suffix and not Path(start).exists():
            raise ConfigError(f"train: start={start} is neither a file nor a packaged prior; there are {', '.join(known)}")
        return Start(start)
    networks = list(_networks(load("prior", start)))
    if len(networks) != 1:
        raise ConfigError(f"train: start={start}: that prior is no network, and has no weights to begin with")
    return Start(shipped_file(networks[0]["file"]), start, networks[0]["sha256"])


def _networks(config: object) -> Iterator[dict[str, Any]]:
    """The packaged networks that a configuration names."""
    if isinstance(config, dict):
        if config.get("_target_") == "invdiff.priors.shipped":
            yield config
        for value in config.values():
            yield from _networks(value)


@torch.no_grad()
def _try(network: Model, item: Item, training: Training, device: str) -> None:
    """The network on a held-out item: what does not fit shows now rather than after hours."""
    image, condition = split(item)
    x, given = image[None].to(device), condition and {key: value[None].to(device) for key, value in condition.items()}
    item_losses(network.eval(), Batch(x, x, x.new_full((1,), network.sigma_data), given), objective=training.objective)


def _curve(described: EDMDenoiser, path: Path) -> None:
    from ..plot import denoising_figure

    with atomic(path) as part:
        denoising_figure(described.facts["denoising_error"]).savefig(part, dpi=150)
