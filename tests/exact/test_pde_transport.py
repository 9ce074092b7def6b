"""Advection and diffusion against manufactured and Fourier solutions, conservation laws, and dense algebra."""

import copy
import math
import pickle
from itertools import pairwise

import pytest
import torch

from invdiff.core import ConfigError, ShapeError, Streams, dot, norm
from invdiff.core.algebra import dense
from invdiff.operators.pde.poisson import Heat
from invdiff.operators.pde.transport import AdvectionDiffusion

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64 = torch.float64
PI = math.pi
KINDS = ["periodic", "dirichlet", "neumann"]


def randn(*shape, seed=0):
    return Streams(seed).normal(0, shape, "v", F64)[0]


def centres(n, length=1.0):
    return (torch.arange(n, dtype=F64) + 0.5) * (length / n)


def error(u, want):
    return float((u - want).norm() / want.norm())


def manufactured(grid, boundary, *, strength=0.5, length=1.0, **how):
    """u = exp(-t) phi, phi the product over the axes of a sine or cosine of wave number k with -lap phi = phi / kappa_0.

    In kappa = kappa_0 (1 + a g), v = kappa_0 a g grad(phi) / phi the terms in a cancel, and v is smooth for g = phi^2; it is
    zero at a wall. With s = phi it is u = phi, and with u(0) = 0, u = (1 - exp(-t)) phi.
    """
    kinds = (boundary,) * len(grid) if isinstance(boundary, str) else boundary
    k = [(2.0 if kind == "periodic" else 1.0) * PI / length for kind in kinds]
    kappa0 = 1.0 / sum(w * w for w in k)
    axes = [
        c.reshape([-1 if i == axis else 1 for i in range(len(grid))]) for axis, c in enumerate(centres(n, length) for n in grid)
    ]
    waves = [(w * x).cos() if kind == "neumann" else (w * x).sin() for w, x, kind in zip(k, axes, kinds, strict=True)]
    slopes = [-w * (w * x).sin() if kind == "neumann" else w * (w * x).cos() for w, x, kind in zip(k, axes, kinds, strict=True)]
    phi = math.prod(waves[1:], start=waves[0])
    velocity = torch.stack(
        [
            kappa0 * strength * math.prod([w.square() for j, w in enumerate(waves) if j != i], start=waves[i] * slopes[i])
            + torch.zeros(grid, dtype=F64)
            for i in range(len(grid))
        ]
    )
    kappa = kappa0 * (1.0 + strength * phi.square())
    return AdvectionDiffusion(grid, kappa, velocity, length=length, boundary=boundary, **how), phi[None, None]


@pytest.mark.parametrize("boundary", KINDS)
def test_central_fluxes_and_steps_together_are_of_order_two(boundary):
    errors = []
    for n in (16, 32, 64):
        operator, phi = manufactured((n, n + n // 2), boundary, time=1.0, steps=n // 2, length=1.3)
        errors.append(error(operator(phi), math.exp(-1.0) * phi))
    assert errors[-1] < 1e-2
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - 2.0) < 0.1


@pytest.mark.parametrize("boundary", KINDS)
def test_order_in_space_alone(boundary):
    """On a line, with steps so short that what they miss, T h^2 / 12 = 5e-7, is a hundredth of the rest."""
    errors = []
    for n in (32, 64, 128):
        operator, phi = manufactured((n,), boundary, time=1.0, steps=400, strength=0.9)
        errors.append(error(operator(phi), math.exp(-1.0) * phi))
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - 2.0) < 0.1


def test_order_in_time_alone():
    """Against many steps on the same grid."""
    _, phi = manufactured((24,), "dirichlet")
    runs = [manufactured((24,), "dirichlet", steps=s)[0](phi) for s in (4, 8, 16, 512)]
    errors = [error(run, runs[-1]) for run in runs[:-1]]
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - 2.0) < 0.1


@pytest.mark.parametrize("boundary", KINDS)
def test_upwind_fluxes_are_of_order_one(boundary):
    """At 64 cells and more, where the diffusion of the scheme, |w| d / 2, is small beside kappa."""
    errors = []
    for n in (64, 128, 256):
        operator, phi = manufactured((n,), boundary, time=1.0, steps=64, strength=4.0, advection="upwind")
        errors.append(error(operator(phi), math.exp(-1.0) * phi))
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - 1.0) < 0.1


def test_a_source_is_balanced_and_builds_up():
    """s = phi keeps phi, and raises zero to (1 - exp(-t)) phi, at the order of the scheme."""
    errors = []
    for n in (16, 32):
        operator, phi = manufactured((n, n), ("dirichlet", "neumann"), time=2.0, steps=n, save=2, source=True)
        both = operator(torch.cat([phi, phi], 1))
        built = operator(torch.cat([0.0 * phi, phi], 1))
        decay = torch.tensor([1.0, 2.0], dtype=F64).neg().exp()[None, :, None, None]
        errors.append((error(both, phi.expand_as(both)), error(built, (1.0 - decay) * phi)))
    for coarse, fine in zip(*errors, strict=True):
        assert abs(math.log2(coarse / fine) - 2.0) < 0.1 and fine < 1e-2


