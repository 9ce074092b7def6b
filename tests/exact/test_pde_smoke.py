"""Incompressible smoke against exact flows and finite differences, and the laws its scheme keeps."""

import copy
import math
import pickle
from itertools import pairwise

import pytest
import torch

from invdiff.core import ConfigError, NumericalError, ShapeError, Streams, dot, norm
from invdiff.generators.smoke import SmokeControl
from invdiff.operators.pde.smoke import Smoke, bucket_share
from invdiff.operators.pde.smoke_grid import rectangles

# torch.func.jvp loads decompositions that torch itself still compiles by the deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64 = torch.float64
TRACES = ["euler", "midpoint"]
SIZE = (8, 9)
# an obstacle of one and one of many cells, an outlet at the border and one inside, and a closed chamber in the corner
WALLS = rectangles(SIZE, [(2, 3, 3, 2), (6, 6, 1, 1), (5, 0, 1, 2), (6, 2, 2, 1)])
EXITS = rectangles(SIZE, [(7, 4, 1, 2), (3, 7, 1, 1)])


def white(shape, purpose, batch=2, seed=0):
    return Streams(seed, batch).normal(0, shape, purpose, F64)


def flat(u, v):
    return torch.cat([u.flatten(1), v.flatten(1)], 1)


def smoke(**options):
    """Six small steps with everything switched on."""
    defaults = {"obstacles": WALLS, "outlets": EXITS, "length": (8.0, 9.0), "steps": 6, "save": 3, "controls": 2}
    return Smoke(SIZE, **{**defaults, "velocity": None, "buoyancy": 0.7, "fields": "all", **options})


def state(operator, batch=2, seed=0):
    """A positive density, controls and velocities of size one."""
    x = white(operator.in_shape, "x", batch, seed)
    return torch.cat([x[:, :1].abs(), x[:, 1:]], 1)


def channel(n, m, depth, **options):
    """Open at both ends along x."""
    return Smoke((n, m), outlets=rectangles((n, m), [(0, 0, n, depth), (0, m - depth, n, depth)]), length=(n, m), **options)


def test_a_constant_velocity_in_a_closed_box_is_a_gradient():
    operator = Smoke(SIZE, obstacles=WALLS, velocity=(0.3, -0.7))
    _, u, v = operator.trajectory(state(operator))
    assert float(flat(u, v).abs().max()) < 1e-14


@pytest.mark.parametrize("trace", TRACES)
def test_a_constant_velocity_moves_a_linear_density_exactly(trace):
    """By 1.3 cells a step, for 5 steps; outlets cover the ends."""
    n, m, speed, time = 4, 24, 1.3, 5.0
    operator = channel(n, m, 2, velocity=(speed, 0.0), time=time, steps=5, fields="all", trace=trace)
    y, x = torch.arange(n, dtype=F64)[:, None], torch.arange(m, dtype=F64)
    out = operator((2.0 + 0.3 * x - 0.2 * y)[None, None])[0]
    want = 2.0 + 0.3 * (x - speed * time) - 0.2 * y
    torch.testing.assert_close(out[0, :, 12:-2], want[:, 12:-2], rtol=0, atol=1e-13)
    torch.testing.assert_close(out[1], torch.full((n, m), speed, dtype=F64), rtol=0, atol=1e-13)
    assert float(out[2].abs().max()) < 1e-13


@pytest.mark.parametrize(("depth", "speed"), [(1, 0.8), (2, 1.7)])
def test_outlets_count_what_leaves(depth, speed):
    """As deep as a step goes far, they receive all that is missing in the air; the inflow brings nothing."""
    operator = channel(4, 16, depth, velocity=(speed, 0.0), time=20.0, steps=20, save=20)
    x = torch.zeros(1, 1, 4, 16, dtype=F64)
    x[:, :, :, 6:10] = white((1, 4, 4), "rho", 1).abs()
    frames = operator(x)
    torch.testing.assert_close(frames.sum((-2, -1)), x.sum((-2, -1)).expand(1, 20), rtol=1e-13, atol=0)
    ends = torch.stack([rectangles((4, 16), [(0, a, 4, depth)]) for a in (0, 16 - depth)])
    into, out = (bucket_share(frames, e)[0] for e in ends)
    assert bool((out.diff() >= -1e-15).all()) and float(out[0]) == 0.0 and float(out[-1]) > 0.9
    assert float(into.max()) == 0.0
    air = bucket_share(frames, ~ends.any(0))[0]
    torch.testing.assert_close(into + out + air, torch.ones(20, dtype=F64), rtol=0, atol=1e-14)
    assert float(bucket_share(torch.zeros(2, 4, 16), ends[0]).max()) == 0.0


