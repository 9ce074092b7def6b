"""Arrays in files: NIfTI, HDF5, NumPy, PNG and TIFF.

The suffix says the format, and the content has to agree: a missing, truncated or foreign file is a `DataError` of one line
that names the file and the reason. Values come as stored (a NIfTI slope is applied), NaN included; nothing is rescaled.
"""

from __future__ import annotations

import gzip
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from invdiff.core.errors import ConfigError, DataError

from ..core.files import atomic

__all__ = ["Array", "finite", "hdf5_bytes", "read_array", "write_hdf5", "write_nifti"]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Array:
    """What a file holds.

    Args:
        data: the values.
        affine: NIfTI only: (4, 4), from voxel indices to millimetres (right, anterior, superior).
        facts: what else the file says: `zooms` (voxel sizes in the header's units) and `units` of a NIfTI, the attributes of an
            HDF5 dataset, the `mode` of an image.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64] | None = None
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def finite(path: str | None, values: NDArray[Any]) -> NDArray[Any]:
    """The values of a file, if they are finite numbers; booleans become numbers."""
    if values.dtype.kind not in "biufc":
        raise DataError(f"{path}: expected numbers, got {values.dtype}")
    if not values.size:
        raise DataError(f"{path}: holds no values (shape {values.shape})")
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise DataError(f"{path}: {bad} of the {values.size} values are NaN or infinite: mend the file")
    return values.astype(np.float32) if values.dtype.kind == "b" else values


def read_array(path: PathLike, dataset: str | None = None) -> Array:
    """Read one array.

    Args:
        path: .nii, .nii.gz, .h5, .hdf5, .npy, .npz, .png, .tif or .tiff.
        dataset: the array's name inside an HDF5 or .npz file; needed when there is more than one.

    Raises:
        DataError: the file is missing, truncated, or not what its suffix says.
        ConfigError: the suffix is unknown, or `dataset` is missing, unknown, or given for a file that has no names.
    """
    source = Path(path)
    if not str(path):
        raise ConfigError("expected the name of a file to read, got an empty one")
    suffix = _suffix(source)
    if suffix not in _PLAIN and suffix not in _NAMED:
        raise ConfigError(f"{source}: unknown suffix; expected one of {', '.join((*_PLAIN, *_NAMED))}")
    if not source.is_file():
        raise DataError(f"{source}: {'not a file' if source.exists() else 'no such file'}")
    if dataset is not None and suffix in _PLAIN:
        raise ConfigError(f"{source}: holds one array without a name, so dataset={dataset!r} can't be chosen")
    try:
        return _NAMED[suffix](source, dataset) if suffix in _NAMED else _PLAIN[suffix](source)
    except (ConfigError, DataError):
        raise
    except Exception as error:  # the parsers raise a dozen unrelated types on a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{source}: can't be read as {suffix}: {reason}") from error


def write_nifti(path: PathLike, array: ArrayLike, affine: ArrayLike) -> None:
    """Write a NIfTI-1 volume, whole or not at all.

    Args:
        path: .nii or .nii.gz.
        array: 2 to 7 axes, a real or complex dtype that NIfTI knows (float32, int16, complex64, ...).
        affine: (4, 4), from voxel indices to millimetres.

    Raises:
        ConfigError: another suffix, or an affine that is not a finite (4, 4) matrix.
        DataError: the dtype does not fit the format, or the file can't be written.
    """
    import nibabel

    target = Path(path)
    if _suffix(target) not in (".nii", ".nii.gz"):
        raise ConfigError(f"{target}: unknown suffix; expected .nii or .nii.gz")
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ConfigError(f"{target}: expected a finite affine of shape (4, 4), got shape {matrix.shape}")
    data = np.asarray(array)
    try:
        image = nibabel.Nifti1Image(data, matrix)
    except (ValueError, nibabel.spatialimages.HeaderDataError) as error:
        raise DataError(f"{target}: NIfTI can't hold {data.dtype} of shape {data.shape}: {error}") from error
    image.header.set_xyzt_units("mm")
    with atomic(target) as part:
        content = image.to_bytes()
        part.write_bytes(gzip.compress(content, 6, mtime=0) if _suffix(target) == ".nii.gz" else content)


def write_hdf5(path: PathLike, arrays: Mapping[str, ArrayLike], attrs: Mapping[str, Any] | None = None) -> None:
    """Write named arrays and the file's attributes, whole or not at all.

    Args:
        path: .h5 or .hdf5.
        arrays: name (slashes make groups) -> array.
        attrs: attributes of the file: strings, numbers, small arrays.

    Raises:
        ConfigError: another suffix, or names or dtypes that HDF5 can't hold.
        DataError: the file can't be written.
    """
    target = Path(path)
    if _suffix(target) not in (".h5", ".hdf5"):
        raise ConfigError(f"{target}: unknown suffix; expected .h5 or .hdf5")
    try:
        content = hdf5_bytes(arrays, attrs)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{target}: {error}") from error
    with atomic(target) as part:
        part.write_bytes(content)


def hdf5_bytes(arrays: Mapping[str, ArrayLike], attrs: Mapping[str, Any] | None = None) -> bytes:
    """An HDF5 file made in memory, because the HDF5 library can crash the process when it meets a full disk."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=np.asarray(array))
        file.attrs.update(attrs or {})
    return buffer.getvalue()


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def _choose(path: Path, names: Sequence[str], dataset: str | None) -> str:
    if dataset is None and len(names) == 1:
        return names[0]
    if dataset is None or dataset.strip("/") not in names:
        asked = "" if dataset is None else f", got {dataset!r}"
        raise ConfigError(f"{path}: expected dataset to be one of {', '.join(names) or 'none: the file is empty'}{asked}")
    return dataset.strip("/")


