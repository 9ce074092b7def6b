"""Layers, free surface and differences of the wave equation: against larger domains, mirrors, invariants of the scheme."""

import pytest
import torch

from invdiff.core import ConfigError, NumericalError, Streams
from invdiff.operators.pde.wave import AcousticWave
from invdiff.operators.pde.wave_layers import Difference, Layers, coefficients

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64 = torch.float64


def velocity(operator, seed=0, batch=2, dtype=F64):
    """Between 0.5 and 1.5."""
    return 0.5 + Streams(seed, batch).uniform(0, operator.in_shape, "c", dtype)


def randn(shape, name, batch=2):
    return Streams(1, batch).normal(0, shape, name, F64)


@pytest.mark.parametrize("order", [2, 4, 6, 8])
def test_differences_are_of_their_order(order):
    """Exact for polynomials of that degree, not for the next but one; the known ones of order 2 and 4."""
    a = coefficients(order)
    for power in range(1, order + 2, 2):
        moment = sum(w * 2.0 * (j + 0.5) ** power for j, w in enumerate(a))
        assert (abs(moment - (power == 1)) < 1e-12) == (power <= order)
    assert coefficients(2) == (1.0,) and coefficients(4) == pytest.approx((9 / 8, -1 / 24), rel=1e-15)


@pytest.mark.parametrize("surface", [False, True])
@pytest.mark.parametrize("axis", [-1, -2])
def test_transposed_differences(axis, surface):
    """G and G^T, dense: one is the transpose of the other, and the derivatives are exact; 9 points and order 6."""
    difference = Difference(axis, coefficients(6), surface)
    eye = torch.eye(9, dtype=F64)
    rows = eye[:, None] if axis == -1 else eye[:, :, None]
    g = difference(rows).flatten(1)
    faces = torch.eye(g.shape[1], dtype=F64)
    back = difference.transpose(faces[:, None] if axis == -1 else faces[:, :, None]).flatten(1)
    assert torch.equal(back, g.mT) or float((back - g.mT).abs().max()) < 1e-15
    v = randn((8, 8), "v").requires_grad_()
    for half in (difference, difference.transpose):
        torch.autograd.gradcheck(half, v, check_forward_ad=True, check_batched_grad=True, fast_mode=True)


def around(n, layer, border, surface=False, order=4):
    """Traces near all sides and in a corner; `border` points more on each side do not move source and receivers."""
    h = 1.0 / 12
    top = 0 if surface else border
    points = [[6, 36], [24, 24], [38, 1], [12, 47], [47, 47]]
    at, to = ([[(top + z) * h, (border + x) * h] for z, x in p] for p in ([[12, 12]], points))
    size = (n + top + border, n + 2 * border)
    operator = AcousticWave(
        size, at, to, spacing=h, dt=0.04, steps=200, frequency=1.0, layer=layer, fastest=1.0, surface=surface, order=order
    )
    with torch.no_grad():
        return operator(torch.ones(1, *operator.in_shape, dtype=F64))[0, 0]


@pytest.mark.parametrize(("surface", "order"), [(False, 2), (True, 4)])
def test_layers_let_waves_out(surface, order):
    """Against a domain from whose sides nothing returns; of a trace 5e-5, with a surface 1.9e-4; walls 1 to 3."""
    far = around(49, 0, 40, surface, order)
    near, walls = around(49, 20, 0, surface, order), around(49, 0, 0, surface, order)
    assert float(((near - far).norm(dim=-1) / far.norm(dim=-1)).max()) < 3e-4
    assert float(((walls - far).norm(dim=-1) / far.norm(dim=-1)).min()) > 0.5


