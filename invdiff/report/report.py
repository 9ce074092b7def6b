"""The report of a run: summary, table, and the folder that is written in one piece."""

from __future__ import annotations

import io
import json
import math
import os
import platform
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import ConfigError, DataError
from ..io import hdf5_bytes
from ..kernels.dispatch import enabled
from .model import COST, LEVEL, METRICS, Estimate, Item
from .render import page, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report", "environment"]

# a misfit (chi^2 per measured value) that approximations and small noise don't explain
ASTRAY = 10.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """The report of a run.

    Args:
        task: its name.
        items: what was reconstructed.
        seed: of the run.
        config: the resolved configuration, nested dictionaries of plain values.
        units: of the unknown, for labels; "" for none.
        device: what it ran on, "cpu" or "cuda".
        notes: what a reader has to know about the run.
        facts: further numbers for report.json.
        figures: caption -> figure, shown before the standard ones; the first of all is figure.png.
        extra: file name -> function that writes the file to the path it gets: further results to put beside the report.
    """

    task: str
    items: Sequence[Item]
    seed: int
    config: Mapping[str, Any] = field(default_factory=dict)
    units: str = ""
    device: str = "cpu"
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    extra: Mapping[str, Callable[[Path], object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [item.name for item in self.items]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"Report of {self.task}: expected items with different names, got {names}")

    def summary(self) -> dict[str, dict[str, Any]]:
        """For each method: mean and standard error over the items of every metric, and the mean cost of an item."""
        rows: dict[str, list[tuple[Item, Estimate]]] = {}
        for item in self.items:
            for estimate in item.estimates:
                rows.setdefault(estimate.method, []).append((item, estimate))
        result = {}
        for method, pairs in rows.items():
            metrics = [item.metrics(estimate) for item, estimate in pairs]
            costs = [estimate.cost for _, estimate in pairs]
            result[method] = {
                "kind": _kind(pairs[0][1]),
                "items": len(pairs),
                **{
                    key: dict(zip(("mean", "standard_error"), _mean([m[key] for m in metrics]), strict=True)) for key in METRICS
                },
                "cost": {key: _mean([c[key] for c in costs])[0] for key in COST},
            }
        return result

    def all_notes(self) -> list[str]:
        """The notes of the run and of the items, and those that the numbers themselves call for."""
        notes = list(self.notes)
        notes += [f"{item.name}: {note}" if len(self.items) > 1 else note for item in self.items for note in item.notes]
        last = [item.estimates[-1] for item in self.items]
        if any(item.truth is None for item in self.items):
            notes.append("No truth is known: only the misfit to the measurement can be judged.")
        if any(e.samples is not None and e.samples.kind == "point" for e in last):
            notes.append(f"{last[0].method} gives a point estimate: no interval, no coverage.")
        astray = [e.misfit for e in last if e.misfit is not None and not e.misfit <= ASTRAY]
        if astray:
            notes.append(
                f"The misfit of {last[0].method} is {max(astray):.4g}, where a right estimate has 1: it does not explain the "
                "measurement. Trust neither the image nor its intervals."
            )
        few = [len(e.samples) for e in last if e.has_spread and len(e.samples) < 19]
        if few:
            notes.append(f"The intervals come from {min(few)} draws: they extrapolate, and 19 draws or more would not.")
        if len(self.items) == 1:
            notes.append("One item: the metrics have no standard error.")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """What report.json holds: plain values, null for what does not exist or is not finite."""
        items = [
            {
                "name": item.name,
                "shape": list(item.estimates[-1].image.shape),
                "data_range": item.data_range,
                "has_truth": item.truth is not None,
                "notes": list(item.notes),
                "methods": {
                    e.method: {
                        "kind": _kind(e),
                        **item.metrics(e),
                        "cost": e.cost,
                        "facts": {k: v for k, v in e.facts.items() if k not in COST},
                    }
                    for e in item.estimates
                },
            }
            for item in self.items
        ]
        return _plain(
            {
                "schema": 1,
                "task": self.task,
                "seed": self.seed,
                "units": self.units,
                "device": self.device,
                "interval": LEVEL,
                "methods": self.summary(),
                "items": items,
                "facts": self.facts,
                "notes": self.all_notes(),
                "config": self.config,
                "environment": environment(),
            }
        )

    def table(self) -> str:
        """A table for the terminal: one row for each method, means over the items."""
        return text_table(self.summary())

    def write(self, out: str | Path) -> Path:
        """Write the folder `out`, whole or not at all.

        Everything is written to a hidden folder inside `out` first and moved into place at the end; other files there stay, and
        so does an older report when anything fails.

        Raises:
            DataError: the system could not write.
        """
        target = Path(out)
        new = not target.exists()
        part = target / f".part-{secrets.token_hex(4)}"
        try:
            part.mkdir(parents=True)
            self._write(part)
            _move(part, target)
        except BaseException as error:
            shutil.rmtree(target if new else part, ignore_errors=True)
            if isinstance(error, OSError) and not isinstance(error, DataError):
                raise DataError(f"{target}: the report can't be written: {error.strerror or error}") from error
            raise
        return target

    def _write(self, folder: Path) -> None:
        import yaml

        facts = self.to_dict()
        images = self._images()
        (folder / "figure.png").write_bytes(next(iter(images.values())))
        (folder / "report.html").write_text(page(facts, images), encoding="utf-8")
        (folder / "config.yaml").write_text(
            yaml.safe_dump(facts["config"], sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        (folder / "environment.json").write_text(json.dumps(facts["environment"], indent=2, allow_nan=False) + "\n")
        (folder / "samples.h5").write_bytes(
            hdf5_bytes(self._arrays(), {"task": self.task, "seed": self.seed, "units": self.units})
        )
        for name, writer in self.extra.items():
            writer(folder / name)
        (folder / "report.json").write_text(
            json.dumps(facts, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    def _images(self) -> dict[str, bytes]:
        from ..plot import calibration_figure, reconstruction_figure

        figures = dict(self.figures)
        figures["Reconstruction"] = reconstruction_figure(self.items, units=self.units)
        calibrated = [item for item in self.items if item.truth is not None and item.estimates[-1].has_spread]
        if calibrated:
            figures["Calibration"] = calibration_figure(calibrated, units=self.units)
        images = {}
        for caption, figure in figures.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=150)
            images[caption] = buffer.getvalue()
        return images

    def _arrays(self) -> dict[str, Any]:
        arrays: dict[str, Tensor] = {}
        for item in self.items:
            group = item.name.replace("/", "_")
            if item.truth is not None:
                arrays[f"{group}/truth"] = item.truth
            for e in item.estimates:
                place = f"{group}/{e.method.replace('/', '_')}"
                arrays[f"{place}/mean" if e.samples is not None else f"{place}/estimate"] = e.image
                if e.samples is not None:
                    arrays[f"{place}/draws"] = e.samples.x
                if e.has_spread:
                    arrays[f"{place}/std"] = e.samples.std
                    arrays |= {f"{place}/quantile_{q:02.0f}": e.samples.quantile(q / 100) for q in (5, 50, 95)}
        return {name: tensor.detach().cpu().numpy() for name, tensor in arrays.items()}


def environment() -> dict[str, Any]:
    """Versions and hardware that a result may depend on; nothing that tells whose machine it is."""
    versions = {}
    for name in ("invdiff", "torch", "numpy", "scipy", "matplotlib", "h5py", "nibabel", "PyWavelets", "hydra-core"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "kernels": sorted(enabled()),
        "versions": versions,
    }


def _kind(estimate: Estimate) -> str:
    return "baseline" if estimate.samples is None else estimate.samples.kind


def _mean(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean of the values that exist, and its standard error where there are two or more."""
    known = [float(v) for v in values if v is not None]
    if not known:
        return None, None
    mean = math.fsum(known) / len(known)
    if len(known) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1) / len(known))


def _plain(value: Any) -> Any:
    """The same in dictionaries, lists, strings, numbers; None for a float that is not finite."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Tensor) or hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _move(part: Path, target: Path) -> None:
    """Put the files of `part` into `target`, or leave `target` as it was."""
    files, old = sorted(part.iterdir()), part / ".old"
    old.mkdir()
    there = {path.name for path in files if (target / path.name).exists()}
    try:
        for path in files:
            with path.open("r+b") as stream:
                os.fsync(stream.fileno())
            if path.name in there:
                (target / path.name).replace(old / path.name)
            path.replace(target / path.name)
    except BaseException:
        for path in files:
            if (old / path.name).exists():
                (old / path.name).replace(target / path.name)
            elif path.name not in there:
                (target / path.name).unlink(missing_ok=True)
        raise
    shutil.rmtree(part)