@pytest.mark.parametrize("control", ["force", "velocity"])
def test_no_new_extremum_arises(control):
    operator = smoke(control=control, time=6.0, steps=12, save=12)
    x = state(operator)
    density, _, _ = operator.trajectory(x)
    highest = density[:, :1].amax((-2, -1))
    air = density * ~EXITS
    assert float(density.min()) >= 0.0 and bool((air.amax((-2, -1)) <= highest * (1.0 + 1e-14)).all())
    assert not bool(density[..., WALLS].any())


def test_a_constant_density_in_a_closed_box_stays():
    operator = smoke(outlets=None, time=3.0, steps=12, buoyancy=0.0)
    x = state(operator)
    x[:, 0] = 1.7
    density, u, _ = operator.trajectory(x)
    assert float(u.abs().max()) > 0.5
    torch.testing.assert_close(density[..., ~WALLS], torch.full_like(density[..., ~WALLS], 1.7), rtol=1e-14, atol=0)


def test_nothing_passes_a_wall():
    """One cell thick, between a chamber that is stirred and one at rest, at up to one cell a step."""
    n = 12
    wall = rectangles((n, n), [(0, 6, n, 1)])
    left = rectangles((n, n), [(0, 0, n, 6)])
    options = {"obstacles": wall, "length": (n, n), "time": 8.0, "steps": 16, "controls": 1, "save": 16}
    operator = Smoke((n, n), **options)
    x = white(operator.in_shape, "x", 2) * left
    x[:, 0] = left.double()
    density, u, v = operator.trajectory(x)
    assert 0.5 < float(flat(u, v).abs().max()) * 0.5 < 3.0
    assert not bool(density[..., 6:].any()) and not bool(u[..., 6:].any()) and not bool(v[..., 6:].any())
    torch.testing.assert_close(density[..., :6], torch.ones_like(density[..., :6]), rtol=0, atol=1e-13)
    # and what is at rest behind it does not dilute what moves before it
    x[:, 0] = 1.0 - left.double() - wall.double()
    assert not bool(operator(x)[..., :6].any())


def vortex(n, trace, time=0.25):
    """Errors of velocity and density of the steady vortex psi = sin(pi x) sin(pi y) / pi at half a cell a step."""
    c = (torch.arange(n, dtype=F64) + 0.5) / n
    y, x = c[:, None].expand(n, n), c.expand(n, n)

    def velocity(y, x):
        return (math.pi * x).sin() * (math.pi * y).cos(), -(math.pi * x).cos() * (math.pi * y).sin()

    def density(y, x):
        return 1.0 + (math.pi * x).cos() * (2.0 * math.pi * y).cos()

    # where the smoke has been, by the method of Runge and Kutta
    back_y, back_x, h = y, x, time / 40
    for _ in range(40):
        rates = [velocity(back_y, back_x)]
        for part in (0.5, 0.5, 1.0):
            rates.append(velocity(back_y - part * h * rates[-1][1], back_x - part * h * rates[-1][0]))
        back_x, back_y = (
            b - h / 6.0 * (r[0] + 2.0 * r[1] + 2.0 * r[2] + r[3])
            for b, r in ((back_x, [r[0] for r in rates]), (back_y, [r[1] for r in rates]))
        )
    flow = torch.stack(velocity(y, x))
    operator = Smoke((n, n), time=time, steps=round(2 * n * time), velocity=None, fields="all", trace=trace)
    out = operator(torch.cat([density(y, x)[None], flow])[None])[0]
    want = density(back_y, back_x)
    return float((out[1:] - flow).norm() / flow.norm()), float((out[0] - want).norm() / want.norm())


