"""Parallel-beam CT against analytic line integrals, and its filtered backprojection against the object."""

import math

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Streams, expand
from invdiff.operators import ParallelBeamCT

ENGINES = ["joseph", "fourier"]


def axes(operator):
    """Coordinates of the pixels' columns and lines and of the detector's elements in mm."""
    _, h, w = operator.in_shape
    line, column, s = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (h, w, operator.out_shape[2]))
    return column * operator.pixel, -line[:, None] * operator.pixel, s * operator.pitch


def gaussians(operator):
    """Three Gaussian blobs, 8 to 9 pixels wide, and A w sqrt(2 pi) exp(-(s - s0)^2 / 2 w^2), s0 = x0 cos t + y0 sin t."""
    x, y, s = axes(operator)
    t = operator.angles[:, None]
    image, sinogram = 0.0, 0.0
    for a, x0, y0, w in ((1.0, 11.0, 5.0, 8.0), (0.7, -9.0, 7.0, 9.0), (0.4, 6.0, -10.0, 8.5)):
        x0, y0, w = (v * operator.pixel for v in (x0, y0, w))
        image = image + a * torch.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * w * w))
        s0 = x0 * torch.cos(t) + y0 * torch.sin(t)
        sinogram = sinogram + a * w * math.sqrt(2 * math.pi) * torch.exp(-((s - s0) ** 2) / (2 * w * w))
    return image[None, None], sinogram[None, None]


def ellipse(operator, fine=8):
    """An ellipse painted by area averages, and its chords averaged over the detector's elements."""
    x, y, s = axes(operator)
    cx, cy, a, b, tilt = 7.0, -4.0, 40.0, 22.0, 0.4
    sub = (torch.arange(fine, dtype=torch.float64) - (fine - 1) / 2) / fine
    dx, dy = (x[:, None] + sub - cx)[None, None], (y[:, 0, None] + sub - cy)[:, :, None, None]
    u, v = dx * math.cos(tilt) + dy * math.sin(tilt), dy * math.cos(tilt) - dx * math.sin(tilt)
    image = ((u / a) ** 2 + (v / b) ** 2 <= 1).double().mean((1, 3))
    t = operator.angles[:, None, None]
    r2 = (a * torch.cos(t - tilt)) ** 2 + (b * torch.sin(t - tilt)) ** 2
    offset = (s[:, None] + sub) - (cx * torch.cos(t) + cy * torch.sin(t))
    chords = 2 * a * b * (r2 - offset**2).clamp_min(0).sqrt() / r2
    return image[None, None], chords.mean(2)[None, None]


def error(a, b):
    return float((a - b).norm() / b.norm())


GEOMETRIES = [
    {"size": 128, "angles": 20},
    {"size": (120, 131), "angles": 13, "pixel": 0.7, "pitch": 0.9},
    {"size": 127, "angles": torch.tensor([-0.3, 1.2, 2.0, 4.4, 9.0]), "pixel": 1.5, "pitch": 1.0},
]


@pytest.mark.parametrize(("engine", "bar"), [("joseph", 1e-3), ("fourier", 1e-5)])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gaussians(engine, bar, geometry):
    """Linear interpolation adds p'' cos^2 t / 12 in the mean, 0.06 (pixel / w)^2 of the norm; Kaiser-Bessel 2e-6."""
    operator = ParallelBeamCT(**geometry, engine=engine)
    image, sinogram = gaussians(operator)
    assert error(operator(image), sinogram) < bar
    assert error(operator(image.float()).double(), sinogram) < bar


@pytest.mark.parametrize("engine", ENGINES)
def test_an_ellipse(engine):
    """What is left, as for every projector, is how an edge is painted on pixels of 1 mm: under 1 % of the norm."""
    operator = ParallelBeamCT(128, 20, engine=engine)
    image, sinogram = ellipse(operator)
    assert error(operator(image), sinogram) < 1e-2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [(12, 12), (9, 9), (8, 11)])
def test_views_along_the_axes_sum_lines_and_columns(engine, size):
    """t = 0 sums along y for increasing x; t = pi / 2 along x for increasing y, that is from the last line to the first."""
    h, w = size
    x = Streams(0).normal(0, (1, h, w), dtype=torch.float64)
    bar = 1e-12 if engine == "joseph" else 2e-4
    for t, detector, want in ((0.0, w, x.sum(2)), (math.pi / 2, h, x.sum(3).flip(2))):
        operator = ParallelBeamCT(size, torch.tensor([t], dtype=torch.float64), detector, pixel=0.5, pitch=0.5, engine=engine)
        if engine == "fourier" and detector % 2 == 0:
            continue  # at the Nyquist frequency of an even row a band-limited image has only a cosine
        torch.testing.assert_close(operator(x)[:, :, 0], 0.5 * want, rtol=0, atol=bar * float(want.abs().max()))


