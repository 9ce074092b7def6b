"""Compressed sensing and restoration against direct formulas."""

import pytest
import torch
from torch.nn.functional import interpolate, pad

from invdiff.core import ConfigError, ShapeError, Streams
from invdiff.operators import (
    BlockCS,
    Blur,
    DenseCS,
    Downsample,
    Identity,
    Mask,
    box_mask,
    gaussian_blur,
    gaussian_kernel,
    random_mask,
)


def image(*shape, batch=2):
    return Streams(0, batch).normal(0, shape, dtype=torch.float64)


def test_dense_cs_has_orthonormal_rows():
    operator = DenseCS((2, 9, 10), 0.3, seed=4)
    y = torch.eye(54, dtype=torch.float64)
    assert operator.out_shape == (54,)
    assert float((operator(operator.adjoint(y)) - y).abs().max()) < 1e-13
    single = operator(operator.adjoint(y.float())) - y
    assert float(single.abs().max()) < 1e-6


def test_dense_cs_is_gaussian_and_a_function_of_its_seed():
    """Entries of a random orthonormal frame have variance 1 / n and, nearly, excess kurtosis -6 / n; 5 standard errors."""
    n, m = 400, 100
    rows = DenseCS((1, 20, 20), 0.25, seed=1).adjoint(torch.eye(m, dtype=torch.float64)).flatten(1)
    scaled = rows.flatten() * n**0.5
    count = scaled.numel()
    assert abs(float(scaled.mean())) < 5.0 / count**0.5
    assert abs(float(scaled.pow(4).mean()) - 3.0) < 5.0 * (96.0 / count) ** 0.5
    other = DenseCS((1, 20, 20), 0.25, seed=2)(rows.reshape(m, 1, 20, 20))
    assert float(other.abs().max()) < 0.5


@pytest.mark.parametrize(("h", "w"), [(12, 8), (13, 8), (12, 11), (3, 2), (14, 9)])
def test_block_cs_sees_each_block_as_it_lies(h, w):
    operator, x = BlockCS((2, h, w), 0.5, block=4, seed=3), image(2, h, w)
    full = BlockCS((1, 4, 4), 0.5, block=4, seed=3)
    padded = pad(x, (0, -w % 4, 0, -h % 4))
    y = operator(x)
    for r in range(y.shape[2]):
        for c in range(y.shape[3]):
            block = padded[:, 1:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4]
            torch.testing.assert_close(y[:, 1, r, c], full(block)[:, 0, 0, 0], rtol=0, atol=1e-14)


