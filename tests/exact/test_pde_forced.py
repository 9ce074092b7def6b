"""Burgers' equation between walls by a sine series: closed forms, its orders, and its derivatives."""

import copy
import pickle
from itertools import pairwise
from math import log2, pi

import pytest
import torch

from invdiff.core import ConfigError, NumericalError, ShapeError, Streams
from invdiff.operators.pde.forced import BurgersWalls
from invdiff.operators.pde.shocks import BurgersShocks

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64 = torch.float64


def middles(n, length=1.0):
    return (torch.arange(n, dtype=F64) + 0.5) * length / n


def waves(operator, batch=2):
    """Random sums of three sines, of each row."""
    a = Streams(3, batch).normal(0, (operator.in_shape[0], 3, 1), "waves", F64)
    k = torch.arange(1, 4, dtype=F64)[:, None]
    return 0.5 * (a / k * (k * pi * middles(operator.size)).sin()).sum(-2)


def slopes(errors):
    return [log2(a / b) for a, b in pairwise(errors)]


def cole_hopf(nu, time, x):
    """u = -2 nu phi_x / phi, phi = 1 + sum of a_k exp(-nu (pi k)^2 t) cos(pi k x), even about the walls."""
    phi, slope = torch.ones_like(x), torch.zeros_like(x)
    for k, a in ((1, 0.4), (2, -0.1)):
        b = a * torch.exp(torch.tensor(-nu * (pi * k) ** 2 * time, dtype=F64))
        phi, slope = phi + b * (pi * k * x).cos(), slope - b * pi * k * (pi * k * x).sin()
    return -2.0 * nu * slope / phi


@torch.no_grad()
def test_cole_hopf_at_order_4():
    """At times 1/4 and 1/2; then no error but of rounding is left in space."""
    n, nu, errors, x = 32, 0.1, [], middles(32)
    want = torch.stack([cole_hopf(nu, t, x) for t in (0.25, 0.5)])[None]
    for steps in (16, 32, 64, 512):
        u = BurgersWalls(n, nu, time=0.5, steps=steps, save=2)(cole_hopf(nu, 0.0, x)[None, None])
        errors.append(float((u - want).norm() / want.norm()))
    assert slopes(errors[:3]) == pytest.approx([4.0, 4.0], abs=0.1)
    assert errors[-1] < 1e-11


