"""Scattering against Mie's series, a radial equation, dense algebra, reciprocity and the energy balance."""

import copy
import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.special import h1vp, hankel1, j1, jv, jvp

from invdiff.core import ConfigError, DataError, NumericalError, ShapeError, Streams, ViewAsComplex
from invdiff.generators.scatterers import Scatterers
from invdiff.operators.pde.green import convolve, ring
from invdiff.operators.pde.scattering import BornScattering, LippmannSchwinger

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64, C128 = torch.float64, torch.complex128
TINY = {"length": 1.0, "wavelength": 0.6, "transmitters": 2, "receivers": 3, "radius": 1.4}
SMALL = {"length": 1.0, "wavelength": 0.4, "transmitters": 3, "receivers": 7, "radius": 1.4}


def small(n=12, **options):
    return LippmannSchwinger(n, **{**SMALL, "tol": 1e-12, **options})


def contrast(n, batch=2, high=1.0):
    return high * Streams(1, batch).uniform(0, (1, n, n), "f", F64)


def normal(shape, purpose, batch=2, dtype=F64):
    return Streams(2, batch).normal(0, shape, purpose, dtype)


def gap(a, b):
    return float((a - b).norm() / b.norm())


def modes(k, radius, slope, transmitters, receivers, plane=False):
    """The scattered field of a disc whose modes u_m have u_m' / u_m = slope(m) at its edge, (T, R).

    The incident field has (i/4) H_m(k r_t) exp(-i m theta_t) for J_m(k r) exp(i m theta), or i^m exp(-i m phi) where the plane
    wave travels along phi.
    """
    m = np.arange(-18, 19)
    g, x = np.array([slope(abs(i)) for i in m]), k * radius
    c = -(k * jvp(m, x) - g * jv(m, x)) / (k * h1vp(m, x) - g * hankel1(m, x))
    (tr, ta), (rr, ra) = (
        (np.hypot(*p.numpy().T)[:, None], np.arctan2(*p.numpy().T[::-1])[:, None]) for p in (transmitters, receivers)
    )
    incident = 1j**m * np.exp(-1j * m * (ta + np.pi)) if plane else 0.25j * hankel1(m, k * tr) * np.exp(-1j * m * ta)
    return torch.from_numpy((incident * c) @ (hankel1(m, k * rr) * np.exp(1j * m * ra)).T)


def cylinder(k, radius, f, *sides, plane=False):
    """Mie's series of a homogeneous disc."""
    n = math.sqrt(1.0 + f) * k
    return modes(k, radius, lambda m: n * jvp(m, n * radius) / jv(m, n * radius), *sides, plane=plane)


def disc(n, radius, parts):
    """The share of each cell of a unit square in the disc, by parts^2 points; 1 point is a staircase."""
    x = (torch.arange(n * parts, dtype=F64) + 0.5) / (n * parts) - 0.5
    inside = (x[:, None] ** 2 + x**2 < radius**2).double()
    return torch.nn.functional.avg_pool2d(inside[None, None], parts)


SIDES = ring(2, 1.3), ring(24, 1.7)
RING = {"length": 1.0, "wavelength": 0.5, "transmitters": SIDES[0], "receivers": SIDES[1], "tol": 1e-8}
K = 4.0 * math.pi


@pytest.mark.parametrize("source", ["point", "plane"])
def test_mie_series_of_a_cylinder(source):
    """Contrast 1, n = 1.41: about second order by shares of cells, irregular from cell to cell; a staircase is far worse."""
    want = cylinder(K, 0.3, 1.0, *SIDES, plane=source == "plane")
    operators = {n: LippmannSchwinger(n, source=source, **RING) for n in (16, 32, 64)}
    errors = [gap(operator(disc(n, 0.3, 16))[0], want) for n, operator in operators.items()]
    assert errors[-1] < 5e-3
    assert abs(math.log2(errors[0] / errors[-1]) / 2.0 - 2.0) < 0.1
    assert gap(operators[32](disc(32, 0.3, 1))[0], want) > 1.5 * errors[1]


