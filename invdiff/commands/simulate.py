"""`invdiff simulate`: a data set from a configuration of the group `set`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..catalogue import require_device
from ..core.build import build, check
from ..core.errors import ConfigError
from ..generators.sources import Generator
from ..generators.store import simulate
from .options import require_given, torch_threads

__all__ = ["from_config"]

_OPTIONS = ("count", "first", "chunk", "dtype", "device", "resume", "progress")


def from_config(config: Mapping[str, Any], out: Path, allow: Sequence[str] = ()) -> Path:
    """Build the generator that the configuration describes and write its samples; the path of the file."""
    known = ("generator", "out", "threads", *_OPTIONS)
    if unknown := sorted(set(config) - {"name", *known}):
        raise ConfigError(f"simulate: unknown option {', '.join(unknown)}; it takes {', '.join(known)}")
    require_given(config, ("generator",), f"simulate set={config['name']}")
    options = {key: config[key] for key in _OPTIONS}
    check(simulate, options, partial=True)
    require_device(options["device"], "simulate")
    generator = build(config["generator"], allow)
    if not isinstance(generator, Generator):
        raise ConfigError(f"simulate: expected generator to be a data set such as DarcyFlow, got {config['generator']!r}")
    options["progress"] = options["progress"] and sys.stderr.isatty()
    with torch_threads(config["threads"], "simulate"):
        return simulate(generator, out=out, **options)
