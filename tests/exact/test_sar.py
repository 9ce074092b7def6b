"""The radar pair against the dense sum, its gradients against differences, and points of known place and width."""

import json
import math
import runpy
from pathlib import Path

import pytest
import torch

from invdiff.core import ConfigError, ShapeError, Streams, dot
from invdiff.operators.sar import PhaseHistory, Radar
from invdiff.operators.sar_cells import SPEED_OF_LIGHT, terms
from invdiff.operators.sar_geometry import (
    circular_track,
    form_image,
    ground,
    kept_pulses,
    resolution,
    spotlight,
    straight_track,
    taylor,
)

F64, C128 = torch.float64, torch.complex128
PULSES, BAND = 24, 30


def band(k=BAND, centre=9.6e9, width=5e8):
    return centre + width * ((torch.arange(k, dtype=F64) + 0.5) / k - 0.5)


def angles(p=PULSES, aperture=0.05):
    return aperture * ((torch.arange(p, dtype=F64) + 0.5) / p - 0.5)


def track(**options):
    return circular_track(angles(), distance=10_160.0, elevation=0.798, **options)


def hills(size=(9, 12), spacing=0.4):
    """A scene off the plane."""
    return ground(size, spacing, height=2.0 * Streams(1).normal(0, size, "height", F64)[0])


def field(shape, name="x", batch=2, dtype=C128):
    return Streams(0, batch).normal(0, shape, name, dtype)


def dense(positions, f, points, sign, reference=None):
    """The matrix of the model, term by term, (P K, N)."""
    q = positions.reshape(len(positions), -1, 3)
    r = points.reshape(-1, 3)
    distance = (q[:, :, None] - r).norm(dim=-1).mean(1) - (q.mean(1).norm(dim=-1) if reference is None else reference)[:, None]
    f = f.expand(len(q), f.shape[-1])
    return torch.exp(sign * 4j * math.pi / SPEED_OF_LIGHT * f[:, :, None] * distance[:, None]).reshape(f.numel(), len(r))


def apart(a, b):
    return float((a - b).norm() / b.norm())


CASES = {
    "spotlight": lambda: (track(), band(), None),
    "stripmap": lambda: (straight_track(600.0 * angles(aperture=0.1), offset=-4e3, altitude=3e3), band(), None),
    "circle": lambda: (circular_track(angles(aperture=2 * math.pi), distance=8e3, elevation=0.5), band(), None),
    "bistatic": lambda: (
        torch.stack((track(), circular_track(angles() + 0.3, distance=9e3, elevation=0.6)), 1),
        band(),
        torch.full((PULSES,), 9.58e3, dtype=F64),
    ),
    "own frequencies": lambda: (track(), band() * (1.0 + 1e-3 * angles()[:, None]), None),
}


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("case", CASES)
def test_the_pair_is_the_dense_sum_to_the_requested_accuracy(case, sign):
    q, f, reference = CASES[case]()
    matrix, points = dense(q, f, hills(), sign, reference), hills()
    x, y = field((1, 9, 12)), field((1, PULSES, BAND), "y")
    exact = (x.flatten(1) @ matrix.mT).reshape(y.shape), (y.flatten(1) @ matrix.conj()).reshape(x.shape)
    errors = []
    for accuracy in (1e-3, 1e-5, 1e-7, 1e-9):
        a = PhaseHistory(q, f, points, sign=sign, reference=reference, accuracy=accuracy)
        errors.append(max(apart(a(x), exact[0]), apart(a.adjoint(y), exact[1])))
        assert errors[-1] < accuracy
        gap = (dot(a(x), y) - dot(x, a.adjoint(y))).abs() / (a(x).flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1))
        assert float(gap.max()) < 1e-14
    # the remainder of the series falls as it should, and the test sees it
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    single = a(x.to(torch.complex64))
    assert single.dtype == torch.complex64
    assert apart(single.to(C128), exact[0]) < 2e-6


def test_number_of_terms():
    """2 (x / 2)^D / D! at x = pi / 16."""
    assert [terms(a) for a in (1e-2, 1e-3, 1e-5, 1e-8)] == [2, 3, 4, 6]


def test_tables_made_again_are_the_same():
    kept, made = (spotlight((40, 50), 0.3, pulses=50, frequencies=20, memory=m) for m in (1 << 30, 0))
    x, y = field((1, 40, 50)), field((1, 50, 20), "y")
    assert apart(made(x), kept(x)) < 1e-13
    assert apart(made.adjoint(y), kept.adjoint(y)) < 1e-13


