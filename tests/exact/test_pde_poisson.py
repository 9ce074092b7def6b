"""Poisson, Helmholtz and heat: closed forms, the order of the scheme, sparse and dense algebra built from the stencil alone."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import splu

from invdiff.core import ConfigError, ShapeError
from invdiff.operators.pde.poisson import Heat, Helmholtz, Poisson, dst1

F64 = torch.float64
BOXES = [((9,), "periodic"), ((8,), "dirichlet"), ((7,), "neumann"), ((6, 9), "periodic"), ((7, 10), "dirichlet")]
BOXES += [((8, 5), "neumann"), ((4, 5, 6), "dirichlet"), ((6, 5), ("periodic", "neumann"))]
BOXES += [((5, 4, 6), ("neumann", "periodic", "dirichlet"))]
LENGTH = (1.0, 1.3, 0.8)
MAKE = {
    "poisson": lambda shape, **how: Poisson(shape, **how),
    "helmholtz": lambda shape, **how: Helmholtz(shape, 5.3, **how),
    "heat": lambda shape, **how: Heat(shape, 0.7, 0.01, **how),
}


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stencil(operator):
    """-lap of the 5-point scheme as a sparse matrix, from the neighbours of each point."""
    grid, total = operator.in_shape[1:], 0
    for axis, (n, h, kind) in enumerate(zip(grid, operator.spacing, operator.boundary, strict=True)):
        line = sp.lil_matrix((n, n))
        for i in range(n):
            line[i, i] += 2.0
            for j in (i - 1, i + 1):
                if 0 <= j < n or kind == "periodic":
                    line[i, j % n] -= 1.0
                elif kind == "neumann":
                    line[i, i] -= 1.0
        eyes = [sp.identity(m) for m in grid]
        eyes[axis] = line / h**2
        matrix = eyes[0]
        for factor in eyes[1:]:
            matrix = sp.kron(matrix, factor)
        total = total + matrix
    return total.tocsc()


def points(n, kind, side=1.0):
    start, cells = {"periodic": (0.0, n), "dirichlet": (1.0, n + 1), "neumann": (0.5, n)}[kind]
    return (torch.arange(n, dtype=F64) + start) * side / cells


def gap(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_the_sine_transform_is_the_orthonormal_table_of_sines(n):
    i = torch.arange(1, n + 1, dtype=F64)
    table = math.sqrt(2.0 / (n + 1)) * torch.sin(math.pi * torch.outer(i, i) / (n + 1))
    torch.testing.assert_close(dst1(torch.eye(n, dtype=F64), 0), table, rtol=0, atol=1e-14)
    torch.testing.assert_close(table @ table, torch.eye(n, dtype=F64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("scheme", ["5-point", "spectral"])
def test_sine_sources_are_divided_by_their_eigenvalue(scheme):
    n, sides = (15, 12), (1.0, 1.5)
    x, y = (points(m, "dirichlet", side) for m, side in zip(n, sides, strict=True))
    f = (torch.sin(2 * math.pi * x)[:, None] * torch.sin(math.pi * y / 1.5))[None, None]
    exact = (2 * math.pi) ** 2 + (math.pi / 1.5) ** 2
    h = 1 / 16, 1.5 / 13
    stencils = (2 - 2 * math.cos(2 * math.pi * h[0])) / h[0] ** 2 + (2 - 2 * math.cos(math.pi * h[1] / 1.5)) / h[1] ** 2
    eigenvalue = exact if scheme == "spectral" else stencils
    how = {"length": sides, "scheme": scheme}
    assert gap(Poisson((1, *n), **how)(f), f / eigenvalue) < 1e-13
    assert gap(Helmholtz((1, *n), 4.0, **how)(f), f / (eigenvalue - 16.0)) < 1e-13
    assert gap(Heat((1, *n), 0.3, 0.1, boundary="dirichlet", **how)(f), f * math.exp(-0.03 * eigenvalue)) < 1e-12


@pytest.mark.parametrize("boundary", ["periodic", "dirichlet", "neumann"])
def test_heat_modes_decay_at_their_rate(boundary):
    """2 pi / L is the wavenumber of a mode of all three boundaries; the amplitude falls by exp(-5.9)."""
    n, side = 32, 1.7
    wave, x = 2.0 * math.pi / side, points(n, boundary, side)
    u = (torch.cos(wave * x) if boundary == "neumann" else torch.sin(wave * x))[None, None]
    rate = 0.9 * 0.48 * wave**2
    assert 5.0 < rate < 7.0
    assert gap(Heat((1, n), 0.9, 0.48, length=side, boundary=boundary)(u), u * math.exp(-rate)) < 1e-12


def manufactured(boundary, n):
    """A smooth u that is no sum of a few modes, and -lap u, on an n x n grid of the unit square."""
    x = points(n, boundary)
    if boundary == "dirichlet":
        g, ddg = (x - x**2) * x.exp(), -(3.0 * x + x**2) * x.exp()
    elif boundary == "neumann":
        g, ddg = (x - x**2) ** 2, 2.0 - 12.0 * x + 12.0 * x**2
    else:
        w = 2.0 * math.pi
        g = torch.sin(w * x).exp()
        ddg = w**2 * (torch.cos(w * x) ** 2 - torch.sin(w * x)) * g
    return torch.outer(g, g)[None, None], -(torch.outer(g, ddg) + torch.outer(ddg, g))[None, None]


def errors(boundary, kind, scheme, sizes):
    for n in sizes:
        u, f = manufactured(boundary, n)
        if kind == "helmholtz":
            f = f - 5.3**2 * u
        elif boundary != "dirichlet":
            u = u - u.mean()
        operator = MAKE[kind]((1, n, n), boundary=boundary, scheme=scheme)
        yield float(((operator(f) - u).square().sum() * math.prod(operator.spacing)).sqrt())


@pytest.mark.parametrize("boundary", ["periodic", "dirichlet", "neumann"])
@pytest.mark.parametrize("kind", ["poisson", "helmholtz"])
def test_the_five_point_scheme_has_order_two(kind, boundary):
    coarse, fine = errors(boundary, kind, "5-point", (127, 255) if boundary == "dirichlet" else (128, 256))
    assert abs(math.log2(coarse / fine) - 2.0) < 0.01


@pytest.mark.parametrize("kind", ["poisson", "helmholtz"])
def test_the_spectral_scheme_is_exact_for_smooth_periodic_fields(kind):
    coarse, fine = errors("periodic", kind, "spectral", (12, 40))
    assert coarse > 1e-6 > 1e-12 > fine


@pytest.mark.parametrize(("grid", "boundary"), BOXES)
def test_solution_equals_sparse_elimination(grid, boundary):
    """The null space of Poisson is bordered away: -lap u + c = f, sum u = 0."""
    length = LENGTH[: len(grid)]
    for kind in ("poisson", "helmholtz"):
        operator = MAKE[kind]((2, *grid), length=length, boundary=boundary)
        f, matrix = randn(3, 2, *grid), stencil(operator)
        n = matrix.shape[0]
        right = f.reshape(6, n).numpy().T
        if kind == "helmholtz":
            matrix = matrix - 5.3**2 * sp.identity(n)
        elif "dirichlet" not in operator.boundary:
            ones = np.ones((n, 1))
            matrix, right = sp.bmat([[matrix, ones], [ones.T, None]]), np.vstack([right, np.zeros((1, 6))])
        want = torch.from_numpy(splu(matrix.tocsc()).solve(right)[:n].T.copy()).reshape(f.shape)
        assert gap(operator(f), want) < 1e-12


@pytest.mark.parametrize(("grid", "boundary"), BOXES)
def test_heat_equals_the_exponential_of_the_stencil(grid, boundary):
    operator = MAKE["heat"]((2, *grid), length=LENGTH[: len(grid)], boundary=boundary, scheme="5-point")
    u = randn(3, 2, *grid)
    flow = torch.matrix_exp(-0.7 * 0.01 * torch.from_numpy(stencil(operator).toarray()))
    want = (u.reshape(6, -1) @ flow.T).reshape(u.shape)
    assert gap(operator(u), want) < 1e-12
    assert float(operator.residual(u, want).abs().max()) < 1e-12


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("scheme", ["5-point", "spectral"])
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(("grid", "boundary"), BOXES)
def test_residual_of_its_own_output_is_rounding(grid, boundary, kind, scheme, dtype):
    """The bar is a few roundings of the largest term, |u| times the largest eigenvalue; and other pairs are seen."""
    operator = MAKE[kind]((2, *grid), length=LENGTH[: len(grid)], boundary=boundary, scheme=scheme)
    f = randn(3, 2, *grid, dtype=dtype)
    u = operator(f)
    size = 1.0 if kind == "heat" else sum((math.pi / h) ** 2 for h in operator.spacing)
    bar = 20.0 * torch.finfo(dtype).eps * (size * float(u.abs().max()) + float(f.abs().max()))
    assert float(operator.residual(f, u).abs().max()) < bar
    assert float(operator.residual(f, 1.01 * u).abs().max()) > 10.0 * bar


@pytest.mark.parametrize(("grid", "boundary"), BOXES)
def test_differences_equal_the_stencil(grid, boundary):
    operator = Poisson((2, *grid), length=LENGTH[: len(grid)], boundary=boundary)
    u = randn(3, 2, *grid)
    want = torch.from_numpy((stencil(operator) @ u.reshape(6, -1).numpy().T).T.copy()).reshape(u.shape)
    assert gap(operator.minus_laplacian(u), want) < 1e-13


def test_the_mean_is_removed_where_constants_are_in_the_null_space():
    operator = Poisson((1, 6, 7), boundary=("neumann", "periodic"))
    f = randn(2, 1, 6, 7)
    assert float(operator(f).mean((2, 3)).abs().max()) < 1e-15
    assert gap(operator(f + 3.0), operator(f)) < 1e-13
    assert gap(operator.pinv(operator(f)), f - f.mean((2, 3), keepdim=True)) < 1e-12


@pytest.mark.parametrize("kind", ["poisson", "helmholtz"])
def test_pinv_is_the_equation_in_float32_too(kind):
    """On 256 x 256 points the multipliers span 1e5: a cut at n eps, as for a blur, would lose the finest modes."""
    operator = MAKE[kind]((1, 256, 256))
    u = randn(1, 1, 256, 256)
    want = operator.minus_laplacian(u) - (5.3**2 * u if kind == "helmholtz" else 0.0)
    assert gap(operator.pinv(u.float()).double(), want) < 1e-5


def test_pinv_of_heat_leaves_out_what_has_decayed_to_rounding():
    """exp(-4 pi^2) is 7e-18, below 64 eps: of a unit length after a unit time only the mean is known."""
    u, operator = randn(1, 1, 64), Heat((1, 64), 1.0, 1.0)
    y = operator(u) + 1e-15 * randn(1, 1, 64, seed=1)
    assert gap(operator.pinv(y), u.mean().expand_as(u)) < 1e-12
    short = Heat((1, 64), 1.0, 1e-5)
    assert gap(short.pinv(short(u)), u) < 1e-13


def test_resonance_is_refused():
    first = (2.0 / (1 / 9) * math.sin(math.pi / 18)) ** 2
    Helmholtz((1, 8), math.sqrt(first * (1 + 3e-6)))
    for square in (first, first * (1 + 5e-7), first * (1 - 5e-7)):
        with pytest.raises(ConfigError, match="Helmholtz: expected k\\^2 away"):
            Helmholtz((1, 8), math.sqrt(square))
    with pytest.raises(ConfigError, match="at the eigenvalue 0"):
        Helmholtz((1, 8), 1e-4, boundary="neumann")


def test_wrong_options_are_named():
    with pytest.raises(ShapeError, match="Poisson: expected a shape"):
        Poisson((1, 4, 1))
    with pytest.raises(ShapeError, match="1 to 3 axes"):
        Poisson((4,))
    with pytest.raises(ConfigError, match="one length and one boundary per axis"):
        Poisson((1, 4, 4), length=(1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="Poisson: expected a boundary of periodic"):
        Poisson((1, 4), boundary="robin")
    with pytest.raises(ConfigError, match="Poisson: expected a scheme of 5-point"):
        Poisson((1, 4), scheme="9-point")
    for make in (lambda: Poisson((1, 4), length=0.0), lambda: Helmholtz((1, 4), 0.0), lambda: Heat((1, 4), 1.0, -1.0)):
        with pytest.raises(ConfigError, match="> 0"):
            make()
    operator = Poisson((1, 4))
    for call in (lambda: operator.residual(randn(1, 1, 5), randn(1, 1, 4)), lambda: operator.residual(*[randn(1, 5)] * 2)):
        with pytest.raises(ShapeError, match="Poisson"):
            call()
