"""Acoustic waves against Green's function, invariants of the scheme, a domain without layers, and finite differences."""

import copy
import pickle
from itertools import pairwise
from math import log2, pi

import numpy as np
import pytest
import torch
from scipy.special import hankel2

from invdiff.core import ConfigError, DataError, ShapeError, Streams, dot, norm
from invdiff.operators.pde.wave import AcousticWave, line, ricker

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64 = torch.float64
SOURCES, RECEIVERS = [[1.0, 2.0], [4.0, 3.5]], [[2.0, 4.0], [5.0, 1.0], [3.25, 2.0]]


def tiny(**more):
    how = {"spacing": 1.0, "dt": 0.2, "steps": 20, "frequency": 0.5, "layer": 3, "fastest": 1.6, "every": 2, **more}
    return AcousticWave((7, 6), SOURCES, RECEIVERS, **how)


def tiny_at(receivers):
    return AcousticWave((7, 6), SOURCES, receivers, spacing=1.0, dt=0.2, steps=20, frequency=0.5, layer=3, fastest=1.6)


def velocity(operator, seed=0, batch=2, dtype=F64):
    """Between 0.5 and 1.5."""
    return 0.5 + Streams(seed, batch).uniform(0, operator.in_shape, "c", dtype)


def randn(shape, name, batch=2):
    return Streams(1, batch).normal(0, shape, name, F64)


def green(wavelet, dt, distance, speed, periods=2**17):
    """w convolved with Green's function of the plane at dt, 2 dt, ...: -i / 4 H_0^(2)(omega r / c) in frequency."""
    omega = 2.0 * pi * np.fft.rfftfreq(periods, dt)
    response = np.zeros(len(omega), complex)
    response[1:] = -0.25j * hankel2(0, omega[1:] * distance / speed)
    trace = np.fft.irfft(np.fft.rfft(wavelet.numpy(), periods) * response, periods)
    return torch.from_numpy(trace[1 : len(wavelet) + 1].copy())


