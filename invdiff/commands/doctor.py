"""`invdiff doctor`: versions, devices, threads, kernels, and whether the packaged weights are what they were when shipped."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator
from importlib import resources
from typing import Any

import torch

from .. import __version__
from ..configs import names, read
from ..kernels import enabled

__all__ = ["examine", "text"]

_PACKAGES = ("torch", "numpy", "scipy", "PyWavelets", "nibabel", "h5py", "hydra-core", "omegaconf", "matplotlib", "safetensors")


def examine() -> dict[str, Any]:
    """The facts, as JSON can hold them; `ok` is False when weights are missing or altered."""
    weights = list(_weights())
    return {
        "ok": all(w["state"] == "ok" for w in weights),
        "versions": {"invdiff": __version__, "python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "system": f"{platform.system()} {platform.machine()}",
        "devices": _devices(),
        "threads": {"cpus": os.cpu_count(), "torch": torch.get_num_threads()},
        "kernels": {
            "triton": _version("triton") if torch.cuda.is_available() else None,
            "mkl": torch.backends.mkl.is_available(),
            "switched on": ", ".join(sorted(enabled())) or None,
        },
        "weights": weights,
    }


def text(facts: dict[str, Any]) -> str:
    """The facts for reading."""
    lines = ["  ".join(f"{name} {version or '-'}" for name, version in facts["versions"].items())]
    lines += [f"system   {facts['system']}, {facts['threads']['cpus']} CPUs, torch uses {facts['threads']['torch']} threads"]
    lines += [f"devices  {', '.join(facts['devices'])}"]
    lines += ["kernels  " + ", ".join(f"{name}: {_yes(value)}" for name, value in facts["kernels"].items())]
    lines += [f"weights  {w['of']}: {w['file']} {w['state']}" for w in facts["weights"]] or ["weights  none packaged"]
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            found.append(f"cuda:{index} ({card.name}, {card.total_memory / 2**30:.0f} GiB)")
    return found + (["mps"] if torch.backends.mps.is_available() else [])


def _yes(value: object) -> str:
    return {True: "yes", False: "no", None: "no"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)


def _weights() -> Iterator[dict[str, str]]:
    """Every file with a hash that a packaged prior or sampler names, once."""
    folder, seen = resources.files("invdiff.priors") / "weights", set()
    for path in [f"{group}/{name}" for group in ("prior", "sampler") for name in names(group)]:
        for config in _files(read(path)):
            file = config["file"]
            if file in seen:
                continue
            seen.add(file)
            if not (folder / file).is_file():
                state = "is missing: install invdiff again"
            else:
                found = hashlib.sha256((folder / file).read_bytes()).hexdigest()
                state = "ok" if found == config["sha256"] else f"is altered (sha256 {found[:12]}...): install invdiff again"
            yield {"of": path.split("/")[1], "file": file, "state": state}


def _files(config: Any) -> Iterator[dict[str, Any]]:
    """The parts of a configuration that name a file and its hash."""
    if isinstance(config, dict):
        if {"file", "sha256"} <= set(config):
            yield config
        for value in config.values():
            yield from _files(value)
