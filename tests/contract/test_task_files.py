"""The user's files: units, places in the scanner, measurements without a truth, and one clear line for what can't be used."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff.core import ConfigError, DataError, Gaussian, InvdiffError, ShapeError, build
from invdiff.guidance import MMPS
from invdiff.io.images import read_array, write_hdf5, write_nifti
from invdiff.operators.restoration import Identity
from invdiff.priors import StationaryGaussian
from invdiff.samplers import Guided
from invdiff.tasks import CTSlices, Item, MRSlice, PriorDraws, Relative, Task
from invdiff.tasks.setups import cartesian_mri, inpainting, sparse_view_ct

FAST = Guided(guidance=MMPS(cg_steps=2), steps=4)
FIELD = StationaryGaussian((1, 16, 16), mean=0.4, std=0.2)


def small(data, operator=None, **options) -> Task:
    options = {"noise": Gaussian(0.1), "name": "small"} | options
    return Task(data=data, operator=operator or (lambda item: Identity(item.shape)), **options)


def test_units_become_attenuation_relative_to_water(tmp_path):
    path = tmp_path / "slice.npy"
    np.save(path, np.tile([-1000.0, 0.0, 1000.0, 0.0], (16, 4)))
    want = torch.tensor([0.0, 1.0, 2.0, 1.0])
    assert torch.equal(next(CTSlices(path=str(path), units="hu").items(1, 0, FIELD)).truth[0, 0, :4], want)
    np.save(path, np.tile([0, 1, 2, 1], (16, 4)))
    assert torch.equal(next(CTSlices(path=str(path), units="water").items(1, 0, FIELD)).truth[0, 0, :4], want)
    assert torch.equal(
        next(CTSlices(path=str(path), scale=0.5, shift=0.5).items(1, 0, FIELD)).truth[0, 0, :4], 0.5 * want + 0.5
    )
    np.save(path, np.tile(np.array([0, 51, 255, 51], np.uint8), (16, 4)))
    windowed = next(CTSlices(path=str(path), units="window", window=(-1000.0, 1000.0)).items(1, 0, FIELD)).truth[0, 0, :4]
    torch.testing.assert_close(windowed, torch.tensor([0.0, 0.4, 2.0, 0.4]))
    np.save(path, np.full((16, 16), -3024.0))
    assert next(CTSlices(path=str(path), units="hu", clip=(-1000.0, 3000.0)).items(1, 0, FIELD)).truth.abs().max() == 0


def test_a_slice_keeps_its_place_in_the_scanner(tmp_path):
    """A voxel's millimetres are those of its pixel, cut along any axis; resampled, those of its centre of mass."""
    affine = np.array([[-2.0, 0.1, 0.0, 30.0], [0.2, 1.5, 0.3, -20.0], [0.0, -0.2, 3.0, 5.0], [0, 0, 0, 1.0]])
    volume = np.zeros((20, 24, 12), np.float32)
    voxel = np.array([7, 15, 4])
    volume[tuple(voxel)] = 1.0
    path = tmp_path / "volume.nii.gz"
    write_nifti(path, volume, affine)
    want = (affine @ [*voxel, 1])[:3]
    for axis in range(3):
        item = next(MRSlice(path=str(path), scale=1.0, slice=int(voxel[axis]), axis=axis).items(1, 0, FIELD))
        row, column = np.argwhere(item.truth[0].abs().numpy() > 0.5)[0]
        np.testing.assert_allclose((item.affine @ [row, column, 0, 1])[:3], want, atol=1e-5)
    # a smooth blob, whose centre of mass survives resampling to a hundredth of a voxel
    i, j = np.indices((20, 24))
    volume[..., 4] = np.exp(-((i - 8.3) ** 2 + (j - 14.6) ** 2) / 8)
    want = (affine @ [8.3, 14.6, 4, 1])[:3]
    write_nifti(path, volume, affine)
    item = next(MRSlice(path=str(path), scale=1.0, slice=4, size=48).items(1, 0, FIELD))
    image = item.truth[0].abs().double().numpy()
    row, column = (float((image * g).sum() / image.sum()) for g in np.indices(image.shape))
    np.testing.assert_allclose((item.affine @ [row, column, 0, 1])[:3], want, atol=0.02)