@pytest.mark.parametrize("trace", TRACES)
def test_a_steady_vortex_stays_to_first_order(trace):
    """Declared: order 1 in the cell size at a fixed number of cells a step."""
    errors = [vortex(n, trace) for n in (32, 64)]
    assert max(errors[-1]) < 0.03
    for coarse, fine in zip(*errors, strict=True):
        assert abs(math.log2(coarse / fine) - 1.0) < 0.1


@pytest.mark.parametrize("trace", TRACES)
def test_a_forced_flow_is_of_first_order_in_time(trace):
    """On one grid, with an obstacle and an outlet, at up to a third of a cell a step."""
    n = 16
    c = (torch.arange(n, dtype=F64) + 0.5) / n * math.pi
    y, x = c[:, None].expand(n, n), c.expand(n, n)
    flow = [x.sin() * y.cos(), -x.cos() * y.sin()]
    start = torch.stack([1.0 + 0.5 * x.cos() * y.cos(), x.sin() * y.cos(), 0.5 * (2.0 * x).cos() * y.sin(), *flow])[None]
    masks = {"obstacles": rectangles((n, n), [(5, 6, 4, 3)]), "outlets": rectangles((n, n), [(15, 3, 1, 4)])}
    options = {**masks, "time": 0.5, "controls": 1, "velocity": None, "buoyancy": 1.0, "fields": "all", "trace": trace}
    ends = [Smoke((n, n), steps=steps, **options)(start) for steps in (32, 64, 128, 256)]
    changes = [float(norm(a - b)) for a, b in pairwise(ends)]
    for coarse, fine in pairwise(changes):
        assert abs(math.log2(coarse / fine) - 1.0) < 0.1


def test_a_layered_density_is_in_balance():
    """b rho(y) e_y is a gradient."""
    operator = Smoke(SIZE, buoyancy=2.0, steps=4, time=2.0)
    rho = white((1, SIZE[0], 1), "rho").expand(2, 1, *SIZE)
    density, u, v = operator.trajectory(rho)
    assert float(flat(u[:, 1], v[:, 1]).abs().max()) < 1e-13
    torch.testing.assert_close(density[:, 1], rho[:, 0], rtol=0, atol=1e-12)


def test_buoyancy_lifts_a_column():
    """In a shaft open at both ends: b t of the mean over all faces, of which n - 3 lie in smoke and two at its ends."""
    n, b, time = 16, 0.4, 0.1
    walls, ends = rectangles((n, 6), [(0, 0, n, 1), (0, 5, n, 1)]), rectangles((n, 6), [(0, 1, 1, 4), (n - 1, 1, 1, 4)])
    operator = Smoke((n, 6), obstacles=walls, outlets=ends, length=(n, 6), buoyancy=b, time=time, steps=1)
    _, u, v = operator.trajectory(torch.ones(1, 1, n, 6, dtype=F64))
    want = torch.full((n + 1, 4), b * time * (n - 2) / (n + 1), dtype=F64)
    torch.testing.assert_close(v[0, 1, :, 1:-1], want, rtol=1e-12, atol=0)
    assert float(u.abs().max()) < 1e-14 and not bool(v[..., [0, -1]].any())


def test_controls_known_answers():
    """In an open channel a uniform force accelerates all of it, and a uniform velocity is taken on."""
    n, m = 4, 10
    slots = torch.tensor([0.5, -0.2], dtype=F64)
    x = torch.zeros(1, 5, n, m, dtype=F64)
    x[:, 1::2] = slots[:, None, None]
    for control, want in (("force", [0.25, 0.5, 0.4, 0.3]), ("velocity", [0.5, 0.5, -0.2, -0.2])):
        operator = channel(n, m, 1, time=2.0, steps=4, save=4, controls=2, control=control)
        _, u, v = operator.trajectory(x)
        expected = torch.tensor([0.0, *want], dtype=F64)[None, :, None, None].expand(u.shape)
        torch.testing.assert_close(u, expected, rtol=0, atol=1e-13)
        assert float(v.abs().max()) < 1e-13