def error(n, dt, order, speed=1.0):
    """Relative error at half a wavelength, n points per wavelength of the crest; nothing returns from the walls in time."""
    steps, h, half = round(2.75 / dt), 1.0 / n, round(1.3 * n)
    place, w = half * h, ricker(1.0, dt, round(2.75 / dt), 1.25)
    at, to = [[place, place - (n // 4) * h]], [[place, place - (n // 4) * h + 0.5]]
    scaled = [[speed * v for v in point] for point in (*at, *to)]
    operator = AcousticWave(
        (2 * half + 1,) * 2, scaled[:1], scaled[1:], spacing=h * speed, dt=dt, steps=steps, wavelet=w, order=order, layer=0,
        fastest=speed,
    )  # fmt: skip
    with torch.no_grad():
        trace = operator(torch.full((1, *operator.in_shape), speed, dtype=F64))[0, 0, 0]
    want = green(w, dt, 0.5 * speed, speed)
    return float((trace - want).norm() / want.norm())


def test_the_wavelet_is_rickers():
    """Crest 1 at the delay, zero where (pi f t)^2 = 1/2, mean zero, spectrum f^2 exp(-f^2 / f_0^2) largest at f_0."""
    w = ricker(5.0, 1e-3, 1001, 0.5)
    assert float(w[500]) == 1.0 and int(w.argmax()) == 500
    zero = 1.0 / (2.0**0.5 * pi * 5.0)
    assert abs(float(ricker(5.0, zero, 3, 0.0)[1])) < 1e-15
    assert abs(float(w.sum())) < 1e-12
    spectrum = torch.fft.rfft(w[:-1]).abs()
    f = torch.arange(len(spectrum), dtype=F64)
    shape = f**2 * torch.exp(-(f**2) / 25.0)
    torch.testing.assert_close(spectrum / spectrum.max(), shape / shape.max(), rtol=0, atol=1e-12)
    assert abs(float(ricker(5.0, 1e-3, 100)[0])) < 2e-8


def test_green_function_and_order_two():
    """Time and space refined together; measured 2.8e-2, 6.8e-3, slope 2.07."""
    errors = [error(n, 1.0 / (2 * n), 2) for n in (16, 32)]
    assert errors[-1] < 8e-3
    assert abs(log2(errors[0] / errors[1]) - 2.0) < 0.1


def test_green_function_and_order_four():
    """dt with h^2, so that both errors fall by 16; measured 1.2e-3, 7.6e-5, slope 3.99. Units do not matter."""
    errors = [error(n, dt, 4, speed) for n, dt, speed in ((16, 1 / 64, 2000.0), (32, 1 / 256, 1.0))]
    assert errors[-1] < 1e-4
    assert abs(log2(errors[0] / errors[1]) - 4.0) < 0.1


def test_order_two_in_time():
    """Successive differences of traces on one grid."""
    w = {k: ricker(1.0, 1.0 / k, 2 * k, 1.0) for k in (20, 40, 80)}
    traces = [
        AcousticWave((21, 21), [[1.0, 1.0]], [[1.0, 1.4]], spacing=0.1, dt=1 / k, steps=2 * k, every=k // 20, wavelet=w[k],
                     layer=0, fastest=1.0, order=8)(torch.ones(1, 1, 21, 21, dtype=F64)) for k in w
    ]  # fmt: skip
    a, b = (float((p - q).norm()) for p, q in pairwise(traces))
    assert abs(log2(a / b) - 2.0) < 0.1


def test_higher_orders_need_fewer_points():
    """8 points per wavelength; measured 1.9e-1, 2.8e-2, 7.6e-3, 2.8e-3 at a time step that hardly counts."""
    errors = [error(8, 1.0 / 64, order) for order in (2, 4, 6, 8)]
    assert errors[0] > 5.0 * errors[1] and errors[1] > 2.0 * errors[2] and errors[2] > errors[3]


@pytest.mark.parametrize("surface", [False, True])
def test_derivatives_agree(surface):
    operator = tiny(surface=surface)
    c, t, v = velocity(operator), randn(operator.in_shape, "t"), randn(operator.out_shape, "v")
    y, pullback = operator.vjp(c)
    same, dy = operator.jvp(c, t)
    torch.testing.assert_close((y, same), (operator(c), operator(c)), rtol=0, atol=1e-14)
    assert bool(((dot(v, dy) - dot(pullback(v), t)).abs() < 1e-12 * norm(v) * norm(dy)).all())
    leaf = c.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(dot(operator(leaf), v).sum(), leaf)
    assert torch.equal(gradient, pullback(v))
    rests = [norm(operator(c + e * t) - y - e * dy) for e in (1e-3, 5e-4)]
    assert (rests[0] / rests[1]).log2().tolist() == pytest.approx([2.0, 2.0], abs=0.1)


def test_gradcheck():
    operator = AcousticWave(
        (4, 4), [[1.0, 1.0]], [[2.0, 2.5]], spacing=1.0, dt=0.2, steps=8, frequency=1.0, layer=3, fastest=1.6, memory="full"
    )
    c = velocity(operator, batch=1).requires_grad_()
    torch.autograd.gradcheck(operator, c, check_forward_ad=True)
    torch.autograd.gradgradcheck(operator, c, fast_mode=True)


def test_the_derivative_along_the_velocity_is_borns():
    """A small dent at one point scatters the incident field: p_1'' = c^2 lap p_1 + (2 dc / c) p_0''."""
    points, place = [[1.0, 2.0], [5.0, 4.0]], [3.0, 3.0]
    how = {"spacing": 1.0, "dt": 0.2, "steps": 80, "frequency": 0.3, "layer": 6, "fastest": 1.6}
    background = 1.2
    operator = AcousticWave((7, 6), points[:1], points[1:], **how)
    c = torch.full((1, 1, 7, 6), background, dtype=F64)
    dent = torch.zeros_like(c)
    dent[0, 0, 3, 3] = 1.0
    p = AcousticWave((7, 6), points[:1], [place], **how)(c)[0, 0, 0]
    p = torch.cat([torch.zeros(1, dtype=F64), p])
    # p_{n+1} - 2 p_n + p_{n-1} at n = 0, 1, ..., with p_0 = p_{-1} = 0
    bend = (p[1:] - 2.0 * p[:-1] + torch.cat([p[:1], p[:-2]])) / 0.2**2
    scattered = AcousticWave((7, 6), [place], points[1:], wavelet=2.0 * bend / background**3, **how)(c)
    torch.testing.assert_close(operator.jvp(c, dent)[1], scattered, rtol=0, atol=1e-14)


def test_the_gradient_is_the_same_under_every_memory_policy():
    gradients = []
    for memory, stretch in (
        ("full", 1),
        ("checkpoint(step)", 1),
        ("checkpoint(step)", None),
        ("revolve(3)", 3),
        ("offload", 7),
    ):
        operator = tiny(memory=memory, stretch=stretch)
        c = velocity(operator)
        y, pullback = operator.vjp(c)
        gradients.append((y, pullback(randn(operator.out_shape, "v"))))
    for y, gradient in gradients[1:]:
        assert torch.equal(y, gradients[0][0])
        torch.testing.assert_close(gradient, gradients[0][1], rtol=0, atol=1e-13 * float(gradient.abs().max()))


def test_residual_vanishes_on_its_own_field_alone():
    operator = tiny(surface=True)
    c = velocity(operator)
    u = operator.field(c)
    assert u.shape == (2, 2, 20, *operator.layers.full) and operator.inside(u).shape == (2, 2, 20, 7, 6)
    assert float(operator.residual(c, u).abs().max()) < 1e-14 * float(u.abs().max())
    assert float(operator.residual(1.01 * c, u).abs().max()) > 1e-3 * float(u.abs().max())
    wrong = u.clone()
    wrong[:, :, 9] += 0.1
    rest = operator.residual(c, wrong).abs().amax((0, 1, 3, 4))
    assert float(rest[:9].max()) < 1e-13 and float(rest[9]) == pytest.approx(0.1)
    assert torch.equal(operator.record(u), operator(c))
    with pytest.raises(ShapeError, match="expected a field"):
        operator.residual(c, u[:, :, 1:])


def test_shots_samples_and_receivers():
    """Each shot alone; every second sample; receivers of a shot; wavelets of a shot; a linear map of the wavelet."""
    operator = tiny()
    c, d = velocity(operator), tiny()(velocity(operator))
    for s in range(2):
        alone = AcousticWave((7, 6), SOURCES[s : s + 1], RECEIVERS, spacing=1.0, dt=0.2, steps=20, frequency=0.5, layer=3,
                             fastest=1.6, every=2)  # fmt: skip
        torch.testing.assert_close(alone(c), d[:, s : s + 1], rtol=0, atol=1e-15)
    torch.testing.assert_close(tiny(every=1)(c)[..., 1::2], d, rtol=0, atol=0)
    own = [RECEIVERS[:2], RECEIVERS[1:]]
    w = ricker(0.5, 0.2, 20)
    other = AcousticWave((7, 6), SOURCES, own, spacing=1.0, dt=0.2, steps=20, wavelet=torch.stack([w, -3.0 * w]), layer=3,
                         fastest=1.6, every=2)(c)  # fmt: skip
    torch.testing.assert_close(other[:, 0], d[:, 0, :2], rtol=0, atol=1e-15)
    torch.testing.assert_close(other[:, 1], -3.0 * d[:, 1, 1:], rtol=0, atol=1e-14)


def test_transforms_and_copies():
    operator = tiny()
    c, v = velocity(operator), randn(operator.out_shape, "v")
    torch.testing.assert_close(torch.vmap(operator)(c[:, None])[:, 0], operator(c), rtol=0, atol=1e-14)
    general = super(AcousticWave, operator).vjp(c)[1](v)
    torch.testing.assert_close(operator.vjp(c)[1](v), general, rtol=0, atol=1e-13 * float(general.abs().max()))
    scaled = (2.0 * operator).vjp(c)[1](v)
    torch.testing.assert_close(scaled, 2.0 * general, rtol=0, atol=1e-12 * float(general.abs().max()))
    for other in (copy.deepcopy(operator).float(), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(other(c), operator(c))
    assert not operator.state_dict()


def test_single_precision():
    """Relative gap to double over 400 steps; measured 9e-7."""
    operator = tiny(steps=400)
    c = velocity(operator)
    want, got = operator(c.float().double()), operator(c.float())
    assert got.dtype == torch.float32
    assert float((got - want).norm() / want.norm()) < 5e-6


def test_positions_of_a_line():
    assert line([1.0, 0.0], [3.0, 8.0], 3).tolist() == [[1.0, 0.0], [2.0, 4.0], [3.0, 8.0]]
    assert line([1.0, 2.0], [3.0, 8.0], 1).tolist() == [[1.0, 2.0]]


def test_wrong_arguments_are_named():
    for more in ({"order": 3}, {"layer": -1}, {"every": 3}, {"stretch": 0}, {"dt": 0.0}, {"fastest": 9.0}, {"order": 8}):
        with pytest.raises(ConfigError, match="AcousticWave"):
            tiny(**more)
    with pytest.raises(ShapeError, match="wavelet"):
        tiny(wavelet=torch.zeros(19))
    with pytest.raises(ConfigError, match="AcousticWave: expected a finite wavelet, 1 of its values are not"):
        tiny(wavelet=[0.0] * 19 + [float("nan")])
    with pytest.raises(ConfigError, match=r"receiver at .* outside"):
        tiny_at([[2.0, float("nan")]])
    with pytest.raises(ShapeError, match="sources"):
        AcousticWave((7, 6), [1.0, 2.0], RECEIVERS)
    with pytest.raises(ShapeError, match="for each source"):
        AcousticWave((7, 6), SOURCES, [RECEIVERS])
    with pytest.raises(ConfigError, match=r"receiver at .* outside"):
        AcousticWave((7, 6), SOURCES, [[65.0, 0.0]])
    with pytest.raises(ConfigError, match="line"):
        line([0.0, 0.0], [1.0, 1.0], 0)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        c = velocity(tiny())
        c[1, 0, 2, 3] = value
        with pytest.raises(DataError, match="item 1 "):
            tiny()(c)


def test_lists_are_as_precise_as_tensors():
    w = ricker(0.5, 0.2, 20)
    c = velocity(tiny())
    assert torch.equal(tiny(wavelet=w.tolist())(c), tiny(wavelet=w)(c))