def test_order_of_a_staircase():
    """Cells at the edge err at random by h^2 each, and there are 1/h of them: h^1.5 in the mean square over 12 radii."""
    radii = [0.25 + 0.005 * i for i in range(12)]
    want = torch.stack([cylinder(K, r, 0.2, *SIDES) for r in radii])
    errors = []
    for n in (16, 32, 64):
        got = LippmannSchwinger(n, **RING)(0.2 * torch.cat([disc(n, r, 1) for r in radii]))
        errors.append(gap(got, want))
    assert abs(math.log2(errors[0] / errors[-1]) / 2.0 - 1.5) < 0.1


def test_order_is_two_for_a_smooth_contrast():
    """f = (1 - r^2 / R^2)^3; modes u = r^m w, w'' + (2 m + 1) w' / r + k^2 (1 + f) w = 0, by Runge-Kutta to 1e-9."""
    radius = 0.45

    def slope(m):
        start, c = 1e-3, -(K * K) * 2.0 / (4.0 * (m + 1))
        sides = lambda r, w: [w[1], -(2 * m + 1) / r * w[1] - K * K * (1.0 + (1.0 - (r / radius) ** 2) ** 3) * w[0]]  # noqa: E731
        end = solve_ivp(sides, (start, radius), [1 + c * start**2, 2 * c * start], method="DOP853", rtol=1e-9, atol=1e-12)
        return end.y[1, -1] / end.y[0, -1] + m / radius

    known = {m: slope(m) for m in range(19)}
    want, errors = modes(K, radius, known.get, *SIDES), []
    for n in (32, 64, 96):
        operator = LippmannSchwinger(n, **RING)
        x = operator.layout.centres()
        f = (1.0 - (x[:, None] ** 2 + x**2) / radius**2).clamp_min(0.0) ** 3
        errors.append(gap(operator(f[None, None])[0], want))
    assert errors[-1] < 2e-3
    for i, ratio in enumerate((2.0, 1.5)):
        assert abs(math.log(errors[i] / errors[i + 1], ratio) - 2.0) < 0.05


def dense(n, length, wavelength):
    """K of n^2 cells from the closed forms of a disc, entry by entry."""
    k, h = 2 * math.pi / wavelength, length / n
    a = k * h / math.sqrt(math.pi)
    cells = [(i * h, j * h) for i in range(n) for j in range(n)]
    distance = np.array([[math.dist(p, q) for q in cells] for p in cells])
    apart = np.where(distance > 0, distance, 1.0)
    far, own = 0.5j * math.pi * a * j1(a) * hankel1(0, k * apart), 0.5j * math.pi * a * hankel1(1, a) - 1.0
    return torch.from_numpy(np.where(distance > 0, far, own))


def test_a_cell_is_a_disc():
    """The closed forms are integrals: over the disc itself, and of a point outside, by polar quadrature."""
    k, a = 2 * math.pi / 0.6, 0.1 / math.sqrt(math.pi)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    r = 0.5 * a * (nodes + 1) ** 2 * 0.5
    own = np.sum(weights * 0.5 * a * (nodes + 1) * 0.25j * hankel1(0, k * r) * 2 * math.pi * r) * k * k
    angle = np.arange(40) * (2 * math.pi / 40)
    rho = 0.5 * a * (nodes + 1)
    away = np.hypot(0.13 - rho[:, None] * np.cos(angle), rho[:, None] * np.sin(angle))
    other = (0.5 * a * weights * rho * 0.25j * hankel1(0, k * away).mean(1) * 2 * math.pi).sum() * k * k
    assert abs(own - (0.5j * math.pi * k * a * hankel1(1, k * a) - 1.0)) < 1e-6
    assert abs(other - 0.5j * math.pi * k * a * j1(k * a) * hankel1(0, k * 0.13)) < 1e-12


@pytest.mark.parametrize("n", [5, 8])
def test_convolution_by_fft_is_the_dense_matrix(n):
    _, _, kernel = small(n, wavelength=0.45).constants(torch.zeros(1, dtype=F64))
    source = normal((2, n, n), "source", dtype=C128)
    assert gap(convolve(kernel, source).flatten(2), source.flatten(2) @ dense(n, 1.0, 0.45).mT) < 1e-13


