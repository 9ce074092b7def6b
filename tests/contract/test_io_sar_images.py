"""Complex radar images in files: found, converted, spaced in metres, and written back as they were."""

import re
import sys

import h5py
import numpy as np
import pytest

from invdiff.core import CapabilityError, ConfigError, DataError, ShapeError
from invdiff.io.sar_images import ComplexImage, read_complex_image, write_complex_image

RNG = np.random.default_rng(0)
IMAGE = (RNG.normal(size=(6, 7)) + 1j * RNG.normal(size=(6, 7))).astype(np.complex64)
SLC = "science/LSAR/SLC"


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_a_complex_array_is_an_image(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    if suffix == ".npy":
        np.save(path, IMAGE.astype(np.complex128))
    elif suffix == ".npz":
        np.savez(path, slc=IMAGE, mask=np.ones((6, 7)), vector=np.ones(3) * 1j)
    else:
        with h5py.File(path, "w") as file:
            file["deep/slc"], file["mask"], file["vector"] = IMAGE, np.ones((6, 7)), np.ones(3) * 1j
    image = read_complex_image(path)
    np.testing.assert_array_equal(image.pixels, IMAGE, strict=True)
    assert image.spacing is None


def nisar(path, names=("HH",), dtype=None, **beside):
    """The tree of a range-Doppler product, with a complex table among its calibrations."""
    with h5py.File(path, "w") as file:
        group = file.create_group(f"{SLC}/swaths/frequencyA")
        for name in names:
            if dtype is None:
                group[name] = IMAGE
            else:
                pairs = np.empty(IMAGE.shape, dtype)
                pairs[pairs.dtype.names[0]], pairs[pairs.dtype.names[1]] = IMAGE.real, IMAGE.imag
                group[name] = pairs
        for name, (value, units) in beside.items():
            group[name] = value
            group[name].attrs["units"] = np.bytes_(units)
        file[f"{SLC}/metadata/calibrationInformation/frequencyA/HH/elevationAntennaPattern"] = np.ones((3, 4), np.complex64)
    return path


SPACED = {"sceneCenterAlongTrackSpacing": (6.0, "meters"), "slantRangeSpacing": (2.5, "meters")}


@pytest.mark.parametrize("kind", [None, "r,i f4", "r,i f2", "real,imag f8"])
def test_the_image_in_a_tree_of_nisar_is_found(tmp_path, kind):
    dtype = kind and [(name, kind[-2:]) for name in kind[:-3].split(",")]
    image = read_complex_image(nisar(tmp_path / "rslc.h5", dtype=dtype, **SPACED))
    # half precision has 11 bits
    half = kind == "r,i f2"
    np.testing.assert_allclose(image.pixels, IMAGE, rtol=2.0**-11 if half else 0.0, atol=1e-6 if half else 0.0)
    assert image.pixels.dtype == np.complex64
    assert image.spacing == (6.0, 2.5)
    assert image.facts["dataset"] == f"{SLC}/swaths/frequencyA/HH" and image.facts["polarisation"] == "HH"


def test_several_images_are_listed_and_one_can_be_chosen(tmp_path):
    path = nisar(tmp_path / "rslc.h5", names=("HH", "HV"))
    with pytest.raises(DataError, match=r"rslc\.h5: choose dataset, one of .*frequencyA/HH, .*frequencyA/HV$"):
        read_complex_image(path)
    assert read_complex_image(path, f"/{SLC}/swaths/frequencyA/HV").facts["polarisation"] == "HV"
    with pytest.raises(ConfigError, match=r"expected dataset to be one of .*HV.*, got 'VV'"):
        read_complex_image(path, "VV")


def test_spacing_is_in_metres_or_none(tmp_path):
    assert read_complex_image(nisar(tmp_path / "none.h5")).spacing is None
    grid = {"yCoordinateSpacing": (-20.0, "meters"), "xCoordinateSpacing": (10.0, "meters")}
    assert read_complex_image(nisar(tmp_path / "gslc.h5", **grid)).spacing == (20.0, 10.0)
    zero = {"sceneCenterAlongTrackSpacing": (0.0, "meters"), "slantRangeSpacing": (2.5, "meters")}
    with pytest.raises(DataError, match=r"zero\.h5: ComplexImage: expected a positive spacing"):
        read_complex_image(nisar(tmp_path / "zero.h5", **zero))
    degrees = {name: (value, "degrees") for name, (value, _) in grid.items()}
    assert read_complex_image(nisar(tmp_path / "degrees.h5", **degrees)).spacing is None


@pytest.mark.parametrize("dtype", [[("r", "u2"), ("i", "u2")], [("a", "f4"), ("b", "f4")]])
def test_codes_and_other_pairs_are_no_complex_numbers(tmp_path, dtype):
    with h5py.File(tmp_path / "codes.h5", "w") as file:
        file["HH"] = np.zeros((3, 4), dtype)
    with pytest.raises(DataError, match=r"codes\.h5: holds no complex array of two axes, found HH \(3, 4\)"):
        read_complex_image(tmp_path / "codes.h5")


def test_a_broken_image_is_named(tmp_path):
    path = nisar(tmp_path / "cut.h5")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"cut\.h5: can't be read as \.h5"):
        read_complex_image(path)
    for name in ("none.h5", "none.npy", "none.npz"):
        with pytest.raises(DataError, match=rf"{re.escape(name)}: no such file"):
            read_complex_image(tmp_path / name)
    np.save(tmp_path / "real.npy", IMAGE.real)
    with pytest.raises(DataError, match=r"real\.npy: holds no complex array of two axes, found values \(6, 7\)"):
        read_complex_image(tmp_path / "real.npy")
    np.savez(tmp_path / "nan.npz", slc=np.where(np.eye(6, 7) > 0, np.nan, IMAGE))
    with pytest.raises(DataError, match=r"nan\.npz: slc: 6 of the 42 values"):
        read_complex_image(tmp_path / "nan.npz")
    np.save(tmp_path / "huge.npy", IMAGE.astype(np.complex128) * 1e39)
    with pytest.raises(DataError, match=r"huge\.npy: values: \d+ of the 42 values"):
        read_complex_image(tmp_path / "huge.npy")
    with pytest.raises(ConfigError, match=r"slc\.nitf: unknown suffix.*read_sicd"):
        read_complex_image(tmp_path / "slc.nitf")


