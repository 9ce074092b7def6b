"""Metrics of radar images against closed forms, and point responses against integrals over their apertures."""

import functools
import math

import numpy as np
import pytest
import torch

from invdiff.core import ConfigError, NumericalError, ShapeError
from invdiff.metrics.sar import (
    edge_preservation,
    entropy,
    equivalent_looks,
    phase_aligned_nrmse,
    phase_rmse,
    ratio_statistics,
    target_to_clutter,
)
from invdiff.metrics.sar_response import point_response


def gamma(looks, shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).gamma(looks, 1.0 / looks, shape))


def normal(shape, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=shape) + 1j * rng.normal(size=shape))


def test_equivalent_looks_of_four_values():
    """Mean 3, sample variance 20 / 3: 27 / 20; twice the values are the same looks."""
    intensity = torch.full((2, 1, 4, 5), 100.0, dtype=torch.float64)
    intensity[0, 0, 1:3, 2:4] = torch.tensor([[0.0, 2.0], [4.0, 6.0]], dtype=torch.float64)
    intensity[1] = 2 * intensity[0]
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1:3, 2:4] = True
    for region in (mask, (slice(1, 3), slice(2, 4))):
        assert equivalent_looks(intensity, region).tolist() == pytest.approx([27 / 20] * 2, rel=1e-12)


def test_equivalent_looks_of_gamma_speckle_are_its_looks():
    """The relative standard error of v / m^2 is sqrt(2 (1 + 1 / L) / N) for Gamma(L); five of them."""
    for looks in (1.0, 4.4):
        found = equivalent_looks(gamma(looks, (1, 1, 200, 200)), (slice(None), slice(None)))
        assert found.item() == pytest.approx(looks, rel=5 * math.sqrt(2 * (1 + 1 / looks) / 40_000))


def test_ratio_statistics_by_hand():
    """Ratios 1 2 / 3 6 about 3: -2 -1 / 0 3; power 14 / 4, of rows (0 - 3) / 2, of columns (2 + 0) / 2."""
    estimate = torch.tensor([[[2.0, 1.0], [1.0, 0.5]]], dtype=torch.float64)
    intensity = torch.tensor([[[2.0, 2.0], [3.0, 3.0]]], dtype=torch.float64)
    found = ratio_statistics(intensity, estimate, looks=2.0)
    assert found.mean.tolist() == pytest.approx([3.0], rel=1e-12)
    assert found.variance.tolist() == pytest.approx([14 / 3], rel=1e-12)
    np.testing.assert_allclose(found.autocorrelation, [[-1.5 / 3.5, 1.0 / 3.5]], rtol=1e-12)
    assert (found.expected_variance, found.mean_error) == pytest.approx((0.5, 8**-0.5), rel=1e-12)
    assert found.autocorrelation_error.tolist() == pytest.approx([2**-0.5] * 2, rel=1e-12)


def test_ratio_statistics_accept_the_truth_and_see_what_is_wrong():
    truth = 1.0 + torch.linspace(0, 3, 160, dtype=torch.float64).expand(2, 1, 120, 160)
    speckle = gamma(3.0, (2, 1, 120, 160))
    right = ratio_statistics(truth * speckle, truth, looks=3.0)
    assert ((right.mean - 1).abs() < 5 * right.mean_error).all()
    # of the variance of Gamma(L): sqrt((2 + 6 / L) / N) / L
    assert ((right.variance - 1 / 3).abs() < 5 * math.sqrt(4 / speckle[0].numel()) / 3).all()
    assert (right.autocorrelation.abs() < 5 * right.autocorrelation_error).all()
    flat = ratio_statistics(truth * speckle, truth.mean().expand(truth.shape), looks=3.0)
    assert (flat.autocorrelation > 20 * flat.autocorrelation_error).all()
    # smoothed along the rows: neighbours in a row are correlated by 1 / 2, those in a column are not
    smooth = 0.5 * (speckle + speckle.roll(1, -1))
    streaks = ratio_statistics(smooth, torch.ones_like(smooth), looks=6.0).autocorrelation
    np.testing.assert_allclose(streaks, [[0.0, 0.5]] * 2, atol=5 * right.autocorrelation_error.max().item() * math.sqrt(1.5))


