"""Files of named arrays, opened without reading them: HDF5, MATLAB, NumPy and torch.

MATLAB stores by columns, so that the axes of a file of version 7.3, which is HDF5, come reversed; here they are as in MATLAB.
Nothing is unpickled, and what is no array of numbers is refused by name: structures, cells, objects, sparse matrices.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError, InvdiffError

__all__ = ["Named", "Variable", "opened"]

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Variable:
    """An array in a file.

    Args:
        shape: of the whole.
        read: the values at one slice for each axis.
        facts: attributes of an HDF5 dataset.
    """

    shape: tuple[int, ...]
    read: Callable[[Index], NDArray[Any]]
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Named:
    """An open file.

    Args:
        kind: "hdf5", "mat", "npz", "npy" or "pt".
        arrays: name -> array.
        facts: attributes of an HDF5 file; numbers and texts beside the arrays.
        refused: name -> what it is, for the entries that are not read.
    """

    kind: str
    arrays: Mapping[str, Variable]
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    refused: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Named]:
    """Open a file by its suffix: .h5, .hdf5, .mat, .npz, .npy, .pt or .pth.

    Raises:
        ConfigError: another suffix.
        DataError: the file is missing, truncated, or not what its suffix says.
    """
    source = Path(path)
    suffix = source.suffix.lower()
    if suffix not in _OPENERS:
        raise ConfigError(f"{source}: unknown suffix; expected one of {', '.join(_OPENERS)}")
    if not source.is_file():
        raise DataError(f"{source}: {'not a file' if source.exists() else 'no such file'}")
    try:
        with _OPENERS[suffix](source) as named:
            yield named
    except (InvdiffError, MemoryError):
        raise
    except Exception as error:  # the parsers raise a dozen unrelated types on a broken file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{source}: can't be read as {suffix}: {reason}") from error


def _held(array: NDArray[Any]) -> Variable:
    return Variable(array.shape, lambda index: array[index])


@contextmanager
def _hdf5(path: Path) -> Iterator[Named]:
    import h5py

    arrays: dict[str, Variable] = {}
    refused: dict[str, str] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            if item.dtype.kind in "biufc" and item.shape is not None:
                arrays[name] = Variable(item.shape, lambda index: np.asarray(item[index]), _facts(item))
            else:
                refused[name] = str(item.dtype)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
        yield Named("hdf5", arrays, _facts(file), refused)


def _facts(item: Any) -> dict[str, Any]:
    return {name: value for name, value in item.attrs.items() if isinstance(value, str | int | float | np.number)}


@contextmanager
def _mat(path: Path) -> Iterator[Named]:
    with path.open("rb") as stream:
        head = stream.read(520)
    # HDF5 begins after the 512 bytes of MATLAB's own header, or at once where another program wrote the file
    if b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:]):
        with _mat73(path) as named:
            yield named
        return
    from scipy.io import loadmat, whosmat

    kinds = {name: kind for name, _, kind in whosmat(path)}
    numbers = [name for name, kind in kinds.items() if kind in _NUMBERS]
    texts = [name for name, kind in kinds.items() if kind == "char"]
    loaded = loadmat(path, variable_names=[*numbers, *texts]) if kinds else {}
    arrays = {name: _held(loaded[name].astype(bool) if kinds[name] == "logical" else loaded[name]) for name in numbers}
    facts = {name: " ".join(map(str, np.ravel(loaded[name]))) for name in texts}
    yield Named("mat", arrays, facts, {name: kind for name, kind in kinds.items() if kind not in (*_NUMBERS, "char")})


_NUMBERS = ("double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


@contextmanager
def _mat73(path: Path) -> Iterator[Named]:
    import h5py

    arrays: dict[str, Variable] = {}
    facts: dict[str, Any] = {}
    refused: dict[str, str] = {}
    with h5py.File(path, "r") as file:
        for name, item in file.items():
            kind = item.attrs.get("MATLAB_class", b"")
            kind = kind.decode() if isinstance(kind, bytes) else str(kind)
            if isinstance(item, h5py.Group):
                if name not in ("#refs#", "#subsystem#"):
                    refused[name] = "sparse" if "MATLAB_sparse" in item.attrs else kind or "struct"
            elif kind == "char":
                facts[name] = "".join(map(chr, item[()].ravel()))
            elif kind not in (*_NUMBERS, "") or (item.dtype.kind not in "biuf" and item.dtype.names != ("real", "imag")):
                refused[name] = kind or str(item.dtype)
            elif item.attrs.get("MATLAB_empty", 0):
                refused[name] = "empty"
            else:
                arrays[name] = Variable(item.shape[::-1], _reversed(item, logical=kind == "logical"))
        yield Named("mat", arrays, facts, refused)


def _reversed(item: Any, *, logical: bool) -> Callable[[Index], NDArray[Any]]:
    def read(index: Index) -> NDArray[Any]:
        values = np.asarray(item[index[::-1]]).T
        if values.dtype.names:
            values = values["real"] + 1j * values["imag"]
        return values.astype(bool) if logical else values

    return read


@contextmanager
def _npz(path: Path) -> Iterator[Named]:
    with path.open("rb") as stream:
        if stream.read(2) != b"PK":
            raise DataError(f"{path}: can't be read as .npz: not a zip archive")
        stream.seek(0)
        archive = np.load(stream, allow_pickle=False)
        yield _sorted("npz", {name: archive[name] for name in archive.files})


@contextmanager
def _npy(path: Path) -> Iterator[Named]:
    with path.open("rb") as stream:
        yield _sorted("npy", {"values": np.lib.format.read_array(stream, allow_pickle=False)})


@contextmanager
def _pt(path: Path) -> Iterator[Named]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises at least five kinds, some of a page
        raise DataError(f"{path}: nothing but tensors is unpickled ({type(error).__name__} while reading it)") from None
    if isinstance(content, torch.Tensor):
        content = {"values": content}
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise DataError(f"{path}: expected a tensor or a dictionary of named tensors, got a {type(content).__name__}")
    found = {name: value.detach().numpy() if isinstance(value, torch.Tensor) else value for name, value in content.items()}
    yield _sorted("pt", found)


def _sorted(kind: str, found: Mapping[str, Any]) -> Named:
    """What is an array of numbers, what is a number or a text, and the rest."""
    plain = {name: value for name, value in found.items() if isinstance(value, str | int | float | bool)}
    arrays = {name: value for name, value in found.items() if isinstance(value, np.ndarray) and value.dtype.kind in "biufc"}
    rest = [name for name in found if name not in {**plain, **arrays}]
    refused = {name: str(getattr(found[name], "dtype", type(found[name]).__name__)) for name in rest}
    return Named(kind, {name: _held(value) for name, value in arrays.items()}, plain, refused)


_OPENERS = {".h5": _hdf5, ".hdf5": _hdf5, ".mat": _mat, ".npz": _npz, ".npy": _npy, ".pt": _pt, ".pth": _pt}
