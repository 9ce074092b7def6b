"""The matched projectors against rays followed one by one, chords, each other, and dense transposes."""

import math

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, ShapeError, Streams
from invdiff.kernels import ConeBeam, FanBeam, ParallelBeam, backproject, project, projector
from invdiff.kernels.beams import half_width, trace, widest
from invdiff.kernels.projector import crossings
from invdiff.operators import ConeBeamCT, FanBeamCT, ParallelBeamCT


def turn(views, start=0.1):
    return start + torch.arange(views, dtype=torch.float64) * (2 * math.pi / views)


GEOMETRIES = {
    "parallel": ParallelBeam((6, 9), turn(7), 13, 0.7, 0.4, 0.3),
    "parallel, axes and diagonals": ParallelBeam((7, 6), turn(8, 0.0), 11),
    "fan": FanBeam((6, 9), turn(7), 13, 9.0, 4.0, 0.9, 1.1, 0.3),
    "fan, source beside the image": FanBeam((8, 8), turn(5), 40, 6.01, 0.0, 1.0, 0.5),
    "cone": ConeBeam((4, 5, 6), turn(5), (5, 8), 8.0, 4.0, 1.0, 1.1, (0.2, 0.3)),
    "cone, one row": ConeBeam((3, 5, 5), turn(4), (1, 9), 9.0, 3.0, 1.0, 0.8, (0.4, 0.0)),
    "cone, source beside the volume": ConeBeam((3, 5, 5), turn(3), (9, 18), 3.9, 0.5, 1.0, 0.4),
}


@pytest.fixture(params=GEOMETRIES)
def geometry(request):
    return GEOMETRIES[request.param]


def sinogram_of(geometry):
    detector = geometry.detector if isinstance(geometry, ConeBeam) else (geometry.detector,)
    return (1, len(geometry.angles), *detector)


def columns(function, shape, dtype=torch.float64):
    """A linear function as a matrix."""
    n = math.prod(shape)
    return function(torch.eye(n, dtype=dtype).reshape(n, *shape)).flatten(1).mT


def noise(shape, seed=0, batch=2, dtype=torch.float64):
    return Streams(seed, batch).normal(0, shape, dtype=dtype)


def lines_of(geometry):
    """A point and the direction of every ray in mm, (views, R, K, 3), from where source and detector are."""
    t = geometry.angles[:, None, None, None]
    zero = torch.zeros_like(t)
    e, towards = torch.cat((t.cos(), t.sin(), zero), -1), torch.cat((t.sin(), -t.cos(), zero), -1)
    cone = isinstance(geometry, ConeBeam)
    (rows, count), offset = (geometry.detector, geometry.offset) if cone else ((1, geometry.detector), (0.0, geometry.offset))
    v, u = ((torch.arange(n).double() - (n - 1) / 2) * geometry.pitch + o for n, o in zip((rows, count), offset, strict=True))
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    on_detector = u[:, None] * e + v[:, None, None] * up
    if isinstance(geometry, ParallelBeam):
        return on_detector, towards.expand_as(on_detector)
    on_detector = on_detector - geometry.detector_distance * towards
    source = (geometry.source_distance * towards).expand_as(on_detector)
    return source, source - on_detector


def followed(geometry):
    """Joseph's matrix, a ray at a time, in mm and without any of the projector's algebra."""
    size = geometry.size if len(geometry.size) == 3 else (1, *geometry.size)
    d, h, w = size
    p = geometry.pixel
    centres = [[(n - (count - 1) / 2) * p for n in range(count)] for count in size]
    points, directions = (v.reshape(-1, 3).tolist() for v in lines_of(geometry))
    matrix = torch.zeros(len(points), d, h, w, dtype=torch.float64)

    def share(distance):
        return max(0.0, 1.0 - abs(distance) / p)

    for ray, (point, direction) in enumerate(zip(points, directions, strict=True)):
        length = math.hypot(*direction)
        upright = abs(direction[1]) >= abs(direction[0]) - 1e-9 * length
        main = 1 if upright else 0
        for i in range(h):
            for j in range(w):
                x, y = centres[2][j], -centres[1][i]
                along = ((y if upright else x) - point[main]) / direction[main]
                crossing = [c + along * g for c, g in zip(point, direction, strict=True)]
                flat = share(crossing[0] - x) if upright else share(crossing[1] - y)
                for k in range(d) if flat > 0.0 else ():
                    step = p * length / abs(direction[main])
                    matrix[ray, k, i, j] = flat * (share(crossing[2] - centres[0][k]) if d > 1 else 1.0) * step
    return matrix.flatten(1)


