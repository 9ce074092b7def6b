"""Echoes of chirps, written down in time, against the phase history in frequency; points behind the matched filter."""

import math

import pytest
import torch

from invdiff.core import ConfigError, ShapeError, Streams, dot, norm
from invdiff.metrics import point_response
from invdiff.operators.sar import PhaseHistory
from invdiff.operators.sar_cells import SPEED_OF_LIGHT
from invdiff.operators.sar_geometry import circular_track
from invdiff.operators.sar_pulses import (
    ChirpConvolution,
    VideoPhase,
    chirp,
    chirp_frequencies,
    deramp,
    deskew,
    echoes,
    range_compress,
)

F64, C128 = torch.float64, torch.complex128
F0, BAND = 9.6e9, 6e8


def apart(a, b):
    return float((a - b).norm() / b.norm())


def field(shape, name="x", batch=2, dtype=C128):
    return Streams(0, batch).normal(0, shape, name, dtype)


def scene(extent=50.0, pulses=3):
    """Three points up to `extent` m off, their ranges at some pulses, and their reflectivity."""
    q = circular_track(torch.linspace(-0.02, 0.02, pulses, dtype=F64), distance=1e4, elevation=0.5)
    points = torch.tensor([[-1.0, 0.3, 0.0], [0.05, -0.2, 0.0], [0.9, 0.5, 0.0]], dtype=F64)[None] * extent
    ranges = (q[:, None] - points[0]).norm(dim=-1) - q.norm(dim=-1, keepdim=True)
    return q, points, ranges, torch.tensor([1.0, 0.5j, -0.7 + 0.2j], dtype=C128)


