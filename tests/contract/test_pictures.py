"""Crops of pictures: known pictures, a function of seed and index, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff.core.errors import ConfigError, DataError
from invdiff.tasks.pictures import Pictures


def write(path, array):
    Image.fromarray(np.asarray(array)).save(path)
    return path


@pytest.fixture
def noise(tmp_path):
    """A folder of five pictures, each with its number in every pixel's tens, and a file that is no picture."""
    rng = np.random.default_rng(0)
    for k in range(5):
        write(tmp_path / f"{k}.png", (50 * k + rng.integers(0, 10, (40, 48))).astype(np.uint8))
    (tmp_path / "notes.txt").write_text("about")
    return tmp_path


def which(crop):
    """The number of the picture that a crop of `noise` is from."""
    numbers = (crop * 255).round().div(50, rounding_mode="floor").unique()
    assert len(numbers) == 1
    return int(numbers)


@pytest.mark.parametrize(("colour", "value"), [((51,), 51), ((30, 60, 90), 60), ((30, 60, 90, 7), 60), ((0, 0, 1), 0)])
def test_a_constant_picture_is_constant(tmp_path, colour, value):
    """Whatever the crop and the factor; colours are averaged to the nearest grey, opacity is left out."""
    picture = np.broadcast_to(np.array(colour, np.uint8), (40, 50, len(colour)))
    source = Pictures(write(tmp_path / "a.png", picture[..., 0] if len(colour) == 1 else picture), size=16)
    assert len(source) == 1
    for k in range(8):
        crop = source(k)
        assert crop.shape == source.shape == (1, 16, 16)
        assert crop.dtype == torch.float32
        # the weights of the interpolation add up to 1 in single precision
        torch.testing.assert_close(crop, torch.full_like(crop, value / 255), rtol=1e-5, atol=0)


def test_a_crop_is_a_window_of_the_picture(tmp_path):
    """Not shrunk, every pixel is as it was; of 33 x 33 places 200 crops take those of all eighths, up to the borders.

    An eighth of the rows, or of the columns, is missed by all of them once in 10^11 runs.
    """
    picture = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    source = Pictures(write(tmp_path / "a.png", picture), size=16, shrink=1.0, mirror=False)
    windows = np.lib.stride_tricks.sliding_window_view(picture, (16, 16))
    corners = []
    for k in range(200):
        crop = (source(k)[0] * 255).round().to(torch.uint8).numpy()
        corners.extend(np.argwhere((windows == crop).all((2, 3))))
    assert len(corners) == 200
    assert (np.min(corners, 0) < 4).all() and (np.max(corners, 0) > 28).all()


def test_a_ramp_shrinks_to_a_ramp(tmp_path):
    """Of slope 2 / 255 to slope 2 / (255 f), 1 <= 1 / f <= 1 / 0.5, and all that lies between is used; levels do not overshoot.

    But where its window, two shrunk pixels, is cut by the border, antialiased bicubic interpolation reproduces linear functions
    to a tenth of a pixel: its stretched weights add up to 1, but their centre is not quite in the middle.
    """
    picture = np.broadcast_to((2 * np.arange(120)).astype(np.uint8), (120, 120))
    source = Pictures(write(tmp_path / "a.png", picture), size=32, shrink=0.5, mirror=False)
    slopes = []
    for k in range(40):
        crop = source(k)[0]
        assert 0.0 <= crop.min() <= crop.max() <= 238 / 255
        torch.testing.assert_close(crop, crop[:1].expand(32, 32), rtol=0, atol=1e-6)
        places = crop[0, 2:-2] * 255 / 2
        slopes.append(float(places[-1] - places[0]) / 27)
        torch.testing.assert_close(places, places[0] + slopes[-1] * torch.arange(28.0), rtol=0, atol=0.1)
    assert 1.0 - 0.1 / 27 < min(slopes) < 1.1
    assert 1.7 < max(slopes) < 2.0 + 0.1 / 27