def test_rays_followed_one_by_one(geometry):
    matrix = columns(lambda x: project(x, geometry), (1, *geometry.size))
    torch.testing.assert_close(matrix, followed(geometry), rtol=0, atol=1e-12 * float(matrix.max()))


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-15), (torch.float32, 3e-7)])
def test_the_transpose_is_the_transpose(geometry, dtype, bar):
    """Entry by entry; the same weights times the same length, multiplied in another order."""
    matrix = columns(lambda x: project(x, geometry), (1, *geometry.size), dtype)
    transpose = columns(lambda y: backproject(y, geometry), sinogram_of(geometry), dtype)
    assert int((matrix != 0).sum()) > matrix.numel() // 40
    assert bool(((matrix != 0) == (transpose.mT != 0)).all())
    assert float((matrix - transpose.mT).abs().max() / matrix.abs().max()) <= bar


@pytest.mark.parametrize(
    ("radius", "source"), [(4.0, 5.1), (4.0, 7.0), (100.0, 102.1), (100.0, 110.0), (700.0, 708.0), (5.0, 1e9)]
)
def test_the_widest_footprint(radius, source):
    """The closed form against a search of the circle, fine near the source; no move by a pixel's length exceeds it."""
    t, kappa = torch.cat((torch.zeros(1), torch.logspace(-6, math.log10(math.pi), 10000))).double(), 1.0 / source
    m, lateral = 1.0 - kappa * radius * t.cos(), radius * t.sin()
    assert widest(kappa, radius) == pytest.approx(float(half_width(m, lateral, kappa).max()), rel=1e-5)
    turned = turn(180)[:, None]
    moved = (lateral + turned.cos()) / (m - kappa * turned.sin()) - lateral / m
    assert bool((moved.abs().amax(0) <= half_width(m, lateral, kappa) * (1 + 1e-9)).all())


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_the_adjoint_gap_at_a_usual_size(dtype, bar):
    for geometry in (
        ParallelBeam((40, 33), turn(30), 64),
        FanBeam((40, 33), turn(30), 64, 70.0, 50.0, pitch=1.7),
        ConeBeam((9, 16, 14), turn(12), (14, 24), 40.0, 30.0, pitch=1.7),
    ):
        x, y = noise((1, *geometry.size), dtype=dtype), noise(sinogram_of(geometry), 1, dtype=dtype)
        ax, aty = project(x, geometry), backproject(y, geometry)
        gap = ((ax * y).sum().double() - (x * aty).sum().double()).abs()
        assert float(gap / (ax.norm() * y.norm())) <= bar
        assert float(gap / (x.norm() * aty.norm())) <= bar