def _nifti(path: Path) -> Array:
    import nibabel

    content = path.read_bytes()
    if _suffix(path) == ".nii.gz":
        content = gzip.decompress(content)  # to its end: only then is the checksum compared
    kinds = [kind for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image) if kind.header_class.may_contain_header(content)]
    if not kinds:
        raise DataError(f"{path}: can't be read as {_suffix(path)}: no NIfTI header")
    image = kinds[0].from_bytes(content)
    data = np.asanyarray(image.dataobj)
    if data.dtype.fields:
        raise DataError(f"{path}: holds colours ({data.dtype}), expected numbers")
    affine = np.array(image.affine, np.float64)
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        raise DataError(f"{path}: its affine can't be inverted, so that its voxels have no size: mend the header")
    zooms = tuple(float(zoom) for zoom in image.header.get_zooms())
    return Array(data, affine, {"zooms": zooms, "units": image.header.get_xyzt_units()})


def _hdf5(path: Path, dataset: str | None) -> Array:
    import h5py

    names: list[str] = []
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        item = file[_choose(path, names, dataset)]
        return Array(np.asarray(item[()]), None, dict(item.attrs))


def _npy(path: Path) -> Array:
    with path.open("rb") as stream:
        return Array(np.lib.format.read_array(stream, allow_pickle=False))


def _npz(path: Path, dataset: str | None) -> Array:
    with path.open("rb") as stream:
        if stream.read(2) != b"PK":
            raise DataError(f"{path}: can't be read as .npz: not a zip archive")
        stream.seek(0)
        archive = np.load(stream, allow_pickle=False)
        return Array(archive[_choose(path, archive.files, dataset)])


def _image(path: Path) -> Array:
    from PIL import Image

    kind = "PNG" if path.suffix.lower() == ".png" else "TIFF"
    with warnings.catch_warnings():
        # of notes beside the pixels; broken pixels are an error
        warnings.simplefilter("ignore", UserWarning)
        with Image.open(path, formats=[kind]) as image:
            frames = []
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                # palette indices are no grey values
                frames.append(np.asarray(image.convert("RGB") if image.mode == "P" else image))
            return Array(frames[0] if len(frames) == 1 else np.stack(frames), None, {"mode": image.mode})


_PLAIN = {".nii": _nifti, ".nii.gz": _nifti, ".npy": _npy, ".png": _image, ".tif": _image, ".tiff": _image}
_NAMED = {".h5": _hdf5, ".hdf5": _hdf5, ".npz": _npz}