def test_a_wave_is_carried_and_damped():
    """exp(-kappa k^2 t) sin(k (x - v t)), v and kappa constant, around a period; and along each axis alike."""
    errors, k = [], 2 * PI / 1.5
    for n in (32, 64, 128):
        x, v, kappa = centres(n, 1.5), 0.7, 0.01
        operator = AdvectionDiffusion((n,), kappa, [v], length=1.5, time=1.0, steps=n)
        want = math.exp(-kappa * k * k) * (k * (x - v)).sin()
        errors.append(error(operator((k * x).sin()[None, None])[0, 0], want))
        plane = AdvectionDiffusion((4, n), kappa, [0.3, v], length=1.5, time=1.0, steps=n)
        carried = operator((k * x).sin()[None, None])[0, 0]
        torch.testing.assert_close(plane((k * x).sin().expand(1, 1, 4, n))[0, 0, 1], carried)
        other = AdvectionDiffusion((n, 4), kappa, [v, 0.3], length=1.5, time=1.0, steps=n)
        turned = other((k * x).sin()[:, None].expand(1, 1, n, 4))[0, 0, :, 1]
        torch.testing.assert_close(turned, carried)
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - 2.0) < 0.1


@pytest.mark.parametrize("boundary", KINDS)
def test_modes_decay_as_crank_nicolson_says(boundary):
    """By ((1 - z / 2) / (1 + z / 2))^steps, z = kappa lambda h, lambda = 4 sin^2(k d / 2) / d^2, for waves the walls allow."""
    n, steps, kappa, x = 20, 6, 0.3, centres(20)
    k = 2 * PI * 3 if boundary == "periodic" else 3 * PI
    wave = (k * x).sin() if boundary == "dirichlet" else (k * x).cos()
    z = kappa * 4 * n**2 * math.sin(k / n / 2) ** 2 * 0.1 / steps
    got = AdvectionDiffusion((n,), kappa, boundary=boundary, time=0.1, steps=steps)(wave[None, None])[0, 0]
    want = ((1 - z / 2) / (1 + z / 2)) ** steps * wave
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("boundary", ["periodic", "neumann"])
def test_it_is_heat_where_kappa_is_constant_and_nothing_moves(boundary):
    """Against the exact exponential of the same stencil: what is left is of order two in time."""
    smooth = Heat((1, 12, 9), 1.0, 0.003, boundary=boundary, scheme="5-point")(randn(2, 1, 12, 9))
    want = Heat((1, 12, 9), 0.2, 0.05, length=(1.0, 1.3), boundary=boundary, scheme="5-point")(smooth)
    errors = []
    for steps in (16, 32, 64):
        operator = AdvectionDiffusion((12, 9), 0.2, length=(1.0, 1.3), boundary=boundary, time=0.05, steps=steps)
        errors.append(error(operator(smooth), want))
    assert errors[-1] < 1e-4
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - 2.0) < 0.1


@pytest.mark.parametrize("advection", ["central", "upwind"])
@pytest.mark.parametrize("boundary", ["periodic", "neumann", ("neumann", "periodic")])
def test_mass_is_kept(boundary, advection):
    """Any velocity, not only one free of divergence; a source adds its own."""
    kappa, v, u = 0.02 * randn(9, 7).exp(), 0.3 * randn(2, 9, 7, seed=1), randn(3, 1, 9, 7, seed=2) + 1.0
    how = {"boundary": boundary, "advection": advection, "time": 0.7, "steps": 12, "save": 3}
    got = AdvectionDiffusion((9, 7), kappa, v, **how)(u)
    torch.testing.assert_close(got.sum((2, 3)), u.sum((2, 3)).expand(3, 3), rtol=1e-12, atol=1e-12)
    assert float((got[:, -1:] - u).norm() / u.norm()) > 0.1
    s = randn(3, 1, 9, 7, seed=3)
    got = AdvectionDiffusion((9, 7), kappa, v, source=True, **how)(torch.cat([u, s], 1))
    times = 0.7 * torch.tensor([1.0, 2.0, 3.0], dtype=F64) / 3
    torch.testing.assert_close(got.sum((2, 3)), u.sum((2, 3)) + s.sum((2, 3)) * times, rtol=1e-12, atol=1e-12)


def test_upwind_is_monotone_and_walls_let_out_what_arrives():
    """A step is a positive combination of cells for h K_ii <= 2; a wall at which v points out empties the box."""
    kappa, v, u = 0.005 * randn(8, 6).exp(), 0.4 * randn(2, 8, 6, seed=1), randn(4, 1, 8, 6, seed=2).abs()
    for boundary in KINDS:
        operator = AdvectionDiffusion((8, 6), kappa, v, boundary=boundary, advection="upwind", time=0.5, steps=20)
        assert float(operator.matrix.diagonal().max()) * 0.5 / 20 < 2.0
        got = operator(u)
        assert float(got.min()) >= 0.0
        if boundary == "dirichlet":
            assert bool((got.sum((2, 3)) < u.sum((2, 3))).all())
    out = AdvectionDiffusion((32,), 0.0, [1.0], boundary="dirichlet", advection="upwind", time=3.0, steps=300)
    assert float(out(torch.ones(1, 1, 32, dtype=F64)).max()) < 1e-6


