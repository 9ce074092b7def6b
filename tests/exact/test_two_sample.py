"""The two-sample test: its estimate against a closed form, its level under the null, its power; spectra of known fields."""

import math

import pytest
import torch

from invdiff.core import ConfigError, ShapeError, Streams
from invdiff.metrics.two_sample import coarse, patch_moments, radial_spectrum, two_sample_test


def normal(shape, step=0, seed=0):
    return Streams(seed).normal(step, shape, dtype=torch.float64)[0]


def test_the_level_is_exact():
    """19 permutations: p is uniform on 1/20, ..., 1. Mean and lowest quarter over 600 pairs of sets, 4 standard errors."""
    p = torch.tensor([two_sample_test(normal((6, 3), k), normal((8, 3), k, 1), permutations=19, seed=k).p for k in range(600)])
    assert abs(p.mean() - 0.525) < 4 * math.sqrt((1 - 1 / 400) / 12 / 600)
    assert abs((p < 0.26).double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 600)


def test_the_estimate_is_without_bias():
    """Normals in 4 dimensions, E k = (h^2 / (h^2 + 2))^2 exp(-|shift|^2 / (2 (h^2 + 2))), to 4 standard errors."""
    for shift in (0.0, 0.5):
        pairs = [(normal((10, 4), k), shift + normal((12, 4), k, 1)) for k in range(300)]
        found = torch.tensor([two_sample_test(a, b, permutations=1, bandwidth=1.5).mmd2 for a, b in pairs], dtype=torch.float64)
        exact = 2 * (2.25 / 4.25) ** 2 * (1 - math.exp(-4 * shift**2 / 8.5))
        assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(300)


def test_the_power():
    """Half a standard deviation in 16 dimensions, or a variance of 2 at the same mean: p is the least there is."""
    a, b = normal((100, 16)), normal((100, 16), 1)
    assert two_sample_test(a, b).p > 0.01
    assert two_sample_test(a, b + 0.5).p == 0.001
    assert two_sample_test(a, b * 2**0.5).p == 0.001
    # in single precision and other units too
    assert two_sample_test(1e3 * a.float(), 1e3 * (b + 0.5).float()).p == 0.001


def test_radial_spectra():
    for shape in ((200, 2, 16), (40, 1, 16, 24), (10, 1, 8, 8, 12)):
        frequency, power = radial_spectrum(3.0 * normal(shape) + 5.0)
        assert frequency[0] == 1 / min(shape[2:])
        assert frequency[-1] == 0.5
        # the fewest modes are in the first bin, two for a curve
        assert (power / 9 - 1).abs().max() < 5 * math.sqrt(2 / (2 * 200))
    wave = torch.sin(2 * math.pi * 3 * torch.arange(32.0) / 32).expand(1, 1, 32, 32)
    frequency, power = radial_spectrum(wave)
    assert frequency[power.argmax()] == 3 / 32
    assert power[power > 1e-12].numel() == 1


def test_features():
    x = normal((3, 2, 8, 8))
    torch.testing.assert_close(coarse(x, 4)[1, 1, 2, 3], x[1, 1, 4:6, 6:8].mean())
    assert coarse(x[..., :7], 4).shape == (3, 2, 4, 3)
    assert torch.equal(coarse(x, 16), x)
    # white patches of 3 about their mean: covariance v (I - 1/3), from 4094 that overlap
    white = 2.0 * normal((1, 1, 4096))
    expected = 4.0 * (torch.eye(3, dtype=torch.float64) - 1 / 3)
    rows, columns = torch.triu_indices(3, 3)
    found = patch_moments(white)[0]
    torch.testing.assert_close(found.sign() * found.square(), expected[rows, columns], atol=5 * 4 * math.sqrt(3 / 4096), rtol=0)
    # a constant and an offset change nothing
    torch.testing.assert_close(patch_moments(white + 7.0)[0], found, rtol=1e-9, atol=1e-6)
    assert patch_moments(x).shape == (3, 2 * 45)


def test_textures_that_layouts_hide_are_found():
    """Each second column repeats its neighbour with the other sign: every pixel is as it was, and only patches show it."""
    a, b = normal((40, 1, 16, 16)), normal((40, 1, 16, 16), 1)
    stripes = b.clone()
    stripes[..., 1::2] = -b[..., ::2]
    assert two_sample_test(patch_moments(a), patch_moments(b)).p > 0.01
    assert two_sample_test(patch_moments(a), patch_moments(stripes)).p == 0.001


def test_what_it_refuses():
    a = normal((4, 3))
    with pytest.raises(ShapeError, match="of one shape"):
        two_sample_test(a, a[:, :2])
    with pytest.raises(ShapeError, match="two or more items"):
        two_sample_test(a, a[:1])
    with pytest.raises(ConfigError, match="give a bandwidth"):
        two_sample_test(torch.ones(4, 3), torch.ones(4, 3))
    with pytest.raises(ConfigError, match="permutations >= 1"):
        two_sample_test(a, a, permutations=0)
    with pytest.raises(ShapeError, match="fields"):
        radial_spectrum(a)
    with pytest.raises(ShapeError, match="at least 3 pixels"):
        patch_moments(a[None, :, :2])
