"""The file format of our networks: safetensors whose metadata says what the weights are of.

The metadata has one entry, a JSON dictionary: the class and the arguments that make the network again, its units, and facts
such as data, licence and measured errors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError
from ..core.files import atomic

__all__ = ["read", "write"]

_KEY = "invdiff.network"
_STORED = (None, torch.float32, torch.float16, torch.bfloat16)
Made = TypeVar("Made")


def write(path: str | Path, state: Mapping[str, Tensor], header: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
    """Write weights and what they are, whole or not at all.

    Args:
        header: anything that JSON can hold.
        dtype: of the stored weights, float32, float16 or bfloat16; None as they are.

    Raises:
        ConfigError: the header is no JSON, the dtype is another, or a weight is beyond its range.
        DataError: the file can't be written.
    """
    from safetensors.torch import save

    if dtype not in _STORED:
        raise ConfigError(f"save: expected weights stored as float32, float16 or bfloat16, got {dtype}")
    weights = {name: t.detach().cpu().to(dtype or t.dtype).contiguous() for name, t in state.items()}
    for name, t in weights.items():
        if not t.isfinite().all():
            raise ConfigError(f"save: {name} is not finite as {t.dtype}: nothing was written")
    try:
        blob = save(weights, metadata={_KEY: json.dumps(header, allow_nan=False)})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"save: the facts can't be written as JSON: {error}") from None
    with atomic(path, parents=True) as part:
        part.write_bytes(blob)


def read(path: str | Path, make: Callable[[dict[str, Any], dict[str, Tensor]], Made], *, who: str, sha256: str | None) -> Made:
    """What `make` makes of the header and the weights of a file.

    Args:
        make: (header, weights) -> the network; what it can't do with them (KeyError, TypeError, ValueError, RuntimeError) is
            reported as a fault of the file.
        who: the caller, for messages.
        sha256: expected hash of the file, hexadecimal; None to accept any.

    Raises:
        DataError: the file is missing, truncated, not one of these, or has another hash.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        blob = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{who}: can't read {path}: {error.strerror}") from None
    found = hashlib.sha256(blob).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise DataError(f"{who}: {path} is truncated or altered: expected sha256 {sha256}, found {found}: get the file again")
    try:
        weights = load(blob)
        size = int.from_bytes(blob[:8], "little")
        return make(json.loads(json.loads(blob[8 : 8 + size])["__metadata__"][_KEY]), weights)
    except SafetensorError as error:
        raise DataError(f"{who}: {path} is truncated or no safetensors file ({error})") from None
    except KeyError as error:
        raise DataError(f"{who}: {path} is no network of invdiff: its metadata has no {error}") from None
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{who}: {path} describes a network that its weights do not fit ({reason})") from None
