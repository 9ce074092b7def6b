"""Every metric against a closed form; every diagnostic accepts exact draws and rejects a planted fault."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate, uniform_filter

from invdiff.core import ConfigError, Samples, ShapeError, Streams
from invdiff.metrics import (
    chi2,
    coverage,
    crps,
    energy_score,
    nrmse,
    psnr,
    rank_histogram,
    rank_p_value,
    ranks,
    sliced_wasserstein,
    ssim,
    ssim_uniform7,
    z_cov,
    z_mean,
)


def normal(shape, step=0, seed=0):
    return Streams(seed).normal(step, shape, dtype=torch.float64)[0]


@pytest.fixture
def images():
    truth = normal((2, 3, 24, 20))
    return truth + 0.3 * normal((2, 3, 24, 20), step=1), truth


def test_psnr_and_nrmse_of_a_constant_error():
    truth = torch.full((2, 1, 5, 4), 2.0, dtype=torch.float64)
    x = truth + torch.tensor([0.1, 0.2], dtype=torch.float64).reshape(2, 1, 1, 1)
    expected = [20 * math.log10(3 / 0.1), 20 * math.log10(3 / 0.2)]
    assert psnr(x, truth, 3.0).tolist() == pytest.approx(expected, rel=1e-12)
    assert psnr(x, truth, torch.tensor([3.0, 6.0])).tolist() == pytest.approx([expected[0], expected[1] + 20 * math.log10(2)])
    assert nrmse(x, truth).tolist() == pytest.approx([0.05, 0.1], rel=1e-12)
    assert math.isinf(psnr(truth, truth, 3.0)[0])


def test_psnr_and_nrmse_count_a_complex_error_by_its_modulus():
    truth = torch.ones(1, 1, 4, dtype=torch.complex128)
    x = truth + (3 + 4j)
    assert psnr(x, truth, 1.0).item() == pytest.approx(-20 * math.log10(5))
    assert nrmse(x, truth).item() == pytest.approx(5.0)


def windowed(a, b, data_range, mean, border, unbias):
    """SSIM by its definition with a window mean of scipy's, over windows inside the image."""
    ma, mb = mean(a), mean(b)
    va, vb, vab = unbias * (mean(a * a) - ma**2), unbias * (mean(b * b) - mb**2), unbias * (mean(a * b) - ma * mb)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return values[border:-border, border:-border].mean()


def test_ssim_is_the_definition(images):
    x, truth = images
    offsets = np.arange(11) - 5
    g = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    for item in range(2):
        pairs = list(zip(x[item].numpy(), truth[item].numpy(), strict=True))
        gauss = [windowed(a, b, 2.5, lambda z: correlate(z, g / g.sum()), 5, 1.0) for a, b in pairs]
        uniform = [windowed(a, b, 2.5, lambda z: uniform_filter(z, 7), 3, 49 / 48) for a, b in pairs]
        assert ssim(x, truth, 2.5)[item].item() == pytest.approx(np.mean(gauss), rel=1e-10)
        assert ssim_uniform7(x, truth, 2.5)[item].item() == pytest.approx(np.mean(uniform), rel=1e-10)


def test_ssim_of_two_constants_and_of_equal_images(images):
    """Without variance only the luminance term is left: (2ab + c1) / (a^2 + b^2 + c1)."""
    a, b, c1 = 0.5, 0.7, 1e-4
    flat = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    for metric in (ssim, ssim_uniform7):
        assert metric(a * flat, b * flat, 1.0).item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-12)
        assert metric(images[1], images[1], 1.0).tolist() == pytest.approx([1.0, 1.0])


def test_ssim_in_float32_does_not_cancel(images):
    """HU-like values: a large offset and a small texture."""
    x, truth = (1000.0 + z for z in images)
    assert ssim(x.float(), truth.float(), 5.0).tolist() == pytest.approx(ssim(x, truth, 5.0).tolist(), abs=1e-4)


def test_image_metrics_do_not_couple_items(images):
    x, truth = images
    for metric in (lambda a, b: psnr(a, b, 1.0), lambda a, b: ssim(a, b, 1.0), lambda a, b: ssim_uniform7(a, b, 1.0), nrmse):
        assert torch.allclose(metric(x, truth)[1:], metric(x[1:], truth[1:]), rtol=1e-12)