def test_engines_agree_on_transposes_of_smooth_data():
    joseph, fourier = (ParallelBeamCT(96, 40, engine=e) for e in ENGINES)
    image, sinogram = gaussians(joseph)
    assert error(joseph(image), fourier(image)) < 5e-3
    assert error(joseph.adjoint(sinogram), fourier.adjoint(sinogram)) < 5e-2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_short_detector_sees_the_middle_of_a_long_one(engine):
    long, short = (ParallelBeamCT(48, 11, detector=k, engine=engine) for k in (80, 30))
    image = torch.exp(-((torch.arange(48, dtype=torch.float64) - 30) ** 2) / 60)
    image = torch.outer(image, image.flip(0))[None, None]
    torch.testing.assert_close(short(image), long(image)[..., 25:55], rtol=0, atol=1e-12 if engine == "joseph" else 1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_view_from_behind_is_mirrored(engine):
    t = torch.tensor([0.4, 0.4 + math.pi], dtype=torch.float64)
    operator = ParallelBeamCT(40, t, engine=engine)
    front, back = operator(gaussians(operator)[0])[0, 0]
    torch.testing.assert_close(back, front.flip(0), rtol=0, atol=1e-12 * float(front.max()))


@pytest.mark.parametrize("engine", ENGINES)
def test_line_integrals_are_in_mm(engine):
    one, two = (ParallelBeamCT(32, 7, pixel=p, pitch=p, engine=engine) for p in (1.0, 2.0))
    x = Streams(0).normal(0, (1, 32, 32), dtype=torch.float64)
    torch.testing.assert_close(two(x), 2.0 * one(x), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("window", ["ram-lak", "hann", "cosine"])
def test_fbp_keeps_the_mean(window):
    """The ellipse from its analytic chords: inside, away from the edge, within half a per cent of 1; far outside within 1 %."""
    operator = ParallelBeamCT(128, 180, engine="joseph")
    image, sinogram = ellipse(operator)
    back = operator.fbp(sinogram, window)
    inside = torch.nn.functional.avg_pool2d(image, 9, 1, 4) > 1 - 1e-9
    outside = torch.nn.functional.avg_pool2d(image, 9, 1, 4) < 1e-9
    assert abs(float(back[inside].mean()) - 1.0) < 5e-3
    assert abs(float(back[outside].mean())) < 1e-2
    assert float((back - image)[inside].std()) < 2e-2


def test_fbp_of_other_units_and_smooth_objects():
    operator = ParallelBeamCT((110, 120), 150, pixel=0.5, pitch=0.4)
    image, sinogram = gaussians(operator)
    assert error(operator.fbp(sinogram), image) < 1e-2
    both = operator.fbp(torch.cat([sinogram, 2 * sinogram]).float())
    torch.testing.assert_close(both[1], 2 * both[0])


@pytest.mark.parametrize(
    "geometry",
    [
        {"size": (13, 10), "angles": 12},
        {"size": 11, "angles": 9, "pitch": 0.8, "detector": 21},
        {"size": (9, 12), "angles": torch.tensor([0.2, 0.5, 1.7, 2.2])},
        {"size": 10, "angles": torch.tensor([0.5, -0.5, 1.2, math.pi - 1.2], dtype=torch.float64)},
    ],
)
def test_few_rays_are_solved_exactly(geometry):
    """Against dense algebra, views with and without a mirror; float64 leaves 1e-16 (|A|^2 / rho)^(3/2), or the condition."""
    operator = ParallelBeamCT(**geometry)
    n = math.prod(operator.in_shape)
    a = operator(torch.eye(n, dtype=torch.float64).reshape(n, *operator.in_shape)).flatten(1).mT
    b, y = (Streams(0, 2).normal(0, shape, dtype=torch.float64) for shape in (operator.in_shape, operator.out_shape))
    rho = torch.tensor([1e-3, 30.0], dtype=torch.float64)
    want = [torch.linalg.solve(a.mT @ a + r * torch.eye(n, dtype=a.dtype), v.flatten()) for r, v in zip(rho, b, strict=True)]
    torch.testing.assert_close(operator.solve(b, rho).flatten(1), torch.stack(want), rtol=1e-7, atol=1e-6)
    want = (torch.linalg.pinv(a, rtol=1e-7) @ y.flatten(1).mT).mT
    torch.testing.assert_close(operator.pinv(y).flatten(1), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_sparse_views_are_solved_at_every_noise_level():
    """Where conjugate gradients need thousands of iterations: |A|^2 = 430, rho = 1e-5, so that rounding leaves at most 6e-5."""
    operator = ParallelBeamCT(40, 11)
    b = operator.adjoint(operator(Streams(0, 2).uniform(0, (1, 40, 40), dtype=torch.float64)))
    x = operator.solve(b, 1e-5)
    assert error(operator.normal(x) + 1e-5 * x, b) < 1e-6


def test_many_rays_are_solved_by_iteration_and_have_no_pseudo_inverse():
    operator = ParallelBeamCT(40, 40)
    b, rho = Streams(0, 2).normal(0, (1, 40, 40)), torch.tensor([10.0, 1000.0])
    x = operator.solve(b, rho)
    assert error(operator.normal(x) + expand(rho, x) * x, b) < 2e-5
    with pytest.raises(CapabilityError, match="use fbp"):
        operator.pinv(operator(b))


def test_the_detector_covers_the_diagonal_and_auto_chooses():
    assert ParallelBeamCT(128).out_shape == (1, 20, 182)
    assert ParallelBeamCT((30, 40), 3, pixel=2.0).out_shape == (1, 3, 100)
    assert [ParallelBeamCT(16, n).engine for n in (30, 31)] == ["joseph", "fourier"]
    angles = ParallelBeamCT(16, 4).angles
    torch.testing.assert_close(angles, torch.arange(4, dtype=torch.float64) * math.pi / 4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"angles": 0}, "at least one angle"),
        ({"angles": torch.tensor([[0.1]])}, "at least one angle"),
        ({"detector": 0}, "at least one detector element"),
        ({"pixel": 0.0}, "pixel > 0"),
        ({"engine": "astra"}, "auto, joseph or fourier, got 'astra'"),
    ],
)
def test_wrong_arguments_are_named(options, match):
    with pytest.raises(ConfigError, match=match):
        ParallelBeamCT(16, **options)
    with pytest.raises(ConfigError, match="ram-lak, hann, cosine, got 'box'"):
        ParallelBeamCT(8, 3).fbp(torch.zeros(1, 1, 3, 12), "box")
