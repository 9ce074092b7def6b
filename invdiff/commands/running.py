"""`invdiff run`: from a composed configuration to a report."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..catalogue import Plan, Run
from ..core.build import check
from ..core.errors import ConfigError

if TYPE_CHECKING:
    from ..report import Report

__all__ = ["run"]


def run(config: Mapping[str, Any], out: Path, allow: Sequence[str] = ()) -> Report:
    """Check the run's own options, build task, prior and sampler, and run."""
    options = {f.name: config.get(f.name, f.default) for f in fields(Run)} | {"out": str(out)}
    check(Run, options)
    given = Run(**options)
    parts = {key: value for key, value in config.items() if key not in options}
    if unknown := sorted(set(parts) - {"task", "prior", "sampler"}):
        raise ConfigError(f"run: unknown option {', '.join(unknown)}; it takes task, prior, sampler, {', '.join(options)}")
    try:
        return Plan.from_config(parts, allow).run(**asdict(given) | {"progress": given.progress and sys.stderr.isatty()})
    finally:
        # the jobs of a sweep share a process
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
