"""Operators made of operators: composition, sum, multiple, adjoint, gram, stack, and the two ways to look at complex numbers.

(A B)^H = B^H A^H,    (A + B)^H = A^H + B^H,    [A; B]^H (a, b) = A^H a + B^H b
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from .errors import ShapeError
from .operator import LinearOperator, Operator
from .spectrum import Remembered, Spectrum, given, matrix_spectrum, unchanged

__all__ = [
    "Adjoint",
    "Gram",
    "Matrix",
    "Stack",
    "Unmeasured",
    "ViewAsComplex",
    "add",
    "compose",
    "dense",
    "flatten_real",
    "scale",
]


Formula = Callable[[Tensor], Tensor]


def compose(outer: Operator, inner: Operator) -> Operator:
    """outer @ inner: first inner, then outer."""
    if outer.in_shape != inner.out_shape or outer.in_complex != inner.out_complex:
        raise ShapeError(
            f"{type(outer).__name__} @ {type(inner).__name__}: the first takes {_space(outer, 'in')}, the second gives "
            f"{_space(inner, 'out')}"
        )
    if isinstance(outer, LinearOperator) and isinstance(inner, LinearOperator):
        return _LinearComposition(outer, inner)
    return _Composition(outer, inner)


def add(a: Operator, b: Operator) -> Operator:
    """a + b of two operators between the same spaces."""
    if any(_space(a, side) != _space(b, side) for side in ("in", "out")):
        spaces = [f"{_space(o, 'in')} -> {_space(o, 'out')}" for o in (a, b)]
        raise ShapeError(f"{type(a).__name__} + {type(b).__name__}: expected the same spaces, got {spaces[0]} and {spaces[1]}")
    if isinstance(a, LinearOperator) and isinstance(b, LinearOperator):
        return _LinearSum(a, b)
    return _Sum(a, b)


def scale(operator: Operator, factor: float) -> Operator:
    """factor * operator for a real number."""
    return compose(_Multiple(operator.out_shape, operator.out_complex, float(factor)), operator)


def _space(operator: Operator, side: str) -> str:
    shape, is_complex = (operator.in_shape, operator.in_complex) if side == "in" else (operator.out_shape, operator.out_complex)
    return f"(B, {', '.join(map(str, shape))}) {'complex' if is_complex else 'real'}"


class _Composition(Operator):
    def __init__(self, outer: Operator, inner: Operator) -> None:
        super().__init__(inner.in_shape, outer.out_shape, in_complex=inner.in_complex, out_complex=outer.out_complex)
        self.outer, self.inner = outer, inner
        self.measured = outer.measured

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def vjp(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        # by the chain rule, so that an operator with a way of its own to its derivative keeps it
        middle, through_inner = self.inner.vjp(x)
        y, through_outer = self.outer.vjp(middle)
        return y, lambda v: through_inner(through_outer(v))

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        middle, push_inner, pull_inner = self.inner.linearize(x)
        y, push_outer, pull_outer = self.outer.linearize(middle)
        return y, lambda t: push_outer(push_inner(t)), lambda v: pull_inner(pull_outer(v))

    def guess(self, y: Tensor) -> Tensor:
        """The guess of the inner operator at that of the outer one."""
        return self.inner.guess(self.outer.guess(y))


class _LinearComposition(LinearOperator):
    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        super().__init__(inner.in_shape, outer.out_shape, in_complex=inner.in_complex, out_complex=outer.out_complex)
        self.outer, self.inner = outer, inner
        self.measured, self.unitary = outer.measured, outer.unitary and inner.unitary

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))

    def normal(self, x: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.normal(self.inner(x)))

    def solve(self, b: Tensor, rho: Tensor | float) -> Tensor:
        # a unitary change of variables on the inside leaves the closed form of the outside usable
        if isinstance(self.inner, ViewAsComplex):
            return self.inner.adjoint(self.outer.solve(self.inner(b), rho))
        return LinearOperator.solve(self, b, rho)

    def pinv(self, y: Tensor) -> Tensor:
        if isinstance(self.inner, ViewAsComplex):
            return self.inner.adjoint(self.outer.pinv(y))
        return super().pinv(y)

    @property
    def spectral(self) -> bool:
        if isinstance(self.outer, _Multiple) or self.outer.unitary:
            return self.inner.spectral
        return self.outer.spectral and self.inner.unitary

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        if not self.spectral:
            return super().spectrum(like)
        if isinstance(self.outer, _Multiple) or self.outer.unitary:
            own = self.inner.spectrum(like)
            factor = abs(self.outer.factor) if isinstance(self.outer, _Multiple) else 1.0
            return Spectrum(factor * own.values, own.to, own.back)
        own = self.outer.spectrum(like)
        if not self.outer.in_complex or self.inner.in_complex:
            return Spectrum(own.values, partial(_after, own.to, self.inner), partial(_before, own.back, self.inner))
        return Spectrum(
            torch.cat((own.values, own.values)), partial(_parts, own.to, self.inner), partial(_whole, own.back, self.inner)
        )

    def guess(self, y: Tensor) -> Tensor:
        """The guess of the inner operator at that of the outer one, which is not A^+ y."""
        return self.inner.guess(self.outer.guess(y))


class _Sum(Operator):
    def __init__(self, a: Operator, b: Operator) -> None:
        super().__init__(a.in_shape, a.out_shape, in_complex=a.in_complex, out_complex=a.out_complex)
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


class _LinearSum(LinearOperator):
    def __init__(self, a: LinearOperator, b: LinearOperator) -> None:
        super().__init__(a.in_shape, a.out_shape, in_complex=a.in_complex, out_complex=a.out_complex)
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.a.adjoint(y) + self.b.adjoint(y)


class _Multiple(LinearOperator):
    def __init__(self, shape: tuple[int, ...], is_complex: bool, factor: float) -> None:
        super().__init__(shape, shape, in_complex=is_complex, out_complex=is_complex)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.factor * y


class Adjoint(LinearOperator):
    """A^H as an operator of its own."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(
            operator.out_shape, operator.in_shape, in_complex=operator.out_complex, out_complex=operator.in_complex
        )
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator(y)

    @property
    def H(self) -> LinearOperator:
        return self.operator


