"""Conjugate gradients, power iteration and the algebra of operators, against dense linear algebra."""

import pytest
import torch

from invdiff.core import (
    LinearOperator,
    NumericalError,
    ShapeError,
    Stack,
    Streams,
    Unmeasured,
    ViewAsComplex,
    cg,
    dot,
    expand,
    norm,
)
from invdiff.core import operator_norm as largest_singular_value
from invdiff.core.counting import Counter, counting
from invdiff.operators import DenseCS, Identity, cartesian_mri, gaussian_blur


def normal(seed, shape, dtype=torch.float64):
    return Streams(seed).normal(0, shape, dtype=dtype)[0]


def positive(n, condition, dtype=torch.float64, seed=0):
    """A Hermitian matrix with eigenvalues spread evenly in the logarithm from 1 to `condition`."""
    q = torch.linalg.qr(normal(seed, (n, n), dtype)).Q
    return (q * torch.logspace(0, torch.tensor(condition).log10(), n, dtype=torch.float64)) @ q.mH


class Matrix(LinearOperator):
    def __init__(self, a):
        super().__init__((a.shape[1],), (a.shape[0],), in_complex=a.is_complex(), out_complex=a.is_complex())
        self.a = a

    def forward(self, x):
        return x @ self.a.mT

    def adjoint(self, y):
        return y @ self.a.conj()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_inner_products_are_those_of_the_real_space(dtype):
    a, b = normal(0, (3, 4, 5), dtype), normal(1, (3, 4, 5), dtype)
    real = [torch.view_as_real(v) if v.is_complex() else v for v in (a, b)]
    torch.testing.assert_close(dot(a, b), (real[0] * real[1]).flatten(1).sum(1))
    torch.testing.assert_close(norm(a), real[0].flatten(1).norm(dim=1))
    assert expand(torch.ones(3), a).shape == (3, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_cg_solves_each_item_to_its_own_tolerance(dtype):
    """A residual of 1e-12 and a condition number of 1e3 leave an error of at most 1e-9."""
    m, b = positive(12, 1e3, dtype), normal(1, (4, 12), dtype) * torch.tensor([1e-6, 1.0, 1e3, 0.0])[:, None]
    result = cg(lambda x: x @ m.mT, b, max_iter=200, tol=1e-12)
    want = torch.linalg.solve(m, b.mT).mT
    assert bool((norm(result.x - want) <= 1e-9 * norm(want)).all())
    assert bool((result.residual <= 1e-12).all())


def test_cg_is_exact_after_as_many_steps_as_distinct_eigenvalues():
    m = torch.diag(torch.tensor([1.0, 1.0, 2.0, 2.0, 5.0, 5.0], dtype=torch.float64))
    b = normal(0, (2, 6))
    short, full = (cg(lambda x: x @ m, b, max_iter=k) for k in (2, 3))
    want = b / m.diagonal()
    assert (short.iterations, full.iterations) == (2, 3)
    assert float((full.x - want).abs().max()) < 1e-13 < 1e-3 < float((short.x - want).abs().max())


def test_an_item_does_not_depend_on_its_neighbours():
    """An easy item beside one that needs many steps, or that is zero, takes the very steps that it takes alone."""
    matrices = torch.stack([positive(10, c, seed=s) for s, c in enumerate((1.5, 1e4, 30.0))])
    b = torch.cat([normal(5, (2, 10)), torch.zeros(1, 10, dtype=torch.float64)])

    def matvec(chosen):
        return lambda x: torch.stack([m @ v for m, v in zip(chosen, x, strict=True)])

    together = cg(matvec(matrices), b, max_iter=100, tol=1e-8)
    for i in range(3):
        alone = cg(matvec(matrices[i : i + 1]), b[i : i + 1], max_iter=100, tol=1e-8)
        assert torch.equal(together.x[i : i + 1], alone.x)
        assert torch.equal(together.residual[i : i + 1], alone.residual)


def test_an_item_stops_at_negative_curvature():
    m = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    result = cg(lambda x: x @ m, b, max_iter=5)
    assert result.x.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_cg_starts_where_it_is_told():
    m, b = positive(8, 100.0), normal(1, (2, 8))
    want = torch.linalg.solve(m, b.mT).mT
    assert cg(lambda x: x @ m, b, x0=want, max_iter=50, tol=1e-6).iterations == 0
    assert cg(lambda x: x @ m, b, x0=want + 1e-3, max_iter=50, tol=1e-10).residual.max() <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_operator_norm(dtype):
    """Power iteration stops when a step changes the value by 1e-6; a gap of 2 in the singular values leaves less than that."""
    u, v = (torch.linalg.qr(normal(s, (n, 6), dtype)).Q for s, n in ((0, 9), (1, 7)))
    a = (u * torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])) @ v.mH
    assert largest_singular_value(Matrix(a), tol=1e-6, dtype=torch.float64) == pytest.approx(8.0, rel=1e-5)