def test_ratio_statistics_do_not_couple_channels():
    """Two flat channels: within each no neighbours differ from the mean by different signs."""
    intensity = torch.tensor([1.0, 3.0], dtype=torch.float64).reshape(1, 2, 1, 1).expand(1, 2, 3, 3)
    found = ratio_statistics(intensity, torch.ones_like(intensity))
    np.testing.assert_allclose(found.autocorrelation, [[1.0, 1.0]])


def test_edge_preservation_of_a_ramp_and_a_step():
    step = torch.zeros(2, 1, 4, 6, dtype=torch.float64)
    step[..., 3:] = torch.tensor([1.0, 5.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    assert edge_preservation(step, step).tolist() == [1.0, 1.0]
    assert edge_preservation(0.25 * step + 7.0, step).tolist() == pytest.approx([0.25, 0.25])
    spot = step.clone()
    spot[:, :, 1, 1] = 1.0  # four more differences of 1
    assert edge_preservation(spot, step).tolist() == pytest.approx([8 / 4, 24 / 20])
    with pytest.raises(ConfigError, match="no edges"):
        edge_preservation(step, torch.ones_like(step))


def test_target_to_clutter_of_a_reflector():
    """Amplitude 3j and -10 in a clutter of power 2: 10 log10(100 / 2)."""
    image = torch.full((1, 1, 6, 6), 1 + 1j, dtype=torch.complex128)
    image[0, 0, 2, 2], image[0, 0, 2, 3] = 3j, -10.0
    clutter = torch.zeros(6, 6, dtype=torch.bool)
    clutter[4:] = True
    target = (slice(1, 4), slice(1, 4))
    assert target_to_clutter(image, target, clutter).item() == pytest.approx(10 * math.log10(50), rel=1e-12)
    assert target_to_clutter(image.abs(), target, clutter).item() == pytest.approx(10 * math.log10(50), rel=1e-12)


def test_entropy_of_few_equal_pixels():
    image = torch.zeros(3, 1, 4, 4, dtype=torch.complex64)
    image[0, 0, 0, 0] = 1e-30j
    image[1] = 1e20
    image[2, 0, 0, :2] = torch.tensor([1.0, 1j]) * math.sqrt(0.5)
    np.testing.assert_allclose(entropy(image), [0.0, math.log(16), math.log(2)], rtol=1e-6, atol=1e-7)
    skewed = torch.tensor([[1.0, math.sqrt(3.0)]], dtype=torch.float64)
    assert entropy(skewed).item() == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), rel=1e-12)
    for bad in (torch.zeros(1, 4), torch.full((1, 4), math.nan)):
        with pytest.raises(ConfigError, match="zero or not finite"):
            entropy(bad)


def test_aligned_nrmse_leaves_only_what_no_phase_explains():
    reference = normal((2, 1, 8, 8))
    turned = reference * torch.exp(torch.tensor([2.0j, -0.3j], dtype=torch.complex128)).reshape(2, 1, 1, 1)
    assert (phase_aligned_nrmse(turned, reference) < 1e-14).all()
    np.testing.assert_allclose(phase_aligned_nrmse(0.4 * turned, reference), 0.6, rtol=1e-12)
    assert (phase_aligned_nrmse(0.4 * turned, reference, scale=True) < 1e-14).all()
    assert phase_aligned_nrmse(torch.zeros_like(turned), reference).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("scale", [False, True])
