"""Complex radar images in files, with their pixel spacing.

    .npy, .npz      an array
    .h5, .hdf5      an array, or pairs (r, i) as NISAR stores them; what `write_complex_image` wrote
    .tif, .tiff     complex (Sentinel-1), or an amplitude

Values come as stored: no calibration, no deramping. SICD is read by `invdiff.io.sar_formats`.

References: NASA SDS product specification level-1 range-Doppler single-look complex, JPL D-102268, 2024. OGC GeoTIFF standard
1.1, OGC 19-008, 2019.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CapabilityError, ConfigError, DataError, InvdiffError, ShapeError
from .images import PathLike, finite, write_hdf5
from .named import opened
from .sar import POLARISATIONS, complex_of, of_file

__all__ = ["ComplexImage", "read_complex_image", "write_complex_image"]


def read_complex_image(path: PathLike, dataset: str | None = None) -> ComplexImage:
    """Read a complex image.

    Args:
        path: .npy, .npz, .h5, .hdf5, .tif or .tiff. Pairs (r, i) or (real, imag) of an HDF5 file, half precision too, are
            complex numbers. A real GeoTIFF is an amplitude: its phase is zero and `facts["detected"]` is true.
        dataset: the array's name in HDF5 or .npz; None for the only complex one of two axes, in the tree of NISAR for the only
            one below `swaths` or `grids`.

    Returns:
        The image. Spacing comes from the file where it is stored in metres: by `write_complex_image`, by NISAR (rows along
        track, columns in slant range; y and x of a geocoded product), by a GeoTIFF in a projected system of metres.

    Raises:
        DataError: the file is missing, truncated or foreign, holds no such array or several, or values that are not finite.
        ConfigError: the suffix or the dataset is unknown.
        CapabilityError: a GeoTIFF without the package tifffile.
    """
    source = Path(path)
    suffix = source.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return _hdf5_image(source, dataset)
    if suffix in (".tif", ".tiff"):
        if dataset is not None:
            raise ConfigError(f"{source}: holds one image without a name, so dataset={dataset!r} can't be chosen")
        return _tiff_image(source)
    if suffix not in (".npy", ".npz"):
        hint = ": read SICD by read_sicd" if suffix in (".nitf", ".ntf") else ""
        raise ConfigError(f"{source}: unknown suffix; expected .npy, .npz, .h5, .hdf5, .tif or .tiff{hint}")
    with opened(source) as named:
        shapes = {name: variable.shape for name, variable in named.arrays.items()}
        arrays = {name: v.read(tuple(slice(None) for _ in v.shape)) for name, v in named.arrays.items() if len(v.shape) == 2}
    name = _only(source, [n for n, values in arrays.items() if values.dtype.kind == "c"], dataset, shapes)
    return ComplexImage(_pixels(source, name, arrays[name]), None, {"file": str(source), "format": suffix[1:], "dataset": name})


def write_complex_image(path: PathLike, image: ComplexImage) -> None:
    """Write a complex image with its spacing and facts as HDF5, whole or not at all; `read_complex_image` gives it back.

    Args:
        path: .h5 or .hdf5.

    Raises:
        ConfigError: another suffix, or a fact that is no text, number, truth value, None, or tuple or mapping of such.
        DataError: the file can't be written.
    """
    try:
        facts = json.dumps(dict(image.facts), default=_plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: facts of the image can't be written: {error}") from error
    attrs: dict[str, Any] = {"format": _FORMAT, "facts": facts}
    if image.spacing is not None:
        attrs["spacing"] = np.array(image.spacing, np.float64)
    write_hdf5(path, {"pixels": image.pixels}, attrs)


_FORMAT = "complex image"


@dataclass(frozen=True, eq=False)
class ComplexImage:
    """Args: pixels (H, W), kept as complex64; spacing of rows and of columns in metres, or None; facts of the file.

    Raises:
        ShapeError: pixels that are not a complex matrix.
        ConfigError: spacing that is not two positive numbers.
    """

    pixels: NDArray[np.complex64]
    spacing: tuple[float, float] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pixels = np.asarray(self.pixels)
        if pixels.ndim != 2 or not pixels.size or pixels.dtype.kind != "c":
            raise ShapeError(f"ComplexImage: expected complex pixels (H, W), found {pixels.shape} {pixels.dtype}")
        object.__setattr__(self, "pixels", pixels.astype(np.complex64, copy=False))
        if self.spacing is not None:
            spacing = tuple(float(s) for s in self.spacing)
            if len(spacing) != 2 or not all(0.0 < s < np.inf for s in spacing):
                raise ConfigError(f"ComplexImage: expected a positive spacing of rows and columns in metres, got {spacing}")
            object.__setattr__(self, "spacing", spacing)


def _is_complex(dtype: np.dtype[Any]) -> bool:
    pairs = dtype.names in (("r", "i"), ("real", "imag"))
    # unsigned pairs are codes into a table, not numbers
    return dtype.kind == "c" or (pairs and all(dtype[name].kind in "if" for name in dtype.names or ()))


def _only(source: Path, names: list[str], dataset: str | None, shapes: Mapping[str, Any]) -> str:
    """The one complex matrix, or the one that is asked for."""
    found = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"
    if dataset is not None:
        if dataset.strip("/") not in names:
            raise ConfigError(f"{source}: expected dataset to be one of {', '.join(names) or 'none'}, got {dataset!r}")
        return dataset.strip("/")
    nisar = [name for name in names if {"swaths", "grids"} & set(name.split("/")[:-1])]
    candidates = nisar or names
    if not candidates:
        raise DataError(f"{source}: holds no complex array of two axes, found {found}")
    if len(candidates) > 1:
        raise DataError(f"{source}: choose dataset, one of {', '.join(candidates)}")
    return candidates[0]


def _pixels(source: Path, name: str, values: NDArray[Any]) -> NDArray[Any]:
    with of_file(source), np.errstate(over="ignore"):
        return finite(name, complex_of(values).astype(np.complex64))


def _hdf5_image(source: Path, dataset: str | None) -> ComplexImage:
    import h5py

    if not source.is_file():
        raise DataError(f"{source}: {'not a file' if source.exists() else 'no such file'}")
    try:
        with h5py.File(source, "r") as file:
            names: list[str] = []
            shapes: dict[str, Any] = {}

            def visit(name: str, item: object) -> None:
                if isinstance(item, h5py.Dataset) and item.ndim == 2:
                    shapes[name] = item.shape
                    names.extend([name] if _is_complex(item.dtype) else [])

            file.visititems(visit)
            name = _only(source, names, dataset, shapes)
            pixels = _pixels(source, name, file[name][()])
            if file.attrs.get("format") == _FORMAT:
                spacing = tuple(file.attrs["spacing"]) if "spacing" in file.attrs else None
                facts = _tuples(json.loads(file.attrs["facts"]))
            else:
                spacing, facts = _spacing(file[name]), {"file": str(source), "format": "hdf5", "dataset": name}
                last = name.split("/")[-1]
                facts |= {"polarisation": last} if last in POLARISATIONS else {}
            with of_file(source):
                return ComplexImage(pixels, spacing, facts)
    except InvdiffError:
        raise
    except Exception as error:  # h5py raises a dozen unrelated types on a broken file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{source}: can't be read as {source.suffix}: {reason}") from error


def _spacing(item: Any) -> tuple[float, float] | None:
    """Of rows and columns, by the names of NISAR beside the dataset."""
    group = item.parent
    for names in (("sceneCenterAlongTrackSpacing", "slantRangeSpacing"), ("yCoordinateSpacing", "xCoordinateSpacing")):
        if all(name in group for name in names):
            rows, columns = (abs(float(group[name][()])) for name in names)
            units = [group[name].attrs.get("units", "meters") for name in names]
            metres = all((u.decode() if isinstance(u, bytes) else str(u)).lower() in _METRES for u in units)
            return (rows, columns) if metres else None
    return None


_METRES = ("m", "meter", "meters", "metre", "metres")


def _tiff_image(source: Path) -> ComplexImage:
    try:
        import tifffile
    except ImportError as error:
        raise CapabilityError(f"{source}: GeoTIFF needs the package tifffile: pip install tifffile") from error

    if not source.is_file():
        raise DataError(f"{source}: {'not a file' if source.exists() else 'no such file'}")
    try:
        with tifffile.TiffFile(source) as file:
            values = file.asarray()
            tags = file.pages[0].tags
            scale, spacing = _pixel_scale({name: tags[name].value for name in _TAGS if name in tags})
    except Exception as error:  # as above
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{source}: can't be read as {source.suffix}: {reason}") from error
    if values.ndim != 2 or values.dtype.kind not in "iufc":
        raise DataError(f"{source}: expected one image (H, W) of numbers, found {values.shape} {values.dtype}")
    facts: dict[str, Any] = {"file": str(source), "format": "tiff", "detected": values.dtype.kind != "c"}
    if scale is not None:
        facts["pixel_scale"] = scale
    with of_file(source):
        return ComplexImage(_pixels(source, "the image", values), spacing, facts)


def _pixel_scale(tags: Mapping[str, Any]) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Size of rows and columns in the unit of the file, and in metres where that is its unit."""
    if "ModelPixelScaleTag" not in tags:
        return None, None
    across, down = (float(s) for s in tags["ModelPixelScaleTag"][:2])
    keys = np.reshape(tags.get("GeoKeyDirectoryTag", ()), (-1, 4))[1:]
    found = {int(key): int(value) for key, where, _, value in keys if where == 0}
    # 1024 = 1: a projected system; 3076 = 9001: its unit is the metre, as it is where the key is left out
    metres = found.get(1024) == 1 and found.get(3076, 9001) == 9001
    return (down, across), (down, across) if metres else None


_TAGS = ("ModelPixelScaleTag", "GeoKeyDirectoryTag")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no text or number")


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {name: _tuples(entry) for name, entry in value.items()} if isinstance(value, dict) else value
