"""The plane-wave modes against dense sums of plane waves and the exact model, and points in the polar format's image."""

import itertools
import math

import pytest
import torch

from invdiff.core import ConfigError, ShapeError, Streams, dot, norm
from invdiff.core.algebra import dense
from invdiff.metrics import point_response
from invdiff.operators.sar import PhaseHistory
from invdiff.operators.sar_cells import SPEED_OF_LIGHT
from invdiff.operators.sar_geometry import circular_track, form_image, ground, kept_pulses, resolution, spotlight
from invdiff.operators.sar_modes import FourierAperture, PlaneWave, fourier_aperture, plane_wave
from invdiff.operators.sar_polar import polar_format

F64, C128 = torch.float64, torch.complex128


def field(shape, name="x", batch=1, dtype=C128):
    return Streams(0, batch).normal(0, shape, name, dtype)


def apart(a, b):
    return float((a - b).norm() / b.norm())


def angles(p=10, aperture=0.05):
    return aperture * ((torch.arange(p, dtype=F64) + 0.5) / p - 0.5)


def waves(q, f, points, sign, reference):
    """Plane waves, term by term, (P K, N)."""
    q = q.reshape(len(q), -1, 3)
    distance = q.norm(dim=-1).mean(1)[:, None] - reference[:, None]
    distance = distance - (q / q.norm(dim=-1, keepdim=True)).mean(1) @ points.reshape(-1, 3).mT
    f = f.expand(len(q), f.shape[-1])
    return torch.exp(sign * 4j * math.pi / SPEED_OF_LIGHT * f[:, :, None] * distance[:, None]).reshape(f.numel(), -1)


TRACKS = {
    "spotlight": lambda: circular_track(angles(), distance=10_160.0, elevation=0.8),
    "bistatic": lambda: torch.stack([circular_track(angles() + a, distance=9e3, elevation=0.6) for a in (0.0, 0.3)], 1),
    "circle": lambda: circular_track(angles(aperture=2 * math.pi), distance=8e3, elevation=0.5),
}


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("case", TRACKS)
def test_plane_waves_are_their_dense_sum(case, sign):
    """Even and odd sizes, steps that differ, frequencies of each pulse, a reference of its own."""
    q, size, step = TRACKS[case](), (7, 10), (0.3, 0.45)
    f = 9.6e9 + 5e7 * torch.arange(9, dtype=F64) + 1e6 * torch.arange(10, dtype=F64)[:, None]
    reference = q.reshape(10, -1, 3).norm(dim=-1).mean(1) + torch.linspace(-2.0, 2.0, 10, dtype=F64)
    matrix = waves(q, f, ground(size, step), sign, reference)
    x, y = field((1, *size), batch=2), field((1, 10, 9), "y", batch=2)
    errors = []
    for accuracy in (1e-4, 1e-6, 1e-9):
        a = PlaneWave(q, f, size, step, sign=sign, reference=reference, screen=False, accuracy=accuracy)
        exact = (x.flatten(1) @ matrix.mT).reshape(y.shape), (y.flatten(1) @ matrix.conj()).reshape(x.shape)
        errors.append(max(apart(a(x), exact[0]), apart(a.adjoint(y), exact[1])))
        assert errors[-1] < 2 * accuracy
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


@pytest.mark.parametrize("mode", ["plane", "fourier"])
@pytest.mark.parametrize(("dtype", "bar"), [(C128, 1e-12), (torch.complex64, 1e-5)])
def test_the_adjoint_is_exact(mode, dtype, bar):
    phases, mask = field((12,), "phases").real[0], kept_pulses(12, 9, pattern="random", share=0.6)
    like = spotlight((8, 11), 0.3, pulses=12, frequencies=9)
    options = {"sign": -1, "phases": phases, "mask": mask}
    exact = PhaseHistory(like.positions, like.frequencies[0], like.points, **options)
    a = plane_wave(exact) if mode == "plane" else fourier_aperture(exact, (14, 16))
    x, y = field(a.in_shape, batch=3, dtype=dtype), field(a.out_shape, "y", 3, dtype)
    gap = (dot(a(x), y) - dot(x, a.adjoint(y))).abs()
    assert bool((gap <= bar * norm(a(x)) * norm(y)).all())
    assert torch.equal(a.measured, exact.measured)
    # the mask and the phases are those of the model
    clean = PhaseHistory(like.positions, like.frequencies[0], like.points, sign=-1)
    bare = plane_wave(clean) if mode == "plane" else fourier_aperture(clean, (14, 16))
    assert apart(a(x), bare(x) * (mask * torch.exp(1j * phases)[:, None]).to(dtype)) < bar


