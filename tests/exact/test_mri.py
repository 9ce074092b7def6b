"""MRI against torch.fft with explicit shifts, and the sampling patterns against their definitions."""

import pytest
import torch

from invdiff.core import ConfigError, ShapeError, Streams
from invdiff.operators import (
    CartesianMRI,
    birdcage_maps,
    cartesian_mri,
    equispaced_columns,
    fft2c,
    ifft2c,
    random_columns,
    random_mask,
    variable_density,
)
from invdiff.operators.fourier import shift_factors

SIZES = [(8, 6), (7, 6), (8, 5), (9, 7), (1, 4)]


def noise(*shape, batch=2):
    return Streams(0, batch).normal(0, shape, dtype=torch.complex128)


def centred(x):
    axes = (-2, -1)
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, axes), norm="ortho"), axes)


@pytest.mark.parametrize("size", SIZES)
def test_sense_is_mask_transform_maps(size):
    x, maps, mask = noise(1, *size), noise(3, *size, batch=1)[0], random_mask(size, 0.6, 0)
    want = mask * centred(maps * x)
    torch.testing.assert_close(CartesianMRI(mask, maps)(x), want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", SIZES)
def test_single_coil(size):
    x, mask = noise(1, *size), random_mask(size, 0.6, 0)
    operator = CartesianMRI(mask)
    torch.testing.assert_close(operator(x), mask * centred(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(operator(operator.pinv(x * mask)), x * mask, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", SIZES)
def test_centred_transform_against_its_sum(size):
    """X_k = (H W)^(-1/2) sum_j x_j exp(-2 pi i (j - c)(k - c) / n) along each axis, c = n // 2."""
    matrices = []
    for n in size:
        j = torch.arange(n, dtype=torch.float64) - n // 2
        matrices.append(torch.polar(torch.tensor(n**-0.5, dtype=torch.float64), -2 * torch.pi * torch.outer(j, j) / n))
    x = noise(2, *size)
    torch.testing.assert_close(fft2c(x), matrices[0] @ x @ matrices[1].mT, rtol=0, atol=1e-13)
    torch.testing.assert_close(ifft2c(fft2c(x)), x, rtol=0, atol=1e-14)
    before, after = shift_factors(size)
    torch.testing.assert_close(after * torch.fft.fft2(before * x, norm="ortho"), fft2c(x), rtol=0, atol=1e-14)
    assert before.is_complex() == any(n % 2 and n > 1 for n in size)


def test_columns_may_be_given_alone_with_maps():
    mask, maps = random_columns(8, 2, 0.25, seed=0), birdcage_maps(4, (6, 8), dtype=torch.complex128)
    x = noise(1, 6, 8)
    assert torch.equal(CartesianMRI(mask, maps)(x), CartesianMRI(mask.expand(6, 8), maps)(x))


def test_birdcage_maps_are_normalised_smooth_and_turn_into_each_other():
    maps = birdcage_maps(4, (15, 15), dtype=torch.complex128)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(15, 15, dtype=torch.float64))
    # the next of four coils is the same field, turned by a right angle
    torch.testing.assert_close(maps[1], maps[0].rot90(-1), rtol=0, atol=1e-13)
    # magnitude and phase change by a pixel's share of the distance, which is at least half a half side
    assert float((maps[:, 1:] - maps[:, :-1]).abs().max()) < (2 / 15) / 0.5
    assert birdcage_maps(3, (4, 5)).dtype == torch.complex64


def test_full_sampling_with_normalised_maps_is_an_isometry():
    operator = CartesianMRI(torch.ones(6, 7, dtype=torch.bool), birdcage_maps(5, (6, 7), dtype=torch.complex128))
    x = noise(1, 6, 7)
    torch.testing.assert_close(operator.adjoint(operator(x)), x, rtol=0, atol=1e-14)


def test_random_columns_are_those_of_fastmri():
    """round(W cf) centre columns from (W - n + 1) // 2; W / R columns in the mean of 200 masks within 5 standard errors."""
    masks = torch.stack([random_columns(368, 4, 0.08, seed) for seed in range(200)])
    low = round(368 * 0.08)
    start = (368 - low + 1) // 2
    assert masks[:, start : start + low].all()
    p = (368 / 4 - low) / (368 - low)
    spread = ((368 - low) * p * (1 - p) / 200) ** 0.5
    assert abs(float(masks.sum(1).double().mean()) - 92) < 5 * spread
    assert len({tuple(m.tolist()) for m in masks}) == 200


def test_equispaced_columns_are_those_of_fastmri():
    mask = equispaced_columns(64, 4, 0.125, seed=3)
    assert mask[28:36].all()
    outer = mask.clone()
    outer[28:36] = False
    columns = outer.nonzero()[:, 0]
    assert len({int(c) % 4 for c in columns}) == 1
    assert len(columns) == 14
    assert len({int(equispaced_columns(64, 4, 0.0, s).nonzero()[0]) for s in range(40)}) == 4


def test_variable_density_has_the_exact_count_and_a_dense_centre():
    mask = variable_density((60, 64), 5, 0.1, seed=0)
    assert int(mask.sum()) == 768
    assert mask[27:33, 29:35].all()
    inner, outer = mask[20:40, 22:42].double().mean(), mask[:15, :15].double().mean()
    assert float(inner) > 3 * float(outer) > 0


def test_mask_and_maps_must_agree():
    maps, mask = birdcage_maps(8, (32, 32)), torch.ones(36, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"maps are \(8, 32, 32\) but mask is \(36,\): give maps on the mask's grid"):
        CartesianMRI(mask, maps)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: CartesianMRI(torch.ones(8, dtype=torch.bool)), ShapeError, r"shape \(H, W\), got \(8,\)"),
        (lambda: CartesianMRI(torch.ones(8, 8)), ShapeError, "boolean mask"),
        (lambda: CartesianMRI(torch.ones(8, 8, dtype=torch.bool), torch.ones(2, 8, 8)), ShapeError, "complex maps"),
        (lambda: random_columns(64, 8, 0.2, 0), ConfigError, "lower center_fraction"),
        (lambda: random_columns(64, 0.5, 0.0, 0), ConfigError, "acceleration >= 1"),
        (lambda: cartesian_mri(8, 8, pattern="radial"), ConfigError, "variable_density, got 'radial'"),
        (lambda: birdcage_maps(0, (8, 8)), ConfigError, "coils >= 1"),
    ],
)
def test_wrong_arguments_are_named(make, error, match):
    with pytest.raises(error, match=match):
        make()