def test_a_free_surface_is_a_mirror():
    """The lower half of an odd field: two sources of opposite sign at equal distances of the surface."""
    h, w, dt, steps = 0.1, 0.7, 0.04, 75
    c = torch.ones(1, 1, 20, 15, dtype=F64)
    how = {"spacing": h, "dt": dt, "steps": steps, "frequency": 1.0, "layer": 6, "fastest": 1.0, "order": 6}
    half = AcousticWave((20, 15), [[0.5, w]], [[0.3, 1.0], [1.1, 0.2]], surface=True, **how)(c)[0, 0]
    whole = torch.ones(1, 1, 41, 15, dtype=F64)
    both = AcousticWave((41, 15), [[2.6, w], [1.4, w]], [[2.4, 1.0], [3.2, 0.2]], **how)(whole)[0]
    torch.testing.assert_close(half, both[0] - both[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("surface", [False, True])
def test_reciprocity(surface):
    """Off the grid's points, in a rough medium, with layers: the traces of all pairs are symmetric."""
    points = [[1.0, 2.3], [4.6, 3.5], [0.0, 5.0], [6.0, 1.2]]
    operator = AcousticWave(
        (7, 6), points, points, spacing=1.0, dt=0.2, steps=60, frequency=0.5, layer=3, fastest=1.6, surface=surface
    )
    d = operator(velocity(operator))
    assert float(d.abs().amax((0, 3)).min()) > 1e-3
    assert float((d - d.transpose(1, 2)).abs().max()) < 1e-13 * float(d.abs().max())


@pytest.mark.parametrize("order", [2, 4, 8])
def test_energy_is_kept_between_walls(order):
    """After the source is silent; the kinetic part at half steps, the potential of two neighbouring times."""
    w = torch.zeros(300, dtype=F64)
    w[:30] = randn((30,), "w", 1)[0]
    operator = AcousticWave(
        (11, 9), [[3.0, 4.0]], [[1.0, 1.0]], spacing=(1.0, 1.2), dt=0.3, steps=300, wavelet=w, order=order, layer=0, fastest=1.5
    )
    c = velocity(operator, batch=1)
    u = operator.field(c)[0, 0]
    assert u.shape[1:] == operator.layers.full == (11, 9)
    down, across = operator.layers.differences
    kinetic = ((u[1:] - u[:-1]) / (0.3 * c[0, 0])).square().sum((1, 2)) / 2.0
    potential = sum((g(u[1:]) * g(u[:-1])).sum((1, 2)) for g in (down, across)) / 2.0
    energy = (kinetic + potential)[30:]
    assert float(energy[0]) > 0.1 and float(kinetic[30:].std() / energy[0]) > 0.01
    assert float((energy / energy[0] - 1.0).abs().max()) < 1e-12


def test_it_is_stable_to_the_bound_and_not_beyond():
    """A courant number of 0.999, in a corner of the layers too, 1500 steps; just past it the shortest wave grows."""
    layers = Layers((16, 16), (1.0, 1.0), 5, 4, False, 1.5, 1e-4)
    dt = 0.999 * 2.0 / ((1.5 * layers.sharpest) ** 2 + layers.strongest**2) ** 0.5
    w = torch.zeros(1500, dtype=F64)
    w[0] = 1.0
    operator = AcousticWave(
        (16, 16), [[0.0, 0.0]], [[15.0, 15.0], [8.0, 8.0]], spacing=1.0, dt=dt, steps=1500, wavelet=w, layer=5, fastest=1.5
    )
    c = torch.full((1, 1, 16, 16), 1.5, dtype=F64)
    with torch.no_grad():
        d = operator(c).abs()
    assert float(operator.courant(c)) == pytest.approx(0.999)
    assert float(d[..., 1200:].max()) < 1e-2 * float(d.max())
    with pytest.raises(NumericalError, match=r"AcousticWave: expected a courant number <= 1, got 1\.00"):
        operator(1.01 * c)
    with pytest.raises(ConfigError, match="give dt <="):
        AcousticWave((16, 16), [[0.0, 0.0]], [[1.0, 1.0]], spacing=1.0, dt=1.01 * dt, steps=10, layer=5, fastest=1.5)