@pytest.mark.parametrize("control", ["force", "velocity"])
def test_controls_act_in_their_slot_and_mask_alone(control):
    mask = rectangles(SIZE, [(0, 0, 3, 9)])
    operator = smoke(control=control, control_mask=mask, controls=3, save=3)
    x = state(operator)
    want, later = operator(x), x.clone()
    later[:, 3:5] += 1.0
    changed = (operator(later) - want).unflatten(1, (3, 3)).abs().amax((0, 2, 3, 4))
    assert float(changed[0]) == 0.0 and float(changed[1:].min()) > 1e-3
    outside = x.clone()
    outside[:, 1:7] += 5.0 * ~mask
    assert torch.equal(operator(outside), want)


@pytest.fixture(params=["force", "velocity"])
def operator(request):
    return smoke(control=request.param)


def test_derivatives_agree(operator):
    x, t, w = state(operator), white(operator.in_shape, "t"), white(operator.out_shape, "w")
    y, pullback = operator.vjp(x)
    same, dy = operator.jvp(x, t)
    torch.testing.assert_close((y, same), (operator(x), operator(x)), rtol=0, atol=1e-13)
    assert bool(((dot(dy, w) - dot(t, pullback(w))).abs() <= 1e-12 * norm(dy) * norm(w)).all())
    leaf = x.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(dot(operator(leaf), w).sum(), leaf)[0], pullback(w))


@pytest.mark.parametrize("trace", TRACES)
def test_gradcheck(trace):
    walls, exits = rectangles((4, 4), [(1, 1, 1, 1)]), rectangles((4, 4), [(3, 2, 1, 1)])
    options = {"obstacles": walls, "outlets": exits, "length": (4.0, 4.0), "time": 0.6, "steps": 2, "buoyancy": 0.5}
    operator = Smoke((4, 4), **options, velocity=None, controls=1, fields="all", trace=trace, memory="full")
    x = state(operator, 1).requires_grad_()
    torch.autograd.gradcheck(operator, x, fast_mode=True)
    torch.autograd.gradgradcheck(operator, x, fast_mode=True)


def test_taylor_remainder_is_of_second_order(operator):
    """Of the whole chain, and of what a control task asks for, the share that leaves; steps too small to cross a grid line."""
    x, t = state(operator), 1e-5 * white(operator.in_shape, "t")

    def share(x):
        return bucket_share(operator(x).unflatten(1, (-1, 3))[:, :, 0], EXITS)

    for function in (operator, share):
        y, dy = torch.func.jvp(function, (x,), (t,))
        rests = [norm(function(x + s * t) - y - s * dy) for s in (1.0, 0.5, 0.25)]
        for coarse, fine in pairwise(rests):
            assert (coarse / fine).log2().tolist() == pytest.approx([2.0, 2.0], abs=0.1)


def test_the_gradient_is_the_same_under_every_memory_policy():
    gradients = []
    for memory in ("full", "checkpoint(step)", "revolve(2)"):
        operator = smoke(memory=memory)
        gradients.append(operator.vjp(state(operator))[1](white(operator.out_shape, "w")))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("fields", ["density", "all"])
def test_residual_vanishes_on_the_solution_alone(fields):
    operator = smoke(fields=fields)
    x = state(operator)
    y = operator(x)
    assert float(operator.residual(x, y).abs().max()) <= 1e-14
    wrong = y.clone()
    wrong[:, 0] += 0.1 * ~WALLS
    change = operator.residual(x, wrong).unflatten(1, (3, -1))[:, :, 0].abs().amax((0, 2, 3))
    assert float(change[0]) == pytest.approx(0.1) and float(change[1]) > 0.01
    if fields == "all":
        y[:, 1] += 0.1
        assert float(operator.residual(x, y)[:, 1].abs().min()) == pytest.approx(0.1)


def test_saved_times_are_those_of_a_shorter_run():
    operator = smoke(controls=1)
    x = state(operator)
    short = smoke(controls=1, steps=2, save=1, time=1.0 / 3.0)(x)
    torch.testing.assert_close(operator(x)[:, :3], short, rtol=0, atol=1e-13)
    density, u, v = operator.trajectory(x)
    assert density.shape == (2, 4, 8, 9) and u.shape == (2, 4, 8, 10) and v.shape == (2, 4, 9, 9)
    assert torch.equal(density[:, 0], x[:, 0] * ~WALLS) and torch.equal(density[:, 1], operator(x)[:, 0])
    assert float(operator.grid.divergence(u.flatten(0, 1), v.flatten(0, 1)).abs().max()) < 1e-12


