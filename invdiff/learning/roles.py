"""The file from which a distillation continues, exactly: one safetensors file of all roles, optimisers and the open log line.

The tensors are student.*, target.*, average.*, rival.* (weights), optimizer.NAME.K.* (state of the K-th parameter) and log.*;
the metadata, JSON, say the step, the settings, the student's header and a checksum of the teacher.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, DataError
from ..priors.files import read, write

if TYPE_CHECKING:
    from .distillation import Distillation

__all__ = ["LATEST", "restore_roles", "store_roles"]

LATEST = "distillation.safetensors"

Optimizers = Mapping[str, torch.optim.Optimizer]


def store_roles(
    path: Path,
    step: int,
    roles: Mapping[str, nn.Module],
    optimizers: Optimizers,
    settings: Distillation,
    model: dict[str, Any],
    teacher: nn.Module,
    log: dict[str, Any],
) -> None:
    """Write the state after a step, whole or not at all.

    Args:
        model: the student's header.
        log: state of the journal, with `opinions` for the discriminator's.

    Raises:
        DataError: the file can't be written.
    """
    tensors = {f"{role}.{name}": t for role, module in roles.items() for name, t in module.state_dict().items()}
    for label, optimizer in optimizers.items():
        for k, parameter in enumerate(_parameters(optimizer)):
            tensors |= {f"optimizer.{label}.{k}.{name}": t for name, t in optimizer.state[parameter].items()}
    lists = {name: rows for name, rows in log.items() if isinstance(rows, list)}
    tensors |= {f"log.{name}.{k:06d}": t for name, rows in lists.items() for k, t in enumerate(rows)}
    header = {
        "step": step,
        "distillation": asdict(settings),
        "model": model,
        "teacher": _checksum(teacher),
        "seconds": log["seconds"],
    }
    write(path, tensors, header)


def restore_roles(
    out: Path,
    roles: Mapping[str, nn.Module],
    optimizers: Optimizers,
    settings: Distillation,
    model: dict[str, Any],
    teacher: nn.Module,
) -> tuple[int, dict[str, Any]]:
    """Load the state, if there is one; the number of steps done, and the state of the log.

    Raises:
        DataError: the file is damaged or of something else.
        ConfigError: it is of another run, another network or another teacher.
    """
    path = out / LATEST
    if not path.exists():
        return 0, {}

    def make(header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {name: header[name] for name in ("step", "distillation", "model", "teacher", "seconds")}, tensors

    header, tensors = read(path, make, who="distil", sha256=None)
    found = settings.differs(header["distillation"])
    names = [name for name in model if header["model"].get(name) != model[name]]
    if found is None and names:
        found = f"a student of {names[0]}={header['model'].get(names[0])}, not {model[names[0]]}"
    if found is None and header["teacher"] != _checksum(teacher):
        found = "another teacher"
    if found is not None:
        raise ConfigError(f"distil: {path} was made with {found}: use another folder or resume=False")
    if header["step"] > settings.steps:
        raise ConfigError(f"distil: {path} is already at step {header['step']}, past steps={settings.steps}")
    try:
        for role, module in roles.items():
            module.load_state_dict(_under(tensors, f"{role}."))
        for label, optimizer in optimizers.items():
            for k, parameter in enumerate(_parameters(optimizer)):
                state = _under(tensors, f"optimizer.{label}.{k}.")
                optimizer.state[parameter] = {name: _like(parameter, t) for name, t in state.items()}
    except (KeyError, RuntimeError) as error:
        raise DataError(f"distil: {path} has not the weights that it says ({str(error).splitlines()[0]})") from None
    rows = {name: list(_under(tensors, f"log.{name}.").values()) for name in ("steps", "items", "opinions")}
    return int(header["step"]), {"seconds": header["seconds"], **rows}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of a prefix, without it, in the order of their names."""
    return {name.removeprefix(prefix): tensors[name] for name in sorted(tensors) if name.startswith(prefix)}


def _like(parameter: Tensor, state: Tensor) -> Tensor:
    """A moment in the parameter's memory format, whose sums it must repeat to the bit; a count of steps as it is."""
    return torch.empty_like(parameter).copy_(state) if state.shape == parameter.shape else state


def _checksum(module: nn.Module) -> str:
    total = hashlib.sha256(repr(module).encode())
    for name, t in sorted(module.state_dict().items()):
        total.update(name.encode() + t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