def test_a_nifti_comes_back_as_a_nifti_in_its_place(tmp_path):
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    path = tmp_path / "volume.nii.gz"
    write_nifti(path, np.random.default_rng(0).random((16, 16, 4), np.float32), affine)
    task = small(CTSlices(path=str(path), units="water", slice=2))
    task.run(prior=FIELD, sampler=FAST, n=2, items=1, out=tmp_path / "out")
    back = read_array(tmp_path / "out/reconstruction.nii.gz")
    assert back.data.shape == (16, 16, 1)
    # upright: rows run against the second axis, columns along the first
    np.testing.assert_allclose(back.affine @ [0, 0, 0, 1], [0, 30, 6, 1])
    np.testing.assert_allclose(back.affine @ [3, 5, 0, 1], [10, 24, 6, 1])
    assert read_array(tmp_path / "out/std.nii.gz").data.min() >= 0


@pytest.mark.parametrize("suffix", ["npy", "png", "nii.gz", "h5"])
def test_the_users_file_runs(tmp_path, suffix):
    path, image = tmp_path / f"image.{suffix}", np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)
    if suffix == "npy":
        np.save(path, image)
    elif suffix == "png":
        Image.fromarray(image).save(path)
    elif suffix == "nii.gz":
        write_nifti(path, image.astype(np.float32), np.eye(4))
    else:
        write_hdf5(path, {"a/image": image, "other": image})
    data = CTSlices(path=str(path), dataset="a/image" if suffix == "h5" else None, scale=1 / 255)
    item = small(data).run(prior=FIELD, sampler=FAST, n=2).items[0]
    want = image[:, ::-1].T if suffix == "nii.gz" else image
    np.testing.assert_allclose(item.truth[0].numpy(), want / 255, rtol=1e-6)


def test_measured_data_without_a_truth_report_only_the_misfit(tmp_path):
    truth = next(CTSlices(size=16).items(1, 0, FIELD)).truth[None]
    operator = sparse_view_ct(Item("i", (1, 16, 16), pixel=3.0), views=6)
    np.savez(tmp_path / "scan.npz", y=operator(truth).numpy()[0] / 2, angles=np.arange(6))
    data = CTSlices(measurement=str(tmp_path / "scan.npz"), measurement_dataset="y", measurement_scale=2.0, size=16, pixel=3.0)
    task = small(data, lambda item: sparse_view_ct(item, views=6), noise=Relative(0.02))
    prior = StationaryGaussian((1, 16, 16), mean=0.5, std=0.4)
    report = task.run(prior=prior, sampler=Guided(guidance=MMPS(cg_steps=10), steps=20), n=2)
    values = report.items[0].metrics(report.items[0].estimates[-1])
    assert [values[k] for k in ("psnr", "ssim", "nrmse", "coverage")] == [None] * 4
    assert 0 < values["misfit"] < 3
    assert any("No truth" in note for note in report.all_notes())


def test_measured_k_space_with_the_users_mask_and_maps(tmp_path):
    """Values that the mask hides are not used: the same numbers whatever they are."""
    maps = np.ones((2, 16, 16), np.complex64) / 2**0.5
    np.save(tmp_path / "maps.npy", maps)
    np.save(tmp_path / "mask.npy", np.arange(16) % 2)
    y = np.random.default_rng(0).normal(size=(2, 16, 16, 2)).astype(np.float32).view(np.complex64)[..., 0]
    draws = []
    for hidden in (0.0, 7.0):
        y[..., ::2] = hidden
        np.save(tmp_path / "scan.npy", y)
        task = small(
            MRSlice(measurement=str(tmp_path / "scan.npy")),
            lambda item: cartesian_mri(item, mask=str(tmp_path / "mask.npy"), maps=str(tmp_path / "maps.npy")),
            view="magnitude",
        )
        draws.append(task.run(prior=StationaryGaussian((2, 16, 16)), sampler=FAST, n=2).items[0].estimates[-1].samples.x)
    assert torch.equal(*draws)


# errors: one line that names the file or the option


