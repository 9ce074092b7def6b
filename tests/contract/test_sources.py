"""Data sources: a function of (seed, index), in the units that they promise, without aliasing or clipped shapes."""

import math

import nibabel
import numpy as np
import pytest
import torch

from invdiff.core.errors import ConfigError, DataError
from invdiff.tasks.canvas import Canvas, gaussian_fields
from invdiff.tasks.phantoms import Phantoms, phantom
from invdiff.tasks.slices import MRSlices


def _rng(*key):
    return np.random.default_rng(list(key))


def _plain_canvas(size):
    """A canvas without warp, tilt or offset, on which a pixel is 2 / size."""
    canvas = Canvas(_rng(0), size)
    axis = ((2 * np.arange(size) - size + 1) / size).astype(np.float32)
    canvas.x, canvas.y = np.broadcast_to(axis[None, :], (size, size)), np.broadcast_to(axis[:, None], (size, size))
    canvas.scale, canvas.offset, canvas.cos, canvas.sin, canvas.bend = 1.0, (0.0, 0.0), 1.0, 0.0, 0.0
    canvas.width = np.float32(2 / size)
    return canvas


def test_a_painted_disc_has_the_area_of_a_disc():
    """A linear edge of width w adds pi w^2 / 12; what is left is quadrature over pixels, which a curved edge averages out."""
    canvas, r = _plain_canvas(128), 0.43
    region = canvas.blob(0.21, -0.13, r, r, wobble=0.0)
    area = canvas.full(region).sum(dtype=np.float64) * (2 / 128) ** 2
    assert area == pytest.approx(math.pi * (r**2 + (2 / 128) ** 2 / 12), abs=1e-4)


def test_a_painted_tube_has_the_area_of_a_tube():
    """Its two straight edges, each 1 long, may be off by 1/30 of a pixel where they cross the lattice at 45 degrees."""
    canvas, r = _plain_canvas(128), 0.1
    region = canvas.segment((-0.4, -0.2), (0.3, 0.5), r, r)
    area = canvas.full(region).sum(dtype=np.float64) * (2 / 128) ** 2
    assert area == pytest.approx(2 * r * math.hypot(0.7, 0.7) + math.pi * r**2, abs=2 * 2 / 128 / 30)