def sweep(duration, reach):
    """Rate, sampling rate and times of a record that reaches `reach` s beyond the sweep on both sides."""
    rate = BAND / duration
    sampling = 4.0 * rate * reach
    n = 2 * int(sampling * (0.5 * duration + 2.0 * reach))
    return rate, sampling, (torch.arange(n, dtype=F64) - n // 2) / sampling


def test_a_chirp_is_what_it_says():
    t = torch.linspace(-2e-6, 2e-6, 4001, dtype=F64)
    c = chirp(t, rate=3e12, duration=3e-6, frequency=1e6)
    assert torch.equal(c.abs() > 0, t.abs() <= 1.5e-6)
    inside = c[(t.abs() < 1.4e-6)]
    found = (inside[1:] * inside[:-1].conj()).angle() / (2 * math.pi * float(t[1] - t[0]))
    middle = 0.5 * (t[1:] + t[:-1])[(t.abs() < 1.4e-6)[1:] & (t.abs() < 1.4e-6)[:-1]]
    torch.testing.assert_close(found, 1e6 + 3e12 * middle, rtol=0, atol=1.0)


def test_deskewed_echoes_are_the_phase_history():
    """At f = f_0 + K t': 1e-3 in the inner four fifths of the sweep, 1e-2 in nine tenths. Neither the raw echoes nor the other
    sign are near; the operator without the video phase is that of the model at these frequencies."""
    q, points, ranges, g = scene()
    duration, reach = 2e-5, 2 * 60.0 / SPEED_OF_LIGHT
    rate, sampling, t = sweep(duration, reach)
    assert math.pi * rate * reach**2 > 10.0
    beat = deramp(echoes(ranges, g, t, frequency=F0, rate=rate, duration=duration), t, rate=rate)
    f = chirp_frequencies(len(t), frequency=F0, step=rate / sampling)
    torch.testing.assert_close(f, F0 + rate * t, rtol=1e-12, atol=0)
    model = PhaseHistory(q, f, points, sign=-1, accuracy=1e-9)(g[None, None, None])[0, 0]

    def error(found, part):
        inner = t.abs() < 0.5 * part * duration
        return apart(found[:, inner], model[:, inner])

    found = deskew(beat, rate=rate, sample_rate=sampling)
    assert error(found, 0.8) < 1e-3 and error(found, 0.9) < 1e-2
    assert error(beat, 0.8) > 1.0
    assert error(deskew(beat, rate=-rate, sample_rate=sampling), 0.8) > 1.0


@pytest.mark.parametrize("duration", [5e-6, 1e-5])
def test_what_the_ends_of_the_sweep_leave(duration):
    """1 / (2 pi sqrt(K) x) for a point of 1, within a factor of 2 near the end, and less further inside."""
    reach = 2 * 60.0 / SPEED_OF_LIGHT
    rate, sampling, t = sweep(duration, reach)
    delay = 2 * 55.0 / SPEED_OF_LIGHT
    one = torch.ones(1, dtype=C128)
    beat = deramp(echoes(torch.tensor([[55.0]], dtype=F64), one, t, frequency=F0, rate=rate, duration=duration), t, rate=rate)
    left = (deskew(beat, rate=rate, sample_rate=sampling)[0] - torch.exp(-2j * math.pi * (F0 + rate * t) * delay)).abs()
    x = 0.5 * duration - t.abs()
    near = (x > 1.5 / rate**0.5) & (x < 0.5 * sampling / (2.0 * rate))
    assert int(near.sum()) > 5
    law = 1.0 / (2.0 * math.pi * rate**0.5 * x)
    assert 0.5 < float((left / law)[near].max()) < 2.0
    assert float((left / law)[x > sampling / rate].max()) < 0.5


def test_raw_echoes_are_an_operator_of_the_phase_history():
    """Chirps in time against ChirpConvolution @ PhaseHistory: what differs is the band that sampling folds."""
    q, points, ranges, g = scene(extent=8.0)
    duration, errors = 1e-6, []
    for factor in (1.2, 2.0, 4.0):
        n, sampling = round(1200 * factor), factor * BAND
        a = ChirpConvolution(3, n, sample_rate=sampling, bandwidth=BAND, duration=duration)
        t = (torch.arange(n, dtype=F64) - n // 2) / sampling
        f = chirp_frequencies(n, frequency=F0, step=sampling / n)
        model = a @ PhaseHistory(q, f, points, sign=-1, accuracy=1e-9)
        raw = echoes(ranges, g, t, frequency=F0, rate=BAND / duration, duration=duration)
        errors.append(apart(model(g[None, None, None])[0, 0], raw))
    assert errors[0] < 0.06 and errors[2] < 0.03
    assert errors[0] > errors[1] > errors[2]


def test_the_matched_filter_finds_a_point():
    """At its delay, .886 / B wide, with the lobes of sin(x) / x; of the peak 1 and the phase 0 where the delay is a sample."""
    duration, sampling, n = 2e-6, 2.0 * BAND, 4096
    rate, middle = BAND / duration, n // 2
    a = ChirpConvolution(1, n, sample_rate=sampling, bandwidth=BAND, duration=duration)
    t = (torch.arange(n, dtype=F64) - middle) / sampling
    between = chirp(t - 100.3 / sampling, rate=rate, duration=duration)
    cut = range_compress(a, between[None, None, None])[0, 0, 0, middle + 36 : middle + 164]
    found = point_response(cut[:, None] * cut)
    assert found.position[1] == pytest.approx(64.3, abs=0.05)
    assert found.width[1] / sampling == pytest.approx(0.886 / BAND, rel=0.02)
    assert found.pslr[1] == pytest.approx(-13.3, abs=0.5)
    on = chirp(t - 100.0 / sampling, rate=rate, duration=duration)
    profile = range_compress(a, on[None, None, None])[0, 0, 0]
    assert int(profile.abs().argmax()) == middle + 100
    assert abs(complex(profile[middle + 100]) - 1.0) < 1e-9


@pytest.mark.parametrize("make", [lambda: VideoPhase(3, 20, rate=3e13, sample_rate=5e7), lambda: convolution()])
@pytest.mark.parametrize(("dtype", "bar"), [(C128, 1e-12), (torch.complex64, 1e-5)])
def test_the_pairs_are_exact(make, dtype, bar):
    a = make()
    x, y = field(a.in_shape, dtype=dtype), field(a.out_shape, "y", dtype=dtype)
    gap = (dot(a(x), y) - dot(x, a.adjoint(y))).abs()
    assert bool((gap <= bar * norm(a(x)) * norm(y)).all())
    assert apart(a.normal(x), a.adjoint(a(x))) < bar
    rho = torch.tensor([0.5, 2.0], dtype=x.real.dtype)
    solved = a.solve(x, rho)
    assert apart(a.normal(solved) + rho[:, None, None, None] * solved, x) < bar
    assert apart(a.pinv(a(x)), x) < 100 * bar
    assert apart(a.H(a(x)), a.adjoint(a(x))) < bar


def test_frequencies_that_a_pulse_has_not_are_left_out():
    """Seven equal samples of 21 have no part at multiples of three frequencies but 0: there A^+ is 0, and A A^+ A = A."""
    a = ChirpConvolution(1, 21, sample_rate=21.0, bandwidth=1e-30, duration=6.5 / 21.0)
    x = field(a.in_shape)
    found = a.pinv(a(x))
    gone = (torch.arange(21) - 10) % 3 == 0
    gone[10] = False
    assert apart(found, x * ~gone) < 1e-12 and not found[..., gone].any()
    assert apart(a(found), a(x)) < 1e-12


def convolution():
    return ChirpConvolution(3, 20, sample_rate=7e8, bandwidth=6e8, duration=2e-8)


def test_wrong_arguments_are_named():
    for options in ({"bandwidth": 8e8}, {"duration": 1e-7}, {"sample_rate": 0.0}):
        with pytest.raises(ConfigError, match="ChirpConvolution"):
            ChirpConvolution(3, 20, **{"sample_rate": 7e8, "bandwidth": 6e8, "duration": 2e-8, **options})
    with pytest.raises(ConfigError, match="rate"):
        VideoPhase(3, 20, rate=0.0, sample_rate=1.0)
    with pytest.raises(ConfigError, match="duration"):
        chirp(torch.zeros(3), rate=1.0, duration=-1.0)
    with pytest.raises(ShapeError, match="ranges"):
        echoes(torch.zeros(3), torch.zeros(3), torch.zeros(3), frequency=1.0, rate=1.0, duration=1.0)
