"""Setups of fields: each is the composition by hand, and seen through it known fields give known values."""

import math

import pytest
import torch

from invdiff.core import ConfigError, LinearOperator, ShapeError, Streams
from invdiff.operators.pde import Burgers, Darcy, Helmholtz, NavierStokes2D, PointSensors, Poisson, kolmogorov, random_sensors
from invdiff.tasks.data import Item
from invdiff.tasks.field_setups import burgers_by_sensors, darcy_by_sensors, initial_vorticity, source_by_sensors

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64 = torch.float64


def item(*shape):
    return Item("item", shape)


def normal(*shape, seed=0):
    return Streams(seed, 2).normal(0, shape, dtype=F64)


def test_source_by_sensors_is_sensors_of_the_solution():
    x = normal(1, 7, 6)
    for k, equation in ((0.0, Poisson((1, 7, 6), length=2.0)), (1.5, Helmholtz((1, 7, 6), 1.5, length=2.0))):
        operator = source_by_sensors(item(1, 7, 6), sensors=9, wavenumber=k, length=2.0, seed=3)
        assert isinstance(operator, LinearOperator) and operator.out_shape == (1, 9)
        wanted = random_sensors((1, 7, 6), 9, seed=3, length=2.0)(equation(x))
        torch.testing.assert_close(operator(x), wanted, rtol=1e-13, atol=1e-15)
        assert not torch.equal(operator(x), source_by_sensors(item(1, 7, 6), sensors=9, wavenumber=k, length=2.0)(x))


def test_the_source_of_a_sine_is_seen_as_the_sine():
    """-lap sin(pi x) sin(pi y) = 2 pi^2 sin sin: the sensors read sin sin, to second order in the spacing."""
    n = 63
    s = (math.pi * (torch.arange(n, dtype=F64) + 1) / (n + 1)).sin()
    f = 2 * math.pi**2 * (s[:, None] * s)[None, None]
    found = source_by_sensors(item(1, n, n), sensors=20)(f)[0, 0]
    places = Streams(0).uniform(0, (20, 2), "sensors", F64)[0]
    torch.testing.assert_close(found, (math.pi * places).sin().prod(1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("faces", ["harmonic", "arithmetic"])
def test_darcy_by_sensors_cuts_off_what_no_medium_has(faces):
    operator = darcy_by_sensors(item(1, 6, 5), sensors=8, low=1.0, high=20.0, faces=faces, seed=2)
    a = normal(1, 6, 5) * 8 + 6  # partly below 1, even below 0, and above 20
    assert bool((a < 0).any()) and bool((a > 20).any())
    wanted = random_sensors((1, 6, 5), 8, seed=2)(Darcy((6, 5), faces=faces)(a.clamp(1.0, 20.0)))
    torch.testing.assert_close(operator(a), wanted, rtol=1e-13, atol=1e-15)
    # no derivative where the bounds bite, and elsewhere that of the equation
    _, push, pull = operator.linearize(a)
    back = pull(normal(1, 8, seed=1))
    outside = (a < 1.0) | (a > 20.0)
    assert bool((back[outside] == 0.0).all()) and bool((back[~outside] != 0.0).all())
    t, h = normal(1, 6, 5, seed=4) * ~outside, 1e-4
    difference = (operator(a + h * t) - operator(a - h * t)) / (2 * h)
    torch.testing.assert_close(push(t), difference, rtol=1e-5, atol=1e-9)


def test_initial_vorticity_is_every_nth_point_of_the_later_flow():
    operator = initial_vorticity(item(1, 9, 9), every=3, reynolds=50.0, wave=2, amplitude=3.0, time=0.2, steps=8)
    x = normal(1, 9, 9)
    flow = NavierStokes2D((9, 9), 0.02, forcing=kolmogorov((9, 9), 2, -3.0), time=0.2, steps=8)(x)
    torch.testing.assert_close(operator(x), flow[..., ::3, ::3], rtol=1e-12, atol=1e-13)
    assert operator.out_shape == (1, 3, 3) and operator.count_measured() == 9


def test_burgers_by_sensors_reads_points_at_times():
    operator = burgers_by_sensors(item(1, 15), sensors=3, times=2, viscosity=0.05, time=0.1, steps=20)
    x = normal(1, 15)
    u = Burgers(15, 0.05, time=0.1, steps=20, save=2)(x)
    wanted = PointSensors((2, 15), [[1 / 6], [0.5], [5 / 6]], boundary="periodic")(u)
    torch.testing.assert_close(operator(x), wanted, rtol=1e-12, atol=1e-13)
    # a constant stays what it is
    torch.testing.assert_close(operator(torch.full((1, 1, 15), 0.3, dtype=F64)), torch.full((1, 2, 3), 0.3, dtype=F64))


@pytest.mark.parametrize("memory", ["full", "checkpoint(step)"])
def test_linearisations_are_those_of_torch(memory):
    for operator in (
        initial_vorticity(item(1, 8, 8), time=0.1, steps=4, memory=memory),
        burgers_by_sensors(item(1, 8), sensors=2, times=2, time=0.1, steps=8, memory=memory),
    ):
        x, t, v = normal(*operator.in_shape), normal(*operator.in_shape, seed=1), normal(*operator.out_shape, seed=2)
        value, push, pull = operator.linearize(x)
        torch.testing.assert_close(value, operator(x), rtol=1e-13, atol=1e-14)
        torch.testing.assert_close((push(t) * v).sum(), (t * pull(v)).sum(), rtol=1e-11, atol=1e-13)
        difference = (operator(x + 1e-4 * t) - operator(x - 1e-4 * t)) / 2e-4
        torch.testing.assert_close(push(t), difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: source_by_sensors(item(1, 8)), ShapeError, r"source_by_sensors: expected a field \(1, N, M\), got \(1, 8\)"),
        (lambda: source_by_sensors(item(2, 8, 8)), ShapeError, r"got \(2, 8, 8\)"),
        (lambda: darcy_by_sensors(item(1, 4, 4, 4)), ShapeError, "darcy_by_sensors: expected a field"),
        (lambda: initial_vorticity(item(1, 8)), ShapeError, "initial_vorticity: expected a field"),
        (lambda: burgers_by_sensors(item(1, 8, 8)), ShapeError, r"burgers_by_sensors: expected a field \(1, N\)"),
        (lambda: source_by_sensors(item(1, 8, 8), sensors=0), ConfigError, "count >= 1"),
        (lambda: darcy_by_sensors(item(1, 8, 8), low=0.0), ConfigError, "0 < low < high, got 0.0 and 30.0"),
        (lambda: initial_vorticity(item(1, 8, 8), every=0), ConfigError, "n >= 1, got 0"),
        (lambda: burgers_by_sensors(item(1, 8), sensors=0), ConfigError, "sensors >= 1, got 0"),
        (lambda: burgers_by_sensors(item(1, 8), times=3, steps=8), ConfigError, "divides steps"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