def test_a_picture_is_not_shrunk_below_the_crop(tmp_path):
    """A factor below 32 / 40 would leave fewer than 32 rows; a picture of the crop's size is never shrunk."""
    ramp = np.broadcast_to((5 * np.arange(40)).astype(np.uint8), (40, 40))
    source = Pictures(write(tmp_path / "a.png", ramp), size=32, shrink=0.1, mirror=False)
    slopes = [float(source(k)[0, 16, 8:24].diff().mean() * 255 / 5) for k in range(40)]
    assert min(slopes) > 1.0 - 1e-4 and 40 / 33 < max(slopes) < 40 / 32 + 1e-4
    own = Pictures(write(tmp_path / "b.png", ramp), size=40, shrink=0.1, mirror=False)
    assert all(torch.equal(own(k)[0], torch.from_numpy(ramp.copy()).float() / 255) for k in range(4))


def test_half_of_the_crops_are_mirrored(tmp_path):
    """A ramp that rises to the right falls in half of 400 crops, to 5 standard errors of 1 / 40."""
    path = write(tmp_path / "a.png", np.broadcast_to((4 * np.arange(60)).astype(np.uint8), (40, 60)))
    plain, mirrored = (Pictures(path, size=16, shrink=1.0, mirror=mirror) for mirror in (False, True))
    falls = [bool(mirrored(k)[0, 0, 0] > mirrored(k)[0, 0, -1]) for k in range(400)]
    assert abs(np.mean(falls) - 0.5) < 5 / 40
    assert all(plain(k)[0, 0, 0] < plain(k)[0, 0, -1] for k in range(400))


def test_pictures_are_a_function_of_seed_and_index(noise):
    source, again = Pictures(noise, size=16, seed=3), Pictures(str(noise), size=16, seed=3)
    backwards = [again(k) for k in reversed(range(20))][::-1]
    assert all(torch.equal(source(k), backwards[k]) for k in range(20))
    assert not any(torch.equal(source(k), source(k + 1)) for k in range(19))
    other = Pictures(noise, size=16, seed=4)
    assert not any(torch.equal(source(k), other(k)) for k in range(20))
    # a copy: to write on an item leaves the next one alone
    source(0).zero_()
    assert torch.equal(source(0), backwards[0])


def test_parts_are_those_of_the_sorted_names(noise):
    """Every picture of the part is used, and no other."""

    def used(**options):
        source = Pictures(noise, size=16, shrink=1.0, **options)
        return len(source), {which(source(k)) for k in range(100)}

    assert used() == (5, {0, 1, 2, 3, 4})
    assert used(part=(0, 3)) == (3, {0, 1, 2})
    assert used(part=(3, 5)) == (2, {3, 4})
    assert used(part=(3, 99)) == (2, {3, 4})
    files = [noise / "4.png", noise / "1.png"]
    assert {which(Pictures(files, size=16, shrink=1.0)(k)) for k in range(40)} == {1, 4}


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((40, 40), np.uint16), r"a.png: expected an 8-bit picture, grey or colour, got uint16 of shape \(40, 40\)"),
        (np.zeros((40, 40, 2), np.uint8), r"got uint8 of shape \(40, 40, 2\)"),
        (np.zeros((40, 15), np.uint8), r"a.png: expected a picture of at least 16 x 16, got \(40, 15\)"),
        (b"hello", "a.png: can't be read as .png"),
    ],
)
def test_other_pictures_are_refused(tmp_path, array, message):
    path = tmp_path / "a.png"
    path.write_bytes(array) if isinstance(array, bytes) else write(path, array)
    with pytest.raises(DataError, match=message):
        Pictures(tmp_path, size=16)


def test_options_are_checked(noise, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for wrong in ({"size": 0}, {"seed": -1}, {"shrink": 0.0}, {"shrink": 1.5}):
        with pytest.raises(ConfigError, match="expected size >= 1, seed >= 0 and 0 < shrink <= 1"):
            Pictures(noise, **wrong)
    with pytest.raises(DataError, match=r"holds no \.png or \.tif files"):
        Pictures(empty)
    with pytest.raises(DataError, match=r"Pictures: there is no file or folder .*nowhere"):
        Pictures(noise / "nowhere")
    with pytest.raises(DataError, match=r"there are 5 pictures, and none in part=\(5, 9\)"):
        Pictures(noise, size=16, part=(5, 9))
    with pytest.raises(ConfigError, match="expected an index >= 0, got -1"):
        Pictures(noise, size=16)(-1)
