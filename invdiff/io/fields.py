"""Sets of fields in the files in which they are published.

    layout           file                  what is recognised
    simulate         .h5                   what `invdiff simulate` wrote: (N, frames or channels, *components, *grid)
    pdebench         .h5                   x-coordinate ... and t-coordinate; (N, *grid) and (N, T, *grid)
    fno              .mat                  a, u or coeff, sol: (N, *grid), and u (N, *grid, T)
    trajectory       .mat, .npz, ...       x, t (and y) and one more array, (*grid, T) or (T, *grid)
    neuraloperator   .npz, .pt             x, y: (N, *grid), and y (N, T, *grid)
    arrays           any                   arrays of as many entries: (N, *grid)

Values come as stored, in one order of axes: entries, times and components where there are any, grid.

References: Takamoto et al., PDEBench, 2022, arXiv:2210.07182. Li et al., Fourier neural operator for parametric partial
differential equations, 2021, arXiv:2010.08895. Kossaifi et al., A library for learning neural operators, 2024,
arXiv:2412.10354.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError
from .named import Named, Variable, opened

__all__ = ["Fields", "Layout", "read_fields"]

Layout = Literal["simulate", "pdebench", "fno", "trajectory", "neuraloperator", "arrays"]


@dataclass(frozen=True)
class Fields:
    """What a file of fields holds.

    Args:
        values: name -> (N, *grid), or (N, T, *grid); of a vector (N, T, components, *grid).
        coordinates: name ("t", "x", "y", "z") -> (points,), where the file has them.
        layout: by which the file was read.
        facts: `path`; attributes, numbers and texts of the file; `left_out`, name -> why, of what is no field.
    """

    values: Mapping[str, NDArray[Any]]
    coordinates: Mapping[str, NDArray[Any]]
    layout: str
    facts: Mapping[str, Any]

    def one(self, name: str | None = None) -> NDArray[Any]:
        """The field of that name; None for the only one there is."""
        if name is None and len(self.values) == 1:
            return next(iter(self.values.values()))
        if name not in self.values:
            asked = "" if name is None else f", got {name!r}"
            why = f" ({self.facts['left_out'][name]})" if name in self.facts["left_out"] else ""
            raise ConfigError(f"{self.facts['path']}: expected dataset to be one of {', '.join(self.values)}{asked}{why}")
        return self.values[name]


def read_fields(
    path: str | os.PathLike[str],
    *,
    layout: Layout | None = None,
    only: Sequence[str] | None = None,
    entries: tuple[int, int] | None = None,
    every: int = 1,
    times: Sequence[int] | None = None,
) -> Fields:
    """Read the fields of a file, or a part of them; of HDF5 no more than that part is read.

    Args:
        path: .h5, .hdf5, .mat (of any version), .npz, .npy, .pt or .pth.
        layout: None recognises it by the names in the file.
        only: names of the fields to read.
        entries: first and past-the-last entry.
        every: one in so many points along each axis of the grid.
        times: indices of frames, negative ones from the end.

    Raises:
        ConfigError: the layout is not recognised or does not fit, or a name, entry or time does not exist.
        DataError: the file can't be read, its arrays do not fit together, or a field is a structure, cell or object.
    """
    if layout is not None and layout not in get_args(Layout):
        raise ConfigError(f"read_fields: expected layout to be one of {', '.join(get_args(Layout))}, got {layout!r}")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ConfigError(f"read_fields: expected every >= 1, got {every!r}")
    with opened(path) as named:
        try:
            found = _PLANS[layout or _recognised(path, named, only)](named)
        except KeyError as error:
            asked = next((n for n in error.args if n in named.refused), None)
            if asked:
                raise DataError(f"{path}: {asked} is a {named.refused[asked]}, expected an array of numbers") from None
            raise ConfigError(f"{path}: layout {layout} needs {error.args[0]}, there are {_list(named)}") from None
        wanted = list(found.axes) if only is None else list(only)
        for name in wanted:
            if name in named.refused:
                raise DataError(f"{path}: {name} is a {named.refused[name]}, expected an array of numbers")
            if name not in found.axes:
                raise ConfigError(f"{path}: expected fields among {', '.join(found.axes)}, got {name!r}")
        picked = {name: named.arrays[name] for name in wanted}
        chosen = {name: found.axes[name] for name in wanted}
        _fit(path, picked, chosen, found.coordinates)
        if times is not None and all(axes.time is None for axes in chosen.values()):
            raise ConfigError(f"{path}: {', '.join(wanted)} have no times to choose")
        values = {name: _read(path, name, picked[name], chosen[name], entries, every, times) for name in wanted}
        frames = {picked[name].shape[axes.time] for name, axes in chosen.items() if axes.time is not None}
        along = {name: _along(name, points, frames, every, times) for name, points in found.coordinates.items()}
        left = {**named.refused, **{name: "not one of the fields" for name in named.arrays if name not in found.used}}
        facts = {**named.facts, **found.facts, "path": str(path), "left_out": left}
    return _real(Fields(values, along, found.layout, facts))


@dataclass(frozen=True)
class _Axes:
    """Where the axes of an array are; None where it has no such axis."""

    entry: int | None
    time: int | None
    grid: tuple[int, ...]
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Plan:
    layout: str
    axes: dict[str, _Axes]
    coordinates: dict[str, NDArray[Any]]
    facts: dict[str, Any]
    used: frozenset[str]


def _plan(
    layout: str,
    axes: dict[str, _Axes],
    coordinates: Mapping[str, NDArray[Any]] | None = None,
    facts: Mapping[str, Any] | None = None,
    beside: Sequence[str] = (),
) -> _Plan:
    return _Plan(layout, axes, dict(coordinates or {}), dict(facts or {}), frozenset([*axes, *beside, *(facts or {})]))


def _recognised(path: str | os.PathLike[str], named: Named, only: Sequence[str] | None) -> str:
    arrays, names = named.arrays, {*named.arrays, *named.refused}
    if named.kind == "hdf5" and {"generator", "fields", "done"} <= named.facts.keys():
        return "simulate"
    if "x-coordinate" in names:
        return "pdebench"
    if any({*pair} <= names for pair in _FNO):
        return "fno"
    vectors = {name for name in ("x", "y", "t", "tt") if name in arrays and _is_vector(arrays[name])}
    if "x" in vectors and vectors & {"t", "tt"} and len(arrays.keys() - vectors) == 1:
        return "trajectory"
    if {"x", "y"} <= names:
        return "neuraloperator"
    chosen = [arrays[name].shape for name in (arrays if only is None else only) if name in arrays]
    if chosen and all(shape[:1] == chosen[0][:1] for shape in chosen):
        return "arrays"
    known = ", ".join(get_args(Layout))
    raise ConfigError(f"{path}: can't tell the layout of {_list(named)}: give layout (one of {known}), or only=[NAME]")


def _simulate(named: Named) -> _Plan:
    axes = {}
    for name, variable in named.arrays.items():
        rank = len(variable.shape)
        # files of before the attribute have it for no field
        first = rank - int(variable.facts.get("grid_axes", rank - 2))
        axes[name] = _Axes(0, 1, tuple(range(first, rank)), tuple(range(2, first)))
    return _plan("simulate", axes)


def _pdebench(named: Named) -> _Plan:
    points = {name[0]: _whole(named, name) for name in named.arrays if name in _COORDINATES}
    grid = len([name for name in "xyz" if name in points])
    if not grid:
        raise KeyError("x-coordinate")
    axes = {}
    for name, variable in named.arrays.items():
        rank = len(variable.shape)
        if name not in _COORDINATES and rank in (1 + grid, 2 + grid):
            axes[name] = _Axes(0, 1 if rank == 2 + grid else None, tuple(range(rank - grid, rank)))
    return _plan("pdebench", axes, points, beside=_COORDINATES)


_COORDINATES = tuple(f"{axis}-coordinate" for axis in "txyz")


def _fno(named: Named) -> _Plan:
    given, solved = _FNO[1] if {*_FNO[1]} <= {*named.arrays, *named.refused} else _FNO[0]
    arrays = named.arrays
    count, *grid = arrays[given].shape
    axes = {name: _Axes(0, None, tuple(range(1, len(v.shape)))) for name, v in arrays.items() if v.shape == (count, *grid)}
    rank = len(arrays[solved].shape)
    # of an evolution the times are last
    evolves = rank == len(grid) + 2
    axes[solved] = _Axes(0, rank - 1 if evolves else None, tuple(range(1, rank - evolves)))
    points = {"t": _whole(named, "t").ravel()} if "t" in arrays and evolves else {}
    return _plan("fno", axes, points, _numbers(named), points)


_FNO = (("a", "u"), ("coeff", "sol"))


def _trajectory(named: Named) -> _Plan:
    clock = "tt" if "tt" in named.arrays else "t"
    grid = [name for name in "xyz" if name in named.arrays and _is_vector(named.arrays[name])] or ["x"]
    points = {name: _whole(named, name).ravel() for name in grid} | {"t": _whole(named, clock).ravel()}
    size, frames = tuple(points[name].size for name in grid), points["t"].size
    axes, rank = {}, len(grid)
    for name, variable in named.arrays.items():
        if variable.shape == (*size, frames):
            axes[name] = _Axes(None, rank, tuple(range(rank)))
        elif variable.shape == (frames, *size):
            axes[name] = _Axes(None, 0, tuple(range(1, rank + 1)))
    return _plan("trajectory", axes, points, _numbers(named), (*grid, clock))


def _neuraloperator(named: Named) -> _Plan:
    arrays = named.arrays
    rank = len(arrays["x"].shape)
    axes = {}
    for name in ("x", "y"):
        shape = arrays[name].shape
        evolves = name == "y" and len(shape) == rank + 1
        axes[name] = _Axes(0, 1 if evolves else None, tuple(range(1 + evolves, len(shape))))
    return _plan("neuraloperator", axes, None, _numbers(named))


def _arrays(named: Named) -> _Plan:
    axes = {name: _Axes(0, None, tuple(range(1, len(v.shape)))) for name, v in named.arrays.items() if v.shape}
    return _plan("arrays", axes)


_PLANS = {
    "simulate": _simulate,
    "pdebench": _pdebench,
    "fno": _fno,
    "trajectory": _trajectory,
    "neuraloperator": _neuraloperator,
    "arrays": _arrays,
}


def _whole(named: Named, name: str) -> NDArray[Any]:
    variable = named.arrays[name]
    return variable.read(tuple(slice(None) for _ in variable.shape))


def _numbers(named: Named) -> dict[str, float]:
    """Arrays of one element, such as a viscosity."""
    single = [name for name, v in named.arrays.items() if int(np.prod(v.shape)) == 1]
    return {name: _whole(named, name).item() for name in single}


def _is_vector(variable: Variable) -> bool:
    return 1 < int(np.prod(variable.shape)) == max(variable.shape)


def _list(named: Named) -> str:
    shapes = [f"{name} {variable.shape}" for name, variable in named.arrays.items()]
    return ", ".join([*shapes, *(f"{name} ({kind})" for name, kind in named.refused.items())]) or "no arrays"


def _fit(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Variable],
    axes: Mapping[str, _Axes],
    coordinates: Mapping[str, NDArray[Any]],
) -> None:
    """Raise if there is no field, the fields have different numbers of entries, or coordinates are not those of the grid."""
    if not arrays:
        raise DataError(f"{path}: holds no fields of this layout")
    counts = {name: arrays[name].shape[a.entry] for name, a in axes.items() if a.entry is not None}
    if len(set(counts.values())) > 1:
        raise DataError(f"{path}: expected as many entries in each field, got {counts}: choose one by only=[NAME]")
    size = tuple(coordinates[name].size for name in "xyz" if name in coordinates)
    for name, a in axes.items():
        shape = arrays[name].shape
        grid = tuple(shape[axis] for axis in a.grid)
        if size and grid != size:
            raise DataError(f"{path}: {name} is on a grid of {grid} points, the coordinates have {size}")
        frames = 1 if a.time is None else shape[a.time]
        # PDEBench has the end of the last step as well
        if frames > 1 and "t" in coordinates and coordinates["t"].size - frames not in (0, 1):
            raise DataError(f"{path}: {name} has {frames} frames, there are {coordinates['t'].size} times")


def _read(
    path: str | os.PathLike[str],
    name: str,
    variable: Variable,
    axes: _Axes,
    entries: tuple[int, int] | None,
    every: int,
    times: Sequence[int] | None,
) -> NDArray[Any]:
    index = [slice(None)] * len(variable.shape)
    if entries is not None:
        count = 1 if axes.entry is None else variable.shape[axes.entry]
        if not 0 <= entries[0] < entries[1] <= count:
            raise ConfigError(f"{path}: {name} has entries 0 to {count - 1}, got entries {entries[0]} to {entries[1] - 1}")
        if axes.entry is not None:
            index[axes.entry] = slice(*entries)
    for axis in axes.grid:
        index[axis] = slice(None, None, every)
    chosen = None
    if times is not None and axes.time is not None:
        frames = variable.shape[axes.time]
        if not times or not all(-frames <= time < frames for time in times):
            raise ConfigError(f"{path}: {name} has times 0 to {frames - 1}, got {list(times)}")
        chosen = [time % frames for time in times]
        index[axes.time] = slice(min(chosen), max(chosen) + 1)
    values = variable.read(tuple(index))
    order = [axis for axis in (axes.entry, axes.time, *axes.parts, *axes.grid) if axis is not None]
    values = np.transpose(values, order)
    values = values[None] if axes.entry is None else values
    return values if chosen is None else values[:, [time - min(chosen) for time in chosen]]


def _along(name: str, points: NDArray[Any], frames: set[int], every: int, times: Sequence[int] | None) -> NDArray[Any]:
    if name != "t":
        return points[::every]
    points = points[: max(frames)] if frames else points
    return points if times is None else points[[time % len(points) for time in times]]


def _real(found: Fields) -> Fields:
    """Complex values of which the imaginary part is rounding become real, which is noted."""
    values, facts = dict(found.values), dict(found.facts)
    for name, array in found.values.items():
        if np.iscomplexobj(array) and array.size and (rest := np.abs(array.imag).max()) <= 1e-6 * np.abs(array.real).max():
            values[name], facts[f"{name}: imaginary part left out, at most"] = array.real.copy(), float(rest)
    return replace(found, values=values, facts=facts)