def test_fields_have_the_correlation_length_asked_for():
    """exp(-d^2 / 4 l^2); 16 fields of about 400 independent cells each: a standard error of 0.01, so 0.04 is four of them."""
    length, size = 4.0, 256
    fields = [field for i in range(8) for field in gaussian_fields(_rng(3, i), size, length)]
    for lag in (2, 4, 8):
        measured = np.mean([(field * np.roll(field, lag, axis)).mean() for field in fields for axis in (0, 1)])
        assert measured == pytest.approx(math.exp(-(lag**2) / (4 * length**2)), abs=0.04)
    assert np.mean([field.std() for field in fields]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("index", range(8))
def test_no_shape_is_cut_by_the_window_it_is_painted_in(index, monkeypatch):
    windowed = phantom(_rng(4, index), 64)
    monkeypatch.setattr(Canvas, "window", lambda self, x, y, reach: (slice(0, self.size), slice(0, self.size)))
    np.testing.assert_allclose(windowed, phantom(_rng(4, index), 64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [64, 128])
def test_phantoms_are_in_units_of_water(size):
    images = np.stack([phantom(_rng(5, index), size) for index in range(40)])
    assert images.dtype == np.float32
    assert np.isfinite(images).all()
    assert images.min() == 0
    # the densest cortical bone is 2; its texture of 3 % and the edges may add a little
    assert 1.7 < images.max() < 2.2
    axis = (2 * np.arange(size) - size + 1) / size
    outside = axis[:, None] ** 2 + axis**2 > 1
    assert not images[:, outside].any()
    body = images[images > 0.5]
    # fat and soft tissue, within their textures, make up most of a body
    assert ((body > 0.85) & (body < 1.15)).mean() > 0.75
    assert (body > 1.3).mean() == pytest.approx(0.1, abs=0.07)


def test_phantoms_are_a_function_of_seed_and_index():
    first, second = Phantoms(3, 32, pool=5), Phantoms(3, 32, pool=5)
    forward = [first(index) for index in range(12)]
    backward = [second(index) for index in reversed(range(12))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert forward[0].shape == first.shape == (1, 32, 32)
    assert forward[0].dtype == torch.float32
    assert not torch.equal(forward[0], Phantoms(1_000_003, 32, pool=5)(0))
    # the same member in another pose: sorted values agree up to the gain of at most 6 x 1.2 %
    a, b = (x[x > 0.5].mean() for x in (forward[2], forward[7]))
    assert not torch.equal(forward[2], forward[7])
    assert a == pytest.approx(float(b), rel=0.15)


def test_phantoms_refuse_nonsense():
    for build in (lambda: Phantoms(-1), lambda: Phantoms(0, pool=0), lambda: Phantoms(0, 32)(-1), lambda: phantom(_rng(0), 8)):
        with pytest.raises(ConfigError, match="expected"):
            build()


def _ball(path, spacing=(1.0, 1.0, 2.0), shape=(96, 90, 48), radius=30.0, value=300.0):
    """A ball with an edge of 2 mm, of the same size in mm whatever the voxels."""
    grids = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * h for n, h in zip(shape, spacing, strict=True)), indexing="ij")
    ball = value * np.clip((radius - np.sqrt(sum(g**2 for g in grids))) / 2 + 0.5, 0, 1)
    nibabel.save(nibabel.Nifti1Image(ball.astype(np.float32), np.diag([*spacing, 1.0])), path)
    return path


def test_voxel_sizes_are_honoured(tmp_path):
    """Every slice of a ball is a disc. Voxels of 2 mm and the pixels leave a few per cent, ignored sizes would leave 300 %."""
    source = MRSlices([_ball(tmp_path / "a.nii")], size=64, complex_phase=False)
    for index in range(30):
        image = source(index)[0].numpy()
        disc = np.argwhere(image > 0.5 * image.max())
        assert len(disc) > 100
        low, high = np.linalg.eigvalsh(np.cov(disc.T))
        assert high / low < 1.08


def test_slices_are_normalised_and_magnitudes_stay_magnitudes(tmp_path):
    """Inside the ball gamma leaves 1; the gain is within 0.8 to 1.2 and four standard deviations of shading within e^+-1."""
    source = MRSlices([_ball(tmp_path / "a.nii.gz")], size=32, complex_phase=False)
    tops = np.array([float(source(index).quantile(0.97)) for index in range(60)])
    assert all(float(source(index).min()) >= 0 for index in range(5))
    assert 0.8 / math.e < tops.min() < 0.95
    assert 1.05 < tops.max() < 1.2 * math.e
    assert np.median(tops) == pytest.approx(1, abs=0.1)


def test_the_phase_is_a_phase_smooth_and_without_preference(tmp_path):
    path = _ball(tmp_path / "a.nii")
    source, plain = MRSlices([path], size=32, seed=2), MRSlices([path], size=32, seed=2, complex_phase=False)
    units = []
    for index in range(200):
        image = source(index)
        assert image.shape == source.shape == (2, 32, 32)
        assert image.dtype == torch.float32
        z = torch.complex(*image)
        torch.testing.assert_close(z.abs(), plain(index)[0], rtol=0, atol=1e-6)
        centre = z[16, 16] / z[16, 16].abs()
        units.append(centre)
    # the mean of 200 uniform phases has a standard deviation of 0.05 per component
    assert abs(torch.stack(units).mean()) < 0.25
    z = torch.complex(*MRSlices([path], size=128, seed=2)(0))
    inside = (z[:, 1:].abs() > 0.3) & (z[:, :-1].abs() > 0.3)
    assert float((z[:, 1:] * z[:, :-1].conj()).angle()[inside].abs().max()) < 0.6


def test_detail_finer_than_a_pixel_is_integrated(tmp_path):
    """Stripes of one voxel under pixels of about six: the mean remains and the contrast (1 without integration) does not."""
    shape = (192, 192, 12)
    stripes = np.broadcast_to((np.arange(192) % 2)[:, None, None], shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(200 * stripes), np.eye(4)), tmp_path / "a.nii")
    source = MRSlices([tmp_path / "a.nii"], size=32, complex_phase=False)
    for index in range(6):
        image = source._magnitude(_rng(0, index), stripes[:, :, 0], (1.0, 1.0))[12:20, 12:20]
        assert image.std() / image.mean() < 0.2


def test_slices_are_a_function_of_seed_and_index(tmp_path):
    paths = [_ball(tmp_path / "a.nii"), _ball(tmp_path / "b.nii", radius=20.0)]
    first, second = MRSlices(paths, size=32), MRSlices(paths, size=32)
    forward = [first(index) for index in range(6)]
    backward = [second(index) for index in reversed(range(6))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not torch.equal(forward[0], MRSlices(paths, size=32, seed=1)(0))


def test_slices_refuse_what_is_no_volume_of_magnitudes(tmp_path):
    path = tmp_path / "a.nii"
    values = np.random.default_rng(0).random((8, 9, 10)).astype(np.float32)
    bad = {
        "three axes": np.stack([values, values], -1),
        "magnitudes": values - 0.5,
        "finite": np.where(values > 0.9, np.nan, values),
        "not all zero": 0 * values,
        "complex64": values.astype(np.complex64),
    }
    for reason, data in bad.items():
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), path)
        with pytest.raises(DataError, match=reason):
            MRSlices([path])
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DataError, match="NIfTI"):
        MRSlices([tmp_path / "a.npy"])
    with pytest.raises(DataError, match="no such file"):
        MRSlices([tmp_path / "none.nii"])
    for arguments in ({"paths": []}, {"paths": str(path)}, {"paths": [path], "seed": -1}, {"paths": [path], "size": 4}):
        with pytest.raises(ConfigError, match="expected"):
            MRSlices(**arguments)
