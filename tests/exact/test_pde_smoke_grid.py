"""The staggered grid of smoke: its projection against dense algebra, its back-trace against a rotation."""

import math
from itertools import pairwise

import pytest
import torch

from invdiff.core import ShapeError, Streams, dot, norm
from invdiff.operators.pde.smoke_grid import MACGrid, rectangles

F64 = torch.float64
SIZE = (8, 9)
# an obstacle of one and one of many cells, an outlet at the border and one inside, and a closed chamber in the corner
WALLS = rectangles(SIZE, [(2, 3, 3, 2), (6, 6, 1, 1), (5, 0, 1, 2), (6, 2, 2, 1)])
EXITS = rectangles(SIZE, [(7, 4, 1, 2), (3, 7, 1, 1)])


def white(shape, purpose, batch=2, seed=0):
    return Streams(seed, batch).normal(0, shape, purpose, F64)


def flat(u, v):
    return torch.cat([u.flatten(1), v.flatten(1)], 1)


def empty(n, m):
    return torch.zeros(n, m, dtype=torch.bool)


def grid(walls=WALLS, exits=EXITS, spacing=(0.5, 0.8)):
    return MACGrid(walls, exits, spacing)


def faces(g, purpose="w", batch=2):
    h, w = g.fluid.shape
    return white((h, w + 1), purpose + "x", batch) * g.open_x, white((h + 1, w), purpose + "y", batch) * g.open_y


def test_projection_is_that_of_dense_algebra():
    """The complement of all gradients, whose orthonormal basis comes from an SVD."""
    g = grid()
    units = torch.eye(g.fluid.numel(), dtype=F64).reshape(-1, *g.fluid.shape) * g.fluid
    gradients = flat(*g.gradient(units))
    _, values, basis = torch.linalg.svd(gradients, full_matrices=False)
    basis = basis[values > 1e-10]
    # one constant is free, that of the chamber, and nothing is known of the cells in obstacles
    assert len(basis) == int(g.fluid.sum()) - 1
    w = flat(*faces(g))
    torch.testing.assert_close(flat(*g.project(*faces(g))), w - w @ basis.mT @ basis, rtol=0, atol=1e-13)


@pytest.mark.parametrize("exits", [EXITS, empty(*SIZE)])
def test_projection_leaves_no_divergence_and_is_an_orthogonal_one(exits):
    g = grid(exits=exits)
    u, v = g.project(*faces(g))
    scale = norm(flat(*faces(g))) / min(g.spacing)
    assert bool((g.divergence(u, v).abs().flatten(1).amax(1) <= 1e-13 * scale).all())
    torch.testing.assert_close(g.project(u, v), (u, v), rtol=0, atol=1e-13)
    other = flat(*faces(g, "o"))
    left, right = dot(flat(u, v), other), dot(flat(*faces(g)), flat(*g.project(*faces(g, "o"))))
    assert bool(((left - right).abs() <= 1e-13 * norm(flat(u, v)) * norm(other)).all())
    assert float(norm(flat(u, v)).min()) > 1.0


def test_pressure_by_conjugate_gradients_is_that_of_the_factor():
    g = grid()
    b = g.divergence(*faces(g))
    direct, iterated = (g.gradient(p) for p in (g.pressure.solve(b), g.pressure.iterate(b)))
    torch.testing.assert_close(flat(*iterated), flat(*direct), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("trace", "order"), [("euler", 1.0), ("midpoint", 2.0)])
def test_order_of_the_back_trace_in_time(trace, order):
    """A linear density in a rigid rotation, where interpolation is exact, far from the walls."""
    n, angle = 48, 0.8
    g = grid(empty(n, n), empty(n, n), (1.0, 1.0))
    c = torch.arange(n, dtype=F64) - (n - 1) / 2.0
    y, x = c[:, None].expand(n, n), c.expand(n, n)
    u = -c[:, None].expand(1, n, n + 1)
    v = c.expand(1, n + 1, n)
    want = x * math.cos(angle) + y * math.sin(angle)
    centre = slice(n // 2 - 3, n // 2 + 3)
    errors = []
    for steps in (4, 8, 16):
        rho = x[None]
        for _ in range(steps):
            rho = g.carry(rho, u, v, angle / steps, trace)
        errors.append(float((rho[0] - want)[centre, centre].norm()))
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - order) < 0.1


@pytest.mark.parametrize("trace", ["euler", "midpoint"])
def test_linear_fields_in_linear_flows_move_exactly(trace):
    """One step on each of the three grids, away from the walls: f(x - t w(x)) or f(x - t w(x - t w(x) / 2))."""
    n, m, h, time = 12, 14, (0.5, 0.8), 0.6
    g = MACGrid(empty(n, m), empty(n, m), h)

    def u(y, x):
        return 0.3 + 0.2 * x - 0.1 * y

    def v(y, x):
        return -0.2 + 0.15 * x + 0.1 * y

    def field(y, x):
        return 1.0 + 0.7 * x - 0.4 * y

    def points(rows, columns, y, x):
        return (torch.arange(rows, dtype=F64)[:, None] + y) * h[0], (torch.arange(columns, dtype=F64) + x) * h[1]

    cells, across, along = points(n, m, 0.5, 0.5), points(n, m + 1, 0.5, 0.0), points(n + 1, m, 0.0, 0.5)
    flow = u(*across)[None], v(*along)[None]
    moved = [g.carry(field(*cells)[None], *flow, time, trace)]
    moved += g.carry_velocity(field(*across)[None], field(*along)[None], *flow, time, trace)
    for got, (y, x) in zip(moved, (cells, across, along), strict=True):
        at_y, at_x = y, x
        if trace == "midpoint":
            at_y, at_x = y - 0.5 * time * v(y, x), x - 0.5 * time * u(y, x)
        want = field(y - time * v(at_y, at_x), x - time * u(at_y, at_x))
        torch.testing.assert_close(got[0, 4:-4, 4:-4], want[4:-4, 4:-4], rtol=0, atol=1e-13)


def test_boxes_stay_on_the_grid():
    with pytest.raises(ShapeError, match="rectangles"):
        rectangles(SIZE, [(6, 0, 3, 1)])
