"""Observations against integrals in closed form, the discrete Fourier sum, and each other; and noise that differs by sensor."""

import math
from itertools import pairwise

import pytest
import torch

from invdiff.core import CapabilityError, ConfigError, Problem, ShapeError, Streams, dot
from invdiff.core.algebra import dense
from invdiff.core.noise import Gaussian, Poisson
from invdiff.guidance import MMPS, PiGDM
from invdiff.operators import random_inpainting
from invdiff.operators.pde.band import FourierBand
from invdiff.operators.pde.darcy import Darcy
from invdiff.operators.pde.lines import LineAverages
from invdiff.operators.pde.observe import Functionals, TimeSamples, TimeWindows, random_apertures, whitened
from invdiff.operators.pde.sensors import PointSensors
from invdiff.operators.pde.spectral import Burgers
from invdiff.priors import GaussianPrior
from invdiff.samplers import DDNM, DiffPIR

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64 = torch.float64
STARTS = {"periodic": (0.0, 0), "dirichlet": (1.0, 1), "neumann": (0.5, 0)}


def randn(*shape, seed=0, dtype=F64):
    return Streams(seed).normal(0, shape, "v", dtype)[0]


def points(n, kind, side=1.0):
    start, extra = STARTS[kind]
    return (torch.arange(n, dtype=F64) + start) * side / (n + extra)


SEGMENTS = torch.tensor([[[0.11, 0.93], [0.87, 0.2]], [[0.5, 0.0], [0.5, 1.3]], [[0.3, 0.7], [0.31, 0.7]]], dtype=F64)


@pytest.mark.parametrize("boundary", [("periodic", "dirichlet"), ("neumann", "periodic")])
def test_a_line_is_the_mean_of_many_points_of_the_same_interpolant(boundary):
    """The midpoint rule with 2,000 points, off by kinks over n^2: measured 2e-7 to 9e-7 of a white field."""
    field, how = randn(2, 2, 6, 7), {"length": (1.0, 1.3), "boundary": boundary}
    got = LineAverages((2, 6, 7), SEGMENTS, **how)(field)
    t = (torch.arange(2000, dtype=F64) + 0.5) / 2000
    for m, (a, b) in enumerate(SEGMENTS):
        where = a + t[:, None] * (b - a)
        want = PointSensors((2, 6, 7), where, **how)(field).mean(-1)
        torch.testing.assert_close(got[..., m], want, rtol=0, atol=1e-5)


def test_a_line_in_a_volume_and_one_of_no_length():
    """A field that is u = x y z between the points: along (t, t, t) the mean of t^3, up to the walls where it is constant."""
    n = 8
    x = points(n, "neumann")
    field = (x[:, None, None] * x[:, None] * x)[None, None]
    a, b = float(x[0]), float(x[-1])
    ends = [[[a, a, a], [b, b, b]], [[0.3, 0.4, 0.5], [0.3, 0.4, 0.5]], [[0.2, 0.1, b], [0.2, 0.9, b]]]
    got = LineAverages((1, n, n, n), ends, boundary="neumann")(field)[0, 0]
    want = [(b**4 - a**4) / (4 * (b - a)), 0.3 * 0.4 * 0.5, 0.2 * 0.5 * b]
    torch.testing.assert_close(got, torch.tensor(want, dtype=F64), rtol=0, atol=1e-14)


def test_a_constant_is_its_own_mean():
    ones = torch.ones(1, 1, 9, 5, dtype=F64)
    for boundary in ("periodic", "neumann"):
        got = LineAverages((1, 9, 5), [[[0.0, 1.0], [0.9, 0.0]], [[0.0, 0.0], [1.0, 1.0]]], boundary=boundary)(ones)
        torch.testing.assert_close(got, torch.ones_like(got), rtol=0, atol=1e-14)


def test_lines_through_smooth_fields_are_of_second_order():
    """u = sin(pi x) sin(pi y) along a diagonal: sin^2 has the mean 1/2; from (0, 0) to (1, 1/2), 2 / (3 pi)."""
    errors = []
    for n in (31, 63, 127):
        wave = torch.sin(math.pi * points(n, "dirichlet"))
        got = LineAverages((1, n, n), [[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 0.5]]])(torch.outer(wave, wave)[None, None])
        # int sin(pi t) sin(pi t / 2) dt = 4 / (3 pi)
        errors.append((got[0, 0] - torch.tensor([0.5, 4.0 / (3.0 * math.pi)], dtype=F64)).abs())
    for coarse, fine in pairwise(errors):
        assert (coarse / fine).log2().tolist() == pytest.approx([2.0, 2.0], abs=0.1)


