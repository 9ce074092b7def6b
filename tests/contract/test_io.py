"""Files are read as they are or refused in one line; they are written whole or not at all."""

import resource
import struct
from contextlib import contextmanager

import h5py
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from invdiff.core.errors import ConfigError, DataError
from invdiff.core.files import require_writable, save
from invdiff.io import atomic
from invdiff.io.images import read_array, write_hdf5, write_nifti

AFFINE = np.array([[0.0, -1.5, 0.0, 10.0], [0.9, 0.0, 0.0, -20.0], [0.0, 0.0, 2.4, 30.0], [0.0, 0.0, 0.0, 1.0]])


def _sample(shape=(5, 6, 7)):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values[0, 0, 0], values[1, 1, 1] = np.nan, np.inf
    return values


def _make(path):
    """A valid file of the suffix of `path`, and what it holds."""
    values = _sample()
    if path.name.endswith((".nii", ".nii.gz")):
        write_nifti(path, values, AFFINE)
    elif path.suffix == ".h5":
        write_hdf5(path, {"volume": values})
    elif path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, volume=values)
    else:
        values = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
        Image.fromarray(values).save(path)
    return values


SUFFIXES = (".nii", ".nii.gz", ".h5", ".npy", ".npz", ".png", ".tif")


@contextmanager
def _disk_of(size):
    """No file may grow beyond `size` bytes, as on a full disk: the write fails in the operating system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_values_come_back_bit_for_bit(tmp_path, suffix):
    values = _make(tmp_path / f"a{suffix}")
    read = read_array(tmp_path / f"a{suffix}").data
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path, suffix, kept):
    path = tmp_path / f"a{suffix}"
    _make(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError) as caught:
        read_array(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_foreign_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"<html>404: not found</html>\n" * 40)
    with pytest.raises(DataError, match="can't be read") as caught:
        read_array(path)
    assert "\n" not in str(caught.value)


def test_a_picture_under_another_suffix_is_refused(tmp_path):
    _make(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.tif")
    with pytest.raises(DataError):
        read_array(tmp_path / "a.tif")


def test_missing_files_folders_and_unknown_suffixes(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(DataError, match="no such file"):
        read_array(tmp_path / "none.nii")
    with pytest.raises(DataError, match="not a file"):
        read_array(tmp_path / "folder.nii")
    with pytest.raises(ConfigError, match=r"unknown suffix.*\.nii"):
        read_array(tmp_path / "a.jpg")
    with pytest.raises(ConfigError, match="one array without a name"):
        _make(tmp_path / "a.npy")
        read_array(tmp_path / "a.npy", dataset="volume")


def test_pickles_are_never_opened(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", np.array([{"a": 1}], dtype=object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError, match="allow_pickle"):
            read_array(tmp_path / name)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint8, np.complex64])
def test_nifti_round_trip_keeps_the_affine(tmp_path, suffix, dtype):
    values = (100 * np.random.default_rng(1).random((4, 5, 6))).astype(dtype)
    write_nifti(tmp_path / f"a{suffix}", values, AFFINE)
    array = read_array(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(array.data, values)
    # the header stores single precision
    np.testing.assert_allclose(array.affine, AFFINE, rtol=0, atol=1e-5)
    np.testing.assert_allclose(array.facts["zooms"], (0.9, 1.5, 2.4), rtol=1e-6)
    assert array.facts["units"][0] == "mm"


def test_nifti_slope_and_intercept_are_applied(tmp_path):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = struct.pack("<ff", 2.0, -3.0)  # scl_slope and scl_inter of the NIfTI-1 header
    (tmp_path / "a.nii").write_bytes(raw)
    np.testing.assert_array_equal(read_array(tmp_path / "a.nii").data, 2.0 * values - 3.0)


def test_nifti_two_is_read(tmp_path):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nibabel.save(nibabel.Nifti2Image(values, AFFINE), tmp_path / "a.nii")
    array = read_array(tmp_path / "a.nii")
    np.testing.assert_array_equal(array.data, values)
    np.testing.assert_allclose(array.affine, AFFINE, rtol=0, atol=1e-12)


def test_nifti_refuses_what_it_cannot_hold(tmp_path):
    path = tmp_path / "a.nii"
    with pytest.raises(ConfigError, match="affine"):
        write_nifti(path, np.zeros((2, 2, 2), np.float32), np.eye(3))
    with pytest.raises(ConfigError, match="affine"):
        write_nifti(path, np.zeros((2, 2, 2), np.float32), np.full((4, 4), np.nan))
    with pytest.raises(DataError, match="int64"):
        write_nifti(path, np.zeros((2, 2, 2), np.int64), np.eye(4))
    with pytest.raises(ConfigError, match="suffix"):
        write_nifti(tmp_path / "a.img", np.zeros((2, 2, 2), np.float32), np.eye(4))
    assert list(tmp_path.iterdir()) == []


def test_hdf5_names_are_asked_for(tmp_path):
    path = tmp_path / "a.h5"
    one, two = np.arange(3.0), (np.arange(4) + 1j).astype(np.complex64)
    write_hdf5(path, {"x": one, "group/y": two}, {"task": "mri", "seed": 3})
    np.testing.assert_array_equal(read_array(path, "x").data, one)
    np.testing.assert_array_equal(read_array(path, "/group/y").data, two)
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"task": "mri", "seed": 3}
    for asked in (None, "z", "group"):
        with pytest.raises(ConfigError, match="group/y, x"):
            read_array(path, asked)
    np.savez(tmp_path / "a.npz", x=one, y=two)
    with pytest.raises(ConfigError, match="x, y"):
        read_array(tmp_path / "a.npz")
    np.testing.assert_array_equal(read_array(tmp_path / "a.npz", "y").data, two)


def test_hdf5_refuses_objects_and_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError):
        write_hdf5(tmp_path / "a.h5", {"x": np.array([object()])})
    with pytest.raises(ConfigError):
        write_hdf5(tmp_path / "a.h5", {"a": np.zeros(2), "a/b": np.zeros(2)})
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_sixteen_bits_palettes_and_pages(tmp_path):
    deep = np.arange(0, 65536, 97, dtype=np.uint16)[:600].reshape(20, 30)
    Image.fromarray(deep).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_array(tmp_path / "a.png").data, deep)
    pages = [Image.fromarray(np.full((4, 5), v, np.float32)) for v in (0.5, 1.5)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif").data[:, 0, 0], [0.5, 1.5])
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_array(tmp_path / "p.png").data, [[[10, 20, 30], [40, 50, 60]]])


def test_atomic_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    with atomic(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
        assert part.parent == tmp_path
        assert part.suffix == ".json"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic(path) as part:
        part.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "a.txt", tmp_path / "folder"):
        with pytest.raises(DataError, match="can't be written"), atomic(path) as part:
            part.write_text("x")
    with pytest.raises(DataError, match="can't be written"), atomic(tmp_path / "a.txt"):
        pass
    with pytest.raises(DataError, match="not a file name"), atomic("") as part:
        part.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.h5", "a.txt"])
def test_a_full_disk_leaves_the_old_file(tmp_path, name):
    path, values = tmp_path / name, np.random.default_rng(0).random((64, 64, 32))
    path.write_bytes(b"old")
    with pytest.raises(DataError, match="can't be written") as caught, _disk_of(65536):
        if name.startswith("a.nii"):
            write_nifti(path, values, AFFINE)
        elif name == "a.h5":
            write_hdf5(path, {"x": values})
        else:
            with atomic(path) as part:
                part.write_bytes(values.tobytes())
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_wrong_checksum_is_seen(tmp_path):
    path = tmp_path / "a.nii.gz"
    _make(path)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # of the checksum in the gzip trailer
    path.write_bytes(content)
    with pytest.raises(DataError, match="CRC"):
        read_array(path)


def test_tensors_on_a_full_disk_say_so_and_leave_nothing(tmp_path):
    with pytest.raises(DataError, match="can't be written: File too large"), _disk_of(4096):
        save(tmp_path / "new" / "run", {"x": torch.zeros(4096)})
    assert list(tmp_path.iterdir()) == []


def test_a_place_is_tried_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    require_writable(tmp_path / "new" / "folder")
    with pytest.raises(DataError, match="file is a file, not a folder"):
        require_writable(tmp_path / "file" / "folder")
    with pytest.raises(DataError, match="no file can be written in"), _disk_of(0):
        require_writable(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_broken_notes_of_a_picture_do_not_warn(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="cannot identify"):
        read_array(path)
