"""Finite volumes for Burgers' equation against shocks, closed forms, conservation, their order, and their derivatives."""

import copy
import pickle
from itertools import pairwise
from math import log2, pi

import pytest
import torch

from invdiff.core import ConfigError, NumericalError, ShapeError, Streams
from invdiff.generators.burgers import BurgersControl
from invdiff.operators.pde.shocks import _TABLES, BurgersShocks, _limited

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64, TAU = torch.float64, 2.0 * pi
SCHEMES = [(flux, scheme) for flux in ("godunov", "rusanov") for scheme in ("ssprk2", "ssprk3")]


def middles(n, length=1.0):
    return (torch.arange(n, dtype=F64) + 0.5) * length / n


def averages(primitive, n, length=1.0):
    """Means over cells of a function from its primitive."""
    return primitive(torch.arange(n + 1, dtype=F64) * length / n).diff() * (n / length)


def smooth(operator, batch=2):
    """States and forcings that the limiter sees far from its kinks: of random waves, with distinct slopes everywhere."""
    n, (rows, _) = operator.size, operator.in_shape
    a = Streams(3, batch).normal(0, (rows, 3, 1), "waves", F64)
    k = torch.arange(1, 4, dtype=F64)[:, None]
    return 0.5 * (a / k * (k * TAU * middles(n) + 5.0 * a).sin()).sum(-2)


def sine_before_its_shock(time, n):
    """Averages of the inviscid u(x, t), u(0) = sin x on (0, 2 pi): the primitive along x = y + t sin y."""

    def primitive(x):
        y = x.clone()
        for _ in range(50):
            y = y - (y + time * y.sin() - x) / (1.0 + time * y.cos())
        return -y.cos() + 0.5 * time * y.sin().square()

    return averages(primitive, n, TAU)


