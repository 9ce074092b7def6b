"""Classical despeckling against closed forms: constant scenes, edges, Lee's weight, the noise level of the wavelet bands."""

import math

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, DataError, Gaussian, Problem, ShapeError
from invdiff.core.speckle import Amplitude, Intensity, LogIntensity, SingleLook, log_variance
from invdiff.metrics import equivalent_looks, ratio_statistics
from invdiff.operators import Identity
from invdiff.operators.dwt import DWT
from invdiff.samplers.classical_speckle import Lee, WaveletShrinkage

F64 = torch.float64


def observed(r, looks, seed=0, noise=Intensity):
    """The problem of a reflectivity (H, W)."""
    return Problem.simulate(Identity((1, *r.shape)), noise(looks), r[None, None], seed)


@pytest.mark.parametrize("looks", [1.0, 4.0])
@pytest.mark.parametrize("baseline", [Lee(), Lee(window=11), WaveletShrinkage()])
def test_constant_scenes(baseline, looks):
    """Bias below 2 %; more looks, by a part of the window's pixels, because some windows vary more than speckle does."""
    r = torch.full((128, 128), 2.5, dtype=F64)
    problem = observed(r, looks)
    u, facts = baseline(problem)
    inner = (slice(8, -8), slice(8, -8))
    assert abs(float(u.exp()[0, 0][inner].mean()) / 2.5 - 1.0) < 0.02
    before, after = (float(equivalent_looks(x, inner)) for x in (problem.y, u.exp()))
    assert before == pytest.approx(looks, rel=0.1)
    if isinstance(baseline, Lee):
        pixels = baseline.window**2
        assert 0.3 * pixels * looks < after < pixels * looks
        assert facts["weight"] < 0.1
    else:
        # the ratio of Lee lacks up to 4 % at one look, of which a part of the pixels keep their own value
        assert after > 100.0 * looks and abs(facts["correction"]) < 0.02
        assert abs(float(ratio_statistics(problem.y, u.exp(), looks).mean) - 1.0) < 1e-6
    assert facts["looks"] == looks


def test_the_weight_of_lee_in_closed_form():
    """3 x 3 windows of 8 equal values and one other: m = (8 + t) / 9, s^2 = (t - 1)^2 / 9, w = 1 - m^2 / (L s^2)."""
    for t, looks in ((4.0, 4.0), (20.0, 1.0), (1.5, 1.0)):
        intensity = torch.ones(1, 1, 5, 5, dtype=F64)
        intensity[..., 2, 2] = t
        mean, weight = Lee(window=3).weights(intensity, looks)
        m = (8.0 + t) / 9.0
        expected = max(0.0, 1.0 - m**2 / (looks * (t - 1.0) ** 2 / 9.0))
        assert float(mean[0, 0, 1, 1]) == pytest.approx(m) and float(weight[0, 0, 1, 1]) == pytest.approx(expected, abs=1e-12)
    # a corner has four of the pixels: m = (3 + t) / 4, s^2 = (t - 1)^2 / 4
    intensity = torch.ones(1, 1, 5, 5, dtype=F64)
    intensity[..., 1, 1] = 20.0
    mean, weight = Lee(window=3).weights(intensity, 4.0)
    assert float(mean[0, 0, 0, 0]) == pytest.approx(5.75)
    assert float(weight[0, 0, 0, 0]) == pytest.approx(1.0 - 5.75**2 / (4.0 * 19.0**2 / 4.0))


@pytest.mark.parametrize("baseline", [Lee(), WaveletShrinkage()])
def test_edges_are_kept(baseline):
    """A step of 13 dB at 16 looks: next to it better than the mean over the window; the mean of both sides is kept."""
    r = torch.ones(64, 64, dtype=F64)
    r[:, 32:] = 20.0
    problem = observed(r, 16.0)
    u, _ = baseline(problem)
    window = torch.nn.functional.avg_pool2d(problem.y, 7, 1, 3, count_include_pad=False).log()[0, 0]
    near = (slice(8, -8), slice(29, 35))
    error, plain = ((x[near] - r.log()[near]).square().mean().sqrt() for x in (u[0, 0], window))
    assert float(error) < 0.5 * float(plain)
    for side, value in ((slice(4, 28), 1.0), (slice(36, 60), 20.0)):
        assert float(u.exp()[0, 0, 8:-8, side].mean()) == pytest.approx(value, rel=0.05)
    rows = u[0, 0, 8:-8].mean(0)
    assert 0.75 < float(rows[32] - rows[31]) / math.log(20.0) < 1.25 and float(window[8:-8, 32].mean() - rows[31]) < 2.7


