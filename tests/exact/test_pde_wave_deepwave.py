"""Acoustic waves against deepwave, an independent code for the same equation, where it is installed.

Its scheme of order 2 is ours, so that traces and gradients are the same numbers but for rounding; its differences of order 4
are not staggered, and its absorbing layers are others. Its source is f in lap p - p_tt / c^2 = f at a point, f = -w / h^2, and
its sample j is at the time j dt, ours at (j + 1) dt.
"""

from math import log2

import pytest
import torch

from invdiff.operators.pde.wave import AcousticWave, ricker

deepwave = pytest.importorskip("deepwave")
# walls where the pressure is zero are what is wanted
pytestmark = pytest.mark.filterwarnings("ignore:deepwave. zero-width")

F64 = torch.float64
# in wavelengths of the crest; on the points of all grids
SOURCES, RECEIVERS = [[1.25, 1.0], [0.5, 1.5]], [[1.25, 1.5], [0.625, 1.75], [1.5, 0.5]]


def medium(z, x):
    """Smooth, between 0.7 and 1.3."""
    return 1.0 + 0.2 * torch.sin(2.0 * z + x) + 0.1 * torch.cos(3.0 * x)


def uniform(z, x):
    return torch.ones_like(z + x)


def both(n, order, *, time, layer=0, speed=medium, size=2.5, shift=0.0):
    """Traces (shots, R, steps - 1) of both codes at dt, 2 dt, ..., n points per wavelength, and their pullbacks to velocity."""
    h, dt, count, steps = 1.0 / n, 0.25 / n, round(size * n) + 1, round(4 * n * time)
    w, z = ricker(1.0, dt, steps, 1.25), torch.arange(count, dtype=F64) * h
    at, to = (torch.tensor(p, dtype=F64) + shift for p in (SOURCES, RECEIVERS))
    c = speed(z[:, None], z[None])
    how = {"spacing": h, "dt": dt, "steps": steps, "wavelet": w, "order": order, "layer": layer, "fastest": float(c.max())}
    ours, pull = AcousticWave((count, count), at, to, **how, memory="full").vjp(c[None, None])
    given = c.clone().requires_grad_()
    theirs = deepwave.scalar(
        given,
        h,
        dt,
        source_amplitudes=(-w / h**2).expand(len(at), 1, steps),
        source_locations=(at * n).round().long()[:, None],
        receiver_locations=(to * n).round().long().expand(len(at), *to.shape),
        accuracy=order,
        pml_width=layer,
        pml_freq=1.0,
        max_vel=float(c.max()),
    ).receiver_amplitudes

    def our_gradient(v):
        return pull(torch.nn.functional.pad(v, (0, 1))[None])[0, 0]

    def their_gradient(v):
        return torch.autograd.grad(theirs, given, torch.nn.functional.pad(v, (1, 0)))[0]

    return (ours[0, ..., :-1], our_gradient), (theirs.detach()[..., 1:], their_gradient)


def apart(a, b):
    return float((a - b).norm() / a.norm())


def test_order_two_is_the_same_scheme_and_the_same_gradient():
    """Reflections at walls included; measured 3e-15 and 6e-15."""
    (ours, pull), (theirs, their_pull) = both(16, 2, time=3.0)
    assert apart(ours, theirs) < 1e-12
    v = torch.randn(ours.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert apart(pull(v), their_pull(v)) < 1e-11
    # a trace a step late is another one
    assert apart(ours[..., :-1], theirs[..., 1:]) > 0.05


def test_order_four_differs_by_its_error():
    """In a smooth medium, before anything returns from the walls; measured 2.9e-4, 2.0e-5, slope 3.87."""
    found = [both(n, 4, time=2.25, size=4.5, shift=1.0) for n in (16, 32)]
    errors = [apart(ours, theirs) for (ours, _), (theirs, _) in found]
    assert errors[1] < 1e-4
    assert abs(log2(errors[0] / errors[1]) - 4.0) < 0.3


@pytest.mark.parametrize("order", [2, 4])
def test_both_layers_let_waves_out(order):
    """Much longer than a wave takes to the walls; what is left are reflections of both codes.

    Measured for 10 and 20 points: 3.3e-3 and 2.5e-4 at order 2, 5.2e-4 and 4.7e-4 at order 4; without layers 0.9.
    """
    errors = {layer: apart(*(traces for traces, _ in both(16, order, time=5.0, layer=layer))) for layer in (10, 20)}
    walls = apart(*(traces for traces, _ in (both(16, order, time=5.0, layer=20)[0], both(16, order, time=5.0)[0])))
    assert errors[20] < 1e-3 < 1e-2 < walls