def test_times_and_windows_of_a_linear_series_are_exact():
    frames = torch.tensor([0.1, 0.3, 0.35, 0.9], dtype=F64)
    slope, start = randn(3, 5), randn(3, 5, seed=1)
    series = (start + slope * frames[:, None, None])[None]
    times, windows = (
        torch.tensor([0.9, 0.1, 0.32, 0.6], dtype=F64),
        torch.tensor([[0.1, 0.9], [0.31, 0.33], [0.2, 0.7]], dtype=F64),
    )
    got = TimeSamples((4, 3, 5), times, frames=frames)(series)
    torch.testing.assert_close(got[0], start + slope * times[:, None, None], rtol=0, atol=1e-14)
    got = TimeWindows((4, 3, 5), windows, frames=frames)(series)
    torch.testing.assert_close(got[0], start + slope * windows.mean(1)[:, None, None], rtol=0, atol=1e-14)


def test_a_window_is_the_mean_of_many_samples():
    """Kinks cost the midpoint rule 1 / (8 n^2) of the change of slope."""
    series = randn(2, 6)
    begin, end, n = 0.22, 0.87, 4000
    times = begin + (end - begin) * (torch.arange(n, dtype=F64) + 0.5) / n
    want = TimeSamples((6,), times)(series).mean(1, keepdim=True)
    torch.testing.assert_close(TimeWindows((6,), [[begin, end]])(series), want, rtol=0, atol=2e-6)