def test_block_cs_full_blocks_are_orthonormal_and_borders_are_recovered_where_they_can_be():
    """A border block of 12 pixels seen by 24 measurements is determined; a full one of 36 is not."""
    operator, x = BlockCS((1, 12, 8), 24 / 36, block=6), image(1, 12, 8)
    back = operator.pinv(operator(x))
    assert float((back - x)[..., 6:].abs().max()) < 1e-12
    assert float((back - x)[..., :6].abs().max()) > 0.1
    y = torch.zeros_like(operator(x))
    y[:, :, :, 0] = image(1, 2, 24)
    torch.testing.assert_close(operator(operator.adjoint(y))[:, :, :, 0], y[:, :, :, 0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel_size", [(3, 3), (2, 5), (4, 1), (7, 6)])
def test_blur_is_the_periodic_convolution(kernel_size):
    """y[i] = sum_a k[a] x[i - (a - centre)], the centre at h // 2, w // 2."""
    kernel, x = image(*kernel_size, batch=1)[0], image(2, 7, 6)
    want = torch.zeros_like(x)
    for a in range(kernel_size[0]):
        for b in range(kernel_size[1]):
            shift = (a - kernel_size[0] // 2, b - kernel_size[1] // 2)
            want += kernel[a, b] * x.roll(shift, (2, 3))
    torch.testing.assert_close(Blur(kernel, (2, 7, 6))(x), want, rtol=0, atol=1e-13)


def test_gaussian_blur_adds_variances():
    """Two blurs in a row are one with the sum of the variances, but for sampling and the cut at 4 sigma (6e-5 of the mass)."""
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    x[..., 20, 20] = 1.0
    twice = gaussian_blur(41, 41, sigma=1.5)(gaussian_blur(41, 41, sigma=2.0)(x))
    torch.testing.assert_close(twice, gaussian_blur(41, 41, sigma=2.5)(x), rtol=0, atol=2e-5)
    assert float(gaussian_kernel(1.5).sum()) == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_downsampling_is_antialiased_bicubic_interpolation(factor):
    x = image(3, 24, 36)
    want = interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
    torch.testing.assert_close(Downsample((3, 24, 36), factor)(x), want, rtol=0, atol=1e-14)
    box = torch.nn.functional.avg_pool2d(x, factor)
    torch.testing.assert_close(Downsample((3, 24, 36), factor, "box")(x), box, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kernel", ["bicubic", "lanczos"])
def test_downsampling_is_blur_and_slicing_away_from_the_border(kernel):
    """An odd factor, whose samples lie on pixels: the impulse responses of one sample, as the kernel of a blur."""
    operator, x = Downsample((1, 45, 45), 3, kernel), image(1, 45, 45)
    y = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    y[..., 7, 7] = 1.0
    weights = operator.adjoint(y)[0, 0, 12:33, 12:33]
    blurred = Blur(weights.flip(0, 1), (1, 45, 45))(x)[..., 1::3, 1::3]
    torch.testing.assert_close(operator(x)[..., 4:-4, 4:-4], blurred[..., 4:-4, 4:-4], rtol=0, atol=1e-14)


@pytest.mark.parametrize("kernel", ["bicubic", "lanczos", "box"])
def test_downsampling_keeps_constants(kernel):
    operator = Downsample((1, 12, 16), 4, kernel)
    torch.testing.assert_close(operator(torch.ones(1, 1, 12, 16)), torch.ones(1, 1, 3, 4))


def test_masks():
    """Binomial count within 5 standard deviations."""
    mask = random_mask((100, 100), 0.3, seed=0)
    assert abs(int(mask.sum()) - 3000) < 5 * (10000 * 0.3 * 0.7) ** 0.5
    assert torch.equal(mask, random_mask((100, 100), 0.3, seed=0))
    assert not torch.equal(mask, random_mask((100, 100), 0.3, seed=1))
    box = box_mask((7, 8), 3)
    assert not box[2:5, 2:5].any()
    assert int(box.sum()) == 56 - 9
    x = image(2, 7, 8)
    y = Mask(box, (2, 7, 8))(x)
    assert torch.equal(y[:, :, box], x[:, :, box])
    assert not y[:, :, ~box].any()


def test_identity_returns_a_tensor_of_its_own():
    x = image(1, 3, 3)
    y = Identity((1, 3, 3))(x)
    assert torch.equal(x, y)
    assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Mask(torch.ones(4, 4), (1, 4, 4)), ShapeError, "boolean mask"),
        (lambda: Mask(torch.ones(4, 5, dtype=torch.bool), (1, 4, 4)), ShapeError, r"\(1, 4, 4\), got \(4, 5\)"),
        (lambda: Blur(torch.ones(5, 3), (1, 4, 4)), ShapeError, r"within \(4, 4\), got \(5, 3\)"),
        (lambda: Downsample((1, 9, 8), 2), ShapeError, "crop the image"),
        (lambda: Downsample((1, 8, 8), 2, "cubic"), ConfigError, "bicubic, lanczos, box"),
        (lambda: DenseCS((1, 4, 4), 1.5), ConfigError, "ratio in"),
        (lambda: BlockCS((1, 4, 4), 1e-4), ConfigError, "at least one"),
        (lambda: random_mask((4, 4), 0.0, 0), ConfigError, "keep"),
        (lambda: box_mask((4, 4), 5), ConfigError, "from 1 to 4"),
        (lambda: gaussian_kernel(-1.0), ConfigError, "sigma > 0"),
    ],
)
def test_wrong_arguments_are_named(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_permuted_projections():
    """Against the matrix by hand: Phi on runs of the permuted pixels, rows orthonormal where the last run is full."""
    from invdiff.operators import PermutedCS

    operator = PermutedCS((1, 4, 8), ratio=0.3, block=4, seed=5)
    x = torch.arange(32, dtype=torch.float64).reshape(1, 1, 4, 8)
    assert operator.out_shape == (2, 5)  # ceil(4.8)
    dense = torch.stack([operator(e.reshape(1, 1, 4, 8)).flatten() for e in torch.eye(32, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(dense @ dense.mT, torch.eye(10, dtype=torch.float64))
    torch.testing.assert_close(operator.pinv(operator(x)), operator.adjoint(operator(x)))
    assert sorted(operator.order.tolist()) == list(range(32))
    runs = x.flatten()[operator.order].reshape(2, 16)
    (phi,) = operator.constants(x)
    torch.testing.assert_close(operator(x)[0], runs @ phi.mT)
    other = PermutedCS((1, 4, 8), ratio=0.3, block=4, seed=6)
    assert torch.equal(other.constants(x)[0], phi) and not torch.equal(other.order, operator.order)
    assert PermutedCS((1, 32, 32), ratio=0.1).out_shape == (1, 103) and PermutedCS((1, 10, 10), 0.1, 10).out_shape == (1, 10)
