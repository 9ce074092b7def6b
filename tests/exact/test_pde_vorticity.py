"""The vorticity equation against closed forms, its invariants and its order; its derivative in `test_pde_spectral`."""

from math import exp, log2, pi

import torch

from invdiff.core import Streams
from invdiff.operators.pde.vorticity import NavierStokes2D, kolmogorov

TAU = 2.0 * pi


def grid(n):
    return torch.arange(n, dtype=torch.float64) * TAU / n


def smooth(n, batch=1, scale=2.0):
    """A random vorticity of zero mean with the spectrum exp(-k^2 / 8), of standard deviation `scale`."""
    white = torch.fft.rfft2(Streams(3, batch).normal(0, (1, n, n), dtype=torch.float64))
    k = torch.fft.fftfreq(n, 1.0 / n, dtype=torch.float64), torch.fft.rfftfreq(n, 1.0 / n, dtype=torch.float64)
    white *= torch.exp(-(k[0][:, None] ** 2 + k[1] ** 2) / 8.0)
    white[..., 0, 0] = 0.0
    w = torch.fft.irfft2(white, s=(n, n))
    return scale * w / w.std()


def test_taylor_green_decays_exactly():
    x, k, nu = grid(32), 2, 0.05
    w = (2.0 * k * (k * x[:, None]).cos() * (k * x).cos())[None, None]
    got = NavierStokes2D((32, 32), nu, time=1.0, steps=16)(w)
    torch.testing.assert_close(got, w * exp(-2.0 * nu * k**2), rtol=0, atol=1e-12)


def test_laminar_kolmogorov_flow_is_steady():
    """nu (4 pi / L_y)^2 w = f of two waves, on a rectangle."""
    size, length, nu = (24, 16), (4.0 * pi, TAU), 0.1
    f = kolmogorov(size, 2, 0.3)
    operator = NavierStokes2D(size, nu, forcing=f, length=length, time=2.0, steps=16)
    w = (f / nu)[None, None]
    torch.testing.assert_close(operator(w), w, rtol=0, atol=1e-12)


def test_advection_has_the_right_sign_and_factor():
    """w = cos x + cos 2 y: u = -sin(2 y) / 2, v = sin x, w_t = (3 / 2) sin x sin 2 y; a difference of order 2, h = 1e-3."""
    y, x, h = grid(16)[:, None], grid(24), 1e-3
    w = (x.cos() + (2.0 * y).cos())[None, None]
    operator = NavierStokes2D((16, 24), 0.0, time=h, steps=2, save=2)
    middle, last = operator(w)[:, :1], operator(w)[:, 1:]
    slope = (4.0 * middle - 3.0 * w - last) / h
    torch.testing.assert_close(slope, (1.5 * x.sin() * (2.0 * y).sin())[None, None], rtol=0, atol=2e-6)
    want = torch.stack((-(2.0 * y).sin() / 2.0 + 0.0 * x, x.sin() + 0.0 * y))[None]
    torch.testing.assert_close(operator.velocity(w), want, rtol=0, atol=1e-14)


def test_inviscid_flow_keeps_energy_and_enstrophy():
    w, drifts = smooth(32, scale=1.5), []
    keep = NavierStokes2D((32, 32), 0.0).constants(w)[0][0].real
    w = torch.fft.irfft2(torch.fft.rfft2(w) * keep, s=(32, 32))
    for steps in (64, 128):
        operator = NavierStokes2D((32, 32), 0.0, time=1.0, steps=steps)
        late = operator(w)
        assert float((late - w).norm() / w.norm()) > 0.1
        energy, enstrophy = (operator.velocity(late), operator.velocity(w)), (late, w)
        drifts.append([abs(float(a.square().sum() / b.square().sum()) - 1.0) for a, b in (energy, enstrophy)])
    assert max(drifts[0]) < 1e-7
    assert drifts[1][1] < drifts[0][1] / 16.0


def test_navier_stokes_is_of_order_4():
    f = kolmogorov((32, 32))
    a, b, c = (NavierStokes2D((32, 32), 0.01, forcing=f, steps=s)(smooth(32)) for s in (32, 64, 128))
    assert abs(log2(float((a - b).norm() / (b - c).norm())) - 4.0) < 0.15