def test_parallel_beams_equal_the_stored_matrix():
    operator = ParallelBeamCT((22, 17), 11, pixel=0.7, pitch=0.9, engine="joseph")
    beams = ParallelBeam((22, 17), operator.angles, operator.out_shape[2], 0.7, 0.9)
    x, y = noise(operator.in_shape), noise(operator.out_shape, 1)
    torch.testing.assert_close(project(x, beams), operator(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(backproject(y, beams), operator.adjoint(y), rtol=0, atol=1e-12)


def distances(geometry, centre):
    """Of the rays from a point in mm."""
    point, direction = lines_of(geometry)
    apart = torch.tensor(centre, dtype=torch.float64) - point
    along = (apart * direction).sum(-1, keepdim=True) / direction.square().sum(-1, keepdim=True)
    distance = (apart - along * direction).norm(dim=-1)
    return distance if isinstance(geometry, ConeBeam) else distance[:, 0]


def grid(size, pixel, fine=1):
    """(x, y, z) of the points of a cube or square cut `fine` times finer than the pixels, z only for a cube."""
    axes = [(torch.arange(n * fine, dtype=torch.float64) - (n * fine - 1) / 2) * (pixel / fine) for n in size]
    *z, y, x = torch.meshgrid(*axes, indexing="ij")
    return (x, -y, *z)


def beams_of(kind, n):
    """A square or cube of 64 mm in n pixels a side, seen by detectors that don't depend on n."""
    if kind == "parallel":
        return ParallelBeam((n, n), turn(9), 31, 64.0 / n, 2.1)
    if kind == "fan":
        return FanBeam((n, n), turn(9), 31, 90.0, 60.0, 64.0 / n, 3.4)
    return ConeBeam((n, n, n), turn(4), (12, 14), 90.0, 60.0, 64.0 / n, 6.0)


CENTRE = (6.0, -4.0, 3.0)


@pytest.mark.parametrize("kind", ["parallel", "fan", "cone"])
def test_chords_of_a_disc_and_a_ball(kind):
    """2 sqrt(r^2 - distance^2); painted by area, pixels of half the size err by less than 0.6 times as much in the mean."""
    radius, errors = 17.0, []
    for n in (12, 24, 48) if kind == "cone" else (16, 32, 64):
        geometry = beams_of(kind, n)
        centre = CENTRE if kind == "cone" else (*CENTRE[:2], 0.0)
        fine = 3 if kind == "cone" else 6
        axes = grid(geometry.size, geometry.pixel, fine)
        inside = sum((a - c) ** 2 for a, c in zip(axes, centre[: len(axes)], strict=True)) <= radius**2
        pool = torch.nn.functional.avg_pool3d if kind == "cone" else torch.nn.functional.avg_pool2d
        image = pool(inside.double()[None, None], fine)
        chord = 2.0 * (radius**2 - distances(geometry, centre).square()).clamp_min(0.0).sqrt()
        found = project(image, geometry)[0, 0]
        errors.append(float((found - chord).abs().mean() / chord.mean()))
    assert errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1] and errors[2] < (0.03 if kind == "cone" else 0.01)


@pytest.mark.parametrize("kind", ["parallel", "fan", "cone"])
def test_line_integrals_of_a_gaussian(kind):
    """w sqrt(2 pi) exp(-distance^2 / (2 w^2)); linear interpolation errs by up to (pixel / w)^2 / 12 an axis."""
    width = 7.0
    for n in (16, 32) if kind == "cone" else (24, 48):
        geometry = beams_of(kind, n)
        centre = CENTRE if kind == "cone" else (*CENTRE[:2], 0.0)
        axes = grid(geometry.size, geometry.pixel)
        image = torch.exp(-sum((a - c) ** 2 for a, c in zip(axes, centre[: len(axes)], strict=True)) / (2 * width**2))
        want = width * math.sqrt(2 * math.pi) * torch.exp(-distances(geometry, centre).square() / (2 * width**2))
        error = project(image[None, None], geometry)[0, 0] - want
        assert float(error.norm() / want.norm()) < (geometry.pixel / width) ** 2 * (len(axes) - 1) / 12


def test_a_single_pixel():
    """Of 2 mm, seen from below: the ray through its middle measures 2 mm, the next ones at u / 2 mm what the hat leaves."""
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    x[0, 0, 2, 2] = 3.0
    beams = FanBeam((5, 5), torch.zeros(1, dtype=torch.float64), 5, 100.0, 100.0, 2.0, 1.0)
    reach = [math.hypot(1.0, u / 200.0) * 6.0 * (1.0 - abs(u) / 4.0) for u in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    torch.testing.assert_close(project(x, beams)[0, 0, 0], torch.tensor(reach, dtype=torch.float64))


def test_a_far_source_makes_parallel_beams():
    x = noise((1, 20, 23))
    far, parallel = FanBeam((20, 23), turn(7), 31, 1e12, 0.0, 1.0, 0.9, 0.2), ParallelBeam((20, 23), turn(7), 31, 1.0, 0.9, 0.2)
    torch.testing.assert_close(project(x, far), project(x, parallel), rtol=0, atol=1e-8)


def test_a_fan_is_made_of_parallel_rays():
    """The ray at u is that of the parallel beam at angle t - gamma and s = R sin gamma, tan gamma = u / (R + detector)."""
    x, t = noise((1, 20, 23)), 0.7
    fan = project(x, FanBeam((20, 23), torch.tensor([t], dtype=torch.float64), 15, 40.0, 25.0, 1.0, 2.5))
    for k in range(15):
        gamma = math.atan((k - 7) * 2.5 / 65.0)
        view = torch.tensor([t - gamma], dtype=torch.float64)
        ray = project(x, ParallelBeam((20, 23), view, 1, 1.0, 1.0, 40.0 * math.sin(gamma)))
        torch.testing.assert_close(ray[..., 0], fan[..., k], rtol=0, atol=1e-11)


def test_the_middle_row_of_a_cone_is_a_fan():
    x = noise((1, 5, 12, 11))
    cone = project(x, ConeBeam((5, 12, 11), turn(6), (3, 17), 30.0, 12.0, 0.8, 1.1, (0.0, 0.3)))
    fan = project(x[:, :, 2], FanBeam((12, 11), turn(6), 17, 30.0, 12.0, 0.8, 1.1, 0.3))
    torch.testing.assert_close(cone[:, :, :, 1], fan, rtol=0, atol=1e-12)


def test_slices_and_rows_are_mirrored_together():
    x, beams = noise((1, 5, 9, 8)), ConeBeam((5, 9, 8), turn(5), (4, 13), 20.0, 12.0, 1.0, 1.2)
    torch.testing.assert_close(project(x.flip(2), beams), project(x, beams).flip(3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["parallel", "fan", "cone"])
def test_a_turned_image_is_seen_from_turned_angles(kind):
    """By a quarter turn, exactly; and a full turn changes nothing."""
    beams = {
        "parallel": lambda t: ParallelBeam((9, 9), t, 14, 1.0, 0.8, 0.2),
        "fan": lambda t: FanBeam((9, 9), t, 14, 12.0, 5.0, 1.0, 1.2, 0.2),
        "cone": lambda t: ConeBeam((3, 9, 9), t, (4, 14), 12.0, 5.0, 1.0, 1.2, (0.1, 0.2)),
    }[kind]
    t = turn(6, 0.3)
    x = noise((1, *beams(t).size))
    straight = project(x, beams(t))
    torch.testing.assert_close(project(x.rot90(1, (-2, -1)), beams(t + math.pi / 2)), straight, rtol=0, atol=1e-12)
    torch.testing.assert_close(project(x, beams(t + 2 * math.pi)), straight, rtol=0, atol=1e-12)


def test_every_call_gives_the_same_bits_and_chunks_do_not_matter(geometry, monkeypatch):
    x, y = noise((1, *geometry.size), dtype=torch.float32), noise(sinogram_of(geometry), 1, dtype=torch.float32)
    first = project(x, geometry), backproject(y, geometry)
    assert torch.equal(project(x, geometry), first[0]) and torch.equal(backproject(y, geometry), first[1])
    monkeypatch.setattr(projector, "_CHUNK", 64)
    torch.testing.assert_close(project(x, geometry), first[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(backproject(y, geometry), first[1], rtol=0, atol=2e-5)


def test_the_number_of_weights_at_a_time_is_bounded(monkeypatch):
    monkeypatch.setattr(projector, "_CHUNK", 5000)
    for geometry in (beams_of("fan", 32), beams_of("cone", 12)):
        pieces = list(crossings(trace(geometry.layout, geometry.angles), geometry.layout))
        assert len(pieces) > 3 and max(sum(index.numel() for index, _ in taps) for taps in pieces) <= 5000


def test_derivatives(geometry):
    x, y = noise((1, *geometry.size), batch=1), noise(sinogram_of(geometry), batch=1)
    x, y = x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: project(v, geometry), x, fast_mode=True)
    assert torch.autograd.gradcheck(lambda v: backproject(v, geometry), y, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda v: project(v, geometry).square(), x, fast_mode=True)


@pytest.mark.parametrize("name", ["fan", "cone"])
def test_registration(name):
    geometry = GEOMETRIES[name]
    layout, rays = geometry.layout, trace(geometry.layout, geometry.angles)
    numbers = projector._numbers(layout)
    x = noise(layout.size).requires_grad_()
    y = noise((len(geometry.angles), *layout.panel)).requires_grad_()
    torch.library.opcheck(torch.ops.invdiff.project.default, (x, *rays, *numbers))
    torch.library.opcheck(torch.ops.invdiff.backproject.default, (y, *rays, *numbers))


@pytest.mark.parametrize("make", [FanBeamCT, ConeBeamCT])
def test_engines_are_the_same_operator(make):
    options = {"size": 9 if make is FanBeamCT else (3, 6, 7), "angles": 5, "source_distance": 20.0, "detector_distance": 9.0}
    stored, direct = (make(**options, pitch=1.1, engine=engine) for engine in ("stored", "direct"))
    many = make(300 if make is FanBeamCT else (24, 120, 120))
    assert make(**options).engine == "stored" and many.engine == "direct"
    x, y = noise(stored.in_shape), noise(stored.out_shape, 1)
    torch.testing.assert_close(stored(x), direct(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(stored.adjoint(y), direct.adjoint(y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, -2.3])
@pytest.mark.parametrize("make", [FanBeamCT, ConeBeamCT])
def test_the_detector_covers_the_object(make, shift):
    """What an element more at either end would see is nothing."""
    size = (10, 13) if make is FanBeamCT else (4, 8, 9)
    options = {"size": size, "angles": 11, "source_distance": 14.0, "detector_distance": 6.0, "pitch": 0.7}
    options["offset"] = shift if make is FanBeamCT else (-shift, shift)
    found = make(**options).out_shape[2:]
    larger = found[0] + 2 if make is FanBeamCT else (found[0] + 2, found[1] + 2)
    y = make(**options, detector=larger)(torch.ones(1, 1, *size))[0, 0]
    assert not y[..., 0].any() and not y[..., -1].any() and bool(y.any())
    if make is ConeBeamCT:
        assert not y[:, 0].any() and not y[:, -1].any()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda t: ParallelBeam((4, 4), t[:0], 5), "at least one angle"),
        (lambda t: ParallelBeam((4, 4), t, 0), "at least one detector element"),
        (lambda t: ParallelBeam((4, 4), t, 5, pixel=0.0), "pixel > 0"),
        (lambda t: ParallelBeam((4, 4, 4), t, 5), "a size of 2 numbers"),
        (lambda t: FanBeam((4, 4), t, 5, 25.0, 1.0, offset=math.nan), "an offset in mm along each axis of the detector, got"),
        (lambda t: ConeBeamCT(4, 4, offset=(math.inf, 0.0)), "an offset in mm along each axis of the detector, got"),
        (lambda t: FanBeam((40, 40), t, 5, 25.0, 10.0), "source_distance >= 28.8629, which is outside the image"),
        (lambda t: FanBeam((4, 4), t, 5, 25.0, -1.0), "detector_distance >= 0, got 25.0, -1.0"),
        (lambda t: ConeBeam((4, 4, 4), t, (40, 4), 10.0, 0.0), "at most 35 degrees, got 62.9: take fewer rows"),
        (lambda t: ConeBeam((1300, 1300, 1300), t, (4, 4), 5e3, 0.0), "fewer than 2\\^31 pixels"),
        (lambda t: FanBeamCT(8, 4, engine="astra"), "auto, stored or direct, got 'astra'"),
        (lambda t: FanBeamCT(8, 0), "at least one angle"),
        (lambda t: ConeBeamCT(8, 4, source_distance=5.0), "outside the image"),
        (
            lambda t: project(torch.zeros(1, 1, 6, 9).half(), GEOMETRIES["fan"]),
            "expected float32 or float64, got float16",
        ),
        (lambda t: FanBeamCT(8, 4, 9, engine="direct").adjoint(torch.zeros(1, 1, 4, 9).bfloat16()), "got bfloat16"),
    ],
)
def test_wrong_arguments_are_named(call, match):
    with pytest.raises(ConfigError, match=match):
        call(turn(3))


def test_a_cone_through_one_slice_keeps_its_panel():
    operator = ConeBeamCT((1, 5, 6), 3, (1, 9), 9.0, 4.0)
    assert operator.out_shape == (1, 3, 1, 9)
    x, fan = noise(operator.in_shape), FanBeamCT((5, 6), 3, 9, 9.0, 4.0)
    torch.testing.assert_close(operator(x)[:, :, :, 0], fan(x[:, :, 0]), rtol=0, atol=1e-13)


def test_a_batch_may_be_empty(geometry):
    x, y = torch.zeros(0, 1, *geometry.size), torch.zeros(0, *sinogram_of(geometry))
    assert project(x, geometry).shape == y.shape and backproject(y, geometry).shape == x.shape


def test_the_gradient_of_the_angles_is_not_silently_zero():
    beams = ParallelBeam((4, 4), turn(3).requires_grad_(), 5)
    with pytest.raises(CapabilityError, match="project: expected angles without a gradient"):
        project(noise((1, 4, 4)), beams)


def test_wrong_shapes_are_named():
    with pytest.raises(ShapeError, match=r"project: expected shape \(B, 1, 6, 9\), got \(1, 1, 9, 6\)"):
        project(torch.zeros(1, 1, 9, 6), GEOMETRIES["fan"])
    with pytest.raises(ShapeError, match=r"backproject: expected shape \(B, 1, 5, 5, 8\), got \(1, 5, 5, 8\)"):
        backproject(torch.zeros(1, 5, 5, 8), GEOMETRIES["cone"])