@pytest.mark.parametrize(
    ("extent", "plain", "screened"), [(2.0, 0.19 / 16, 3.8e-3 / 16), (8.0, 0.19, 3.8e-3), (30.0, 1.44, 5.4e-2)]
)
def test_the_screen_takes_off_the_mean_curvature(extent, plain, screened):
    """Errors against the exact model in a geometry like Gotcha's, to a factor of 1.5; small ones go as the extent squared."""
    options = {"pulses": 24, "frequencies": 32, "aperture": math.radians(1.0), "elevation": 0.798, "distance": 10_160.0}
    exact = spotlight((32, 32), extent / 31, accuracy=1e-9, **options)
    x = field((1, 32, 32))
    y = exact(x)
    without, with_it = (apart(plane_wave(exact, screen=s, accuracy=1e-9)(x), y) for s in (False, True))
    assert plain / 1.5 < without < 1.5 * plain
    assert screened / 1.5 < with_it < 1.5 * screened


def test_the_rectangle_is_the_sector_at_small_angles():
    """Against plane waves on the same grid, in a scene of 12 m: the error falls with the angle, in proportion."""
    errors = []
    for aperture in (0.04, 0.02, 0.01, 0.005):
        like = spotlight((1, 1), 1.0, pulses=24, frequencies=24, aperture=aperture, bandwidth=3e8)
        a = fourier_aperture(like, (32, 33), screen=False)
        b = PlaneWave(like.positions, like.frequencies[0], (32, 33), a.spacing, sign=-1, screen=False, accuracy=1e-10)
        assert float((a.points - b.points).abs().max()) < 1e-9
        x = field((1, 32, 33)) * (a.points[..., :2].abs().amax(-1) <= 6.0)
        errors.append(apart(a(x), b(x)))
    assert errors[0] < 0.2 and errors[-1] < 0.02
    assert all(0.4 < small / large < 0.6 for large, small in itertools.pairwise(errors))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("azimuth", [0.0, 0.7, 2.6, -2.0])
def test_the_rectangle_lies_as_the_look_does(azimuth, sign):
    """The exact model on the grid of the mode; tracks of both senses, any direction; a reference of its own."""
    for turn in (1.0, -1.0):
        q = circular_track(azimuth + turn * angles(12, 0.004), distance=1e4, elevation=0.7)
        f = 9.6e9 + 2e6 * torch.arange(14, dtype=F64)
        options = {"sign": sign, "reference": q.norm(dim=-1) + torch.linspace(-1.0, 1.0, 12, dtype=F64)}
        a = FourierAperture(q, f, (16, 20), **options)
        exact = PhaseHistory(q, f, a.points, accuracy=1e-9, **options)
        x = field((1, 16, 20)) * (a.points.norm(dim=-1) < 15.0)
        assert int((x != 0).sum()) > 20
        assert apart(a(x), exact(x)) < 0.03
        cell = resolution(q, f)
        assert a.spacing[0] * 16 / 12 == pytest.approx(cell[1], rel=1e-2)
        assert a.spacing[1] * 20 / 14 == pytest.approx(cell[0], rel=1e-2)


