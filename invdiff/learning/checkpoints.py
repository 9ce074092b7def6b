"""The files from which a training run continues, exactly.

checkpoint.pt holds the whole state after a step: weights, averaged weights, optimiser, what the run began with, and the losses
that no line of the log holds yet. Noise and data order are functions of the step, so that there is no generator state. It is
read with `weights_only=True`. ema.safetensors are the averaged weights, for `load_network`.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ConfigError, DataError
from ..core.files import atomic, save
from .objectives import Model
from .settings import Training

__all__ = ["LATEST", "WEIGHTS", "restore", "start_anew", "store"]

LATEST, WEIGHTS = "checkpoint.pt", "ema.safetensors"
_OLDER = "checkpoint_{:06d}.pt"


def store(
    out: Path,
    step: int,
    denoiser: Model,
    average: Model,
    optimizer: torch.optim.Optimizer,
    training: Training,
    log: dict[str, Any],
    before: int,
) -> None:
    """Write averaged weights and checkpoint, each whole or not at all.

    Args:
        log: state of the log.
        before: step of the checkpoint that is there; with `training.keep` > 1 it stays under a name with that step.
    """
    average.facts |= {"training": asdict(training), "step": step}
    average.save(out / WEIGHTS)
    if training.keep > 1:
        _keep(out, before, training.keep - 1)
    state = {
        "step": step,
        "training": asdict(training),
        "model": denoiser.header,
        "net": denoiser.net.state_dict(),
        "average": average.net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "log": log,
        "start": average.facts.get("start"),
    }
    # last, so that the log and the averaged weights are never behind the checkpoint
    save(out / LATEST, state)


def restore(
    out: Path, denoiser: Model, average: Model, optimizer: torch.optim.Optimizer, training: Training
) -> tuple[int, dict[str, Any]]:
    """Load the checkpoint, if there is one; the number of steps done, and the state of the log.

    What the run began with goes into the facts of `average`.

    Raises:
        DataError: the file is damaged or of something else.
        ConfigError: it is of another run, or of another network.
    """
    path = out / LATEST
    if not path.exists():
        return 0, {}
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        settings, step = state["training"], state["step"]
    except Exception as error:  # torch.load raises at least five kinds for a damaged file
        raise DataError(f"fit: {path} is no checkpoint of a training ({type(error).__name__} while reading it)") from None
    if found := training.differs(settings):
        raise ConfigError(f"fit: {path} was made with {found}: use another folder or resume=False")
    if step > training.steps:
        raise ConfigError(f"fit: {path} is already at step {step}, past steps={training.steps}")
    # checkpoints from before the header was kept have none
    if found := _differs(state.get("model", denoiser.header), denoiser.header):
        raise ConfigError(f"fit: {path} is of another network, with {found}: use another folder or resume=False")
    try:
        denoiser.net.load_state_dict(state["net"])
        average.net.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise ConfigError(f"fit: {path} is of another network ({str(error).splitlines()[0]})") from None
    if state.get("start"):
        average.facts["start"] = state["start"]
    return int(step), state.get("log", {})


def _differs(found: dict[str, Any], mine: dict[str, Any]) -> str | None:
    """How a model with that header is another one than mine; None if it is not."""
    found, mine = ({**header, **header["architecture"]} for header in (found, mine))
    names = [name for name in {**mine, **found} if name != "architecture" and found.get(name) != mine.get(name)]
    return f"{names[0]}={found.get(names[0])}, not {mine.get(names[0])}" if names else None


def start_anew(out: Path) -> None:
    """Remove the numbered checkpoints of an earlier run, which a new one would take for its own."""
    for path in _older(out):
        path.unlink()


def _keep(out: Path, step: int, count: int) -> None:
    """Copy the checkpoint there is to its numbered name, and remove all but the last `count` of those."""
    if (out / LATEST).exists() and step:
        with atomic(out / _OLDER.format(step)) as part:
            shutil.copyfile(out / LATEST, part)
    for path in _older(out)[:-count]:
        path.unlink()


def _older(out: Path) -> list[Path]:
    """The numbered checkpoints, the oldest first."""
    found = [(re.fullmatch(r"checkpoint_(\d{6,})\.pt", path.name), path) for path in out.glob("checkpoint_*.pt")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]