def test_solution_against_dense_algebra():
    operator, f, n = small(8), contrast(8), 8
    incident, radiation, _ = operator.constants(f)
    matrix = torch.eye(n * n) - dense(n, 1.0, 0.4) * f.flatten(2)
    u = torch.linalg.solve(matrix, incident.flatten(1).mT.expand(2, -1, -1)).mT
    assert gap(operator.field(f).flatten(2), u) < 1e-11
    assert gap(operator(f), (f.flatten(2) * u) @ radiation.flatten(1).mT) < 1e-11


@pytest.mark.parametrize("f", [contrast(24), contrast(24) - 0.6, torch.zeros(1, 1, 24, 24, dtype=F64)])
def test_residual_of_its_own_field(f):
    """Plane waves of amplitude one, tol = 1e-12."""
    operator = small(24, source="plane")
    u = operator.field(f)
    assert float(operator.residual(f, u).abs().max()) < 1e-10
    assert float(operator.residual(f + 0.01, u).abs().max()) > 1e-4


def test_reciprocity():
    """Transmitters and receivers change places."""
    a, b = ring(5, 1.4), ring(4, 1.9) + 0.1
    f = contrast(16)
    there, back = (small(16, transmitters=p, receivers=q)(f) for p, q in ((a, b), (b, a)))
    assert gap(there, back.mT) < 1e-10
    born, other = (BornScattering(16, length=1.0, wavelength=0.4, transmitters=p, receivers=q)(f) for p, q in ((a, b), (b, a)))
    assert gap(born, other.mT) < 1e-13


def test_born_is_the_limit_of_a_weak_contrast():
    """Their relative difference is of first order in f, their difference of second; Born is the derivative at zero."""
    operator, born, f = small(16), BornScattering(16, **SMALL), contrast(16)
    differences = [float((operator(t * f) - born(t * f)).norm()) for t in (4e-3, 2e-3, 1e-3)]
    for large, small_one in pairwise(differences):
        assert abs(math.log2(large / small_one) - 2.0) < 0.02
    assert gap(operator.jvp(torch.zeros_like(f), f)[1], born(f)) < 1e-12


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_energy_balance(loss):
    """What a plane wave loses forwards, 4 Im F(0), is what is scattered, and absorbed where Im f > 0.

    y = F(theta) H0(k R) at distance R; the mean of 4 |F|^2 over angles is scattered. R is 1e7 wavelengths, which leaves 1e-6.
    """
    far, n = 4e6, 16
    layout = {"receivers": ring(64, far), "transmitters": ring(2, far), "source": "plane", "lossy": True}
    operator = small(n, **layout)
    f = torch.complex(contrast(n), loss * contrast(n).flip(-1))
    far_field = operator(f).numpy() / hankel1(0, operator.layout.wavenumber * far)
    a = operator.layout.wavenumber / (n * math.sqrt(math.pi))
    absorbed = 0.5 * math.pi * a * j1(a) * (f.imag * operator.field(f).abs() ** 2).sum((-2, -1)).numpy()
    for t, ahead in enumerate((32, 0)):
        lost = -far_field[:, t, ahead].real
        scattered = (np.abs(far_field[:, t]) ** 2).mean(-1)
        assert lost == pytest.approx(scattered + absorbed[:, t], rel=1e-6)
        assert bool((scattered > 0.5 * lost).all()) or loss > 0.0


def test_adjoint_of_born():
    operator = BornScattering(16, **SMALL)
    x, y = normal((1, 16, 16), "x"), normal((3, 7), "y", dtype=C128)
    left, right = (operator(x).conj() * y).real.sum((1, 2)), (x * operator.adjoint(y)).sum((1, 2, 3))
    assert bool(((left - right).abs() <= 1e-12 * operator(x).flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)).all())


