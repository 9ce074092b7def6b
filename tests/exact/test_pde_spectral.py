"""Spectral solvers against closed forms, invariants, their order, and finite differences of their derivative."""

import copy
import pickle
from math import exp, factorial, log2, pi

import pytest
import torch

from invdiff.core import ConfigError, NumericalError, ShapeError, Streams, dot
from invdiff.operators import Mask
from invdiff.operators.pde.spectral import ETDRK4, Burgers, Evolution, KdV, KuramotoSivashinsky
from invdiff.operators.pde.vorticity import NavierStokes2D, kolmogorov

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

TAU = 2.0 * pi
TINY = {
    "burgers": lambda **more: Burgers(16, 0.1, **{"length": TAU, "steps": 12, **more}),
    "kdv": lambda **more: KdV(16, **{"length": 10.0, "time": 0.5, "steps": 12, **more}),
    "ks": lambda **more: KuramotoSivashinsky(16, **{"time": 2.0, "steps": 12, **more}),
    "navier_stokes": lambda **more: NavierStokes2D((8, 10), 0.02, **{"forcing": kolmogorov((8, 10), 1), "steps": 12, **more}),
}


@pytest.fixture(params=TINY)
def tiny(request):
    return TINY[request.param]


def grid(n, length=TAU):
    return torch.arange(n, dtype=torch.float64) * length / n


def draw(operator, name, side="x", batch=2):
    shape = operator.in_shape if side == "x" else operator.out_shape
    return 0.5 * Streams(0, batch).normal(0, shape, name, torch.float64)


def order(make, u, steps):
    """log2 of the ratio of two successive differences, of `steps`, twice and four times as many."""
    a, b, c = (make(steps * 2**i)(u) for i in range(3))
    return log2(float((a - b).norm() / (b - c).norm()))


