"""Weights to begin with: those of another network that fit, by name and shape.

A larger network of the same kind takes over what it shares with a smaller one (a U-Net with one more scale, or with attention
where there was none: all convolutions of the scales that both have), and keeps its initial values elsewhere. What was taken is
counted in the log of the run, in the facts of its weights and on its card. The noise coordinate is a part of what a network has
learnt, so that the preconditioning has to be the same; sigma_data and mean are units, which training adapts to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..priors.files import read
from .objectives import Model

__all__ = ["Start", "Started", "start_from"]


@dataclass(frozen=True)
class Start:
    """A file of weights to begin with.

    Args:
        path: what `EDMDenoiser.save` or `Autoencoder.save` wrote.
        name: what the log and the card call it; the path if empty.
        sha256: expected hash of the file, hexadecimal; None to accept any.
    """

    path: str | Path
    name: str = ""
    sha256: str | None = None

    @property
    def label(self) -> str:
        """The name, or else the path."""
        return self.name or str(self.path)


@dataclass(frozen=True)
class Started:
    """What was made of the weights to begin with, as names of tensors.

    Attributes:
        taken: copied into the network.
        missing: of the network, that keep their initial values.
        unused: of the source, that fit nothing.
        sha256: of the file, if it was one.
    """

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    sha256: str | None = None

    def facts(self, label: str) -> dict[str, Any]:
        """What the weights remember of it."""
        counts = {"taken": len(self.taken), "of": len(self.taken) + len(self.missing), "unused": len(self.unused)}
        return {"from": label, **counts} | ({} if self.sha256 is None else {"sha256": self.sha256})


def start_from(denoiser: Model, source: Start | str | Path | Mapping[str, Tensor]) -> Started:
    """Copy into the network the tensors of a file, or of a state dictionary, whose name and shape are those of its own.

    Args:
        denoiser: or an autoencoder; changed in place.
        source: of a state dictionary nothing but names and shapes is compared.

    Raises:
        DataError: the file is missing, damaged, or not the expected one.
        ConfigError: it is of another kind of network, of another preconditioning, or none of its tensors fits.
    """
    own, what, found = denoiser.net.state_dict(), "the given tensors", None
    if isinstance(source, Mapping):
        weights = dict(source)
    else:
        start = source if isinstance(source, Start) else Start(source)
        header, weights = read(start.path, lambda *parts: parts, who="start_from", sha256=start.sha256)
        what, found = start.label, hashlib.sha256(Path(start.path).read_bytes()).hexdigest()
        _require_same(header, denoiser.header, what)
    taken = [name for name, t in weights.items() if name in own and own[name].shape == t.shape]
    if not taken:
        raise ConfigError(
            f"start_from: none of the {len(weights)} tensors of {what} has a name and a shape of the network's own"
        )
    with torch.no_grad():
        for name in taken:
            own[name].copy_(weights[name])
    missing, unused = (tuple(name for name in names if name not in set(taken)) for names in (own, weights))
    return Started(tuple(taken), missing, unused, found)


def _require_same(found: Mapping[str, Any], mine: Mapping[str, Any], what: str) -> None:
    # files from before these entries are of a U-Net, preconditioned as in EDM
    for key, default in (("network", "UNet"), ("preconditioning", "edm")):
        theirs, own = found.get(key, default), mine.get(key, default)
        if theirs != own:
            raise ConfigError(
                f"start_from: {what} has {key} {theirs}, the network to be trained {own}: start from one of its own kind"
            )