@torch.no_grad()
def test_the_unit_of_length():
    """u(x, t) = L U(x / L, t) where nu = L^2 nu_1: the same equation."""
    one, two = (BurgersWalls(24, 0.05 * c**2, slots=2, length=c, time=0.5, steps=32) for c in (1.0, 2.5))
    x = waves(one)
    torch.testing.assert_close(two(2.5 * x), 2.5 * one(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("steps", [2, 40])
def test_a_steady_state_is_kept(steps):
    """u = sin(pi x) + sin(2 pi x) / 2 under f = u u_x - nu u_xx, to rounding, whatever the step."""
    nu, x = 0.5, middles(16)
    u = (pi * x).sin() + 0.5 * (2.0 * pi * x).sin()
    slope = pi * (pi * x).cos() + pi * (2.0 * pi * x).cos()
    f = u * slope + nu * pi**2 * ((pi * x).sin() + 2.0 * (2.0 * pi * x).sin())
    late = BurgersWalls(16, nu, slots=1, time=0.1, steps=steps)(torch.stack((u, f))[None])
    torch.testing.assert_close(late[0, 0], u, rtol=0, atol=1e-13)


@torch.no_grad()
def test_it_settles_to_the_steady_state_of_a_constant_force():
    """From rest under f = 1: no elementary form, but u_t = 0, every mode of the equation to 1e-10."""
    n, nu = 32, 0.5
    solve = BurgersWalls(n, nu, slots=1, time=16.0, steps=200, save=2)
    f = torch.ones(1, 1, n, dtype=F64)
    u = solve(torch.cat((torch.zeros_like(f), f), 1))
    torch.testing.assert_close(u[:, :1], u[:, 1:], rtol=0, atol=1e-12)
    v = solve.into(u[:, 1:])
    rate = solve._nonlinear(v, solve.into(f)) - nu * (pi * torch.arange(n + 1, dtype=F64)) ** 2 * v
    assert float(rate.abs().max()) < 1e-10 * float(solve.into(f).abs().max())


@pytest.mark.parametrize(
    ("kind", "order"),
    [("force off at the walls", 4.0), ("force on at the walls", 4.0), ("state on at the walls", 2.0)],
)
def test_orders_in_time_with_forcing(kind, order):
    """Declared: 4 with u(0) = 0 at the walls, and from 2 up with a jump there, until nu k_max^2 dt is small."""
    x = middles(128)
    sine, one = (pi * x).sin(), torch.ones_like(x)
    given = {"force off": (sine, 2.0 * sine), "force on": (sine, one), "state on": (one, one)}[kind[: kind.index(" at")]]
    with torch.no_grad():
        u = [BurgersWalls(128, 0.05, slots=1, time=0.25, steps=s)(torch.stack(given)[None]) for s in (128, 256, 1024)]
    found = slopes([float((v - u[-1]).norm()) for v in u[:2]])[0]
    assert found == pytest.approx(4.0, abs=0.1) if order == 4.0 else 2.0 < found < 3.5


def test_orders_in_space():
    """Spectral where u(0) is odd about the walls; samples of a jump there alias at order 2."""
    x, found = {n: middles(n) for n in (36, 108, 324)}, {}
    with torch.no_grad():
        for kind, start in (("odd", lambda x: 4.0 * (pi * x).sin().pow(3)), ("jump", lambda x: 1.0 + x)):
            # of three times the points, each third is one of the coarse grid
            late = {n: BurgersWalls(n, 0.1, time=0.1, steps=400)(start(x[n])[None, None])[0, 0] for n in x}
            u = [v[n // 72 :: n // 36] for n, v in late.items()]
            found[kind] = [float((a - b).norm() / b.norm()) for a, b in pairwise(u)]
    assert found["odd"][1] < 1e-11
    ratio = found["jump"][0] / found["jump"][1]
    assert 9.0**0.9 < ratio < 9.0**1.15


@torch.no_grad()
def test_finite_volumes_agree_to_their_own_error():
    """The other discretization of the same equation, forced: at twice the cells a quarter of the distance."""
    gaps = []
    for n in (32, 64):
        how = {"slots": 2, "time": 0.15, "save": 3}
        walls, volumes = BurgersWalls(n, 0.05, steps=3 * n, **how), BurgersShocks(n, 0.05, steps=3 * n, **how)
        x = waves(walls)
        gaps.append(float((walls(x) - volumes(x)).norm() / walls(x).norm()))
    assert gaps[1] < 2e-3 and slopes(gaps)[0] == pytest.approx(2.0, abs=0.2)


@pytest.fixture
def tiny():
    return lambda **more: BurgersWalls(16, 0.05, **{"slots": 2, "time": 0.2, "steps": 8, "save": 2, **more})


def test_derivatives(tiny, derivatives_agree):
    """<v, J t> = <J^T v, t>; backward is the pullback; Taylor's remainder; every memory policy, the same gradient."""
    derivatives_agree(tiny, waves(tiny()), 1e-3)


def test_steps_residual_items_and_copies(tiny):
    operator = tiny()
    x = waves(operator, 3)
    u = operator(x)
    by_hand = x[:, :1]
    for k in range(4):
        by_hand = operator.step(by_hand, x[:, 1 + k * 2 // 8, None])
    torch.testing.assert_close(u[:, :1], by_hand, rtol=0, atol=1e-14)
    assert float(operator.residual(x, u).abs().max()) < 1e-14
    later = x.clone()
    later[:, 2] += 1.0
    assert float(operator.residual(later, u)[:, 0].abs().max()) < 1e-14
    assert float(operator.residual(later, u)[:, 1].abs().max()) > 1e-2
    torch.testing.assert_close(torch.cat([operator(v[None]) for v in x]), u, rtol=0, atol=1e-14)
    for other in (copy.deepcopy(operator).float(), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(other(x), u)
    single = operator(x.float())
    assert single.dtype == torch.float32 and float((single - u).norm() / u.norm()) < 1e-6


def test_too_fast_a_state_is_refused():
    solve = BurgersWalls(12, 0.01, slots=1, time=1.0, steps=20)
    x = torch.zeros(2, 2, 12, dtype=F64)
    x[1, 0, 3] = 3.0
    # the highest wave that advects is 7 of 12
    assert solve.courant(x).tolist() == pytest.approx([0.0, 3.0 * 7.0 * pi / 20.0])
    with pytest.raises(NumericalError, match=r"BurgersWalls.*steps >= 24"):
        solve(x)
    x[1, 0, 3], x[1, 1] = 0.0, 6.0
    with pytest.raises(NumericalError, match="BurgersWalls: expected h"):
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
        {"steps": 12, "save": 5},
    ):
        with pytest.raises(ConfigError, match="BurgersWalls: expected"):
            BurgersWalls(16, **arguments)
    with pytest.raises(ShapeError, match="BurgersWalls"):
        BurgersWalls(16, slots=2, steps=12)(torch.zeros(1, 2, 16))
