"""Phase histories of synthetic-aperture radar in files.

A phase history is what one radar recorded, pulse by pulse and frequency by frequency,

    y[p, k] = sum over r of g(r) exp(s j 4 pi f_k dR_p(r) / c),    dR_p(r) = |q_p - r| - R_p,

q_p the antenna, R_p the range to which the data are deramped, r from the scene centre, s = -1 or +1 the sign of the data. The
sign can't be told from the image: the conjugate data focus as well, point-reflected. It is therefore asked for, never guessed.

    format          read by                  what there is
    AFRL Gotcha     `read_gotcha`            .mat of any version: a struct `data`
    generic         `read_phase_history`     .npz, HDF5, .mat: `signal`, `positions`, `frequencies`
    CPHD            `sar_formats.read_cphd`  1.0.1 and 1.1.0, in the frequency domain

Images are in `invdiff.io.sar_images`. The autofocus terms of Gotcha (`af`) are left off: its data have been compensated by
them, and a second time destroys the focus.

References: Casteel, Gorham, Minardi, Scarborough, Naidu, Majumder, A challenge problem for 2D/3D imaging of targets from a
volumetric data set in an urban environment, SPIE 6568, 2007. Gorham, Moore, SAR image formation toolbox for MATLAB, SPIE 7699,
2010.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError, InvdiffError, ShapeError
from .images import PathLike, finite
from .named import opened

__all__ = ["PhaseData", "read_gotcha", "read_phase_history"]

POLARISATIONS = ("HH", "HV", "VH", "VV")


def read_gotcha(*paths: PathLike) -> PhaseData:
    """Read AFRL Gotcha phase histories; several files make one aperture, in the order of azimuth.

    Args:
        paths: .mat files with a struct `data`: fp (K, P) complex, freq (K) Hz, x, y, z, r0 (P) m. The azimuth of a pulse is
            that of its position; an aperture across azimuth 0 stays in one piece.

    Returns:
        Data of the sign -1.

    Raises:
        ConfigError: no file.
        DataError: a file is missing, truncated or foreign; a field is missing, of another shape or type, or not finite; the
            frequencies or polarisations of two files differ; a pulse comes twice.
    """
    if not paths:
        raise ConfigError("read_gotcha: expected one file or more")
    sources = [Path(path) for path in paths]
    parts = [_gotcha(source) for source in sources]
    for source, part in zip(sources[1:], parts[1:], strict=True):
        # float32 in the files, of which the last digit is 2e-3 rad at 50 m
        same = part.frequencies.shape == parts[0].frequencies.shape
        if not same or not np.allclose(part.frequencies, parts[0].frequencies, rtol=1e-7, atol=0.0):
            raise DataError(f"{source}: freq is not that of {sources[0]}: join only files of one waveform")
        pair = [p.facts.get("polarisation") for p in (parts[0], part)]
        if pair[0] != pair[1]:
            raise DataError(f"{source}: the polarisation is {pair[1]}, that of {sources[0]} is {pair[0]}")
    positions = np.concatenate([part.positions for part in parts])
    if len(np.unique(positions, axis=0)) < len(positions):
        raise DataError(f"{', '.join(map(str, sources))}: pulses with equal positions: each file may be given once")
    order = _by_azimuth(positions)
    signal, reference = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("signal", "reference"))
    facts = {"files": tuple(map(str, sources)), **{k: v for k, v in parts[0].facts.items() if k != "files"}}
    return PhaseData(signal, positions[order], reference, parts[0].frequencies, -1, facts)


def read_phase_history(path: PathLike, *, sign: Literal[-1, 1] | None = None) -> PhaseData:
    """Read a phase history from named arrays.

    Args:
        path: .npz, .h5, .hdf5 or .mat with `signal` (P, K) complex, `positions` (P, 3) m, `frequencies` (K) or (P, K) Hz and,
            where they are there, `reference` (P) m (without it |positions|) and `sign` (of HDF5 also an attribute).
        sign: of the data, where the file does not say it.

    Raises:
        DataError: the file can't be read; an array is missing, of another shape or type, or not finite.
        ConfigError: the sign is neither in the file nor given, or both and they differ; another suffix.
    """
    if sign not in (None, -1, 1):
        raise ConfigError(f"read_phase_history: expected sign -1 or +1, got {sign}")
    with opened(path) as named:
        found = {name: v.read(tuple(slice(None) for _ in v.shape)) for name, v in named.arrays.items() if name in _NAMES}
        stated = found.pop("sign", named.facts.get("sign"))
        kind = named.kind
        there = ", ".join([*named.arrays, *(f"{name} ({why})" for name, why in named.refused.items())]) or "nothing"
    for name in _NAMES[:3]:
        if name not in found:
            raise DataError(f"{path}: expected an array {name!r}, found {there}")
    if stated is not None:
        value = np.ravel(stated)
        if value.size != 1 or value[0] not in (-1, 1):
            raise DataError(f"{path}: expected sign -1 or +1, found {stated}")
        if sign is not None and sign != value[0]:
            raise ConfigError(f"{path}: the file says sign {int(value[0]):+d}, got sign={sign}")
        sign = 1 if value[0] == 1 else -1
    if sign is None:
        raise ConfigError(f"{path}: does not say the sign of its phase: give sign=-1 or sign=1")
    positions, frequencies = found["positions"], found["frequencies"]
    if kind == "mat" and frequencies.ndim == 2 and 1 in frequencies.shape:
        frequencies = frequencies.ravel()  # MATLAB has no vectors
    if "reference" in found:
        reference = found["reference"]
    else:
        # of another shape it is refused below
        reference = np.linalg.norm(positions.astype(np.float64), axis=1) if positions.shape[1:] == (3,) else positions
    with of_file(path):
        reference = reference.ravel() if kind == "mat" else reference
        return PhaseData(found["signal"], positions, reference, frequencies, sign, {"files": (str(path),), "format": kind})


_NAMES = ("signal", "positions", "frequencies", "reference", "sign")


@dataclass(frozen=True, eq=False)
class PhaseData:
    """Phase history of P pulses at K frequencies; the equation is above.

    Args:
        signal: (P, K) complex; kept as complex64.
        positions: (P, 3) antenna phase centre in metres from the scene centre; kept as float64, in which differences of ranges
            are right to a fraction of the wavelength.
        reference: (P) range in metres that the data are deramped to.
        frequencies: (K), or (P, K) where they change with the pulse, in Hz, positive and increasing.
        sign: -1 or +1, of the exponent.
        facts: what else is known: `files`, `format`, `polarisation`.

    Raises:
        ShapeError: arrays that do not fit together.
        DataError: an array is of the wrong kind, or holds values that are not finite; frequencies are not positive and
            increasing.
        ConfigError: another sign.
    """

    signal: NDArray[np.complex64]
    positions: NDArray[np.float64]
    reference: NDArray[np.float64]
    frequencies: NDArray[np.float64]
    sign: Literal[-1, 1]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        signal = np.asarray(self.signal)
        if signal.dtype.kind != "c":
            raise DataError(f"PhaseData: expected a complex signal, found {signal.dtype}")
        if signal.ndim != 2 or not signal.size:
            raise ShapeError(f"PhaseData: expected a signal (pulses, frequencies), found {signal.shape}")
        pulses, count = signal.shape
        real = {"positions": ((pulses, 3),), "reference": ((pulses,),), "frequencies": ((count,), (pulses, count))}
        for name, shapes in real.items():
            values = np.asarray(getattr(self, name))
            if values.dtype.kind not in "iuf":
                raise DataError(f"PhaseData: expected real {name}, found {values.dtype}")
            if values.shape not in shapes:
                asked = " or ".join(map(str, shapes))
                raise ShapeError(f"PhaseData: the signal is {signal.shape}: expected {name} {asked}, found {values.shape}")
            object.__setattr__(self, name, values.astype(np.float64, copy=False))
        with np.errstate(over="ignore"):
            object.__setattr__(self, "signal", signal.astype(np.complex64, copy=False))
        for name in ("signal", *real):
            values = getattr(self, name)
            if bad := values.size - int(np.isfinite(values).sum()):
                raise DataError(f"PhaseData: {bad} of the {values.size} values of {name} are NaN or infinite")
        if not (self.frequencies > 0).all() or not (np.diff(self.frequencies) > 0).all():
            raise DataError("PhaseData: expected positive, increasing frequencies")
        if isinstance(self.sign, bool) or self.sign not in (-1, 1):
            raise ConfigError(f"PhaseData: expected sign -1 or +1, got {self.sign}")


@contextmanager
def of_file(path: PathLike) -> Iterator[None]:
    """What is wrong with the values of a file, with the name of the file."""
    try:
        yield
    except InvdiffError as error:
        raise DataError(f"{path}: {error}") from error


def _gotcha(source: Path) -> PhaseData:
    if not source.is_file():
        raise DataError(f"{source}: {'not a file' if source.exists() else 'no such file'}")
    try:
        fields = _struct(source)
    except InvdiffError:
        raise
    except Exception as error:  # the parsers raise a dozen unrelated types on a broken file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{source}: can't be read as .mat: {reason}") from error
    for name in _GOTCHA:
        if name not in fields:
            raise DataError(f"{source}: data has no field {name}, found {', '.join(fields) or 'nothing'}")
        if fields[name].dtype.kind != "c" if name == "fp" else fields[name].dtype.kind not in "iuf":
            raise DataError(f"{source}: expected {'complex' if name == 'fp' else 'real'} {name}, found {fields[name].dtype}")
        with of_file(source):
            finite(name, fields[name])
    x, y, z, reference, frequencies = (fields[name].ravel().astype(np.float64) for name in ("x", "y", "z", "r0", "freq"))
    if fields["fp"].shape != (frequencies.size, x.size) or not x.size == y.size == z.size == reference.size:
        sizes = {name: fields[name].shape for name in _GOTCHA}
        raise DataError(f"{source}: expected fp (frequencies, pulses) and a value of x, y, z, r0 for each pulse, found {sizes}")
    named = re.search(rf"(?<![A-Za-z])({'|'.join(POLARISATIONS)})(?![A-Za-z])", source.stem)
    facts = {"files": (str(source),), "format": "gotcha", **({"polarisation": named[1]} if named else {})}
    with of_file(source):
        return PhaseData(fields["fp"].T, np.stack([x, y, z], 1), reference, frequencies, -1, facts)


_GOTCHA = ("fp", "freq", "x", "y", "z", "r0")


def _struct(source: Path) -> dict[str, NDArray[Any]]:
    """Fields of the struct `data` as in MATLAB; version 7.3 is HDF5, with axes reversed and complex numbers as pairs."""
    with source.open("rb") as stream:
        head = stream.read(520)
    if b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:]):
        import h5py

        with h5py.File(source, "r") as file:
            group = file.get("data")
            if not isinstance(group, h5py.Group):
                raise DataError(f"{source}: expected a struct 'data', found {', '.join(file) or 'nothing'}")
            return {name: complex_of(group[name][()]).T for name in _GOTCHA if isinstance(group.get(name), h5py.Dataset)}
    from scipy.io import loadmat

    content = loadmat(source, variable_names=["data"])
    data = content.get("data")
    if data is None or data.dtype.names is None or data.size != 1:
        raise DataError(f"{source}: expected a struct 'data'" + ("" if data is None else f", found {data.shape} {data.dtype}"))
    return {name: np.asarray(data.ravel()[0][name]) for name in data.dtype.names}


def _by_azimuth(positions: NDArray[np.float64]) -> NDArray[np.intp]:
    azimuth = np.degrees(np.arctan2(positions[:, 1], positions[:, 0])) % 360.0
    order = np.argsort(azimuth, kind="stable")
    gaps = np.diff(azimuth[order], append=azimuth[order[0]] + 360.0)
    cut = int(np.argmax(gaps))
    # a full circle begins at 0; an aperture across 0 begins after the widest gap
    return np.roll(order, -cut - 1) if gaps[cut] > gaps[-1] + 1.0 else order


def complex_of(values: NDArray[Any]) -> NDArray[Any]:
    """Pairs (r, i) or (real, imag) as complex64, other values as they are."""
    if values.dtype.names not in (("r", "i"), ("real", "imag")):
        return values
    real, imag = (values[name].astype(np.float32) for name in values.dtype.names)
    return real + 1j * imag