class Gram(LinearOperator):
    """A^H A as an operator of its own, in the closed form that `A.normal` may have."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.in_shape, operator.in_shape, in_complex=operator.in_complex, out_complex=operator.in_complex)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.normal(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.normal(y)

    @property
    def spectral(self) -> bool:
        return self.operator.spectral

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        own = self.operator.spectrum(like)
        return Spectrum(own.values.square(), own.to, own.back)


class Stack(LinearOperator):
    """[A_1; A_2; ...]: several linear measurements of the same unknown as one.

    Outputs are joined along their first dimension where the others agree, and as flat vectors otherwise.

    Args:
        operators: linear operators on the same space, all with real or all with complex outputs.

    Raises:
        ShapeError: the inputs differ, or real and complex outputs are mixed.
    """

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        first = operators[0]
        for other in operators[1:]:
            if _space(other, "in") != _space(first, "in") or other.out_complex != first.out_complex:
                raise ShapeError(
                    f"Stack: expected operators from {_space(first, 'in')} with "
                    f"{'complex' if first.out_complex else 'real'} outputs, "
                    f"got {type(other).__name__} from {_space(other, 'in')} to {_space(other, 'out')}"
                )
        self_flat = any(o.out_shape[1:] != first.out_shape[1:] for o in operators)
        sizes = [prod(o.out_shape) if self_flat else o.out_shape[0] for o in operators]
        shape = (sum(sizes),) if self_flat else (sum(sizes), *first.out_shape[1:])
        super().__init__(first.in_shape, shape, in_complex=first.in_complex, out_complex=first.out_complex)
        self.parts, self.sizes, self.flat = list(operators), sizes, self_flat
        self.operators = nn.ModuleList(operators)
        if any(o.measured is not None for o in operators):
            masks = [torch.ones(o.out_shape, dtype=torch.bool) if o.measured is None else o.measured for o in operators]
            full = [m.expand(o.out_shape) for m, o in zip(masks, operators, strict=True)]
            self.measured = torch.cat([m.reshape(-1) if self_flat else m for m in full])

    def forward(self, x: Tensor) -> Tensor:
        parts = [operator(x) for operator in self.parts]
        return torch.cat([p.flatten(1) if self.flat else p for p in parts], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        parts = y.split(self.sizes, dim=1)
        terms = [operator.adjoint(p.reshape(-1, *operator.out_shape)) for operator, p in zip(self.parts, parts, strict=True)]
        return torch.stack(terms).sum(0)

    def normal(self, x: Tensor) -> Tensor:
        return torch.stack([operator.normal(x) for operator in self.parts]).sum(0)


class ViewAsComplex(LinearOperator):
    """(real parts, imaginary parts) -> complex: (B, 2 C, *spatial) real -> (B, C, *spatial) complex; orthogonal.

    Args:
        shape: shape of the complex tensor without the batch, (C, *spatial).
    """

    unitary = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__((2 * shape[0], *shape[1:]), tuple(shape), out_complex=True)

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = x.chunk(2, dim=1)
        return torch.complex(real, imaginary)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([y.real, y.imag], dim=1)

    def normal(self, x: Tensor) -> Tensor:
        return x


class Matrix(LinearOperator):
    """A dense matrix on the flattened unknown, (B, *in_shape) -> (B, m).

    Args:
        matrix: (m, N), real or complex; a complex one takes complex unknowns.
        in_shape: shape of the unknown without the batch; None for vectors (N,).
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor, in_shape: tuple[int, ...] | None = None) -> None:
        shape = (matrix.shape[1],) if in_shape is None else tuple(in_shape)
        if matrix.ndim != 2 or matrix.shape[1] != prod(shape):
            raise ShapeError(f"Matrix: expected (m, {prod(shape)}) for unknowns {shape}, got {tuple(matrix.shape)}")
        super().__init__(shape, (len(matrix),), in_complex=matrix.is_complex(), out_complex=matrix.is_complex())
        self.register_buffer("matrix", matrix)
        self._remembered = Remembered()

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.conj()).reshape(-1, *self.in_shape)

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        at = given(like)
        key = (self.matrix.data_ptr(), self.matrix._version, self.matrix.dtype, at.real.dtype, at.device)
        return self._remembered(key, partial(matrix_spectrum, self.matrix, self.in_shape, at))