@pytest.mark.parametrize("tol", [1e-12, 1e-7])
def test_vjp_is_the_transpose_of_jvp_to_the_tolerance_of_the_solver(tol):
    operator, f = small(16, tol=tol), contrast(16)
    df, w = normal((1, 16, 16), "df"), normal((3, 7), "w", dtype=C128)
    dy, pulled = operator.jvp(f, df)[1], operator.vjp(f)[1](w)
    left, right = (dy.conj() * w).real.sum((1, 2)), (df * pulled).sum((1, 2, 3))
    assert bool(((left - right).abs() <= 10 * tol * dy.flatten(1).norm(dim=1) * w.flatten(1).norm(dim=1)).all())
    x = f.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad((operator(x).conj() * w).real.sum(), x)[0], pulled)


def test_taylor_remainder_is_of_second_order():
    operator, f, df = small(16), contrast(16), 0.05 * normal((1, 16, 16), "df")
    y, dy = operator.jvp(f, df)
    rests = [float((operator(f + t * df) - y - t * dy).norm()) for t in (0.25, 0.125, 0.0625)]
    for large, less in pairwise(rests):
        assert abs(math.log2(large / less) - 2.0) < 0.1


@pytest.mark.parametrize("lossy", [False, True])
def test_first_and_second_derivatives(lossy):
    operator, scale = LippmannSchwinger(3, **{**TINY, "wavelength": 0.7}, tol=1e-14, lossy=lossy), 30.0
    f = contrast(3, 1)
    f = (torch.complex(f, 0.4 * f.flip(-1)) if lossy else f).requires_grad_()
    torch.autograd.gradcheck(lambda f: scale * operator(f), f, check_forward_ad=True, atol=1e-6)
    torch.autograd.gradgradcheck(lambda f: scale * operator(f), f, atol=1e-6, fast_mode=True)


def test_two_real_channels_stand_for_a_complex_contrast():
    operator = LippmannSchwinger(8, **SMALL, lossy=True) @ ViewAsComplex((1, 8, 8))
    f = contrast(8)
    real = LippmannSchwinger(8, **SMALL)(f)
    assert gap(operator(torch.cat([f, torch.zeros_like(f)], 1)), real) < 1e-7
    assert operator.vjp(torch.cat([f, f], 1))[1](real).shape == (2, 2, 8, 8)


def test_vmap():
    operator, f = small(6), contrast(6, 6).reshape(3, 2, 1, 6, 6)
    assert gap(torch.vmap(operator)(f), torch.stack([operator(v) for v in f])) < 1e-11
    jacobian = torch.func.jacrev(lambda v: torch.view_as_real(operator(v)))(f[0, :1])
    assert gap(jacobian, torch.func.jacfwd(lambda v: torch.view_as_real(operator(v)))(f[0, :1])) < 1e-10


def test_constants_made_inside_a_transform_serve_outside():
    f, df = contrast(6), normal((1, 6, 6), "df")
    first, second = small(6), small(6)
    want = second(f)
    hessian = torch.func.jacfwd(torch.func.grad(lambda f: first(f).abs().square().sum()))(f[:1])
    assert gap(hessian, hessian.permute(4, 5, 6, 7, 0, 1, 2, 3)) < 1e-8
    assert torch.equal(first(f), want) and gap(small(6).jvp(f, df)[1], second.jvp(f, df)[1]) < 1e-14


def test_items_of_a_batch_stop_for_themselves():
    """A hard item does not change an easy one."""
    operator = small(16)
    f = torch.cat([0.05 * contrast(16, 1), 2.0 * contrast(16, 1)])
    for i in range(2):
        assert gap(operator(f)[i : i + 1], operator(f[i : i + 1])) < 1e-13


def test_single_precision():
    operator, f = small(16), contrast(16)
    single = operator(f.float())
    assert single.dtype == torch.complex64 and gap(single, operator(f)) < 1e-5
    w = normal((3, 7), "w", dtype=C128)
    assert gap(operator.vjp(f.float())[1](w.to(torch.complex64)), operator.vjp(f)[1](w)) < 1e-4


def test_copies_are_the_same():
    operator, f = small(8), contrast(8)
    other = pickle.loads(pickle.dumps(copy.deepcopy(operator).float()))
    assert torch.equal(other(f), operator(f)) and not other.state_dict()