def test_positions_that_move_are_followed_and_stay_in_double_precision():
    """A parameter has no tables, learned or not; another precision of the module changes nothing that matters."""
    start, x = track(), field((1, 9, 12))
    q = torch.nn.Parameter(start.clone(), requires_grad=False)
    a = PhaseHistory(q, band(), hills(), sign=-1, reference=start.norm(dim=-1))
    a(x)
    q += 0.01
    moved = PhaseHistory(start + 0.01, band(), hills(), sign=-1, reference=start.norm(dim=-1))
    assert apart(a(x), moved(x)) < 1e-12
    assert torch.equal(q, start + 0.01)
    for memory in (0, 1 << 30):
        fixed = PhaseHistory(start, band(), hills(), sign=-1, memory=memory)
        before = fixed(x)
        assert apart(fixed.float()(x), before) < 1e-12
    with pytest.raises(ShapeError, match="stay float64"):
        a.float()(x)


def test_resolution_of_wide_apertures():
    """A half circle and more resolve a quarter of the wavelength over cos e; an arc across the cut of angles, its sweep."""
    quarter = SPEED_OF_LIGHT / 9.6e9 / 4.0 / math.cos(0.5)
    for aperture in (math.pi, 1.5 * math.pi, 2.0 * math.pi):
        q = circular_track(angles(400, aperture), distance=1e4, elevation=0.5)
        assert resolution(q, band())[1] == pytest.approx(quarter, rel=1e-6)
    here, there = (circular_track(angles(40, 0.1) + a, distance=1e4, elevation=0.5) for a in (0.0, math.pi))
    assert resolution(here, band())[1] == pytest.approx(resolution(there, band())[1], rel=1e-9)


def test_aliases_of_range_are_those_of_the_model():
    """A scene wider than c / 2 df wraps, as equally spaced frequencies do."""
    points = ground((5, 40), 3.0)
    a = PhaseHistory(track(), band(), points, sign=-1, accuracy=1e-9)
    assert SPEED_OF_LIGHT / (2.0 * float(band()[1] - band()[0])) * 5.0 < 120.0
    x = field((1, 5, 40))
    assert apart(a(x).flatten(1), x.flatten(1) @ dense(track(), band(), points, -1).mT) < 1e-9


def test_gradients_in_image_phases_and_positions():
    """Against central differences of the dense model."""
    q0, f, points = track(), band(), hills()
    p0 = Streams(3).normal(0, (PULSES,), "phases", F64)[0]
    x, v = field((1, 9, 12), batch=2), field((1, PULSES, BAND), "v")
    q, phases = torch.nn.Parameter(q0.clone()), torch.nn.Parameter(p0.clone())
    a = PhaseHistory(q, f, points, sign=-1, phases=phases, accuracy=1e-9, reference=q0.norm(dim=-1))
    image = x.clone().requires_grad_()
    value = dot(a(image), v).sum() + 1e-4 * a.adjoint(v).abs().square().sum()
    value.backward()

    def exact(q, phases, x):
        matrix = torch.exp(1j * phases)[:, None, None] * dense(q, f, points, -1, q0.norm(dim=-1)).reshape(PULSES, BAND, -1)
        matrix = matrix.flatten(0, 1)
        forward = dot((x.flatten(1) @ matrix.mT).reshape(v.shape), v).sum()
        return forward + 1e-4 * (v.flatten(1) @ matrix.conj()).abs().square().sum()

    assert float(value.detach()) == pytest.approx(float(exact(q0, p0, x)), rel=1e-7)
    streams = Streams(5)
    dq, dp = (streams.normal(0, t.shape, name, F64)[0] for name, t in (("q", q0), ("p", p0)))
    dx = streams.normal(0, x.shape, "x", C128)[0]
    e = 1e-6
    for direction, found in (
        ((e * dq, 0 * dp, 0 * dx), (q.grad * dq).sum()),
        ((0 * dq, e * dp, 0 * dx), (phases.grad * dp).sum()),
        ((0 * dq, 0 * dp, e * dx), (image.grad.conj() * dx).real.sum()),
    ):
        ends = [exact(q0 + s * direction[0], p0 + s * direction[1], x + s * direction[2]) for s in (1, -1)]
        assert float(found) == pytest.approx(float((ends[0] - ends[1]) / (2 * e)), rel=1e-5)