def test_the_alignment_is_the_best_there_is(scale):
    """No other constant on a grid does better, and the best of the grid is as near as the grid is fine."""
    x, reference = normal((1, 30), seed=1), normal((1, 30), seed=2)
    phases = torch.exp(1j * torch.linspace(0, 2 * math.pi, 501, dtype=torch.float64))[:, None]
    moduli = torch.linspace(0, 1, 101, dtype=torch.float64) if scale else torch.ones(1, dtype=torch.float64)
    errors = torch.stack([(r * phases * x - reference).norm(dim=1) for r in moduli]) / reference.norm()
    found = phase_aligned_nrmse(x, reference, scale=scale).item()
    # the square of the error is a parabola in c, and half a step is at most (pi / 500, 1 / 200)
    ratio = (x.norm() / reference.norm()).item()
    near = max(ratio, ratio**2) * ((math.pi / 500) ** 2 + 0.005**2) / (2 * found)
    assert found - 1e-12 <= errors.min().item() <= found + near


def test_phase_error_of_bright_pixels():
    reference = torch.tensor([[2.0, 2.0j, -2.0, 0.1], [4.0, 4.0, 4.0, 4.0]], dtype=torch.complex128)
    error = torch.tensor([[0.3, 0.3, 0.3, 2.0], [0.2, -0.2, 0.2, -0.2]], dtype=torch.float64)
    x = 7.0 * reference * torch.exp(1j * error)
    assert phase_rmse(x, reference, 1.0).tolist() == pytest.approx([0.0, 0.2], abs=1e-12)
    assert phase_rmse(x, reference, 1.0, align=False).tolist() == pytest.approx([0.3, 0.2], rel=1e-12)
    expected = math.sqrt((3 * 0.09 + 4) / 4)
    assert phase_rmse(x, reference, 0.01, align=False)[0].item() == pytest.approx(expected, rel=1e-12)
    # across the cut of the angle
    assert phase_rmse(-x, reference, 1.0).tolist() == pytest.approx([0.0, 0.2], abs=1e-12)
    with pytest.raises(ConfigError, match="no pixel of a reference is above"):
        phase_rmse(x, reference, 3.0)
    unrelated = normal((1, 200, 200), seed=3), normal((1, 200, 200), seed=4)
    # of the square of a uniform phase: pi^2 / 3 with the variance 4 pi^4 / 45
    assert phase_rmse(*unrelated, 0.0).item() ** 2 == pytest.approx(math.pi**2 / 3, abs=5 * math.pi**2 * (4 / 45) ** 0.5 / 200)


def taylor(sidelobe=35.0, nbar=4):
    """The continuous Taylor weighting on [-1/2, 1/2]."""
    a = math.acosh(10 ** (sidelobe / 20)) / math.pi
    s2 = nbar**2 / (a**2 + (nbar - 0.5) ** 2)
    orders = range(1, nbar)
    factors = []
    for m in orders:
        above = math.prod(1 - m**2 / s2 / (a**2 + (n - 0.5) ** 2) for n in orders)
        below = math.prod(1 - m**2 / n**2 for n in orders if n != m)
        factors.append((-1) ** (m + 1) * above / (2 * below))
    return lambda t: 1 + 2 * sum(f * np.cos(2 * np.pi * m * t) for m, f in zip(orders, factors, strict=True))


WINDOWS = {"uniform": np.ones_like, "hamming": lambda t: 0.54 + 0.46 * np.cos(2 * np.pi * t), "taylor": taylor()}


@functools.cache
def integrated(name):
    """Width in resolution cells, PSLR, ISLR of h(x) = integral of w(t) cos(2 pi t x) over [-1/2, 1/2]."""
    count, fine, window = 1000, 400, WINDOWS[name]
    t = (np.arange(count) + 0.5) / count - 0.5
    x = np.arange(0, 6 * fine) / fine
    h = (window(t) * np.cos(2 * np.pi * np.outer(x, t))).mean(1)
    power = (h / h[0]) ** 2
    null = int(np.argmax(np.diff(power) > 0))
    width = 2 * np.interp(-0.5, -power[: null + 1], x[: null + 1])
    energy, main = (window(t) ** 2).mean() / h[0] ** 2, 2 * np.trapezoid(power[: null + 1], x[: null + 1])
    return width, 10 * np.log10(power[null:].max()), 10 * np.log10((energy - main) / main)