def test_bands_have_the_variance_of_the_log_speckle():
    """psi_1(L) in every band of an orthonormal transform: the noise level that the thresholds are made of."""
    problem = observed(torch.zeros(256, 256, dtype=F64), 1.0, noise=LogIntensity)
    dwt = DWT((1, 256, 256), "sym4", 3)
    for band in dwt.split(dwt.analysis(problem.y))[1:]:
        # of independent coefficients of kurtosis up to that of log-speckle, 5.4
        assert abs(float(band.square().mean()) / log_variance(1.0) - 1.0) < 5.0 * math.sqrt(4.4 / band.numel())


def test_coordinates_and_sizes():
    """One image in four coordinates has one answer; other sizes are continued; shifts average."""
    r = torch.linspace(0.5, 2.0, 37, dtype=F64)[:, None].expand(37, 50)
    problem = observed(r, 1.0)
    intensity = problem.y
    phase = torch.polar(torch.ones_like(intensity), torch.arange(50.0, dtype=F64).expand(1, 1, 37, 50))
    others = [
        (Amplitude(1.0), intensity.sqrt()),
        (LogIntensity(1.0), intensity.log()),
        (SingleLook(), intensity.sqrt() * phase),
    ]
    for baseline in (Lee(), WaveletShrinkage(stride=8, levels=3)):
        u, facts = baseline(problem)
        assert u.shape == (1, 1, 37, 50) and set(facts) >= {"looks", "chi2", "seconds", "operator_calls"}
        for noise, y in others:
            torch.testing.assert_close(baseline(Problem(problem.operator, noise, y))[0], u)
    square = observed(torch.full((32, 32), 1.0, dtype=F64), 4.0)
    spun = WaveletShrinkage(stride=1, levels=2)
    moved = Problem(square.operator, square.noise, square.y.roll((3, 5), (2, 3)))
    torch.testing.assert_close(spun(moved)[0], spun(square)[0].roll((3, 5), (2, 3)))


def test_what_they_refuse():
    problem = observed(torch.ones(16, 16, dtype=F64), 1.0)
    with pytest.raises(CapabilityError, match="log_problem"):
        Lee()(Problem(problem.operator, Gaussian(1.0), problem.y))
    with pytest.raises(CapabilityError, match="log_problem"):
        WaveletShrinkage()(Problem.simulate(Identity((2, 16, 16)), Intensity(1.0), torch.ones(2, 16, 16)))
    empty = Problem(problem.operator, Intensity(1.0), torch.zeros(1, 16, 16, dtype=F64))
    for baseline in (Lee(), WaveletShrinkage()):
        with pytest.raises(DataError, match="zero"):
            baseline(empty)
    negative = Problem(problem.operator, Intensity(1.0), -problem.y)
    for baseline in (Lee(), WaveletShrinkage()):
        with pytest.raises(DataError, match="256 of the 256 intensities are negative"):
            baseline(negative)
    single = Problem(Identity((1, 1, 1)), Intensity(1.0), torch.full((1, 1, 1), 2.0, dtype=F64))
    assert float(Lee()(single)[0]) == pytest.approx(math.log(2.0))
    with pytest.raises(ShapeError, match="32 x 32"):
        WaveletShrinkage(levels=5)(problem)
    for wrong in (Lee(window=4), Lee(window=1), WaveletShrinkage(levels=0), WaveletShrinkage(wavelet="bior2.2")):
        with pytest.raises(ConfigError, match="expected"):
            wrong(problem)