def cole_hopf(n, nu, time, fine=1024):
    """u = -2 nu phi_x / phi, phi the heat flow of exp((cos x - 1) / (2 nu)), which makes u(0) = sin x."""
    k = torch.arange(fine // 2 + 1, dtype=torch.float64)
    hat = torch.fft.rfft(torch.exp((grid(fine).cos() - 1.0) / (2.0 * nu))) * torch.exp(-nu * k**2 * time)
    phi, slope = torch.fft.irfft(hat, n=fine), torch.fft.irfft(1j * k * hat, n=fine)
    return (-2.0 * nu * slope / phi)[:: fine // n]


def test_coefficients_against_their_series():
    """sum z^j / (j + 1)!, ... near 0, where the written formulas lose every digit, and the formulas where they do not."""
    z = torch.tensor([0.0, -1e-7, -1e-2, -0.4, -1.0], dtype=torch.float64)
    h = 0.5
    e, half, q, f1, f2, f3 = ETDRK4(z / h, h).constants(z)
    phi = [sum(z**j / float(factorial(j + m)) for j in range(30)) for m in range(4)]
    phi_half = sum((z / 2.0) ** j / float(factorial(j + 1)) for j in range(30))
    want = (phi_half / 2.0, phi[1] - 3.0 * phi[2] + 4.0 * phi[3], phi[2] - 2.0 * phi[3], -phi[2] + 4.0 * phi[3])
    for got, exact in zip((q, f1, f2, f3), want, strict=True):
        torch.testing.assert_close(got / h, exact, rtol=0, atol=1e-13)
    far = torch.tensor([-30.0, -2e4], dtype=torch.float64)
    f1 = ETDRK4(far, 1.0).constants(far)[3]
    torch.testing.assert_close(f1, (-4.0 - far + far.exp() * (4.0 - 3.0 * far + far**2)) / far**3, rtol=1e-12, atol=0)
    torch.testing.assert_close((e, half), (z.exp(), (z / 2.0).exp()), rtol=1e-15, atol=0)


def test_burgers_is_cole_hopf():
    u0 = grid(256).sin()[None, None]
    got = Burgers(256, 0.1, length=TAU, time=1.0, steps=256, save=2)(u0)[0]
    torch.testing.assert_close(got[0], cole_hopf(256, 0.1, 0.5), rtol=0, atol=1e-9)
    torch.testing.assert_close(got[1], cole_hopf(256, 0.1, 1.0), rtol=0, atol=1e-9)


def test_burgers_is_of_order_4():
    u0, exact = grid(256).sin()[None, None], cole_hopf(256, 0.1, 1.0)
    errors = [float((Burgers(256, 0.1, length=TAU, steps=s)(u0)[0, 0] - exact).norm()) for s in (64, 128)]
    assert abs(log2(errors[0] / errors[1]) - 4.0) < 0.15


def test_units_of_length_and_time():
    """u(x, t) of period 1 is u(2 pi x, 2 pi t) of period 2 pi, with nu / (2 pi)."""
    u0 = draw(Burgers(32, 0.1), "u")
    long = Burgers(32, 0.1 * TAU, length=TAU, time=0.1 * TAU, steps=64)(u0)
    torch.testing.assert_close(Burgers(32, 0.1, length=1.0, time=0.1, steps=64)(u0), long, rtol=0, atol=1e-13)


def test_kdv_soliton():
    """Shape and phase; the period cuts its tails at 4 exp(-sqrt(2) 20) = 2e-12."""
    length, n, c = 40.0, 256, 2.0
    x = grid(n, length)

    def soliton(t):
        return (c / 2.0 / torch.cosh(c**0.5 / 2.0 * (torch.remainder(x - c * t, length) - length / 2.0)) ** 2)[None, None]

    errors = [float((KdV(n, length=length, time=2.0, steps=s)(soliton(0.0)) - soliton(2.0)).norm()) for s in (128, 256)]
    assert abs(log2(errors[0] / errors[1]) - 4.0) < 0.15
    got = KdV(n, length=length, time=2.0, steps=1024)(soliton(0.0))
    torch.testing.assert_close(got, soliton(2.0), rtol=0, atol=1e-9)


def test_kdv_invariants():
    """Mass of two colliding solitons to rounding, momentum and energy to the order of the steps."""
    length, n = 40.0, 256
    x = grid(n, length)
    u0 = sum(c / 2.0 / torch.cosh(c**0.5 / 2.0 * (x - s)) ** 2 for c, s in ((3.0, 12.0), (1.0, 18.0)))
    k = TAU * torch.fft.rfftfreq(n, length / n, dtype=torch.float64)

    def invariants(u):
        slope = torch.fft.irfft(1j * k * torch.fft.rfft(u), n=n)
        return torch.stack((u.mean(-1), (u**2).mean(-1), (u**3 - slope**2 / 2.0).mean(-1)))

    drifts = []
    for steps in (512, 1024):
        got = KdV(n, length=length, time=4.0, steps=steps)(u0[None, None])[0, 0]
        assert float((got - u0).abs().max()) > 0.5
        drifts.append((invariants(got) / invariants(u0) - 1.0).abs())
    assert float(drifts[1][0]) < 1e-14
    assert bool((drifts[1] < 1e-7).all())
    assert bool((drifts[0][1:] > 16.0 * drifts[1][1:]).all())


def test_kuramoto_sivashinsky_growth_and_energy():
    """A small mode grows by exp((k^2 - k^4) t); d/dt |u|^2 / 2 = |u_x|^2 - |u_xx|^2, by Simpson's rule."""
    n, length, time, save = 48, 22.0, 5.0, 200
    x, k = grid(n, length), TAU * torch.fft.rfftfreq(n, length / n, dtype=torch.float64)
    for mode in (1, 2, 5):
        u0 = 1e-7 * (k[mode] * x).cos()[None, None]
        grown = KuramotoSivashinsky(n, length=length, time=time, steps=50)(u0)
        torch.testing.assert_close(grown, u0 * exp(float(k[mode] ** 2 - k[mode] ** 4) * time), rtol=0, atol=3e-13)
    u0 = ((k[1] * x).cos() * (1.0 + (k[1] * x).sin()))[None, None]
    u = torch.cat((u0, KuramotoSivashinsky(n, length=length, time=time, steps=800, save=save)(u0)), 1)[0]
    hat = torch.fft.rfft(u)
    rate = sum(s * torch.fft.irfft(hat * k**p, n=n).square().sum(-1) for s, p in ((1.0, 1), (-1.0, 2)))
    weights = torch.tensor([1.0] + [4.0, 2.0] * (save // 2 - 1) + [4.0, 1.0], dtype=torch.float64) * time / save / 3.0
    change = (u[-1].square().sum() - u[0].square().sum()) / 2.0
    assert float(change) > 1.0
    torch.testing.assert_close(change, (weights * rate).sum(), rtol=0, atol=1e-4)


def test_kuramoto_sivashinsky_is_of_order_4():
    x = grid(32)
    u0 = (x.cos() * (1.0 + x.sin()) + 0.5 * (3.0 * x).sin())[None, None]
    assert abs(order(lambda s: KuramotoSivashinsky(32, time=2.5, steps=s), u0, 250) - 4.0) < 0.15


def test_derivatives_agree(tiny):
    """<v, J t> = <J^T v, t>; autograd's backward is the pullback; gradcheck."""
    operator = tiny(save=2)
    x, t, v = draw(operator, "x"), draw(operator, "t"), draw(operator, "v", "y")
    y, pullback = operator.vjp(x)
    same, dy = operator.jvp(x, t)
    torch.testing.assert_close((y, same), (operator(x), operator(x)), rtol=0, atol=1e-13)
    left, right = dot(v, dy), dot(pullback(v), t)
    assert float(((left - right).abs() / left.abs()).max()) < 1e-12
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(dot(operator(leaf), v).sum(), leaf)
    assert torch.equal(gradient, pullback(v))
    torch.autograd.gradcheck(operator, leaf[:1].detach().requires_grad_(), fast_mode=True)


def test_taylor_remainder_is_of_second_order(tiny):
    operator = tiny()
    x, t = draw(operator, "x"), draw(operator, "t")
    y, dy = operator.jvp(x, t)
    rests = [float((operator(x + e * t) - y - e * dy).norm()) for e in (1e-2, 5e-3)]
    assert abs(log2(rests[0] / rests[1]) - 2.0) < 0.1


def test_the_gradient_is_the_same_under_every_memory_policy(tiny):
    gradients = []
    for memory in ("full", "checkpoint(step)", "revolve(3)"):
        operator = tiny(memory=memory, save=2)
        gradients.append(operator.vjp(draw(operator, "x"))[1](draw(operator, "v", "y")))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", ["checkpoint(step)", "checkpoint(step, 8)", "revolve(2)"])
def test_a_subclass_that_learns_gets_its_gradient(memory):
    """Steps without parameters are recomputed by a way that would not reach them."""

    class Damped(Burgers):
        def __init__(self, memory):
            super().__init__(16, 0.1, length=TAU, steps=12, memory=memory)
            self.rate_of_loss = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def step(self, u):
            return super().step(u) * (1.0 - self.rate_of_loss * self.time / self.steps)

    def gradient(memory):
        damped = Damped(memory)
        damped(draw(damped, "x")).square().sum().backward()
        return damped.rate_of_loss.grad

    expected = gradient("full")
    assert abs(expected) > 1.0
    torch.testing.assert_close(gradient(memory), expected, rtol=1e-12, atol=0.0)


def test_transforms_and_compositions(tiny):
    """Seen by sensors, and under vmap; a pullback has a derivative of its own."""
    operator = tiny()
    x, v = draw(operator, "x"), draw(operator, "v", "y")
    sensors = Mask(Streams(1).uniform(0, operator.out_shape)[0] > 0.5, operator.out_shape)
    want = operator.vjp(x)[1](sensors(v))
    torch.testing.assert_close((sensors @ operator).vjp(x)[1](v), want, rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.vmap(operator)(x[:, None])[:, 0], operator(x), rtol=0, atol=1e-13)
    leaf = x.clone().requires_grad_()
    general = super(Evolution, operator).vjp
    second = [torch.autograd.grad(back(v).square().sum(), leaf)[0] for back in (operator.vjp(leaf)[1], general(leaf)[1])]
    torch.testing.assert_close(second[0], second[1], rtol=1e-11, atol=1e-12)
    assert float(second[0].norm()) > 1e-3


def test_residual_vanishes_on_the_solution_alone(tiny):
    operator = tiny(save=3)
    x = draw(operator, "x")
    u = operator(x)
    assert float(operator.residual(x, u).abs().max()) < 1e-14
    assert float(operator.residual(x + 0.1, u)[:, 0].abs().max()) > 1e-2
    assert float(operator.residual(x + 0.1, u)[:, 1:].abs().max()) < 1e-14


def test_saved_times_are_those_of_a_shorter_run(tiny):
    operator = tiny(save=4)
    x = draw(operator, "x")
    short = tiny(steps=6, time=operator.time / 2.0)(x)
    torch.testing.assert_close(operator(x)[:, 1:2], short, rtol=0, atol=1e-13)
    torch.testing.assert_close(operator(x)[:, 3:], tiny()(x), rtol=0, atol=0)


def test_items_are_independent_and_casts_lose_nothing(tiny):
    operator = tiny()
    x = draw(operator, "x", batch=3)
    want = operator(x)
    torch.testing.assert_close(torch.cat([operator(v[None]) for v in x]), want, rtol=0, atol=1e-14)
    for other in (copy.deepcopy(operator).float(), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(other(x), want)
    assert not operator.state_dict()


def test_single_precision(tiny):
    """Relative gap to double; measured 4e-7 (Burgers), 6e-7 (KdV), 6e-7 (KS), 2e-7 (Navier-Stokes)."""
    operator = tiny()
    x = draw(operator, "x")
    want, got = operator(x), operator(x.float())
    assert got.dtype == torch.float32
    assert float((got - want).norm() / want.norm()) < 2e-6


def test_too_fast_a_state_is_refused():
    operator = Burgers(32, 0.01, length=TAU, time=1.0, steps=10)
    slow = draw(operator, "x", batch=3) * 0.1
    fast = slow.clone()
    fast[1, 0, 0] = 5.0
    assert operator.courant(fast).tolist()[1] == pytest.approx(5.0 * 10 / 10)
    with pytest.raises(NumericalError, match=r"Burgers.*steps >= 18"):
        operator(fast)
    Burgers(32, 0.01, length=TAU, time=1.0, steps=18)(fast)
    fast[1, 0, 0] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        operator(fast)


def test_wrong_arguments_are_named():
    for call in (
        lambda: Burgers(32, -0.1),
        lambda: Burgers(32, 0.1, length=0.0),
        lambda: Burgers(2, 0.1),
        lambda: KdV(32, steps=10, save=3),
        lambda: KuramotoSivashinsky(32, time=0.0),
        lambda: NavierStokes2D((8, 8), -1.0),
        lambda: NavierStokes2D((8, 8), 0.1, length=(1.0, -1.0)),
    ):
        with pytest.raises(ConfigError, match="expected"):
            call()
    with pytest.raises(ShapeError, match="forcing"):
        NavierStokes2D((8, 8), 0.1, forcing=torch.zeros(8, 9))
    with pytest.raises(ShapeError, match="Burgers"):
        Burgers(32, 0.1)(torch.zeros(1, 1, 31))
