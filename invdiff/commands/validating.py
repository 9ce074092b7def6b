"""`invdiff validate`: what is asked for, run, printed, and written where a folder is given."""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection
from pathlib import Path

from ..core.errors import ConfigError

__all__ = ["FLAGS", "validate"]

FLAGS = ("--quick", "--json", "--sizes", "--gate")


def validate(flags: Collection[str], out: str | None = None, *, progress: bool = False) -> tuple[str, bool]:
    """What to print, and whether all is as claimed.

    Args:
        flags: of `FLAGS`: --quick for a quarter of the draws; --json to print numbers; --sizes and --gate for these tables
            instead of the samplers' own.
        out: a folder for validation.json, .md and .html.
        progress: bars on standard error.

    Raises:
        ConfigError: before the run, where the folder can't be made.
    """
    if out is not None and not (Path(out).is_dir() or (Path(out).parent.is_dir() and not Path(out).exists())):
        raise ConfigError(f"validate: expected out to be a folder, or a new one in a folder that exists, got {out}")
    validation = importlib.import_module("invdiff.validation")
    rows, sizes, gate = [], [], []
    if "--sizes" in flags:
        sizes = validation.sizes(n=250 if "--quick" in flags else 1000, progress=progress)
    if "--gate" in flags:
        gate = validation.gate(repeats=2 if "--quick" in flags else 5, progress=progress)
    if not {"--sizes", "--gate"} & set(flags):
        rows = validation.run(quick="--quick" in flags, progress=progress)
    results = validation.Results(rows=rows, sizes=sizes, gate=gate)
    if out is not None:
        results.save(out)
    return (json.dumps(results.numbers if sizes or gate else rows, indent=2) if "--json" in flags else results.text), results.ok