def cole_hopf(nu, time, n, fine=4096):
    """Averages of u = -2 nu (log phi)_x, phi the heat flow of exp((cos x - 1) / (2 nu)), which makes u(0) = sin x."""
    k = torch.arange(fine // 2 + 1, dtype=F64)
    x = torch.arange(fine, dtype=F64) * TAU / fine
    phi = torch.fft.irfft(torch.fft.rfft(torch.exp((x.cos() - 1.0) / (2.0 * nu))) * torch.exp(-nu * k**2 * time), n=fine)
    return -2.0 * nu * torch.cat((phi, phi[:1])).log()[:: fine // n].diff() * n / TAU


def slopes(errors):
    return [log2(a / b) for a, b in pairwise(errors)]


def test_limiter():
    """Twice the smaller difference at most, nothing at an extremum, the mean where both are alike."""
    d = torch.tensor([1.0, 1.5, 0.1, -1.0, -5.0, 0.0, 2.0], dtype=F64)
    torch.testing.assert_close(_limited(d), torch.tensor([1.25, 0.2, 0.0, -2.0, 0.0, 0.0], dtype=F64))


@pytest.mark.parametrize(("flux", "scheme"), SCHEMES)
def test_a_shock_moves_by_rankine_and_hugoniot(flux, scheme):
    """2 before and 0 behind: speed 1; its place from the mass, to rounding, and a profile of three cells."""
    n, start, time, fan = 100, 0.3, 0.2, 0.44
    u0 = torch.where(middles(n) < start, 2.0, 0.0).to(F64)[None, None]
    u = BurgersShocks(n, 0.0, boundary="periodic", flux=flux, scheme=scheme, time=time, steps=100)(u0)[0, 0]
    # the rarefaction from the jump at 0 reaches x = 2 t = 0.4
    behind = middles(n) > fan
    assert abs(float(u[behind].sum()) / 2.0 / n + fan - (start + time)) < 1e-3
    want = torch.where(middles(n) < start + time, 2.0, 0.0).to(F64)
    assert int(((u - want).abs() > 0.02)[behind].sum()) <= 3


@pytest.mark.parametrize(("flux", "scheme"), SCHEMES)
def test_total_variation_diminishes(flux, scheme):
    """Rough data at Courant numbers up to 1/2; no new extremum either."""
    n, save = 64, 20
    u0 = Streams(0, 4).uniform(0, (1, n), "u", F64) * 2.0 - 1.0
    solve = BurgersShocks(n, 0.0, boundary="periodic", flux=flux, scheme=scheme, time=save / 2.0 / n, steps=save, save=save)
    assert 0.49 < float(solve.courant(u0).max()) <= 0.5
    u = torch.cat((u0, solve(u0)), 1)
    variation = torch.cat((u, u[..., :1]), -1).diff(dim=-1).abs().sum(-1)
    assert bool((variation.diff(dim=-1) <= 1e-13).all())
    assert bool((variation[:, -1] < 0.8 * variation[:, 0]).all())
    assert bool((u.amax(-1).diff(dim=-1) <= 1e-14).all()) and bool((u.amin(-1).diff(dim=-1) >= -1e-14).all())


@pytest.mark.parametrize("viscosity", [0.0, 0.02])
@pytest.mark.parametrize("scheme", ["ssprk2", "ssprk3"])
def test_mass_is_conserved(viscosity, scheme):
    u0 = Streams(1, 3).normal(0, (1, 64), "u", F64) + 0.5
    solve = BurgersShocks(64, viscosity, boundary="periodic", scheme=scheme, time=0.5, steps=256)
    u = solve(u0)
    assert float((u.mean(-1) - u0.mean(-1)).abs().max()) < 1e-13
    assert float((u - u0).abs().max()) > 0.5


@pytest.mark.parametrize(("flux", "scheme"), SCHEMES)
@pytest.mark.parametrize("boundary", ["periodic", "dirichlet"])
def test_order_2_before_the_shock(flux, scheme, boundary):
    """L1 against characteristics; the limiter clips the two extrema, on too few cells for the mean."""
    half = 1 if boundary == "periodic" else 2
    errors = []
    for n in (128, 256):
        solve = BurgersShocks(
            n // half, 0.0, boundary=boundary, flux=flux, scheme=scheme, length=TAU / half, time=0.5, steps=n // 4
        )
        want = sine_before_its_shock(0.5, n)[: n // half]
        u = solve(sine_before_its_shock(0.0, n)[None, None, : n // half])
        errors.append(float((u[0, 0] - want).abs().mean()))
    assert slopes(errors)[0] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(("flux", "scheme"), SCHEMES)
def test_order_1_with_a_shock(flux, scheme):
    """L1, behind the fan of the wall; the mean over eight places of the shock within a cell."""
    errors = []
    for n in (50, 100, 200):
        start = 0.3 + torch.arange(8, dtype=F64)[:, None] / 8.0 / n
        before, after = (2.0 * (n * (start + t) - n * middles(n) + 0.5).clamp(0.0, 1.0) for t in (0.0, 0.2))
        u = BurgersShocks(n, 0.0, flux=flux, scheme=scheme, time=0.2, steps=n)(before[:, None])[:, 0]
        errors.append(float((u - after)[:, middles(n) > 0.44].abs().sum()) / n)
    assert log2(errors[0] / errors[-1]) / 2.0 == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("boundary", ["periodic", "dirichlet"])
def test_cole_hopf(boundary):
    """sin x at nu = 0.1, in L1; on grids fine enough that the next term, of order 3, is small."""
    half, errors = 1 if boundary == "periodic" else 2, []
    for n in (256, 512):
        solve = BurgersShocks(n // half, 0.1, boundary=boundary, length=TAU / half, time=1.0, steps=n // 2, save=2)
        u = solve(cole_hopf(0.1, 0.0, n)[None, None, : n // half])[0]
        want = torch.stack([cole_hopf(0.1, t, n)[: n // half] for t in (0.5, 1.0)])
        errors.append(float((u - want).abs().mean()))
    assert errors[1] < 1.5e-5
    assert slopes(errors)[0] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("scheme", ["ssprk2", "ssprk3"])
def test_viscous_travelling_wave_is_of_order_2(scheme):
    """u = c - c tanh(c (x - ct - x0) / (2 nu)), monotone; compared where the fan of the wall has not come."""
    nu, c, length, errors = 0.05, 0.5, 4.0, []

    def wave(time, n):
        def primitive(x):
            y = c * (x - 2.2 - c * time) / (2.0 * nu)
            return c * x - 2.0 * nu * (y.abs() + torch.log1p(torch.exp(-2.0 * y.abs())))

        return averages(primitive, n, length)

    for n in (256, 512):
        solve = BurgersShocks(n, nu, scheme=scheme, length=length, time=0.5, steps=n // 4)
        error = (solve(wave(0.0, n)[None, None])[0, 0] - wave(0.5, n)).abs()
        errors.append(float(error[middles(n, length) > 1.6].mean()))
    assert slopes(errors)[0] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("scheme", ["ssprk2", "ssprk3"])
def test_time_order_of_the_implicit_part(scheme):
    """Without advection to speak of, one sine decays by exp(-lambda t), at nu dt / h^2 of 6 to 26; no growth at any."""
    n, nu = 64, 0.05
    mode = (pi * middles(n)).sin()[None, None]
    decay = nu * 4.0 * n**2 * torch.sin(torch.tensor(pi / 2.0 / n, dtype=F64)) ** 2
    errors = []
    for steps in (8, 16, 32):
        u = BurgersShocks(n, nu, scheme=scheme, time=1.0, steps=steps)(1e-9 * mode) * 1e9
        errors.append(float((u - mode * torch.exp(-decay)).abs().max()))
    assert slopes(errors) == pytest.approx([2.0, 2.0], abs=0.1)
    rough = 1e-9 * Streams(0).normal(0, (1, n), "u", F64)
    stiff = BurgersShocks(n, 1e4, scheme=scheme, time=1.0, steps=4)(rough)
    assert float(stiff.norm()) < float(rough.norm())


def amplification(table, c, r):
    """Largest factor of a wave in a step, by advection upwind with central slopes, and diffusion."""
    stages, weights, d = table
    angle = torch.linspace(0.01, pi, 64, dtype=F64)
    e, z = torch.polar(torch.ones_like(angle), angle), 4.0 * r * (angle / 2.0).sin().square()
    n = -c * ((1.0 - 1.0 / e) + 0.25 * ((e - 1.0 / e) - (1.0 - 1.0 / e.square())))
    u = [torch.ones_like(n)]
    for a, b in stages:
        u.append((1.0 + sum((x * n - y * z) * v for x, y, v in zip(a, b, u, strict=True))) / (1.0 + d * z))
    return float((1.0 + sum(w * (n - z) * v for w, v in zip(weights, u, strict=True))).abs().max())


@pytest.mark.parametrize("scheme", ["ssprk2", "ssprk3"])
def test_linear_stability_at_any_viscosity(scheme):
    """At c = 0.9 and nu dt / h^2 to 1e5; Heun's method with Crank-Nicolson grows from 1.7 on."""
    ratios = torch.logspace(-2, 5, 100, dtype=F64)
    assert max(amplification(_TABLES[scheme, True], 0.9, r) for r in ratios) <= 1.0 + 1e-12
    heun = ((((1.0,), (0.5,)),), (0.5, 0.5), 0.5)
    assert amplification(heun, 0.9, 1.6) <= 1.0 < amplification(heun, 0.9, 1.7)
    assert max(amplification(heun, 0.9, r) for r in ratios) > 1.4


def doubled(cells, viscosity, time, steps, scheme):
    """Distances in L1 of runs on so many cells, each twice the one before, from a state that is 3 and -1 at the walls."""
    runs = []
    for n, s in zip(cells, steps, strict=True):
        solve = BurgersShocks(n, viscosity, time=time, steps=s, scheme=scheme)
        with torch.no_grad():
            runs.append(solve((2.0 * (pi * middles(n)).cos() + 1.0)[None, None])[0, 0])
    return [float((b.unflatten(0, (-1, 2)).mean(-1) - a).abs().mean()) for a, b in pairwise(runs)]


@pytest.mark.parametrize(("ratio", "viscosity"), [(2.0, 0.3), (4.5, 0.5)])
def test_order_2_from_jumps_at_the_walls(ratio, viscosity):
    """Steps as n^2, at that nu dt / h^2; Courant numbers up to 0.4."""
    cells = (64, 128, 256)
    steps = [round(0.05 * viscosity * n**2 / ratio) for n in cells]
    assert slopes(doubled(cells, viscosity, 0.05, steps, "ssprk2"))[0] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("scheme", ["ssprk2", "ssprk3"])
def test_order_three_halves_from_jumps_at_the_walls(scheme):
    """Steps as n, at a Courant number of 0.9 and nu dt / h^2 from 3.6 to 14."""
    cells = (240, 480, 960)
    steps = [round(0.1 * 3.0 * n / 0.9) for n in cells]
    assert slopes(doubled(cells, 0.05, 0.1, steps, scheme))[0] == pytest.approx(1.5, abs=0.1)


def test_forcing_constant_in_space_adds_up():
    """u grows by f dt in each slot; the save times are within slots."""
    solve = BurgersShocks(8, 0.0, slots=3, boundary="periodic", time=1.2, steps=24, save=6)
    f = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    x = torch.cat((torch.tensor([0.3], dtype=F64), f))[None, :, None].expand(1, 4, 8)
    want = 0.3 + torch.tensor([0.2, 0.4, 0.0, -0.4, -0.3, -0.2], dtype=F64)
    torch.testing.assert_close(solve(x), want[None, :, None].expand(1, 6, 8), rtol=0, atol=1e-14)


@pytest.mark.parametrize("scheme", ["ssprk2", "ssprk3"])
def test_steady_state_between_walls(scheme):
    """u = sin(pi x) under f = u u_x - nu u_xx, with an error of order 2; the discrete one is kept at any step."""
    nu, errors = 0.1, []
    for n in (16, 32):
        x = torch.arange(n + 1, dtype=F64) / n
        f = n * (0.5 * (pi * x).sin().square() - nu * pi * (pi * x).cos()).diff()
        u0 = averages(lambda x: -(pi * x).cos() / pi, n)
        solve = BurgersShocks(n, nu, slots=1, scheme=scheme, time=4.0, steps=6 * n)
        errors.append(float((solve(torch.stack((u0, f))[None])[0, 0] - u0).abs().mean()))
    assert slopes(errors)[0] == pytest.approx(2.0, abs=0.2)
    u0 = smooth(solve)[:, :1]
    f = -solve._explicit(u0, None) - solve._diffusion(u0)
    for steps in (6, 60):
        kept = BurgersShocks(n, nu, slots=1, scheme=scheme, time=0.1, steps=steps)(torch.cat((u0, f), 1))
        torch.testing.assert_close(kept, u0, rtol=0, atol=1e-12)


TINY = [
    {"boundary": "dirichlet", "flux": "godunov", "scheme": "ssprk2", "viscosity": 0.01},
    {"boundary": "periodic", "flux": "rusanov", "scheme": "ssprk3", "viscosity": 0.0},
]


@pytest.fixture(params=TINY, ids=lambda p: p["boundary"])
def tiny(request):
    return lambda **more: BurgersShocks(16, **{**request.param, "slots": 2, "time": 0.05, "steps": 4, "save": 2, **more})


def test_derivatives_agree_away_from_kinks(tiny, derivatives_agree):
    """<v, J t> = <J^T v, t>; backward is the pullback; Taylor's remainder; every memory policy, the same gradient."""
    derivatives_agree(tiny, smooth(tiny()), 4e-6)


def test_residual_vanishes_on_the_solution_alone(tiny):
    operator = tiny()
    x = smooth(operator)
    u = operator(x)
    assert float(operator.residual(x, u).abs().max()) < 1e-14
    later = x.clone()
    later[:, 2] += 1.0
    assert float(operator.residual(later, u)[:, 0].abs().max()) < 1e-14
    assert float(operator.residual(later, u)[:, 1].abs().max()) > 1e-2


def test_items_casts_and_copies(tiny):
    operator = tiny()
    x = smooth(operator, 3)
    want = operator(x)
    torch.testing.assert_close(torch.cat([operator(v[None]) for v in x]), want, rtol=0, atol=1e-14)
    for other in (copy.deepcopy(operator).float(), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(other(x), want)
    got = operator(x.float())
    assert got.dtype == torch.float32 and float((got - want).norm() / want.norm()) < 1e-6


def test_too_fast_a_state_is_refused():
    solve = BurgersShocks(10, 0.0, slots=1, boundary="periodic", time=1.0, steps=10)
    x = torch.zeros(2, 2, 10, dtype=F64)
    x[1, 0] = 1.7
    assert solve.courant(x).tolist() == pytest.approx([0.0, 1.7])
    with pytest.raises(NumericalError, match=r"BurgersShocks.*steps >= 17"):
        solve(x)
    x[1] = 0.62
    with pytest.raises(NumericalError, match=r"got 1.2: give steps >= 13"):
        solve(x)
    x[1, 0, 0] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        solve(x)


def test_wrong_arguments_are_named():
    for arguments in (
        {"viscosity": -1.0},
        {"length": 0.0},
        {"slots": 5, "steps": 12},
        {"slots": -1},
        {"boundary": "open"},
        {"flux": "roe"},
        {"scheme": "euler"},
        {"steps": 12, "save": 5},
    ):
        with pytest.raises(ConfigError, match="BurgersShocks: expected"):
            BurgersShocks(16, **arguments)
    with pytest.raises(ShapeError, match="BurgersShocks"):
        BurgersShocks(16, slots=2, steps=12)(torch.zeros(1, 2, 16))
    with pytest.raises(ConfigError, match="BurgersControl"):
        BurgersControl(seed=0, frames=4, slots=4, steps=6)


def test_samples_of_the_control_set():
    """Of index and seed alone, in any order and batch; u is what the solver makes of u0 and f; the published ranges."""
    make = BurgersControl(seed=4, size=8, frames=2, slots=4, factor=2, time=1.0, batch=2)
    got = make([3, 1, 7], dtype=F64)
    assert {k: tuple(v.shape) for k, v in got.items()} == {"u0": (3, 1, 8), "f": (3, 4, 8), "u": (3, 3, 8)}
    for i, k in enumerate((3, 1, 7)):
        alone = make([k], dtype=F64)
        for name, v in got.items():
            torch.testing.assert_close(v[i : i + 1], alone[name], rtol=0, atol=1e-13)
    assert (
        float((BurgersControl(seed=5, size=8, frames=2, slots=4, factor=2, time=0.1)([3])["f"] - got["f"][:1]).abs().max())
        > 1e-3
    )
    assert torch.equal(got["u"][:, :1], got["u0"])
    x = middles(16)
    fine = make.solver()(torch.cat((make.initial([3], x), make.forcing([3], x)), 1))
    torch.testing.assert_close(got["u"][:1, 1:], fine.unflatten(-1, (8, 2)).mean(-1), rtol=0, atol=1e-13)
    many = BurgersControl(seed=0)
    u, f = many.initial(range(400), middles(100)), many.forcing(range(400), middles(20))
    assert 1.5 < float(u.max()) <= 2.0 and -2.0 <= float(u.min()) < -1.5
    assert bool((u[..., :20] > -0.4).all()) and 3.0 < float(f.abs().max()) < 24.0
    assert float(f.mean().abs()) < 0.2