def test_gradient_of_bistatic_positions():
    q0 = CASES["bistatic"]()[0]
    q, x, v = torch.nn.Parameter(q0.clone()), field((1, 9, 12)), field((1, PULSES, BAND), "v")
    reference = q0.mean(1).norm(dim=-1)
    dot(PhaseHistory(q, band(), hills(), sign=1, reference=reference, accuracy=1e-9)(x), v).sum().backward()
    step = 1e-6 * Streams(5).normal(0, q0.shape, "q", F64)[0]
    ends = [
        dot((x.flatten(1) @ dense(q0 + s * step, band(), hills(), 1, reference).mT).reshape(v.shape), v).sum() for s in (1, -1)
    ]
    assert float((q.grad * step).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2, rel=1e-5)


def test_the_sign_decides_where_a_point_lies():
    """Data of one sign, seen with the other, focus as well, reflected at the origin."""
    a = spotlight((64, 64), 0.25, pulses=64, frequencies=64, aperture=0.04)
    x = torch.zeros(1, 1, 64, 64, dtype=C128)
    # 4 m along x, 6 m along -y from the middle
    x[0, 0, 8, 48] = 1.0
    y = a(x)
    right = form_image(a, y)
    wrong = form_image(PhaseHistory(a.positions, a.frequencies[0], a.points, sign=1), y)
    peaks = [int(i.abs().flatten().argmax()) for i in (right, wrong)]
    assert divmod(peaks[0], 64) == (8, 48)
    assert divmod(peaks[1], 64) == (63 - 8, 63 - 48)
    # curvature of the wave is all that the wrong one lacks
    assert float(right.abs().max()) == pytest.approx(1.0, rel=1e-4)
    assert float(wrong.abs().max()) > 0.98


@pytest.mark.parametrize("window", ["none", "taylor"])
def test_a_point_is_as_wide_as_the_aperture_says(window):
    """3-dB widths, within 5 % of the resolution times the window's, in cells of its transform."""
    options = {"pulses": 256, "frequencies": 256, "aperture": 0.06, "bandwidth": 6e8, "elevation": 0.8, "distance": 1e4}
    a = spotlight((1, 1), 1.0, **options)
    across = resolution(a.positions, a.frequencies[0])
    y = a(torch.ones(1, 1, 1, 1, dtype=C128))
    widths = []
    for step in ((1.0, 0.0), (0.0, 1.0)):
        fine = torch.linspace(-1.0, 1.0, 4001, dtype=F64)
        line = torch.stack((fine * step[0], fine * step[1], 0 * fine), -1)[None]
        cut = form_image(PhaseHistory(a.positions, a.frequencies[0], line, sign=-1), y, window=window).abs().flatten()
        inside = fine[cut >= cut.max() / 2**0.5]
        widths.append(float(inside.max() - inside.min()))
    lobe = torch.fft.rfft(torch.ones(256) if window == "none" else taylor(256), n=256 * 512).abs()
    factor = 2.0 * int((lobe >= lobe[0] / 2**0.5).sum()) / 512
    assert factor == pytest.approx(0.886 if window == "none" else 1.18, abs=0.01)
    assert widths[0] == pytest.approx(factor * across[0], rel=0.05)
    assert widths[1] == pytest.approx(factor * across[1], rel=0.05)


def test_taylor_window_has_the_lobes_that_were_asked_for():
    for level, constant in ((35.0, 4), (30.0, 5)):
        spectrum = torch.fft.rfft(taylor(64, sidelobes=level, constant=constant), n=64 * 256).abs()
        decibels = 20.0 * torch.log10(spectrum / spectrum[0])
        first = next(i for i in range(1, len(decibels)) if decibels[i + 1] > decibels[i])
        assert float(decibels[first:].max()) == pytest.approx(-level, abs=0.6)


def test_masks_and_phases():
    full = spotlight((8, 8), 0.5, pulses=40, frequencies=30)
    x = field((1, 8, 8))
    for pattern, count in (("random", 10 * 30), ("gap", 30 * 30), ("band", 40 * 22)):
        mask = kept_pulses(40, 30, pattern=pattern, share=0.25, seed=3)
        assert int(mask.sum()) == count
        part = PhaseHistory(full.positions, full.frequencies[0], full.points, sign=-1, mask=mask)
        assert torch.equal(part(x), full(x) * mask)
        assert part.count_measured() == 2 * count
    assert not torch.equal(kept_pulses(40, 30, pattern="random", seed=1), kept_pulses(40, 30, pattern="random", seed=2))
    phases = Streams(3).normal(0, (40,), "phases", F64)[0]
    turned = PhaseHistory(full.positions, full.frequencies[0], full.points, sign=-1, phases=phases)
    assert apart(turned(x), full(x) * torch.exp(1j * phases)[:, None]) < 1e-14
    assert apart(turned.adjoint(turned(x)), full.adjoint(full(x))) < 1e-14


