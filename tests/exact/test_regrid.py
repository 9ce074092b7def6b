"""Fields on other grids: modes that both grids hold go over exactly, the others vanish, and the adjoint is exact."""

import math

import pytest
import torch

from invdiff.core import ConfigError, ShapeError
from invdiff.core.algebra import dense
from invdiff.operators.regrid import Regrid

F64 = torch.float64
BOUNDARIES = ["periodic", "neumann", "dirichlet"]
SIZES = [(6, 9), (6, 8), (7, 12), (5, 11), (9, 6), (12, 7), (8, 4), (1, 3), (4, 1)]


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def modes(n, boundary, below):
    """(modes, n): the functions of the boundary with frequencies under `below`, at the n points of the unit interval."""
    if boundary == "periodic":
        x = torch.arange(n, dtype=F64) / n
        waves = [f(2 * math.pi * k * x) for k in range(1, math.ceil(below / 2)) for f in (torch.cos, torch.sin)]
        return torch.stack([torch.ones(n, dtype=F64), *waves])
    x = (torch.arange(n, dtype=F64) + 0.5) / n
    if boundary == "neumann":
        return torch.stack([torch.cos(math.pi * k * x) for k in range(below)])
    return torch.stack([torch.zeros(n, dtype=F64), *(torch.sin(math.pi * k * x) for k in range(1, below))])


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_modes_that_both_grids_hold_go_over_unchanged(boundary, n, m):
    held = min(n, m)
    found = Regrid((1, n), m, boundary=boundary)(modes(n, boundary, held)[:, None])[:, 0]
    torch.testing.assert_close(found, modes(m, boundary, held), rtol=0, atol=1e-13)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("n", "m"), [(9, 6), (12, 7), (8, 4)])
def test_what_the_coarse_grid_can_not_hold_vanishes(boundary, n, m):
    """The Nyquist mode of an even periodic grid and the last sine of either grid among it."""
    every = modes(n, boundary, n)
    beyond = [every[len(modes(m, boundary, m)) :]]
    i = torch.arange(n, dtype=F64)
    if boundary == "dirichlet" or (boundary == "periodic" and n % 2 == 0):
        beyond.append((-1.0) ** i[None])
    found = Regrid((1, n), m, boundary=boundary)(torch.cat(beyond)[:, None])
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-13)


@pytest.mark.parametrize("boundary", ["periodic", "dirichlet"])
def test_alternating_modes_of_the_coarse_grid_are_left_out_on_the_way_up(boundary):
    alternating = ((-1.0) ** torch.arange(6, dtype=F64))[None, None]
    found = Regrid((1, 6), 9, boundary=boundary)(alternating)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-13)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_the_adjoint_is_the_transpose(boundary, n, m):
    operator = Regrid((2, n), m, boundary=boundary)
    torch.testing.assert_close(dense(operator.H), dense(operator).T, rtol=0, atol=1e-14)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("n", "m"), [(6, 9), (6, 8), (7, 12), (5, 5)])
def test_down_after_up_is_the_identity_on_the_modes_of_the_coarse_grid(boundary, n, m):
    up, down = Regrid((1, n), m, boundary=boundary), Regrid((1, m), n, boundary=boundary)
    x = (randn(3, len(modes(n, boundary, n))) @ modes(n, boundary, n))[:, None]
    torch.testing.assert_close(down(up(x)), x, rtol=0, atol=1e-13)
    torch.testing.assert_close(up.normal(x), m / n * x, rtol=0, atol=1e-13)
    y = randn(2, 1, m)
    torch.testing.assert_close(up.adjoint(y), m / n * down(y), rtol=0, atol=1e-13)
    # and the energy of a point, its mean over the grid, is that of the coarse field
    torch.testing.assert_close(up(x).square().mean((1, 2)), x.square().mean((1, 2)), rtol=1e-12, atol=0)


def test_axes_are_independent_of_each_other_and_of_channels():
    sizes, targets, kinds = (6, 5, 4), (9, 5, 7), ("periodic", "neumann", "dirichlet")
    operator, x = Regrid((2, *sizes), targets, boundary=kinds), randn(3, 2, *sizes)
    assert (operator.in_shape, operator.out_shape) == ((2, 6, 5, 4), (2, 9, 5, 7))
    single = [dense(Regrid((1, n), m, boundary=kind)) for n, m, kind in zip(sizes, targets, kinds, strict=True)]
    expected = torch.einsum("bcijk,ai,dj,ek->bcade", x, *single)
    torch.testing.assert_close(operator(x), expected, rtol=0, atol=1e-13)
    y = randn(3, 2, *targets, seed=1)
    left, right = (operator(x) * y).sum(), (x * operator.adjoint(y)).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


def test_the_same_grid_is_the_identity_nyquist_and_all():
    for boundary in BOUNDARIES:
        x = randn(2, 1, 6, 8)
        assert torch.equal(Regrid((1, 6, 8), (6, 8), boundary=boundary)(x), x)


def test_smooth_fields_converge_faster_than_any_power():
    """exp(cos 2 pi x), whose Fourier coefficients are the Bessel functions I_k(1), from n points to 60."""

    def field(n):
        return torch.exp(torch.cos(2 * math.pi * torch.arange(n, dtype=F64) / n))[None, None]

    errors = [float((Regrid((1, n), 60, boundary="periodic")(field(n)) - field(60)).abs().max()) for n in (6, 12, 24)]
    # twice the first coefficient that is left out, 2 I_{n/2}(1), and a little for the ones behind it
    for error, first in zip(errors, (2.217e-2, 2.249e-5, 5.2e-13), strict=True):
        assert first < error < 4.0 * first


def test_derivatives_and_precision():
    operator = Regrid((1, 4, 5), 7)
    x, v = randn(2, 1, 4, 5), randn(2, 1, 7, 7, seed=1)
    _, pull = operator.vjp(x)
    assert torch.equal(pull(v), operator.adjoint(v))
    assert operator(x.float()).dtype == torch.float32
    torch.testing.assert_close(operator(x.float()), operator(x).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (((1, 4, 4), (5, 5, 5)), {}, ShapeError, "one size and boundary for each axis"),
        (((1, 4, 4), 5), {"boundary": ("neumann",)}, ShapeError, "one size and boundary for each axis"),
        (((1,), 5), {}, ShapeError, "one size and boundary for each axis"),
        (((1, 4), 0), {}, ConfigError, "sizes >= 1"),
        (((1, 4), 5), {"boundary": "open"}, ConfigError, "periodic, neumann or dirichlet"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, options, error, words):
    with pytest.raises(error, match=f"Regrid: expected .*{words}"):
        Regrid(*arguments, **options)
