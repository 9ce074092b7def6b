"""Planted errors of phase in scenes of a few bright points, and none where there are none."""

import math

import pytest
import torch

from invdiff.core import ConfigError, NumericalError, ShapeError, Streams
from invdiff.metrics import entropy
from invdiff.operators.sar import PhaseHistory
from invdiff.operators.sar_cells import SPEED_OF_LIGHT
from invdiff.operators.sar_geometry import circular_track, form_image, ground, kept_pulses, spotlight
from invdiff.operators.sar_modes import plane_wave
from invdiff.samplers.autofocus import _whole, minimum_entropy, phase_gradient, without_trend

F64, C128 = torch.float64, torch.complex128
SIZE, PULSES = 24, 40


def radar(mask=None):
    """A scene of half of the unambiguous extent across."""
    like = spotlight((SIZE, SIZE), 0.35, pulses=PULSES, frequencies=32, aperture=0.05)
    return PhaseHistory(like.positions, like.frequencies[0], like.points, sign=-1, mask=mask)


def measured(operator, clutter=0.01, noise=0.1):
    """Six points of 1 to 2 in clutter, and noise of a tenth of the signal."""
    x = clutter * Streams(0).normal(0, (1, SIZE, SIZE), "clutter", C128)
    for row, column, phase in Streams(0).uniform(0, (6, 3), "points", F64)[0]:
        at = (0, 0, int(3 + row * (SIZE - 6)), int(3 + column * (SIZE - 6)))
        x[at] = torch.polar(1.0 + phase, 2.0 * math.pi * phase)
    y = operator(x)[0]
    return y + noise * (y.abs().square().mean() / 2.0).sqrt() * Streams(1).normal(0, y.shape, "noise", C128)[0]


def planted(kind):
    """1 rad rms after constant and slope; smooth ones have at most four cycles over the pulses."""
    phases = Streams(2).normal(0, (PULSES,), kind, F64)[0]
    if kind == "smooth":
        spectrum = torch.fft.rfft(phases)
        spectrum[5:] = 0.0
        phases = torch.fft.irfft(spectrum, n=PULSES)
    along = torch.linspace(-1.0, 1.0, PULSES, dtype=F64)
    phases = phases - phases.mean() - (phases * along).sum() / along.square().sum() * along
    return phases / phases.square().mean().sqrt()


def rms(found, truth=0.0):
    return float(without_trend(found - truth).square().mean().sqrt())


@pytest.mark.parametrize("kind", ["smooth", "white"])
@pytest.mark.parametrize("method", [phase_gradient, minimum_entropy])
def test_planted_errors_are_found(method, kind):
    a, phases = radar(), planted(kind)
    y = measured(a)
    turned = y * torch.exp(1j * phases)[:, None]
    found = method(a, turned)
    assert rms(0 * phases, phases) > 0.9
    assert rms(found, phases) < 0.1
    good, bad, mended = (float(entropy(form_image(a, v[None]))) for v in (y, turned, turned * torch.exp(-1j * found)[:, None]))
    assert bad > good + 0.5 and abs(mended - good) < 0.1


@pytest.mark.parametrize("method", [phase_gradient, minimum_entropy])
def test_no_errors_are_made(method):
    a = radar()
    assert rms(method(a, measured(a))) < 0.05


def test_the_sign_of_the_phases_is_that_of_the_operator():
    """An operator with the phases that were found has the data's model."""
    a, phases = radar(), planted("white")
    y = measured(a) * torch.exp(1j * phases)[:, None]
    mended = PhaseHistory(a.positions, a.frequencies[0], a.points, sign=-1, phases=phase_gradient(a, y))
    wrong = PhaseHistory(a.positions, a.frequencies[0], a.points, sign=-1, phases=-phase_gradient(a, y))
    peak = [float(form_image(o, y[None]).abs().max()) for o in (a, mended, wrong)]
    assert peak[1] > 1.3 * peak[0] and peak[2] < peak[0]


def test_gaps_single_precision_and_modes():
    """Pulses that are left out get 0 and do no harm; float32; the plane wave's operator."""
    mask = kept_pulses(PULSES, 32, pattern="random", share=0.7, seed=4)
    a, phases = radar(mask), planted("smooth")
    y = measured(a) * torch.exp(1j * phases)[:, None] * mask
    kept = mask.any(1)
    for found in (phase_gradient(a, y), minimum_entropy(a, y)):
        assert not found[~kept].any()
        along = torch.linspace(-1.0, 1.0, PULSES, dtype=F64)[kept]
        assert float(without_trend((found - phases)[kept], along).square().mean().sqrt()) < 0.1
    single = minimum_entropy(a, y.to(torch.complex64))
    assert single.dtype == torch.float32
    assert rms(single.double(), found) < 0.01
    assert rms(minimum_entropy(plane_wave(a), y), found) < 0.02
    assert rms(phase_gradient(plane_wave(a), y), phase_gradient(a, y)) < 0.02