def test_the_benchmark_runs(tmp_path):
    main = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "sar.py"))["main"]
    rows = main(["--tiny", "--repeats", "1", "--json", str(tmp_path / "rows.json")])
    assert rows["kept"]["error"] < 1e-5 < 1e-3 < rows["linear"]["error"]
    assert rows["kept, forward"]["error"] < 1e-5
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == rows


def test_wrong_arguments_are_named():
    q, f, points = track(), band(), hills()
    make = lambda **o: PhaseHistory(**{"positions": q, "frequencies": f, "points": points, "sign": -1, **o})  # noqa: E731
    for options, message in (
        ({"positions": q.float()}, "float64"),
        ({"positions": q[:, :2]}, "positions"),
        ({"points": points[0]}, "points"),
        ({"reference": torch.zeros(3)}, "reference"),
        ({"phases": torch.zeros(3)}, "phases"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, "mask"),
        ({"mask": torch.ones(PULSES)}, "mask"),
        ({"frequencies": torch.ones(PULSES + 1, BAND)}, "frequencies"),
        ({"positions": q[:0]}, "positions"),
        ({"points": points[:0]}, "points"),
    ):
        with pytest.raises(ShapeError, match=message):
            make(**options)
    for options, message in (
        ({"sign": 0}, "sign"),
        ({"accuracy": 1.0}, "accuracy"),
        ({"frequencies": f.flip(0)}, "rising"),
        ({"frequencies": f + (torch.arange(BAND) == 3) * 1e6}, "equally spaced"),
        ({"frequencies": f.masked_fill(torch.arange(BAND) == 3, math.nan)}, "finite frequencies"),
        ({"points": points.masked_fill(points == points[1, 1, 2], math.nan)}, "finite points, got 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(**options)


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize(("dtype", "bar"), [(C128, 1e-12), (torch.complex64, 1e-5)])
def test_what_each_pulse_says_of_a_point(dtype, bar, memory):
    """Against forward calls for each of the points; phases, a mask, more points than are projected at once."""
    phases, mask = field((PULSES,), "phases").real[0], kept_pulses(PULSES, BAND, pattern="random", share=0.6)
    a = PhaseHistory(track(), band(), hills(), sign=1, phases=phases, mask=mask & (torch.arange(BAND) > 4), memory=memory)
    y, pixels = field((1, PULSES, BAND), "y", dtype=dtype)[0], torch.arange(107, 0, -5)
    found = a.histories(y, pixels)
    assert found.shape == (22, PULSES) and found.dtype == dtype
    assert apart(found, Radar.histories(a, y, pixels)) < bar
    assert apart(found.sum(1), a.adjoint(y[None]).flatten()[pixels]) < bar
    assert not found[:, ~mask.any(1)].any()


def test_phases_of_many_turns_in_single_precision():
    """Turned in their own precision: 1e5 rad are known to 4e-3 in float32."""
    phases = 1e5 + field((PULSES,), "phases").real[0]
    a, bare = (PhaseHistory(track(), band(), hills(), sign=-1, phases=p) for p in (phases, None))
    x = field((1, 9, 12), dtype=torch.complex64)
    assert apart(a(x).to(C128), bare(x).to(C128) * torch.exp(1j * phases)[:, None]) < 1e-6


def test_pulses_that_are_not_measured_are_left_out_exactly():
    """The masked operator is the whole one times the mask; the gradient in the position of a pulse without data is zero."""
    mask = torch.zeros(len(track()), dtype=torch.bool)
    mask[[1, 4]] = True
    moved, x = torch.nn.Parameter(track()), field((1, 9, 12))
    some = PhaseHistory(moved, band(), hills(), sign=-1, mask=mask)
    whole = PhaseHistory(track(), band(), hills(), sign=-1)
    y = whole(x)
    assert apart(some(x).detach(), y * mask[:, None]) < 1e-12
    assert apart(some.adjoint(y).detach(), whole.adjoint(y * mask[:, None])) < 1e-12
    some(x).abs().square().sum().backward()
    assert bool((moved.grad[~mask] == 0).all()) and bool((moved.grad[mask].abs().sum(1) > 0).all())
    with pytest.raises(ConfigError, match="keeps something"):
        PhaseHistory(track(), band(), hills(), sign=-1, mask=torch.zeros_like(mask))