def files(folder: Path) -> None:
    np.save(folder / "slice.npy", np.zeros((16, 16)))
    np.save(folder / "volume.npy", np.zeros((4, 16, 16)))
    np.save(folder / "nan.npy", np.full((16, 16), np.nan))
    np.save(folder / "five.npy", np.zeros((2, 2, 2, 2, 2)))
    np.save(folder / "large.npy", np.full((16, 16), 700.0))
    (folder / "truncated.npy").write_bytes((folder / "slice.npy").read_bytes()[:200])
    write_nifti(folder / "flat.nii.gz", np.zeros((16, 16, 2), np.float32), np.diag([1.0, 2.0, 1.0, 1.0]))
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "colour.png")
    np.save(folder / "complex.npy", np.zeros((6, 24), np.complex64))
    write_nifti(folder / "nowhere.nii", np.zeros((16, 16, 2), np.float32), np.eye(4))
    header = bytearray((folder / "nowhere.nii").read_bytes())
    header[280:328] = bytes(48)  # the rows of the affine
    (folder / "nowhere.nii").write_bytes(header)


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("absent.npy", {"units": "hu"}, "no such file"),
        ("truncated.npy", {"units": "hu"}, "truncated.npy"),
        ("nan.npy", {"units": "hu"}, "256 of the 256 values are NaN"),
        ("", {"units": "hu"}, "expected the name of a file"),
        ("complex.npy", {"units": "hu"}, "expected real values, got complex64"),
        ("nowhere.nii", {"units": "hu"}, "its affine can't be inverted"),
        (None, {"units": "hu", "axis": 1}, "expected a file, data.path=FILE, for axis=1, units=hu"),
        ("slice.npy", {"scale": math.nan}, "a finite scale"),
        ("slice.npy", {"units": "hu", "clip": [300.0, -300.0]}, "low < high"),
        ("slice.npy", {"units": "hu", "pixel": 0.0}, "pixel > 0"),
        ("slice.npy", {"units": "hu", "measurement_scale": 0.0}, "a finite measurement_scale"),
        ("slice.npy", {}, "say what its numbers mean"),
        ("slice.npy", {"units": "hu", "scale": 1.0}, "say what its numbers mean"),
        ("slice.npy", {"units": "hounsfield"}, "expected units"),
        ("slice.npy", {"units": "water", "slice": 3}, "holds one image"),
        ("slice.npy", {"units": "water", "size": 4}, "size >= 8"),
        ("volume.npy", {"units": "water", "slice": 9}, "slices 0 to 3 along axis 0"),
        ("volume.npy", {"units": "water", "axis": 3}, "axis 0, 1 or 2"),
        ("five.npy", {"units": "water"}, "a volume with three axes"),
        ("flat.nii.gz", {"units": "water"}, r"pixels of \(2.0, 1.0\) mm are not square: size=N"),
        (None, {"measurement": "slice.npy", "size": 16}, "needs the image's size=N in pixels, and pixel"),
        ("large.npy", {"units": "water"}, "no attenuation relative to water"),
        ("colour.png", {"units": "window"}, "a grey image or a volume"),
        ("slice.npy", {"units": "water", "measurement": "complex.npy"}, "a real sinogram"),
        (
            "slice.npy",
            {"units": "water", "measurement": "slice.npy"},
            r"expected y of shape \(B, 1, 16, 16\) real, got|ParallelBeamCT",
        ),
        ("slice.npy", {"units": "water", "measurement": "volume.npy", "measurement_index": 5}, "has no entry 5"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, file, options, message):
    files(tmp_path)
    if "measurement" in options:
        options = options | {"measurement": str(tmp_path / options["measurement"])}
    with pytest.raises(InvdiffError, match=message) as error:
        task = small(
            build({"_target_": "invdiff.tasks.CTSlices", "path": str(tmp_path / file) if file else file, **options}),
            lambda i: sparse_view_ct(i, views=3),
        )
        task.run(prior=FIELD, sampler=FAST, n=1)
    assert "\n" not in str(error.value)


def test_k_space_has_to_be_complex(tmp_path):
    np.save(tmp_path / "real.npy", np.ones((2, 16, 16), np.float32))
    with pytest.raises(ShapeError, match=r"expected complex k-space, got \(2, 16, 16\) float32"):
        next(MRSlice(measurement=str(tmp_path / "real.npy")).items(1, 0, FIELD))


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.zeros((16, 16)), "nothing is measured"), (np.full((16, 16), np.nan), "NaN"), (np.array([["a"]]), "expected numbers")],
)
def test_masks_and_maps_have_to_say_something(tmp_path, values, message):
    np.save(tmp_path / "given.npy", values)
    for option in ("mask", "maps"):
        with pytest.raises(DataError, match=message):
            cartesian_mri(Item("i", (1, 16, 16)), **{option: str(tmp_path / "given.npy")})


def test_setups_name_what_does_not_fit(tmp_path):
    with pytest.raises(ConfigError, match="either keep or box"):
        inpainting(Item("i", (1, 16, 16)), keep=0.5, box=4)
    np.save(tmp_path / "mask.npy", np.ones((8, 8)))
    with pytest.raises(ShapeError):
        cartesian_mri(Item("i", (1, 16, 16)), mask=str(tmp_path / "mask.npy"))
    with pytest.raises(ConfigError, match="can't be drawn from exactly"):
        next(PriorDraws().items(1, 0, torch.nn.Identity()))