def test_norms_that_are_known():
    """Orthonormal rows; sum |S|^2 = 1; a kernel with sum 1 and no negative value."""
    for operator in (DenseCS((4, 5), 0.5), cartesian_mri(8, 8, 4, 1, 1.0 / 8), gaussian_blur(9, 9, sigma=0.8)):
        assert largest_singular_value(operator, tol=1e-7, dtype=torch.float64) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_algebra_against_matrices(dtype):
    a, b, c = normal(0, (4, 3), dtype), normal(1, (3, 5), dtype), normal(2, (4, 5), dtype)
    ops, x = [Matrix(m) for m in (a, b, c)], normal(3, (2, 5), dtype)
    whole = a @ b - 2.0 * c
    operator = ops[0] @ ops[1] - 2.0 * ops[2]
    torch.testing.assert_close(operator(x), x @ whole.mT)
    torch.testing.assert_close(operator.gram(x), x @ (whole.mH @ whole).mT)
    torch.testing.assert_close(operator.H(operator(x)), x @ (whole.mH @ whole).mT)
    torch.testing.assert_close((-operator)(x), -(x @ whole.mT))
    torch.testing.assert_close(Stack([operator, ops[2]])(x), torch.cat([x @ whole.mT, x @ c.mT], 1))
    assert operator.H.H is operator


def test_spaces_that_do_not_meet_are_named():
    a, b, c = Matrix(normal(0, (4, 3))), Matrix(normal(1, (4, 3))), Matrix(normal(2, (5, 3), torch.complex128))
    for wrong in (lambda: a @ b, lambda: a + c, lambda: Stack([a, c]), lambda: c @ a.H):
        with pytest.raises(ShapeError, match=r"Matrix.*\(B, \d\)") as error:
            wrong()
        assert "\n" not in str(error.value)


def test_a_solver_that_does_not_converge_says_so():
    operator = Matrix(positive(60, 1e7))
    with pytest.raises(NumericalError, match="larger rho"):
        operator.solve(normal(0, (1, 60)), 1e-9)


def test_view_as_complex_is_orthogonal_and_keeps_closed_forms():
    view, mri = ViewAsComplex((1, 6, 8)), cartesian_mri(6, 8, 1, 2, 0.25)
    x = normal(0, (2, 2, 6, 8))
    assert torch.equal(view.adjoint(view(x)), x)
    calls = Counter()
    with counting(calls):
        (mri @ view).solve(x, 0.1)
    assert calls.operator == 2


def test_only_the_outermost_operator_counts_and_items_count_one_each():
    operator, x = gaussian_blur(7, 7, sigma=0.7) @ Identity((1, 7, 7)), normal(0, (3, 1, 7, 7))
    calls = Counter()
    with counting(calls):
        operator(x)
        operator.adjoint(x)
        operator.solve(x, 1.0)
    assert calls.operator == 9


def test_unmeasured():
    operator, x = Unmeasured((2, 3)), normal(0, (4, 2, 3))
    assert operator(x).shape == (4, 0)
    assert not operator.adjoint(operator(x)).any()
    torch.testing.assert_close(operator.solve(x, 2.0), x / 2.0)