def test_frames_are_by_default_those_of_an_evolution():
    series = randn(1, 4, 3)
    samples = TimeSamples((4, 3), [0.5, 1.0, 1.5, 2.0, 0.75], frames=2.0)(series)
    torch.testing.assert_close(samples[:, :4], series, rtol=0, atol=0)
    torch.testing.assert_close(samples[:, 4], series[:, :2].mean(1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("grid", [(8,), (6, 7), (4, 5, 6)])
def test_coefficients_are_the_centred_sum(grid):
    """y_k = N^(-1/2) sum_x u_x exp(-2 pi i sum_a k_a (x_a - c_a) / n_a), c = n // 2, for the modes that the operator names."""
    operator = FourierBand((1, *grid), 5.0, 14.0)
    field = randn(2, 1, *grid)
    places = torch.stack(torch.meshgrid(*[(torch.arange(n, dtype=F64) - n // 2) / n for n in grid], indexing="ij"), -1).reshape(
        -1, len(grid)
    )
    wave = torch.exp(-2j * math.pi * (operator.modes.double() @ places.T)) / math.sqrt(math.prod(grid))
    torch.testing.assert_close(operator(field)[:, 0], (field.flatten(1) + 0j) @ wave.T)
    k = 2 * math.pi * operator.modes.double().norm(dim=1)
    assert bool(((k >= 5.0) & (k <= 14.0)).all())


def test_a_band_has_one_of_each_pair_and_all_of_them_give_the_field():
    for grid in ((8,), (6, 7), (4, 6)):
        everything = FourierBand((2, *grid), 0.0, 1e3)
        modes, n = everything.modes, math.prod(grid)
        own = int(((2 * modes) % torch.tensor(grid) == 0).all(1).sum())
        assert len(modes) == (n + own) // 2
        field = randn(3, 2, *grid)
        torch.testing.assert_close(everything.pinv(everything(field)), field, rtol=0, atol=1e-13)
        low, high = FourierBand((2, *grid), 0.0, 7.0), FourierBand((2, *grid), 7.001, 1e3)
        assert len(low.modes) + len(high.modes) == len(modes)
        parts = low.pinv(low(field)) + high.pinv(high(field))
        torch.testing.assert_close(parts, field, rtol=0, atol=1e-13)


def test_functionals_are_sums_of_weights():
    weights, field = randn(3, 2, 4, 5, seed=2), randn(6, 2, 4, 5)
    torch.testing.assert_close(Functionals(weights)(field), torch.einsum("mchw,bchw->bm", weights, field))


def test_apertures_see_a_constant_and_the_centre_of_a_linear_field():
    """Inside the domain, where a Gaussian of four cells is not cut; the sum over the points then errs by exp(-2 pi^2 16)."""
    n, width = 64, 4.0 / 64
    field = (points(n, "neumann")[:, None] + torch.zeros(n, dtype=F64))[None, None]
    constant = random_apertures((1, n, n), 5, width, boundary="neumann")(torch.ones_like(field))
    torch.testing.assert_close(constant, torch.ones_like(constant), rtol=0, atol=1e-13)
    x = torch.sin(2 * math.pi * points(n, "periodic"))[None, None]
    centres = Streams(0).uniform(0, (5, 1), "sensors", F64)[0, :, 0]
    seen = random_apertures((1, n), 5, width, boundary="periodic")(x)[0]
    want = torch.sin(2 * math.pi * centres) * math.exp(-2.0 * (math.pi * width) ** 2)
    torch.testing.assert_close(seen, want, rtol=0, atol=1e-10)


OBSERVED = {
    "times": lambda: TimeSamples((4, 16), [0.3, 0.61, 1.0]),
    "windows": lambda: TimeWindows((4, 16), [[0.25, 0.8], [0.5, 1.0]]),
    "functionals": lambda: Functionals(randn(3, 4, 16)),
    "band": lambda: FourierBand((4, 16), 0.0, 20.0),
    "lines": lambda: LineAverages((4, 16), [[[0.1], [0.8]]], boundary="periodic"),
    "lines at times": lambda: LineAverages((2, 16), [[[0.1], [0.8]]], boundary="periodic") @ TimeSamples((4, 16), [0.3, 0.7]),
}


@pytest.mark.parametrize("name", OBSERVED)
def test_a_solver_seen_by_it_has_its_derivatives(name):
    """<J v, w> = <v, J^T w> for the composition, by autograd too; and finite differences."""
    operator = OBSERVED[name]() @ Burgers(16, 0.1, time=0.3, steps=24, save=4)
    x, v = 0.5 * randn(2, 1, 16), randn(2, 1, 16, seed=1)
    y, pullback = operator.vjp(x)
    _, tangent = operator.jvp(x, v)
    w = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    left, right = dot(tangent, w), dot(v, pullback(w))
    assert bool(((left - right).abs() <= 1e-12 * left.abs().max()).all())
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(dot(operator(leaf), w).sum(), leaf)[0], pullback(w), rtol=1e-12, atol=1e-13)
    h = 1e-5
    difference = dot(operator(x + h * v) - operator(x - h * v), w) / (2 * h)
    torch.testing.assert_close(difference, left, rtol=1e-7, atol=1e-8)


def test_darcy_seen_along_lines():
    operator = LineAverages((1, 6, 5), [[[0.0, 0.1], [1.0, 0.7]]], boundary="neumann") @ Darcy((6, 5), 10.0)
    a, v, w = randn(2, 1, 6, 5).exp(), randn(2, 1, 6, 5, seed=1), randn(2, 1, 1, seed=2)
    _, tangent = operator.jvp(a, v)
    torch.testing.assert_close(dot(tangent, w), dot(v, operator.vjp(a)[1](w)), rtol=1e-11, atol=0)


def uneven(sigma=None):
    """A linear problem of four sensors whose noise differs by a factor of thirty, and its prior."""
    sigma = torch.tensor([0.03, 0.1, 0.4, 0.9], dtype=F64) if sigma is None else sigma
    prior = GaussianPrior(torch.zeros(6, dtype=F64), torch.eye(6, dtype=F64), sigma_min=0.01, sigma_max=10.0)
    operator = Functionals(randn(4, 6))
    return prior, Problem.simulate(operator, Gaussian(sigma), randn(1, 6, seed=3)[0], seed=4)


def test_whitening_keeps_the_posterior_and_the_fit():
    prior, problem = uneven()
    white, x = whitened(problem), randn(5, 6, seed=8)
    torch.testing.assert_close(white.chi2(x), problem.chi2(x), rtol=1e-12, atol=0)
    gap = white.log_likelihood(x) - problem.log_likelihood(x)
    torch.testing.assert_close(gap, gap[:1].expand(5), rtol=1e-10, atol=1e-10)
    one, two = prior.posterior(problem), prior.posterior(white)
    torch.testing.assert_close(one.mean, two.mean, rtol=1e-11, atol=1e-12)
    a = dense(problem.operator)
    precision = torch.eye(6, dtype=F64) + a.T @ (a / problem.noise.sigma[:, None] ** 2)
    want = torch.linalg.solve(precision, a.T @ (problem.y[0] / problem.noise.sigma**2))
    torch.testing.assert_close(two.mean.flatten(), want, rtol=1e-9, atol=1e-12)


def test_methods_of_one_noise_level_refuse_and_take_the_whitened_problem():
    prior, problem = uneven()
    x, level = randn(2, 6), torch.full((2,), 0.3, dtype=F64)
    with pytest.raises(CapabilityError, match=r"needs one noise level.*MMPS takes any"):
        PiGDM()(prior, problem)
    for method in (DDNM(noise_aware=True, steps=4), DiffPIR(steps=4)):
        with pytest.raises(CapabilityError, match="needs one noise level"):
            method(problem, prior, n=1, seed=0)
        assert bool(method(whitened(problem), prior, n=1, seed=0).x.isfinite().all())
    white, raw = whitened(problem), MMPS(cg_steps=6)(prior, problem)(x, level)
    torch.testing.assert_close(MMPS(cg_steps=6)(prior, white)(x, level), raw, rtol=1e-7, atol=1e-8)
    # for a white prior both are exact, PiGDM with the data's own variance
    torch.testing.assert_close(PiGDM(data_std=1.0)(prior, white)(x, level), raw, rtol=1e-7, atol=1e-8)


def test_whitening_complex_coefficients_a_mask_and_a_solver():
    band = FourierBand((1, 8), 0.0, 20.0)
    problem = Problem.simulate(band, Gaussian(torch.linspace(0.1, 1.0, band.out_shape[1], dtype=F64)), randn(1, 8), seed=1)
    x = randn(3, 1, 8, seed=2)
    torch.testing.assert_close(whitened(problem).chi2(x), problem.chi2(x), rtol=1e-12, atol=0)
    solver = TimeSamples((2, 16), [0.7]) @ Burgers(16, 0.1, steps=24, save=2)
    problem = Problem.simulate(solver, Gaussian(torch.linspace(0.1, 1.0, 16)), randn(1, 16) * 0.3, seed=1)
    torch.testing.assert_close(
        whitened(problem).chi2(0.3 * randn(2, 1, 16)), problem.chi2(0.3 * randn(2, 1, 16)), rtol=1e-6, atol=0
    )
    mask = random_inpainting(5, 6, keep=0.6)
    problem = Problem.simulate(mask, Gaussian(torch.linspace(0.1, 1.0, 6, dtype=F64)), randn(1, 5, 6), seed=1)
    white, x = whitened(problem), randn(3, 1, 5, 6, seed=2)
    assert white.operator.count_measured() == mask.count_measured() < 30
    torch.testing.assert_close(white.chi2(x), problem.chi2(x), rtol=1e-12, atol=0)
    with pytest.raises(CapabilityError, match="whitened needs Gaussian noise, the problem has Poisson"):
        whitened(Problem(Functionals(torch.ones(1, 3)), Poisson(1.0), torch.ones(1)))


def test_what_is_refused_is_named():
    with pytest.raises(ConfigError, match=r"LineAverages: segment 1, .*leaves the domain"):
        LineAverages((1, 8), [[[0.1], [0.2]], [[0.1], [1.2]]])
    with pytest.raises(ShapeError, match=r"LineAverages: expected ends \(M, 2, 2\)"):
        LineAverages((1, 8, 8), [[[0.1], [0.2]]])
    with pytest.raises(ConfigError, match="LineAverages: expected positive lengths and boundaries of periodic"):
        LineAverages((1, 8), [[[0.1], [0.2]]], boundary="robin")
    with pytest.raises(ConfigError, match=r"TimeSamples: time 1\.2 is outside the frames"):
        TimeSamples((4, 8), [0.5, 1.2])
    with pytest.raises(ConfigError, match="TimeSamples: time nan"):
        TimeSamples((4, 8), [math.nan])
    with pytest.raises(ConfigError, match="4 increasing times"):
        TimeSamples((4, 8), [0.5], frames=[0.1, 0.2, 0.2, 0.5])
    with pytest.raises(ShapeError, match="T >= 2"):
        TimeSamples((1, 8), [0.5])
    with pytest.raises(ConfigError, match="TimeWindows: expected windows that end after they begin"):
        TimeWindows((4, 8), [[0.3, 0.5], [0.6, 0.6]])
    with pytest.raises(ConfigError, match="FourierBand: expected modes"):
        FourierBand((1, 8), 1.0, 2.0)
    with pytest.raises(ShapeError, match="Functionals: expected real weights"):
        Functionals(torch.ones(4))
    with pytest.raises(ConfigError, match="random_apertures: expected count"):
        random_apertures((1, 8), 2, 0.0)


def test_solve_keeps_its_digits_where_the_penalty_is_small():
    """Directions that are seen are of the size 1 / s^2, beside 1 / rho = 1e8 for the others."""
    operator, rho = Functionals(randn(3, 8)), 1e-8
    b = operator.adjoint(randn(1, 3, seed=1))
    want = torch.linalg.solve(dense(operator).T @ dense(operator) + rho * torch.eye(8, dtype=F64), b[0])
    # b in float32 has rounding in the directions that are not seen: what is seen of the solution is compared
    got = operator.solve(b.float(), rho)
    assert got.dtype == torch.float32
    seen = torch.linalg.svd(dense(operator), full_matrices=False).Vh
    torch.testing.assert_close(seen @ got[0].double(), seen @ want, rtol=1e-4, atol=0)
    # eps / rho, some times over
    torch.testing.assert_close(operator.solve(b, rho)[0], want, rtol=0, atol=1e-6)


def test_only_solve_and_pinv_decompose(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("decomposed")

    operator, x = Functionals(randn(3, 8)), randn(1, 8)
    monkeypatch.setattr(torch.linalg, "svd", refuse)
    operator.adjoint(operator(x))
    with pytest.raises(AssertionError, match="decomposed"):
        operator.pinv(randn(1, 3))