def test_swirls_keep_the_energy_without_diffusion():
    """psi = cos x cos y has an antisymmetric K with central fluxes, and Crank-Nicolson is then orthogonal."""
    n = 12
    x = 2 * PI * centres(n)
    v = torch.stack([x.cos()[:, None] * -x.sin(), x.sin()[:, None] * x.cos()])
    operator = AdvectionDiffusion((n, n), 0.0, v, time=1.0, steps=10)
    u = randn(2, 1, n, n)
    torch.testing.assert_close(norm(operator(u)), norm(u), rtol=1e-12, atol=0)
    torch.testing.assert_close(operator(torch.ones_like(u)), torch.ones_like(u), rtol=0, atol=1e-12)


def test_a_layer_without_diffusion_is_not_crossed():
    """A harmonic face of a cell of kappa = 0 lets nothing through."""
    kappa = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0], dtype=F64)
    u = torch.tensor([1.0, 0.0, 5.0, 0.0, 0.0], dtype=F64)
    got = AdvectionDiffusion((5,), kappa, boundary="neumann", time=10.0, steps=400)(u[None, None])[0, 0]
    torch.testing.assert_close(got, torch.tensor([0.5, 0.5, 5.0, 0.0, 0.0], dtype=F64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("source", [False, True])
@pytest.mark.parametrize("save", [1, 2, 4])
@pytest.mark.parametrize("boundary", KINDS)
def test_adjoint_and_residual(boundary, save, source):
    kappa, v = 0.05 * randn(6, 5).exp(), 0.5 * randn(2, 6, 5, seed=1)
    operator = AdvectionDiffusion((6, 5), kappa, v, boundary=boundary, time=0.5, steps=4, save=save, source=source)
    x, y = randn(3, *operator.in_shape), randn(3, *operator.out_shape, seed=1)
    u = operator(x)
    gap = (dot(u, y) - dot(x, operator.adjoint(y))).abs()
    assert bool((gap <= 1e-12 * norm(u) * norm(y)).all())
    assert float(operator.residual(x, u).abs().max()) < 1e-12 * float(x.abs().max())
    assert float(operator.residual(x, 1.01 * u).abs().max()) > 1e-4
    # the pullback is the adjoint, and the map linear: its Taylor remainder is rounding
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(dot(operator(leaf), y).sum(), leaf)[0], operator.adjoint(y), rtol=0, atol=0)
    v = randn(*x.shape, seed=5)
    _, tangent = operator.jvp(x, v)
    torch.testing.assert_close(operator(x + v) - u, tangent, rtol=0, atol=1e-13)


def test_against_dense_algebra():
    operator = AdvectionDiffusion((4, 5), 0.1, [0.3, -0.4], boundary=("dirichlet", "neumann"), time=0.4, steps=3)
    k = torch.from_numpy(operator.matrix.toarray())
    eye, h = torch.eye(20, dtype=F64), 0.4 / 3
    step = torch.linalg.solve(eye + 0.5 * h * k, eye - 0.5 * h * k)
    torch.testing.assert_close(dense(operator), torch.linalg.matrix_power(step, 3), rtol=0, atol=1e-13)


def test_copies_and_single_precision():
    operator = AdvectionDiffusion((6, 5), 0.1 * randn(6, 5).exp(), [0.3, -0.4], time=0.4, steps=3)
    x = randn(2, 1, 6, 5)
    want = operator(x)
    for other in (copy.deepcopy(operator).float(), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(other(x), want)
    got = operator(x.float())
    assert got.dtype == torch.float32 and error(got, want) < 1e-7


def test_what_is_refused_is_named():
    with pytest.raises(ShapeError, match="one or two axes"):
        AdvectionDiffusion((4, 4, 4), 1.0)
    with pytest.raises(ConfigError, match="one length and one boundary"):
        AdvectionDiffusion((4, 4), 1.0, boundary="robin")
    with pytest.raises(ConfigError, match="advection of central, upwind"):
        AdvectionDiffusion((4,), 1.0, advection="lax")
    with pytest.raises(ConfigError, match="save >= 1 that divides"):
        AdvectionDiffusion((4,), 1.0, steps=5, save=2)
    with pytest.raises(ConfigError, match="diffusivity >= 0"):
        AdvectionDiffusion((4,), torch.tensor([1.0, -1.0, 1.0, 1.0]))
    with pytest.raises(ConfigError, match="finite velocity"):
        AdvectionDiffusion((4,), 1.0, [math.nan])
    with pytest.raises(ShapeError, match=r"expected a velocity \(1, 4\)"):
        AdvectionDiffusion((4,), 1.0, [1.0, 2.0])
    with pytest.raises(ShapeError, match="as diffusivity"):
        AdvectionDiffusion((4,), torch.ones(5))
    with pytest.raises(ShapeError, match="AdvectionDiffusion: expected x"):
        AdvectionDiffusion((4,), 1.0)(torch.zeros(1, 1, 5))