def test_image_metrics_say_what_is_wrong(images):
    x, truth = images
    with pytest.raises(ShapeError, match=r"psnr: expected two batches .* got \(2, 3, 24, 20\) and \(1, 3, 24, 20\)"):
        psnr(x, truth[:1], 1.0)
    with pytest.raises(ShapeError, match="at least 11 x 11"):
        ssim(x[..., :10], truth[..., :10], 1.0)
    with pytest.raises(ConfigError, match="data_range > 0, got 0"):
        psnr(x, truth, 0.0)


def test_coverage_counts_and_includes_the_limits():
    truth = torch.arange(8.0).reshape(2, 4)
    low, high = torch.full((2, 4), 1.0), torch.full((2, 4), 5.0)
    assert coverage(low, high, truth).tolist() == [0.75, 0.5]


def test_intervals_of_exact_draws_cover_at_their_level():
    """20,000 independent elements, 30 draws each; 5 binomial standard errors. Draws that are too narrow by a third fail."""
    draws, truth = normal((30, 20000)), normal((20000,), step=1)
    error = math.sqrt(0.9 * 0.1 / 20000)
    for scale, accepted in ((1.0, True), (2 / 3, False)):
        low, high = Samples(x=scale * draws).interval(0.9)
        assert (abs(coverage(low[None], high[None], truth[None]).item() - 0.9) < 5 * error) is accepted


def test_chi2_of_exact_and_of_overconfident_draws():
    """Expectation (1 + 1/n)(n - 1)/(n - 3) for mean and std of n Gaussian draws; its standard error is measured."""
    n = 20
    draws, truth = normal((n, 20000)), normal((20000,), step=1)
    squares = ((truth - draws.mean(0)) / draws.std(0)).square()
    expected, error = (1 + 1 / n) * (n - 1) / (n - 3), squares.std().item() / math.sqrt(20000)
    assert abs(chi2(draws.mean(0)[None], draws.std(0)[None], truth[None]).item() - expected) < 5 * error
    assert abs(chi2(draws.mean(0)[None], 0.8 * draws.std(0)[None], truth[None]).item() - expected) > 20 * error


def test_crps_by_hand_and_for_a_gaussian():
    # draws 0 and 2, truth 3: (3 + 1)/2 - |0 - 2|/2
    assert crps(torch.tensor([[0.0], [2.0]]), torch.tensor([3.0])).item() == pytest.approx(1.0)
    z = torch.tensor([0.0, 0.7, -2.0], dtype=torch.float64)
    density, mass = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi), 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    exact = 2.0 * (z * (2 * mass - 1) + 2 * density - 1 / math.sqrt(math.pi))
    # equally spaced quantiles leave no Monte Carlo error; what is left is O(1/n)
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    draws = 2.0 * torch.special.ndtri(u)[:, None].expand(-1, 3)
    assert torch.allclose(crps(draws, 2.0 * z), exact, atol=2e-4)