def response(shape, bands, windows, position, carrier=(0, 0)):
    """The image of a point whose spectrum fills the middle M of N bins of each axis, with weights."""
    axes = []
    for size, band, window, where, centre in zip(shape, bands, windows, position, carrier, strict=True):
        m = np.arange(band) - (band - 1) // 2
        waves = np.exp(2j * np.pi * np.outer(np.arange(size) - where, m + centre) / size)
        axes.append(waves @ WINDOWS[window](m / band) / WINDOWS[window](m / band).sum())
    return torch.from_numpy(np.outer(*axes))


def test_the_integrals_are_the_known_ones():
    """sin(x) / x: .88589, -13.2615 dB, and 10 log10(1 / .902823 - 1); Hamming: 1.303 and -42.67 dB."""
    assert integrated("uniform") == pytest.approx((0.88589, -13.2615, 10 * math.log10(1 / 0.902823 - 1)), abs=1e-3)
    width, pslr, _ = integrated("hamming")
    assert (width, pslr) == pytest.approx((1.303, -42.67), abs=0.01)
    # nbar = 4 equal side lobes, the first of them a little below the design
    assert integrated("taylor")[1] == pytest.approx(-35.0, abs=0.3)


@pytest.mark.parametrize("window", WINDOWS)
def test_point_response_of_a_weighted_aperture(window):
    """M = 161 bins differ from the integral by a relative 1 / M^2 = 4e-5 times a number below 10 within two cells."""
    shape, bands, position = (16, 200), (13, 161), (7.3, 88.61)
    found = point_response(response(shape, bands, ("uniform", window), position), spacing=(0.5, 0.2))
    width, pslr, islr = integrated(window)
    assert found.position == pytest.approx(position, abs=1e-6)
    assert found.amplitude == pytest.approx(1.0, rel=1e-10)
    assert found.width[1] == pytest.approx(width * 200 / 161, rel=4e-4)
    assert found.width_metres == pytest.approx((0.5 * found.width[0], 0.2 * found.width[1]))
    assert found.pslr[1] == pytest.approx(pslr, abs=0.02)
    assert found.islr[1] == pytest.approx(islr, abs=0.02)


def test_rows_and_columns_are_measured_alike():
    image = response((48, 40), (39, 25), ("hamming", "uniform"), (20.4, 17.7))
    a, b = point_response(image), point_response(image.T.contiguous())
    assert a.position == pytest.approx((20.4, 17.7), abs=1e-6)
    for name in ("position", "width", "pslr", "islr"):
        assert getattr(a, name) == pytest.approx(getattr(b, name)[::-1], rel=1e-6)


def test_small_bands_against_the_sum_of_their_waves():
    """The Dirichlet kernel of 13 of 16 bins, on a grid of a thousandth of a pixel."""
    found = point_response(response((16, 16), (13, 13), ("uniform", "uniform"), (8.0, 6.25)))
    x = np.arange(1, 8000) / 1000
    power = (np.sin(np.pi * 13 * x / 16) / (13 * np.sin(np.pi * x / 16))) ** 2
    null = int(np.argmax(np.diff(power) > 0))
    main = 2 * (power[:null].sum() + 0.5) / 1000
    assert found.width == pytest.approx([2 * np.interp(-0.5, -power[:null], x[:null])] * 2, abs=1e-5)
    assert found.pslr == pytest.approx([10 * np.log10(power[null:].max())] * 2, abs=1e-3)
    # the energy of a period is that of the weights: 16 / 13
    assert found.islr == pytest.approx([10 * np.log10((16 / 13 - main) / main)] * 2, abs=2e-3)


