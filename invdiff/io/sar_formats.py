"""CPHD and SICD, the exchange formats of radar data, through the package sarkit.

A vector of CPHD in the frequency domain is compensated to a reference point s_p and has the phase

    SGN 2 pi f_k dTOA_p(r),    f_k = SC0 + k SCSS,    c dTOA_p(r) = |t_p - r| + |v_p - r| - |t_p - s_p| - |v_p - s_p|,

t_p the transmitting and v_p the receiving antenna. `PhaseData` has one antenna q_p for both: on the bisector of the two
directions from s_p, at the distance R_p = (|t_p - s_p| + |v_p - s_p|) / 2, which leaves no phase at s_p. Elsewhere the range is
wrong by |r - s_p| (1 - cos(b / 2)) at most, to first order in r, b the bistatic angle. The move of an antenna until the echo is
back gives a b of the order of 1e-5.

References: NGA.STND.0068-1, Compensated phase history data 1.1.0, 2021. NGA.STND.0024-1, Sensor independent complex data 1.3.0,
2021.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CapabilityError, ConfigError, DataError, InvdiffError
from .images import PathLike, finite
from .sar import PhaseData, complex_of, of_file
from .sar_images import ComplexImage

__all__ = ["read_cphd", "read_sicd"]

BISTATIC = 1e-3


def read_cphd(path: PathLike, channel: str | None = None) -> PhaseData:
    """Read one channel of a CPHD file in the frequency domain (FX).

    Positions are in metres from the scene centre, with the axes of the earth-centred frame. The scene centre is the reference
    point of the vector in the middle; `reference` is the range to the reference point of each vector, so that a point that
    moves is accounted for. AmpSF is applied, and vectors with SIGNAL = 0 are left out.

    Args:
        channel: its identifier; needed when there is more than one.

    Returns:
        Data with `facts`: `scene_centre` (3) m earth-centred, `bistatic_angle` (largest, radians), `left_out` (vectors),
        `collector` and `channel`.

    Raises:
        CapabilityError: sarkit is not installed.
        DataError: the file is missing, truncated or foreign, in the time domain or compressed; it has values that are not
            finite, or a bistatic angle above 1e-3.
        ConfigError: the channel is unknown or has to be chosen.
    """
    with _opened(path, "cphd") as (sarkit, stream), sarkit.Reader(stream) as reader:
        tree = reader.metadata.xmltree
        names = [node.text for node in tree.findall("{*}Data/{*}Channel/{*}Identifier")]
        if channel not in names and not (channel is None and len(names) == 1):
            got = "" if channel is None else f", got {channel!r}"
            raise ConfigError(f"{path}: expected channel to be one of {', '.join(names)}{got}")
        channel = names[0] if channel is None else channel
        domain, sign = tree.findtext("{*}Global/{*}DomainType"), tree.findtext("{*}Global/{*}SGN")
        if domain != "FX":
            raise DataError(f"{path}: DomainType is {domain}, expected FX: transform the file to the frequency domain")
        if sign is None or int(sign) not in (-1, 1):
            raise DataError(f"{path}: SGN is {sign}, expected -1 or +1")
        if tree.find("{*}Data/{*}SignalCompressionID") is not None:
            raise DataError(f"{path}: the signal is compressed, which can't be read")
        signal, vectors = reader.read_channel(channel)
        collector = tree.findtext("{*}CollectionID/{*}CollectorName")
    if missing := [name for name in _VECTORS if name not in vectors.dtype.names]:
        raise DataError(f"{path}: expected the vector parameters {', '.join(_VECTORS)}, found no {', '.join(missing)}")
    good = np.ones(len(vectors), bool) if "SIGNAL" not in vectors.dtype.names else vectors["SIGNAL"] != 0
    if not good.any():
        raise DataError(f"{path}: SIGNAL is 0 for all {len(vectors)} vectors of {channel}")
    facts: dict[str, Any] = {"files": (str(path),), "format": "cphd", "collector": collector, "channel": channel}
    facts["left_out"] = int((~good).sum())
    signal, vectors = complex_of(signal)[good], vectors[good]
    with of_file(path):
        if "AmpSF" in vectors.dtype.names:
            signal = signal * finite("AmpSF", vectors["AmpSF"])[:, None].astype(np.float32)
        values = (finite(name, vectors[name].astype(np.float64)) for name in _VECTORS)
        transmitter, receiver, point, first, step = values
        positions, reference, angle = _equivalent(transmitter - point, receiver - point)
        centre = point[len(point) // 2]
        frequencies = first[:, None] + step[:, None] * np.arange(signal.shape[1])
        if (frequencies == frequencies[0]).all():
            frequencies = frequencies[0]
        facts |= {"scene_centre": tuple(map(float, centre)), "bistatic_angle": angle}
        return PhaseData(signal, positions + (point - centre), reference, frequencies, 1 if int(sign) > 0 else -1, facts)


def read_sicd(path: PathLike) -> ComplexImage:
    """Read the pixels of a SICD file: rows away from the radar, columns along its track.

    Args:
        path: NITF with the pixel type RE32F_IM32F, RE16I_IM16I or AMP8I_PHS8I.

    Returns:
        Image with the sample spacing of its grid in metres, and `facts`: `sign` (of rows, columns), `bandwidth` (of rows,
        columns, cycles/m), `weighting`, `plane`, `collector`, None for what the file does not say.

    Raises:
        CapabilityError: sarkit is not installed.
        DataError: the file is missing, truncated or foreign, or has pixels that are not finite.
    """
    with _opened(path, "sicd") as (sarkit, stream), sarkit.NitfReader(stream) as reader:
        tree = reader.metadata.xmltree
        kind = tree.findtext("{*}ImageData/{*}PixelType")
        values = reader.read_image()
        table = [float(node.text) for node in tree.findall("{*}ImageData/{*}AmpTable/{*}Amplitude")]
        facts = {"file": str(path), "format": "sicd", "collector": tree.findtext("{*}CollectionInfo/{*}CollectorName")}
        facts |= {name: _pair(tree, tag) for name, tag in (("sign", "Sgn"), ("bandwidth", "ImpRespBW"))}
        facts["weighting"] = tuple(tree.findtext(f"{{*}}Grid/{{*}}{axis}/{{*}}WgtType/{{*}}WindowName") for axis in _AXES)
        facts["plane"] = tree.findtext("{*}Grid/{*}ImagePlane")
        spacing = _pair(tree, "SS")
    if kind == "AMP8I_PHS8I":
        amplitude = np.asarray(table, np.float32)[values["amp"]] if table else values["amp"].astype(np.float32)
        values = amplitude * np.exp(2j * np.pi * values["phase"] / 256.0)
    with of_file(path):
        return ComplexImage(finite("the image", complex_of(values).astype(np.complex64)), spacing, facts)


_AXES = ("Row", "Col")
_VECTORS = ("TxPos", "RcvPos", "SRPPos", "SC0", "SCSS")


@contextmanager
def _opened(path: PathLike, kind: str) -> Iterator[tuple[Any, BinaryIO]]:
    """The module of sarkit for a format, and the file."""
    try:
        module = importlib.import_module(f"sarkit.{kind}")
    except ImportError as error:
        raise CapabilityError(f"{path}: {kind.upper()} needs the package sarkit (Python 3.11): pip install sarkit") from error
    source = Path(path)
    if not source.is_file():
        raise DataError(f"{source}: {'not a file' if source.exists() else 'no such file'}")
    try:
        with source.open("rb") as stream, warnings.catch_warnings():
            # of how sarkit finds its own tables
            warnings.simplefilter("ignore", DeprecationWarning)
            yield module, stream
    except (InvdiffError, MemoryError):
        raise
    except Exception as error:  # the parsers raise a dozen unrelated types on a broken file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{source}: can't be read as {kind.upper()}: {reason}") from error


def _equivalent(
    transmitter: NDArray[np.float64], receiver: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """One antenna for two, relative to the reference point: positions, ranges and the largest angle between the two."""
    out, back = (np.linalg.norm(v, axis=1, keepdims=True) for v in (transmitter, receiver))
    if not ((out > 0) & (back > 0)).all():
        raise DataError("an antenna is at the reference point")
    there, here = transmitter / out, receiver / back
    # from the chord: the arc cosine of the product would lose half of the digits
    angle = float(2.0 * np.arcsin(np.clip(0.5 * np.linalg.norm(there - here, axis=1), 0.0, 1.0)).max())
    if angle > BISTATIC:
        raise DataError(f"the bistatic angle is {angle:.2g} rad, expected at most {BISTATIC}: two antennas are not one")
    reference = 0.5 * (out + back)
    bisector = there + here
    return bisector * (reference / np.linalg.norm(bisector, axis=1, keepdims=True)), reference[:, 0], angle


def _pair(tree: Any, name: str) -> tuple[float, float] | None:
    texts = [tree.findtext(f"{{*}}Grid/{{*}}{axis}/{{*}}{name}") for axis in _AXES]
    return None if None in texts else (float(texts[0]), float(texts[1]))
