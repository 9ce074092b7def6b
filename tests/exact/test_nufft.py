"""The non-uniform transform against its sum, its limits against the FFT, and density compensation against dense algebra."""

import math
from itertools import pairwise

import pytest
import torch

from invdiff.core import ConfigError, ShapeError, Streams, dot
from invdiff.operators import fft2c, nufft
from invdiff.operators.nufft import NUFFT, Kernel, density, kernel_for, radial_nufft, radial_points

F64 = torch.float64
SIZES = [(1,), (16,), (33,), (7, 6), (1, 4), (10, 9), (5, 6, 4), (3, 1, 7)]


def noise(*shape, batch=2, dtype=torch.complex128):
    return Streams(0, batch).normal(0, shape, dtype=dtype)


def scattered(count, size, seed=0):
    """Points in [-1.5, 1.5], three periods."""
    return 3.0 * Streams(seed, 1).uniform(0, (count, len(size)), dtype=F64)[0] - 1.5


def cartesian(*axes):
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def uniform(size):
    """(j - c) / N, in the order of memory."""
    return cartesian(*((torch.arange(n, dtype=F64) - n // 2) / n for n in size))


def dense(points, size):
    """The orthonormal transform as a matrix, (M, prod N), by its definition."""
    turns = points @ cartesian(*(torch.arange(n, dtype=F64) - n // 2 for n in size)).mT
    return torch.polar(torch.full_like(turns, math.prod(size) ** -0.5), -2.0 * torch.pi * turns)


def relative(found, wanted):
    return float((found - wanted).abs().square().sum().sqrt() / wanted.abs().square().sum().sqrt())


@pytest.mark.parametrize("oversampling", [2.0, 1.25])
@pytest.mark.parametrize("accuracy", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("size", SIZES)
def test_transform_against_its_sum(size, accuracy, oversampling):
    points, x = scattered(50, size), noise(2, *size)
    operator = NUFFT(points, size, channels=2, accuracy=accuracy, oversampling=oversampling)
    matrix = dense(points, size)
    found, want = operator(x), x.flatten(2) @ matrix.mT
    bound = accuracy * math.prod(size) ** -0.5 * x.flatten(2).abs().sum(-1, keepdim=True)
    assert bool(((found - want).abs() <= bound).all())
    assert relative(found, want) < accuracy
    y = noise(2, 50)
    assert relative(operator.adjoint(y).flatten(2), y @ matrix.conj()) < accuracy
    plain = NUFFT(points, size, channels=2, accuracy=accuracy, oversampling=oversampling, norm="none")
    # rounding grows by the ratio of the kernel's transform over the image, 1e3 per axis at an oversampling of 1.25
    assert relative(plain(x), math.prod(size) ** 0.5 * found) < 1e-10


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_float64_reaches_1e_12(dimensions):
    size = (20, 9, 6)[:dimensions]
    points, x = scattered(30, size), noise(1, *size)
    found = NUFFT(points, size, accuracy=1e-12)(x)
    assert relative(found, x.flatten(2) @ dense(points, size).mT) < 1e-12


def test_the_kernel_is_the_narrowest():
    """Every element of the matrix is within the accuracy, and not within it for a width one less."""
    points = scattered(400, (64,))
    matrix = dense(points, (64,)) * 8.0
    basis = torch.eye(64, dtype=torch.complex128)[:, None]
    for accuracy in (1e-3, 1e-6, 1e-9):
        operator = NUFFT(points, (64,), accuracy=accuracy, norm="none")
        errors = []
        for width in (operator.kernel.width, operator.kernel.width - 1):
            other = NUFFT(points, (64,), accuracy=accuracy, norm="none")
            other.constants.derive.keywords["kernel"] = other.kernel = Kernel(width, 2.0)
            errors.append(float((other(basis)[:, 0].mT - matrix).abs().max()))
        assert errors[0] <= accuracy < errors[1]
        assert kernel_for(accuracy, 1) == operator.kernel


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (8, 5)])
def test_uniform_points_give_the_centred_fft(size):
    x = noise(1, *size)
    operator = NUFFT(uniform(size), size, accuracy=1e-12)
    torch.testing.assert_close(operator(x).view_as(x), fft2c(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(operator.normal(x), x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(9,), (4, 3, 5)])
def test_uniform_points_give_the_centred_fft_in_other_dimensions(size):
    x, axes = noise(1, *size), tuple(range(2, 2 + len(size)))
    want = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(x, axes), dim=axes, norm="ortho"), axes)
    torch.testing.assert_close(NUFFT(uniform(size), size, accuracy=1e-12)(x).view_as(x), want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(7,), (6, 5), (4, 5, 3)])
def test_points_are_periodic(size):
    """Points that are multiples of 1 / 64, so that adding a period loses no digit; those at the seam 1/2 are among them."""
    points, x = torch.round(scattered(40, size) * 64) / 64, noise(1, *size)
    points[0] = 0.5
    for period in (1.0, -3.0, 1024.0):
        torch.testing.assert_close(NUFFT(points + period, size)(x), NUFFT(points, size)(x), rtol=0, atol=1e-14)
    assert relative(NUFFT(points + 0.25, size)(x), NUFFT(points, size)(x)) > 0.1


@pytest.mark.parametrize(("accuracy", "oversampling", "most"), [(1e-6, 2.0, 5e-7), (1e-6, 1.5, 2e-6), (1e-6, 1.25, 2e-4)])
def test_float32_is_limited_by_rounding(accuracy, oversampling, most):
    """The bars are 2 to 3 times what NUFFT's docstring says is reached."""
    size = (24, 17)
    points, x = scattered(300, size), noise(1, *size)
    operator = NUFFT(points, size, accuracy=accuracy, oversampling=oversampling)
    want = x.flatten(2) @ dense(points, size).mT
    found = operator(x.to(torch.complex64))
    assert found.dtype == torch.complex64 and relative(found, want) < most


@pytest.mark.parametrize("accuracy", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("size", [(15,), (7, 6), (1, 4), (5, 4, 3)])
def test_toeplitz_normal(size, accuracy):
    points, x, y = scattered(60, size), noise(2, *size), noise(2, *size, batch=4)[2:]
    operator = NUFFT(points, size, channels=2, accuracy=accuracy, toeplitz=True)
    matrix = dense(points, size)
    assert relative(operator.normal(x).flatten(2), x.flatten(2) @ (matrix.mH @ matrix).mT) < accuracy
    # both are off, each by its own error
    assert relative(operator.normal(x), operator.adjoint(operator(x))) < 3.0 * accuracy
    assert float((dot(operator.normal(x), y) - dot(x, operator.normal(y))).abs().max()) < 1e-12 * float(x.norm() * y.norm())
    plain = NUFFT(points, size, channels=2, accuracy=accuracy, toeplitz=True, norm="none")
    torch.testing.assert_close(plain.normal(x), math.prod(size) * operator.normal(x), rtol=1e-12, atol=1e-11)


def test_solve_by_either_normal():
    size = (9, 8)
    points, x = scattered(120, size), noise(1, *size)
    exact, fast = (NUFFT(points, size, accuracy=1e-9, toeplitz=toeplitz) for toeplitz in (False, True))
    matrix = dense(points, size)
    want = torch.linalg.solve(matrix.mH @ matrix + 0.5 * torch.eye(72), x.flatten(2).mT).mT
    for operator in (exact, fast):
        assert relative(operator.solve(x, 0.5).flatten(2), want) < 1e-8


def test_channels_and_items_are_alike_and_independent():
    size = (6, 7)
    points, x, y = scattered(30, size), noise(3, *size), noise(3, 30)
    many, one = NUFFT(points, size, channels=3), NUFFT(points, size)
    for i in range(2):
        for c in range(3):
            torch.testing.assert_close(many(x)[i, c], one(x[i : i + 1, c : c + 1])[0, 0], rtol=0, atol=1e-14)
            torch.testing.assert_close(many.adjoint(y)[i, c], one.adjoint(y[i : i + 1, c : c + 1])[0, 0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("limit", [1, 7000, 10**6])
def test_any_number_of_images_goes_through_in_one_pass(limit, monkeypatch):
    """Grids of 12 x 16 points, 3 KB each in complex128."""
    size = (6, 7)
    operator, x, y = NUFFT(scattered(30, size), size, channels=3), noise(3, *size), noise(3, 30)
    want = operator(x), operator.adjoint(y)
    monkeypatch.setattr(nufft, "PASS", limit)
    torch.testing.assert_close((operator(x), operator.adjoint(y)), want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [(12,), (6, 5), (3, 4, 2)])
def test_density_of_uniform_points_counts_their_copies(size):
    points = uniform(size)
    torch.testing.assert_close(density(points, size), torch.ones(len(points), dtype=F64), rtol=0, atol=1e-4)
    copies = torch.cat((points, points[:3], points[:3]))
    want = torch.ones(len(copies), dtype=F64)
    want[:3] = want[-6:] = 1.0 / 3.0
    torch.testing.assert_close(density(copies, size), want, rtol=0, atol=1e-4)


def test_density_is_the_diagonal_that_comes_nearest_to_an_inverse():
    """Each iteration lowers |A^H W A - I|, down to what non-negative least squares finds."""
    from scipy.optimize import nnls

    size = (8, 7)
    points = radial_points(9, 10)
    matrix = dense(points, size)

    def misfit(w):
        return float((matrix.mH @ (w[:, None] * matrix) - torch.eye(56)).abs().square().sum().sqrt())

    misfits = [misfit(density(points, size, iterations=n)) for n in (1, 2, 4, 8, 32, 500)]
    assert all(b < a for a, b in pairwise(misfits))
    outer = (matrix.conj()[:, :, None] * matrix[:, None, :]).flatten(1).mT
    identity = torch.cat((torch.eye(56).flatten(), torch.zeros(56**2)))
    _, best = nnls(torch.cat((outer.real, outer.imag)).numpy(), identity.numpy())
    assert best <= misfits[-1] * (1 + 1e-9) and misfits[-1] < 1.005 * best


def test_density_of_spokes_is_a_ramp():
    """Away from the centre and the rim a weight is the area of its cell, pi / (4 spokes) times the index of its radius here."""
    w = density(radial_points(64, 48), (24, 24), iterations=10).view(64, 48)
    index = torch.arange(4, 19)
    area = index * (math.pi / (4 * 64))
    for side in (24 + index, 24 - index):
        torch.testing.assert_close(w[:, side].mean(0), area.double(), rtol=0.03, atol=0)


@pytest.mark.parametrize("norm", ["ortho", "none"])
def test_guess(norm):
    """Exact on uniform points, to 1e-5 of its kernel; on spokes a smooth image comes back, as it does not from the adjoint."""
    size = (9, 8)
    x = noise(1, *size)
    operator = NUFFT(uniform(size), size, norm=norm)
    torch.testing.assert_close(operator.guess(operator(x)), x, rtol=0, atol=1e-3)
    r = torch.arange(24, dtype=F64) - 12
    smooth = torch.exp(-(r**2 + (r[:, None] - 2) ** 2) / 18)[None, None].to(torch.complex128)
    spokes = radial_nufft([24, 24], 64, 48, norm=norm)
    y = spokes(smooth)
    assert relative(spokes.guess(y), smooth) < 0.005
    back = spokes.adjoint(y)
    assert relative(back * (dot(back, smooth) / dot(back, back))[:, None, None, None], smooth) > 0.3


def test_radial_points():
    points = radial_points(3, 5).view(3, 5, 2)
    angle = math.radians(111.24611797498108)
    assert torch.equal(points[0, :, 1], (torch.arange(5, dtype=F64) - 2) / 5) and not points[0, :, 0].any()
    torch.testing.assert_close(points[1, 4], 0.4 * torch.tensor([math.sin(angle), math.cos(angle)], dtype=F64))
    torch.testing.assert_close(points[2, 0], -0.4 * torch.tensor([math.sin(2 * angle), math.cos(2 * angle)], dtype=F64))


def test_what_cannot_be_transformed_is_named():
    points = scattered(4, (5, 6))
    for call in (
        lambda: NUFFT(points, (5,)),
        lambda: NUFFT(points.float(), (5, 6)),
        lambda: NUFFT(points[:0], (5, 6)),
        lambda: NUFFT(points[0], (5, 6)),
        lambda: NUFFT(points, (5, 0)),
        lambda: NUFFT(torch.cat((points, points), 1), (2, 2, 2, 2)),
        lambda: density(points, (5, 6, 7)),
    ):
        with pytest.raises(ShapeError, match=r"(NUFFT|density): expected"):
            call()
    for call in (
        lambda: NUFFT(points, (5, 6), accuracy=1e-13),
        lambda: NUFFT(points, (5, 6), accuracy=0.1),
        lambda: NUFFT(points, (5, 6), oversampling=1.2),
        lambda: NUFFT(points, (5, 6), oversampling=2.5),
        lambda: NUFFT(points, (5, 6), norm="forward"),
        lambda: NUFFT(points, (5, 6), channels=0),
        lambda: NUFFT(points * math.inf, (5, 6)),
        lambda: NUFFT(points, (30000, 30000)),
        lambda: density(points, (5, 6), iterations=0),
        lambda: radial_points(0, 4),
    ):
        with pytest.raises(ConfigError, match=r"(NUFFT|density|radial_points): expected"):
            call()
    with pytest.raises(ConfigError, match=r"oversampling of 1.25 in 2 dimensions, \d.\de-11, got 1e-12: use a larger"):
        NUFFT(points, (5, 6), accuracy=1e-12, oversampling=1.25)