def test_items_copies_precisions_and_transforms():
    operator = smoke()
    x, w = state(operator, 3), white(operator.out_shape, "w", 3)
    want = operator(x)
    assert torch.equal(torch.cat([operator(v[None]) for v in x]), want)
    for other in (copy.deepcopy(operator).float(), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(other(x), want)
    assert not operator.state_dict()
    single = operator(x.float())
    assert single.dtype == torch.float32 and float((single - want).norm() / want.norm()) < 2e-6
    torch.testing.assert_close(torch.vmap(operator)(x[:, None])[:, 0], want, rtol=0, atol=1e-14)
    pulled = torch.vmap(lambda x, w: torch.func.vjp(operator, x)[1](w)[0])(x[:, None], w[:, None])
    torch.testing.assert_close(pulled[:, 0], operator.vjp(x)[1](w), rtol=0, atol=1e-12)


def test_wrong_arguments_are_named():
    for options in (
        {"steps": 10, "save": 3},
        {"steps": 10, "controls": 3},
        {"control": "pressure"},
        {"fields": "velocity"},
        {"trace": "rk4"},
        {"length": (1.0, 0.0)},
        {"buoyancy": math.inf},
    ):
        with pytest.raises(ConfigError, match="Smoke: expected"):
            Smoke(SIZE, **options)
    for options in ({"obstacles": WALLS.mT}, {"outlets": WALLS.double()}, {"obstacles": WALLS, "outlets": WALLS}):
        with pytest.raises(ShapeError, match="Smoke: expected"):
            Smoke(SIZE, **options)
    with pytest.raises(ShapeError, match=r"Smoke.*\(B, 1, 8, 9\)"):
        Smoke(SIZE)(torch.zeros(1, 2, 8, 9))
    with pytest.raises(NumericalError, match="finite"):
        Smoke(SIZE)(torch.full((1, 1, 8, 9), math.nan))
    for options in ({"size": 48}, {"frames": 10}, {"noise": -1.0}, {"substeps": 0}):
        with pytest.raises(ConfigError, match="SmokeControl"):
            SmokeControl(**options)


def test_generated_samples():
    """Functions of (seed, index) alone, that obey the operator from which they come."""
    generator = SmokeControl(seed=3, size=32, frames=8, substeps=2)
    batch = generator([4, 1], dtype=F64)
    alone, other = generator([1], dtype=F64), SmokeControl(seed=4, size=32, frames=8, substeps=2)([1], dtype=F64)
    for name, value in batch.items():
        assert torch.equal(value[1:], alone[name]) and not torch.equal(value[1:], other[name])
    assert {n: tuple(t.shape) for n, t in batch.items()} == {
        "density": (2, 9, 32, 32),
        "velocity": (2, 9, 2, 32, 32),
        "control": (2, 8, 2, 32, 32),
        "outlet": (2, 9),
    }
    x = generator.inputs([4, 1])
    fields = torch.cat([batch["density"].unsqueeze(2), batch["velocity"]], 2)[:, 1:].flatten(1, 2)
    assert float(generator.operator.residual(x, fields).abs().max()) < 1e-12
    # a block of 11 by 11 units in cells of 4 by 4
    torch.testing.assert_close(batch["density"][:, 0].sum((-2, -1)), torch.full((2,), 121.0 / 16.0, dtype=F64))
    assert bool((batch["control"][:, :, :, 4:-4, 4:-4] == 0.0).all())
    assert float(batch["outlet"][:, 0].max()) == 0.0 and float(batch["outlet"][:, -1].min()) > 0.0
    assert generator([0])["density"].dtype == torch.float32


def test_generated_control_has_the_published_size():
    """3584 numbers a frame at 64 x 64, seven outlets."""
    generator = SmokeControl()
    assert 2 * int(generator.operator.control_mask.sum()) == 3584
    assert generator.outlets.shape == (7, 64, 64) and int(generator.outlets.sum(0).max()) == 1