def test_errors_say_what_to_do():
    with pytest.raises(NumericalError, match=r"item 1, transmitter 0 .* after 3 iterations: raise max_iter or tol"):
        small(16, max_iter=3)(contrast(16) * torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1))
    broken = contrast(12)
    broken[1, 0, 3, 4] = math.nan
    with pytest.raises(DataError, match="LippmannSchwinger: expected a finite contrast, item 1 is not"):
        small()(broken)
    with pytest.raises(NumericalError, match=r"item 1, transmitter 0 is at a relative residual of (nan|inf)"):
        small()(contrast(12) * torch.tensor([0.1, 1e300], dtype=F64).reshape(2, 1, 1, 1))
    with pytest.raises(NumericalError, match="residual of nan after 0 iterations"):
        small().vjp(contrast(12, 1))[1](torch.full((1, 3, 7), math.nan, dtype=C128))
    for make in (BornScattering, LippmannSchwinger):
        with pytest.raises(ConfigError, match=r"expected finite positions of receivers, found one at \(nan, 2\)"):
            make(12, **{**SMALL, "receivers": [[2.0, 0.0], [math.nan, 2.0]]})
        with pytest.raises(ConfigError, match="expected at least two cells per wavelength, 36 along"):
            make(12, length=0.18, wavelength=0.01)
        with pytest.raises(ConfigError, match="expected receivers outside the square"):
            make(12, **{**SMALL, "receivers": torch.tensor([[2.0, 0.0], [0.2, -0.1]])})
        with pytest.raises(ConfigError, match=f"{make.__name__}: expected source of point, plane"):
            make(12, **SMALL, source="beam")
        with pytest.raises(ConfigError, match="expected wavelength > 0"):
            make(12, wavelength=0.0)
        with pytest.raises(ShapeError, match="expected transmitters as a number or positions"):
            make(12, **{**SMALL, "transmitters": torch.zeros(3)})
    with pytest.raises(ConfigError, match="expected tol < 1"):
        small(tol=2.0)


def test_generated_scatterers():
    """Functions of (seed, index) in the range of contrast, of the same objects on every grid."""
    make = Scatterers(seed=3, size=32, contrast=(0.3, 0.8))
    f = make(range(6))["f"]
    assert f.shape == (6, 1, 32, 32) and f.dtype == torch.float32
    assert float(f.min()) >= 0.0 and float(f.max()) <= 0.8 + 1e-6
    assert bool((f.amax((1, 2, 3)) > 0.25).all()) and float(f[..., 0, :].abs().max()) < 1e-3
    assert torch.equal(make([4, 2])["f"], f[[4, 2]])
    assert not torch.equal(Scatterers(seed=4, size=32, contrast=(0.3, 0.8))([0])["f"], f[:1])
    fine = Scatterers(seed=3, size=96, contrast=(0.3, 0.8))(range(6), dtype=F64)["f"]
    assert gap(fine[..., 1::3, 1::3], f.double()) < 1e-6
    with pytest.raises(ConfigError, match="Scatterers: expected contrast"):
        Scatterers(contrast=(0.8, 0.3))
    low = Scatterers(size=32, contrast=(-0.5, -0.2))(range(6))["f"]
    assert float(low.min()) >= -0.5 - 1e-6 and float(low.max()) == 0.0


def test_long_thin_scatterers_stay_within_the_walls():
    """The edge is as much wider along an axis as that is longer."""
    f = Scatterers(size=64, axes=(0.01, 0.2), edge=0.01)(range(60))["f"]
    assert max(float(f[..., 0, :].max()), float(f[..., -1, :].max()), float(f[..., 0].max()), float(f[..., -1].max())) == 0.0
    with pytest.raises(ConfigError, match=r"reach to at most 0.47 from their centre, got up to 0.522"):
        Scatterers(axes=(0.02, 0.3), edge=0.01)


def test_positions_as_lists():
    places = {"transmitters": [[2.0, 0.0]], "receivers": [[-2.0, 0.5], [0.0, 2.0]]}
    f, listed = contrast(12), small(**places)
    assert torch.equal(listed(f), small(**{k: torch.tensor(v, dtype=F64) for k, v in places.items()})(f))