def test_the_rectangle_is_unitary_up_to_the_mask():
    exact = spotlight((1, 1), 1.0, pulses=5, frequencies=6, pattern="random", share=0.6)
    a = fourier_aperture(exact, (7, 8))
    gram = dense(a) @ dense(a).mT / 56.0
    want = exact.measured.flatten().double().repeat(2)
    torch.testing.assert_close(gram, torch.diag(want), rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", ["none", "taylor"])
@pytest.mark.parametrize("azimuth", [0.0, 0.5, 1.9, 3.5])
def test_a_point_in_the_polar_format(azimuth, window):
    """Where it is, and as wide as theory says along both axes that the exact image has, for any direction of the look."""
    a = spotlight((80, 80), 0.25, pulses=80, frequencies=80, aperture=0.05, azimuth=azimuth)
    for row, column in ((40, 40), (24, 56)):
        x = torch.zeros(1, 1, 80, 80, dtype=C128)
        x[0, 0, row, column] = 1.0 - 0.5j
        y = a(x)
        found, exact = polar_format(a, y, window=window), form_image(a, y, window=window)
        assert abs(complex(found[0, 0, row, column]) / (1.0 - 0.5j) - 1.0) < 0.01
        box = slice(row - 20, row + 20), slice(column - 20, column + 20)
        here, there = point_response(found[0, 0][box]), point_response(exact[0, 0][box])
        # the wave's curvature displaces by |r|^2 / 2 R, 2 mm at 5.6 m, .01 of a pixel
        assert max(abs(p - 20.0) for p in here.position) < 0.02
        for mine, other in zip(here.width, there.width, strict=True):
            assert mine == pytest.approx(other, rel=2e-3)
        if azimuth == 0.0:
            factor = 0.886 if window == "none" else 1.18
            range_cell, cross_cell = resolution(a.positions, a.frequencies[0])
            assert here.width[0] * 0.25 == pytest.approx(factor * cross_cell, rel=0.05)
            assert here.width[1] * 0.25 == pytest.approx(factor * range_cell, rel=0.05)


def test_the_polar_format_is_the_image_of_plane_waves():
    """Against the exactly transposed sum over the sector of plane waves, in scenes that fill half of the extents; a mask."""
    for azimuth, pattern, sign in ((0.0, "all", -1), (0.5, "gap", 1), (4.0, "band", -1)):
        part = kept_pulses(64, 64, pattern=pattern)
        like = spotlight((48, 48), 0.25, pulses=64, frequencies=64, aperture=0.05, azimuth=azimuth)
        a = PhaseHistory(like.positions, like.frequencies[0], like.points, sign=sign, mask=part)
        flat = plane_wave(a, screen=False, accuracy=1e-9)
        y = flat(field((1, 48, 48), batch=2))
        assert apart(polar_format(a, y, screen=False), form_image(flat, y)) < 0.01
        assert apart(polar_format(a, y.to(torch.complex64), screen=False).to(C128), form_image(flat, y)) < 0.01


def test_the_polar_format_of_a_band_that_begins_near_zero():
    """0.25 to 1.75 GHz in steps of 0.1: eight samples below the first one lie beyond 0."""
    a = spotlight((20, 20), 0.1, pulses=24, frequencies=16, aperture=0.4, centre_frequency=1e9, bandwidth=1.6e9)
    x = torch.zeros(1, 1, 20, 20, dtype=C128)
    x[0, 0, 8, 13] = 1.0 - 0.5j
    assert apart(polar_format(a, a(x)), form_image(a, a(x))) < 0.01


def test_wrong_arguments_are_named():
    q, f = circular_track(angles(), distance=1e4, elevation=0.8), 9.6e9 + 1e7 * torch.arange(8, dtype=F64)
    make = lambda **o: PlaneWave(**{"positions": q, "frequencies": f, "size": (4, 4), "step": 1.0, "sign": -1, **o})  # noqa: E731
    wrong = {"positions": q.float(), "reference": q[:3, 0], "phases": q[:3, 0], "mask": torch.ones(10), "frequencies": f[:1]}
    for name, value in wrong.items():
        with pytest.raises(ShapeError, match=f"PlaneWave.*{name}"):
            make(**{name: value})
    for options in ({"sign": 0}, {"step": 0.0}, {"accuracy": 1.0}):
        with pytest.raises(ConfigError):
            make(**options)
    with pytest.raises(ConfigError, match="at least 10 x 8"):
        FourierAperture(q, f, (9, 8), sign=-1)
    with pytest.raises(ConfigError, match=r"FourierAperture.*equally spaced"):
        FourierAperture(q, f * (f / f[0]) ** 5, (10, 8), sign=-1)
    with pytest.raises(ConfigError, match=r"PlaneWave.*finite positions"):
        make(positions=q / 0.0)
    with pytest.raises(ConfigError, match="sweeps"):
        FourierAperture(q[:1].expand(10, 3), f, (10, 8), sign=-1)
    hill = PhaseHistory(q, f, ground((4, 4), 1.0, height=torch.ones(4, 4)), sign=-1)
    with pytest.raises(ConfigError, match="plane scene"):
        plane_wave(hill)
    with pytest.raises(ConfigError, match="plane scene"):
        polar_format(hill, field((1, 10, 8)))
    each = PhaseHistory(q, f * (1.0 + 1e-4 * angles()[:, None]), ground((4, 4), 1.0), sign=-1)
    with pytest.raises(ConfigError, match="use plane_wave"):
        fourier_aperture(each)
    circle = PhaseHistory(circular_track(angles(aperture=6.0), distance=1e4, elevation=0.8), f, ground((4, 4), 1.0), sign=-1)
    with pytest.raises(ConfigError, match="use form_image"):
        polar_format(circle, field((1, 10, 8)))
    with pytest.raises(ConfigError, match="window"):
        polar_format(each, field((1, 10, 8)), window="hann")
