"""Data sets of a generator in a file, written piece by piece.

    simulate(DarcyFlow(seed=3), 1000, "darcy.h5")       # a second call continues one that was interrupted, or does nothing

The file is HDF5: a dataset (count, *shape) for each field, in chunks of one sample, and as attributes of the file the
`generator` (module and class), its `fields` as JSON, the index of the `first` sample, `count`, `dtype`, the number of samples
that are `done`, and the `version` of the package. The attribute `grid_axes` of a dataset is how many of its last axes are those
of the grid: what the generator's own `grid_axes` says, else all after the first of a sample. Until the file is complete it is
NAME.part, of full size from the start: where the disk is too small, that shows before anything is computed. `done` is written
after the samples that it counts. An unfinished file is continued by the version of the package that began it alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EACCES, ENOSPC
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..core.errors import ConfigError, DataError, NumericalError, ShapeError
from ..core.files import atomic
from ..learning.interrupts import postponed, termination_interrupts
from .sources import Generator

__all__ = ["simulate"]


def simulate(
    generator: Generator,
    count: int,
    out: str | os.PathLike[str],
    *,
    first: int = 0,
    chunk: int = 64,
    dtype: Literal["float32", "float64"] = "float32",
    device: str = "cpu",
    progress: bool = False,
    resume: bool = True,
) -> Path:
    """Write the samples `first` to `first + count - 1` of a generator; the path of the file.

    An interruption, or the end of the process, costs the samples that are in work. Continued with the same `chunk`, the file
    is the uninterrupted one, bit for bit.

    Args:
        out: the file, .h5 or .hdf5, in a folder that exists.
        chunk: samples that are computed at once; samples depend on it to rounding.
        device: where they are computed.
        resume: continue NAME.part, and leave a complete file of the same samples as it is; False begins anew, and replaces the
            file when it is complete. A file of something else is never replaced.

    Raises:
        ConfigError: an option is out of range, or a file that is there holds something else, or was begun by another version of
            the package; the message names what differs.
        DataError: the file can't be written, or another process is at it.
        NumericalError: a sample is not finite; the message names field and index.
    """
    target = Path(out)
    _check(target, count, first, chunk, dtype)
    facts = _describe(generator) | {"first": first, "count": count, "dtype": dtype}
    part = target.with_name(f"{target.name}.part")
    if _there(target, facts, resume):
        return target
    begun = _there(part, facts, resume, unfinished=True)

    def samples(done: int) -> dict[str, NDArray[Any]]:
        indices = range(first + done, first + min(done + chunk, count))
        return _finite(generator, indices, generator(indices, dtype=getattr(torch, dtype), device=device))

    with termination_interrupts():
        # the first piece says which fields there are
        ahead = None if begun else samples(0)
        if ahead is not None:
            _create(part, ahead, facts, _grid_axes(generator, ahead))
        with _opened(part) as file:
            done = int(file.attrs["done"])
            with tqdm(total=count, initial=done, disable=not progress, unit="sample", dynamic_ncols=True) as bar:
                while done < count:
                    piece, ahead = samples(done) if ahead is None else ahead, None
                    with postponed(patient=True):
                        size = _write(file, part, done, piece)
                    done += size
                    bar.update(size)
    try:
        part.replace(target)
    except OSError as error:
        raise DataError(f"{target}: can't be written: {error.strerror or error}") from error
    return target


def _check(target: Path, count: int, first: int, chunk: int, dtype: str) -> None:
    if target.suffix.lower() not in (".h5", ".hdf5"):
        raise ConfigError(f"simulate: expected out to be the name of a file .h5 or .hdf5, got {str(target)!r}")
    for name, value, least in (("count", count, 1), ("first", first, 0), ("chunk", chunk, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"simulate: expected {name} >= {least}, got {value!r}")
    if dtype not in ("float32", "float64"):
        raise ConfigError(f"simulate: expected dtype to be float32 or float64, got {dtype!r}")
    if not target.parent.is_dir():
        raise DataError(f"{target}: there is no folder {target.parent}")


def _describe(generator: Generator) -> dict[str, Any]:
    """What makes two generators the same data set."""
    kind = type(generator)
    if not dataclasses.is_dataclass(generator):
        raise ConfigError(f"simulate: expected a generator that is a dataclass, got {kind.__qualname__}")
    try:
        fields = json.dumps(dataclasses.asdict(generator), sort_keys=True)
    except TypeError as error:
        raise ConfigError(f"simulate: {kind.__qualname__} can't be written down: {error}") from None
    return {"generator": f"{kind.__module__}.{kind.__qualname__}", "fields": fields}


def _there(path: Path, facts: Mapping[str, Any], resume: bool, *, unfinished: bool = False) -> bool:
    """Whether the file is there and of these samples; raises if it is of something else."""
    if not path.exists():
        return False
    found: dict[str, Any] = {}
    version = None
    if path.is_file():
        with _opened(path, "r") as file:
            found = {name: file.attrs[name] for name in facts if name in file.attrs}
            version = file.attrs.get("version")
    if found.keys() != facts.keys():
        raise ConfigError(f"simulate: {path} is there, and is no data set that simulate wrote: choose another file")
    if not resume:
        return False
    before, now = _flat(found), _flat(facts)
    for name in {**now, **before}:
        if (have := before.get(name)) != (want := now.get(name)):
            raise ConfigError(
                f"simulate: {path} was made with {name}={have}, not {want}: choose another file, or resume=false to begin anew"
            )
    # the rest would be of other samples wherever the generator has changed in between
    if unfinished and version != __version__:
        raise ConfigError(
            f"simulate: {path} was begun by version {version} of invdiff, not {__version__}: continue it with that one, or "
            "resume=false to begin anew"
        )
    return True


def _grid_axes(generator: Generator, fields: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """How many axes of each field are those of the grid."""
    declared = getattr(generator, "grid_axes", {})
    axes = {name: declared.get(name, max(values.ndim - 2, 0)) for name, values in fields.items()}
    for name, count in axes.items():
        most = max(fields[name].ndim - 2, 0)
        if not 0 <= count <= most:
            who = type(generator).__name__
            raise ConfigError(f"{who}: expected grid_axes of {name} from 0 to {most}, got {count}")
    return axes


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: int(facts[name]) for name in ("first", "count")}
    return {"generator": facts["generator"]} | json.loads(facts["fields"]) | numbers | {"dtype": facts["dtype"]}


def _finite(generator: Generator, indices: range, fields: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    who = type(generator).__name__
    for name, values in fields.items():
        if len(values) != len(indices):
            raise ShapeError(f"{who}: expected {len(indices)} samples of {name}, got {tuple(values.shape)}")
        bad = ~values.isfinite().flatten(1).all(1)
        if bad.any():
            raise NumericalError(f"{who}: {name} of sample {indices[int(bad.int().argmax())]} is not finite")
    return {name: values.cpu().numpy() for name, values in fields.items()}


def _create(part: Path, fields: Mapping[str, NDArray[Any]], facts: Mapping[str, Any], axes: Mapping[str, int]) -> None:
    """A file of full size without samples."""
    import h5py

    with atomic(part) as new:
        with h5py.File(new, "w") as file:
            for name, values in fields.items():
                # with all chunks allocated now, no structure of the file changes while samples are written: it can be killed
                plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
                shape = values.shape[1:]
                made = file.create_dataset(name, (facts["count"], *shape), values.dtype, chunks=(1, *shape), dcpl=plan)
                made.attrs["grid_axes"] = axes[name]
            file.attrs.update({**facts, "version": __version__})
            file.attrs.create("done", 0, dtype=np.int64)
        _reserve(new)


def _reserve(path: Path) -> None:
    """Blocks of the disk for the whole file, because the HDF5 library can crash the process when it meets a full disk."""
    size = path.stat().st_size
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)
    elif shutil.disk_usage(path.parent).free < size:
        raise OSError(ENOSPC, os.strerror(ENOSPC))


def _write(file: Any, part: Path, done: int, fields: Mapping[str, NDArray[Any]]) -> int:
    """Add samples after the first `done`; their number."""
    held = {name: file[name].shape[1:] for name in file}
    made = {name: values.shape[1:] for name, values in fields.items()}
    if held != made:
        raise ConfigError(f"simulate: {part} has fields {held}, the generator makes {made}: begin anew with resume=false")
    size = len(next(iter(fields.values())))
    for name, values in fields.items():
        file[name][done : done + size] = values
    _flush(file, part)
    file.attrs.modify("done", np.int64(done + size))
    _flush(file, part)
    return size


def _flush(file: Any, part: Path) -> None:
    file.flush()
    with part.open("rb") as stream:
        os.fsync(stream.fileno())


@contextmanager
def _opened(path: Path, mode: str = "r+") -> Iterator[Any]:
    import h5py

    try:
        file = h5py.File(path, mode)
    except BlockingIOError as error:
        raise DataError(f"{path}: another process is at it") from error
    except PermissionError as error:
        raise DataError(f"{path}: {os.strerror(error.errno or EACCES)}") from error
    except OSError as error:
        raise ConfigError(f"simulate: {path} is there, and is no data set that simulate wrote: choose another file") from error
    with file:
        yield file