def test_a_start_is_followed():
    """At the answer there is little to do."""
    a, phases = radar(), planted("white")
    y = measured(a) * torch.exp(1j * phases)[:, None]
    whole = minimum_entropy(a, y)
    assert rms(minimum_entropy(a, y, start=whole, iterations=3), whole) < 1e-2
    assert rms(minimum_entropy(a, y, iterations=1), whole) > 0.1


def test_an_image_beyond_the_unambiguous_extents():
    """It repeats, and loses nothing."""
    like = spotlight((24, 24), 0.4, pulses=16, frequencies=16, aperture=0.05)
    x = torch.zeros(1, 1, 24, 24, dtype=C128)
    x[0, 0, 9, 12] = x[0, 0, 14, 8] = 1.0
    phases = 0.8 * Streams(2).normal(0, (16,), "phases", F64)[0]
    y = like(x)[0] * torch.exp(1j * phases)[:, None]
    assert rms(minimum_entropy(like, y), phases) < 0.1


@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_the_energy_of_all_of_the_unambiguous_extents(apart):
    """Its mean over the pixels that they hold is that of an image of many periods; antennas that are `apart` rad."""
    arc = torch.linspace(-0.014, 0.014, 16, dtype=F64)
    q = torch.stack([circular_track(arc + side * apart, distance=1e6, elevation=0.7) for side in (-0.5, 0.5)], 1)
    frequencies = torch.linspace(9.3e9, 9.9e9, 16, dtype=F64)
    a = PhaseHistory(q, frequencies, ground((150, 150), 0.9137), sign=-1)
    y = Streams(0).normal(0, (1, 16, 16), "y", C128)[0]
    pixels, energy = _whole(a, y)
    looks = (q / q.norm(dim=-1, keepdim=True)).mean(1)[:, :2]
    k = 2.0 * frequencies[:, None, None] * looks / SPEED_OF_LIGHT
    steps = (k[1:] - k[:-1]).mean((0, 1)), (k[:, 1:] - k[:, :-1]).mean((0, 1))
    period = 1.0 / abs(float(steps[0][0] * steps[1][1] - steps[0][1] * steps[1][0]))
    assert float(pixels) == pytest.approx(period / 0.9137**2, rel=1e-3)
    assert float(form_image(a, y[None]).abs().square().mean()) == pytest.approx(float(energy / pixels), rel=0.02)


def test_what_a_trend_is():
    """Constant and slope, whatever turns of 2 pi are in the phases."""
    along = torch.linspace(-1.0, 1.0, 50, dtype=F64)
    rest = 0.3 * Streams(3).normal(0, (50,), "rest", F64)[0]
    want = without_trend(rest)
    assert abs(float(want.mean())) < 1e-12 and abs(float((want * along).sum())) < 1e-12
    # a turn for less than two pulses
    for slope in (-70.0, 0.3, 40.0):
        phases = rest + 1.0 + slope * along + 2.0 * math.pi * (torch.arange(50, dtype=F64) % 3)
        torch.testing.assert_close(without_trend(phases), want, rtol=0, atol=1e-9)
    uneven = along**3 + along
    assert float(without_trend(4.0 * uneven, uneven).abs().max()) < 1e-9


def test_wrong_arguments_are_named():
    a = radar()
    y = measured(a)
    for method in (phase_gradient, minimum_entropy):
        with pytest.raises(ShapeError, match=method.__name__):
            method(a, y[None])
        with pytest.raises(ShapeError):
            method(a, y[..., :-1])
        for factor in (0.0, math.nan):
            with pytest.raises(NumericalError, match=method.__name__):
                method(a, factor * y)
        with pytest.raises(ConfigError, match=method.__name__):
            method(a, y, iterations=0)
        two = spotlight((8, 8), 0.3, pulses=2, frequencies=6)
        with pytest.raises(ConfigError, match="three pulses"):
            method(two, y[:, :2, :6])
        gap = radar(torch.arange(PULSES) > 3)
        with pytest.raises(NumericalError, match="something measured"):
            method(gap, y * (torch.arange(PULSES) < 3)[:, None])
    with pytest.raises(ConfigError, match="window"):
        phase_gradient(a, y, window=(0.1, 0.5))
    with pytest.raises(ShapeError, match="start"):
        minimum_entropy(a, y, start=torch.zeros(3))
    line = spotlight((1, 8), 0.3, pulses=6, frequencies=6)
    with pytest.raises(ConfigError, match="2 x 2"):
        minimum_entropy(line, y[:, :6, :6])
