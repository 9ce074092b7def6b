"""What the commands that build from one configuration have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..core.errors import ConfigError

__all__ = ["require_given", "torch_threads"]


def require_given(config: Mapping[str, Any], parts: Sequence[str], who: str) -> None:
    """Raise a ConfigError that names what the parts of a configuration leave to the user, `???`."""
    if missing := [name for part in parts for name in _missing(config.get(part), part)]:
        have = "has" if len(missing) == 1 else "have"
        raise ConfigError(f"{who}: {' and '.join(missing)} {have} to be given, as in {missing[0]}=VALUE")


def _missing(config: object, name: str) -> Iterator[str]:
    if config == "???":
        yield name
    for key, value in config.items() if isinstance(config, dict) else ():
        yield from _missing(value, f"{name}.{key}")


@contextmanager
def torch_threads(count: int | None, who: str) -> Iterator[None]:
    """So many threads of torch inside the block; None leaves the number as it is."""
    before = torch.get_num_threads()
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ConfigError(f"{who}: expected threads >= 1, got {count!r}")
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