def test_energy_score_is_crps_in_one_dimension_and_known_in_three():
    draws = normal((50, 1))
    assert energy_score(draws, torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(
        crps(draws, torch.zeros(1, dtype=torch.float64)).item(), rel=1e-12
    )
    # in 3-D E|X| = 2 sqrt(2/pi) and E|X - X'| = sqrt(2) E|X|; 2,000 draws, 5 standard errors, below 1.2 / sqrt(n)
    mean_norm = 2 * math.sqrt(2 / math.pi)
    score = energy_score(normal((2000, 3)), torch.zeros(3, dtype=torch.float64)).item()
    assert abs(score - mean_norm * (1 - math.sqrt(0.5))) < 5 * 1.2 / math.sqrt(2000)


def test_scores_prefer_the_true_spread():
    """Proper scores: over 4,000 truths, draws of the true law beat draws that are half or twice as wide."""
    truth, draws = normal((4000,), step=1), normal((20, 4000))
    right, narrow, wide = (crps(scale * draws, truth).mean().item() for scale in (1.0, 0.5, 2.0))
    assert right < narrow
    assert right < wide


@pytest.fixture
def gaussian():
    factor = normal((6, 6), step=5)
    return SimpleNamespace(mean=normal((2, 3), step=6), cov=factor @ factor.T + torch.eye(6)), factor


def draw(exact, n, seed=0):
    z = Streams(seed, n).normal(0, (6,), dtype=torch.float64)
    return exact.mean + (z @ torch.linalg.cholesky(exact.cov).T).reshape(n, 2, 3)


def test_z_scores_accept_exact_draws(gaussian):
    """The largest of 6 and of 21 z-scores passes 5 about once in 10^5 runs; twenty seeds, so that luck is no explanation."""
    exact, _ = gaussian
    assert all(z_mean(draw(exact, 4000, seed), exact) < 5 for seed in range(20))
    assert all(z_cov(draw(exact, 4000, seed), exact) < 5 for seed in range(20))


def test_z_scores_are_standardised(gaussian):
    """rms of the largest of two moments of one element: draws of N(0, 1), one element, z is N(0, 1) itself."""
    unit = SimpleNamespace(mean=torch.zeros(1, dtype=torch.float64), cov=torch.eye(1, dtype=torch.float64))
    pairs = [(z_mean(x, unit), z_cov(x, unit)) for x in Streams(0, 400).normal(0, (500, 1), dtype=torch.float64)]
    for squares in torch.tensor(pairs, dtype=torch.float64).square().T:
        assert abs(squares.mean().item() - 1) < 5 * math.sqrt(2 / 400)


def test_z_scores_reject_planted_faults(gaussian):
    exact, _ = gaussian
    draws = draw(exact, 4000)
    std = exact.cov.diagonal().sqrt().reshape(2, 3)
    assert z_mean(draws + 0.3 * std, exact) > 10
    assert z_cov(exact.mean + 1.2 * (draws - exact.mean), exact) > 10
    # right variances, wrong correlations
    assert z_cov(exact.mean + std * normal((4000, 2, 3)), exact) > 10


def test_sliced_wasserstein_of_a_shift_is_the_shift_along_each_direction():
    x, shift = normal((300, 5)), torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    rays = Streams(3).normal(0, (5, 64), "directions", torch.float64)[0]
    along = (shift @ (rays / rays.norm(dim=0))).abs()
    assert sliced_wasserstein(x, x + shift, directions=64, seed=3) == pytest.approx(
        along.square().mean().sqrt().item(), rel=1e-9
    )
    assert sliced_wasserstein(x, x + shift, directions=64, order=1, seed=3) == pytest.approx(along.mean().item(), rel=1e-9)
    assert sliced_wasserstein(x, x[torch.arange(299, -1, -1)]) == 0.0


def test_sliced_wasserstein_of_sets_of_different_size():
    """One dimension by hand: {0, 1} against {0, 1, 2} moves 1/3 of the mass by 1 twice (0 -> 1 by 1/6, 1 -> 2 by 1/3)."""
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    assert sliced_wasserstein(a, b, order=1) == pytest.approx(1 / 6 + 1 / 3)
    assert sliced_wasserstein(a, a.repeat(5, 1)) == pytest.approx(0.0, abs=1e-12)


def test_sliced_wasserstein_sees_a_wrong_sampler(gaussian):
    exact, _ = gaussian
    floor = max(sliced_wasserstein(draw(exact, 500, k), draw(exact, 500, k + 10)) for k in range(5))
    assert sliced_wasserstein(1.5 * draw(exact, 500), draw(exact, 500, 99)) > 2 * floor


def test_ranks_are_uniform_for_a_calibrated_sampler_only():
    """2,000 problems, 19 draws: p-values of a right sampler are uniform, one of a narrow or a shifted one is below 1e-9."""
    truth, draws = normal((2000,), step=1), normal((19, 2000))
    values = ranks(draws, truth)
    counts = rank_histogram(values, 19, 10)
    assert counts.sum() == 2000
    assert values[0] == (draws[:, 0] < truth[0]).sum()
    assert rank_p_value(counts) > 1e-4
    assert rank_p_value(rank_histogram(ranks(0.7 * draws, truth), 19, 10)) < 1e-9
    assert rank_p_value(rank_histogram(ranks(draws + 0.3, truth), 19, 10)) < 1e-9


def test_rank_p_value_is_the_chi_squared_tail():
    # two classes of 60 and 40: statistic 4 with one degree of freedom, two-sided normal tail of 2
    assert rank_p_value(torch.tensor([60, 40])) == pytest.approx(math.erfc(2 / math.sqrt(2)), rel=1e-10)


def test_calibration_metrics_say_what_is_wrong(gaussian):
    exact, _ = gaussian
    with pytest.raises(ShapeError, match=r"z_mean: expected \(n, \*shape\)"):
        z_mean(normal((10, 6)), exact)
    with pytest.raises(ShapeError, match="n >= 2"):
        crps(normal((1, 6)), normal((6,)))
    with pytest.raises(ConfigError, match="divides n \\+ 1 = 20, got 7"):
        rank_histogram(torch.tensor([1]), 19, 7)
    with pytest.raises(ConfigError, match="order 1 or 2"):
        sliced_wasserstein(normal((3, 2)), normal((3, 2)), order=3)