def test_an_image_comes_back_as_it_was_written(tmp_path):
    facts = {"polarisation": "VV", "looks": 1, "centre": (1.5, np.float64(2.0)), "note": None, "window": {"name": "taylor"}}
    path = tmp_path / "image.h5"
    write_complex_image(path, ComplexImage(IMAGE, (0.3, 0.25), facts))
    found = read_complex_image(path)
    np.testing.assert_array_equal(found.pixels, IMAGE, strict=True)
    assert found.spacing == (0.3, 0.25)
    assert dict(found.facts) == facts
    write_complex_image(path, ComplexImage(IMAGE))
    assert read_complex_image(path).spacing is None and not read_complex_image(path).facts


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "image.h5"
    write_complex_image(path, ComplexImage(IMAGE))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"image\.h5: facts of the image can't be written"):
        write_complex_image(path, ComplexImage(IMAGE, None, {"object": object()}))
    with monkeypatch.context() as patch:
        patch.setattr("invdiff.core.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(DataError, match=r"image\.h5: can't be written: No space left"):
            write_complex_image(path, ComplexImage(2 * IMAGE))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["image.h5"]
    with pytest.raises(ConfigError, match=r"image\.npy: unknown suffix"):
        write_complex_image(tmp_path / "image.npy", ComplexImage(IMAGE))


def test_complex_image_checks_itself():
    with pytest.raises(ShapeError, match="ComplexImage: expected complex pixels"):
        ComplexImage(IMAGE.real)
    for spacing in [(1.0,), (0.0, 1.0), (1.0, np.nan)]:
        with pytest.raises(ConfigError, match="ComplexImage: expected a positive spacing"):
            ComplexImage(IMAGE, spacing)


def test_objects_are_not_unpickled(tmp_path):
    np.save(tmp_path / "bad.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"bad\.npy: "):
        read_complex_image(tmp_path / "bad.npy")


def geokeys(*pairs):
    return (1, 1, 0, len(pairs), *(number for key, value in pairs for number in (key, 0, 1, value)))


def geotiff(path, values, scale, keys=None):
    tifffile = pytest.importorskip("tifffile")
    tags = [(33550, "d", 3, (*scale, 0.0), True)] if scale else []
    tags += [(34735, "H", len(keys), keys, True)] if keys else []
    tifffile.imwrite(path, values, extratags=tags, metadata=None)
    return path


@pytest.mark.parametrize(
    ("keys", "spacing"),
    [
        (geokeys((1024, 1), (3072, 32633)), (10.0, 12.5)),
        (geokeys((1024, 1), (3076, 9001)), (10.0, 12.5)),
        (geokeys((1024, 1), (3076, 9002)), None),
        (geokeys((1024, 2)), None),
        (None, None),
    ],
    ids=["utm", "metres", "feet", "degrees", "unknown"],
)
def test_an_amplitude_geotiff_has_its_spacing(tmp_path, keys, spacing):
    values = np.arange(42, dtype=np.uint16).reshape(6, 7)
    image = read_complex_image(geotiff(tmp_path / "grd.tif", values, (12.5, 10.0), keys))
    np.testing.assert_array_equal(image.pixels, values.astype(np.complex64), strict=True)
    assert image.spacing == spacing
    assert image.facts["detected"] is True and image.facts["pixel_scale"] == (10.0, 12.5)


def test_tiff_of_complex_numbers_and_of_other_things(tmp_path):
    image = read_complex_image(geotiff(tmp_path / "slc.tiff", IMAGE, None))
    np.testing.assert_array_equal(image.pixels, IMAGE, strict=True)
    assert image.facts["detected"] is False and image.spacing is None
    with pytest.raises(DataError, match=r"rgb\.tif: expected one image"):
        read_complex_image(geotiff(tmp_path / "rgb.tif", np.zeros((6, 7, 3), np.uint8), None))
    with pytest.raises(DataError, match=r"nan\.tif: the image: 42 of the 42 values"):
        read_complex_image(geotiff(tmp_path / "nan.tif", np.full((6, 7), np.nan, np.float32), None))
    with pytest.raises(DataError, match=r"keys\.tif: can't be read as \.tif"):
        read_complex_image(geotiff(tmp_path / "keys.tif", IMAGE, (1.0, 1.0), (1, 1, 0, 1, 1024)))
    path = tmp_path / "slc.tiff"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"slc\.tiff: "):
        read_complex_image(path)
    with pytest.raises(ConfigError, match=r"nan\.tif: holds one image without a name"):
        read_complex_image(tmp_path / "nan.tif", "HH")


def test_tiff_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(CapabilityError, match=r"grd\.tif: GeoTIFF needs the package tifffile"):
        read_complex_image(tmp_path / "grd.tif")