def test_a_carrier_and_a_place_across_the_edge_change_nothing():
    shape, bands, windows = (32, 40), (25, 31), ("uniform", "taylor")
    plain = point_response(response(shape, bands, windows, (12.2, 20.6)))
    moved = point_response(response(shape, bands, windows, (31.7, 0.1), carrier=(13, -19)))
    assert moved.position == pytest.approx((31.7, 0.1), abs=1e-6)
    for name in ("width", "pslr", "islr"):
        assert getattr(moved, name) == pytest.approx(getattr(plain, name), abs=0.02)
    assert moved.width == pytest.approx(plain.width, rel=1e-7)


def test_a_band_that_fills_the_axes_is_left_where_it_is():
    found = point_response(response((33, 33), (33, 33), ("uniform", "uniform"), (15.5, 15.25)))
    assert found.position == pytest.approx((15.5, 15.25), abs=1e-6)
    assert found.width == pytest.approx([0.8859] * 2, rel=1e-3)


def test_the_weaker_target_is_measured_where_it_is_asked_for():
    windows = ("taylor", "taylor")
    weak = response((48, 48), (37, 37), windows, (14.3, 12.8))
    both = weak + 5 * response((48, 48), (37, 37), windows, (36.0, 35.0))
    assert point_response(both).position == pytest.approx((36.0, 35.0), abs=0.01)
    found = point_response(both, at=(15, 12))
    assert found.position == pytest.approx((14.3, 12.8), abs=0.01)
    assert found.width == pytest.approx(point_response(weak).width, rel=0.01)


def test_single_precision_is_enough():
    image = response((24, 24), (19, 19), ("hamming", "hamming"), (11.1, 12.9))
    a, b = point_response(image), point_response(image.to(torch.complex64))
    assert a.position == pytest.approx(b.position, abs=1e-3)
    assert a.pslr == pytest.approx(b.pslr, abs=0.01)


def test_what_is_no_point_is_refused():
    image = response((16, 16), (13, 13), ("uniform", "uniform"), (8.0, 6.25))
    for bad in (image.abs(), image[None], image[:7]):
        with pytest.raises(ShapeError, match="expected a complex chip"):
            point_response(bad)
    for bad in (torch.zeros_like(image), image * math.nan):
        with pytest.raises(ConfigError, match="zero or not finite"):
            point_response(bad)
    with pytest.raises(ConfigError, match="expected at within the chip"):
        point_response(image, at=(16, 3))
    with pytest.raises(ConfigError, match="oversample"):
        point_response(image, oversample=2)
    with pytest.raises(NumericalError, match="main lobe fills the chip"):
        point_response(torch.ones_like(image))


def test_wrong_arguments_are_named():
    intensity = torch.ones(1, 1, 4, 4)
    mask = torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(ConfigError, match="equivalent_looks: expected an intensity"):
        equivalent_looks(-intensity, mask)
    with pytest.raises(ShapeError, match="equivalent_looks: expected real intensities"):
        equivalent_looks(intensity + 1j, mask)
    with pytest.raises(ShapeError, match=r"expected a boolean region \(4, 4\), got \(3, 4\)"):
        equivalent_looks(intensity, mask[:3])
    with pytest.raises(ShapeError, match=r"expected a boolean region .* got .*float32"):
        equivalent_looks(intensity, intensity[0, 0])
    with pytest.raises(ConfigError, match="the region holds no pixel"):
        equivalent_looks(intensity, ~mask)
    with pytest.raises(ConfigError, match="expected two pixels or more"):
        equivalent_looks(intensity, (slice(0, 1), slice(0, 1)))
    with pytest.raises(ConfigError, match="expected a positive estimate"):
        ratio_statistics(intensity, 0 * intensity)
    with pytest.raises(ConfigError, match="expected looks > 0"):
        ratio_statistics(intensity, intensity, looks=0)
    with pytest.raises(ShapeError, match="phase_rmse: expected complex"):
        phase_rmse(intensity, intensity, 0.5)
    with pytest.raises(ShapeError, match="phase_aligned_nrmse: expected two batches"):
        phase_aligned_nrmse(intensity, intensity[0])
    with pytest.raises(ShapeError, match="edge_preservation: expected real images"):
        edge_preservation(intensity + 1j, intensity)