class Unmeasured(LinearOperator):
    """The operator that measures nothing, (B, *shape) -> (B, 0): its posterior is the prior."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(tuple(shape), (0,))

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 0)

    def adjoint(self, y: Tensor) -> Tensor:
        return y.new_zeros(len(y), *self.in_shape)

    def solve(self, b: Tensor, rho: Tensor | float) -> Tensor:
        return b / torch.as_tensor(rho).reshape(-1, *([1] * (b.ndim - 1)))

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        kind, device = (torch.float64, None) if like is None else (like.real.dtype, like.device)
        return Spectrum(torch.zeros(self.in_shape, dtype=kind, device=device), unchanged, unchanged)


def _after(to: Formula, inner: LinearOperator, x: Tensor) -> Tensor:
    return to(inner(x))


def _before(back: Formula, inner: LinearOperator, c: Tensor) -> Tensor:
    return inner.adjoint(back(c))


def _parts(to: Formula, view: LinearOperator, x: Tensor) -> Tensor:
    """Complex coefficients as (real parts, imaginary parts)."""
    c = to(view(x))
    return torch.cat((c.real, c.imag), 1)


def _whole(back: Formula, view: LinearOperator, c: Tensor) -> Tensor:
    return view.adjoint(back(torch.complex(*c.chunk(2, 1))))


def dense(operator: LinearOperator, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None) -> Tensor:
    """The real matrix of a small linear operator on flattened tensors; complex spaces as (real parts, imaginary parts)."""
    size = prod(operator.in_shape)
    basis = torch.eye(size * (2 if operator.in_complex else 1), dtype=dtype, device=device)
    if operator.in_complex:
        basis = torch.complex(basis[:, :size], basis[:, size:])
    with torch.no_grad():
        columns = operator(basis.reshape(-1, *operator.in_shape))
    return flatten_real(columns, operator.out_complex).T


def flatten_real(value: Tensor, is_complex: bool) -> Tensor:
    """(B, ...) -> (B, N) real; where `is_complex` (B, 2 N), real then imaginary parts (a real value stands for both)."""
    if not is_complex:
        return value.flatten(1)
    flat = value.flatten(1)
    return torch.cat([flat.real, flat.imag] if flat.is_complex() else [flat, flat], dim=1)
