"""Weights from files, and into a network that the user declares.

    tensors, facts = read_weights("net.safetensors", sha256="...")          # or .pt, .pth, .bin with key="state_dict"
    net = load_into(MyNet(), tensors, rename=lambda name: name.replace("conv_layers", "convs"))

Nothing but tensors is ever read: safetensors, or `torch.load(weights_only=True)`, which refuses a pickle that would run code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, DataError

__all__ = ["load_into", "read_weights"]

_TORCH = (".pt", ".pth", ".bin", ".ckpt")
Net = TypeVar("Net", bound=nn.Module)


def read_weights(
    path: str | Path, *, key: str | None = None, sha256: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, on the CPU and in the dtype they are stored in, and what its header says about them.

    Args:
        path: .safetensors, or a file of `torch.save`: .pt, .pth, .bin, .ckpt (whose header says nothing).
        key: entry of a torch file that holds the tensors, such as "state_dict" or "model"; None if the file holds nothing else.
        sha256: expected hash of the file, hexadecimal; None to accept any.

    Raises:
        DataError: the file is missing, truncated or altered, has no such key, or holds other things than tensors.
        ConfigError: the suffix is another one, or a key is given for a safetensors file.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", *_TORCH):
        raise ConfigError(f"read_weights: expected a file of {', '.join(('.safetensors', *_TORCH))}, got {path}")
    if path.suffix == ".safetensors" and key is not None:
        raise ConfigError(f"read_weights: {path} holds tensors only and no entry {key!r}: leave key out")
    _check_file(path, sha256)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    content = _torch(path)
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            raise DataError(f"read_weights: {path} has no entry {key!r}, it holds {_held(content)}")
        content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        where = f"entry {key!r} of {path}" if key else str(path)
        raise DataError(
            f"read_weights: expected {where} to hold named tensors only, found {_held(content)}: give the right key="
        )
    return {str(name): t.detach() for name, t in content.items()}, {}


def load_into(
    net: Net,
    tensors: Mapping[str, Tensor],
    *,
    strip: str = "module.",
    rename: Callable[[str], str | None] | None = None,
) -> Net:
    """Put tensors into a network, every one and nothing missing.

    Args:
        strip: prefix that is taken off if all names have it, as those saved from `DataParallel` do.
        rename: from a name in the file, prefix off, to one in the network; None for a tensor that is left out on purpose.

    Returns:
        net itself, in evaluation mode and frozen.

    Raises:
        DataError: a tensor is missing, unexpected, or has another shape (the network is then as it was), or two have one name.
    """
    prefix = strip if tensors and all(name.startswith(strip) for name in tensors) else ""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(prefix)
        new = short if rename is None else rename(short)
        if new is None:
            continue
        if new in renamed:
            raise DataError(f"load_into: {name} and another tensor of the file are both renamed to {new}")
        renamed[new] = tensor
    own = net.state_dict()
    shapes = [
        f"{name} {tuple(renamed[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in renamed and renamed[name].shape != own[name].shape
    ]
    faults = {
        "missing": [name for name in own if name not in renamed],
        "unexpected": [name for name in renamed if name not in own],
        "of another shape": shapes,
    }
    if any(faults.values()):
        found = "; ".join(f"{len(names)} {what} ({_few(names)})" for what, names in faults.items() if names)
        raise DataError(f"load_into: the tensors do not fit {type(net).__name__}: {found}")
    net.load_state_dict(renamed)
    return net.eval().requires_grad_(False)


def _check_file(path: Path, sha256: str | None) -> None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while sha256 is not None and (part := stream.read(1 << 20)):
                digest.update(part)
    except OSError as error:
        raise DataError(f"read_weights: can't read {path}: {error.strerror}") from None
    if sha256 is not None and digest.hexdigest() != sha256.lower():
        raise DataError(
            f"read_weights: {path} is truncated or altered: expected sha256 {sha256}, found {digest.hexdigest()}: get it again"
        )


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"read_weights: {path} is truncated or no safetensors file ({error})") from None


def _torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or a refused pickle happens to raise
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            name = refused[1].rstrip(".")
            raise DataError(
                f"read_weights: {path} is refused: it holds a pickled {name}, which may run code: get the tensors alone"
            ) from None
        raise DataError(f"read_weights: {path} is truncated or no file of torch.save ({type(error).__name__})") from None


def _held(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return _few([f"{name} ({type(value).__name__})" for name, value in content.items()]) or "nothing"


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
