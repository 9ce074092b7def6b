"""Forward operators and their algebra: deterministic, noise-free, batched.

A linear operator is written as two plain formulas, `forward` and `adjoint`. The base class makes them what the rest of the
package relies on: shapes and dtypes are checked, calls are counted, and each is the derivative of the other (backward of
`forward` is `adjoint`, forward mode is `forward`, vmap folds into the batch), so that no graph runs through an FFT or a sparse
product. An operator with parameters that require a gradient is differentiated by autograd through its formula instead.

The inner product of complex spaces is Re<a, b>; the adjoint of an operator from a real to a complex space returns the real
part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .counting import operator_call
from .errors import CapabilityError, NumericalError, ShapeError
from .held import Held
from .linalg import cg, expand

if TYPE_CHECKING:
    from .spectrum import Spectrum

__all__ = ["LinearOperator", "Operator"]

Formula = Callable[[Any, Tensor], Tensor]


def _checked(formula: Formula, name: str) -> Formula:
    """Check the input, count the call, evaluate."""
    source = "y" if name == "pinv" else "x"

    @wraps(formula)
    def evaluate(self: Operator, v: Tensor) -> Tensor:
        self.check(v, source)
        with operator_call(len(v)):
            return formula(self, v)

    return evaluate


def _linear(formula: Formula, name: str) -> Formula:
    """The same for one half of a linear pair, and make the other half its derivative; `normal` is its own."""
    source, target = {"forward": ("x", "y"), "adjoint": ("y", "x"), "normal": ("x", "x")}[name]

    @wraps(formula)
    def apply(self: LinearOperator, v: Tensor) -> Tensor:
        self.check(v, source)
        with operator_call(len(v)):
            if any(p.requires_grad for p in self.parameters()):
                out = formula(self, v)
            else:
                out = _Linear.apply(v, self, formula, name)  # type: ignore[no-untyped-call]
        self.check(out, target)
        return out

    return apply


def _solver(formula: Callable[..., Tensor], _: str) -> Callable[..., Tensor]:
    """The same for solve(b, rho), which is its own adjoint."""

    @wraps(formula)
    def solve(self: LinearOperator, b: Tensor, rho: Tensor | float) -> Tensor:
        self.check(b, "x")
        weight = torch.as_tensor(rho, dtype=b.real.dtype, device=b.device).expand(len(b))
        with operator_call(len(b)):
            evaluate = partial(_with_weight, formula, weight)
            return _Linear.apply(b, self, evaluate, "solve", weight)  # type: ignore[no-untyped-call]

    return solve


def _with_weight(formula: Callable[..., Tensor], weight: Tensor, operator: LinearOperator, b: Tensor) -> Tensor:
    return formula(operator, b, weight)


class _Linear(torch.autograd.Function):
    """v -> formula(operator, v), whose derivative is the operator itself and whose backward is its adjoint."""

    @staticmethod
    def forward(v: Tensor, operator: LinearOperator, formula: Formula, name: str, *extra: Tensor) -> Tensor:  # noqa: ARG004
        out = formula(operator, v)
        return out.clone() if out is v else out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.operator, ctx.name, ctx.extra = inputs[1], inputs[3], inputs[4:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        other = {"forward": "adjoint", "adjoint": "forward"}.get(ctx.name, ctx.name)
        return getattr(ctx.operator, other)(gradient, *ctx.extra), None, None, None, *(None for _ in ctx.extra)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return getattr(ctx.operator, ctx.name)(tangent, *ctx.extra)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], v: Tensor, operator: LinearOperator, _: Formula, name: str, *extra: Tensor
    ) -> Any:
        stacked = v.movedim(in_dims[0], 0) if in_dims[0] is not None else v.expand(info.batch_size, *v.shape)
        repeated = [e.repeat(info.batch_size) for e in extra]
        return getattr(operator, name)(stacked.flatten(0, 1), *repeated).unflatten(0, stacked.shape[:2]), 0


class Operator(nn.Module):
    """A map between tensors of fixed shape, (B, *in_shape) -> (B, *out_shape).

    Args:
        in_shape, out_shape: shapes without the batch dimension.
        in_complex, out_complex: whether the spaces are complex.

    Attributes:
        measured: boolean tensor that broadcasts to out_shape, False where the output is zero because nothing is measured there;
            None where everything is measured. Noise is added, and misfit is counted, only where it is True.
        differentiable: whether `vjp` and `jvp` exist; what is made of operators has them where all parts have.
    """

    _entries: ClassVar[dict[str, Callable[..., Any]]] = {"forward": _checked}
    differentiable: ClassVar[bool] = True
    measured: Tensor | None

    def __init__(
        self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], *, in_complex: bool = False, out_complex: bool = False
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.in_complex, self.out_complex = in_complex, out_complex
        self.register_buffer("measured", None, persistent=False)
        self._counted: Held[int] = Held()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, wrapper in cls._entries.items():
            if name in cls.__dict__:
                setattr(cls, name, wrapper(cls.__dict__[name], name))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward(x)")

    def vjp(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The value at x and the pullback v -> J(x)^H v."""
        y, pullback, *_ = torch.func.vjp(self, x)
        return y, lambda v: pullback(v)[0]

    def vjp_by_autograd(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The same through autograd's graph, where memory policies hold, for operators that override `vjp` with it."""
        graph = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            at = x if graph else x.detach().requires_grad_()
            y = self(at)
        return y if graph else y.detach(), lambda v: torch.autograd.grad(y, at, v, retain_graph=True, create_graph=graph)[0]

    def jvp(self, x: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """The value at x and the derivative J(x) tangent."""
        y, dy, *_ = torch.func.jvp(self, (x,), (tangent,))
        return y, dy

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """The value at x, the derivative t -> J(x) t, and its adjoint v -> J(x)^H v, for any number of products.

        Override it where what one product computes, a factorisation say, serves the next.
        """
        y, pull = self.vjp(x)
        return y, lambda t: self.jvp(x, t)[1], pull

    def guess(self, y: Tensor) -> Tensor:
        """A crude inverse, (B, *out_shape) -> (B, *in_shape), for a sampler to start from; no part of the model.

        Raises:
            CapabilityError: the operator has none.
        """
        raise CapabilityError(f"{type(self).__name__} has no guess(y): start from the prior")

    def count_measured(self) -> int:
        """Number of real values that are measured: a complex one counts two."""
        count = math.prod(self.out_shape)
        if self.measured is not None:
            count = self._counted(self.measured, lambda mask: int(mask.expand(self.out_shape).sum()))
        return count * (2 if self.out_complex else 1)

    def check(self, value: Tensor, side: str) -> None:
        """Raise a ShapeError unless `value` is a batch of the input ("x") or output ("y") space."""
        shape, is_complex = (self.in_shape, self.in_complex) if side == "x" else (self.out_shape, self.out_complex)
        if (
            value.shape[1:] != shape
            or value.is_complex() != is_complex
            or not (value.is_complex() or value.is_floating_point())
        ):
            want = f"(B, {', '.join(map(str, shape))}) {'complex' if is_complex else 'real'}"
            raise ShapeError(
                f"{type(self).__name__}: expected {side} of shape {want}, got {tuple(value.shape)} {str(value.dtype)[6:]}"
            )

    def __matmul__(self, other: Operator) -> Operator:
        from .algebra import compose

        return compose(self, other)

    def __add__(self, other: Operator) -> Operator:
        from .algebra import add

        return add(self, other)

    def __mul__(self, factor: float) -> Operator:
        from .algebra import scale

        return scale(self, factor)

    __rmul__ = __mul__

    def __neg__(self) -> Operator:
        return self * -1.0

    def __sub__(self, other: Operator) -> Operator:
        return self + (-other)


class LinearOperator(Operator):
    """A linear operator with its exact adjoint: <A x, y> = <x, A^H y> for Re<., .>.

    Subclasses write `forward` and `adjoint`, and `normal`, `solve`, `pinv`, `spectrum` where the structure has a closed form.

    Attributes:
        unitary: whether A^H A = A A^H = I.
    """

    unitary: bool = False

    _entries: ClassVar[dict[str, Callable[..., Any]]] = {
        "forward": _linear,
        "adjoint": _linear,
        "normal": _linear,
        "solve": _solver,
        "pinv": _checked,
    }

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the exact transpose, (B, *out_shape) -> (B, *in_shape)."""
        raise NotImplementedError(f"{type(self).__name__} does not define adjoint(y)")

    def normal(self, x: Tensor) -> Tensor:
        """A^H A x."""
        return self.adjoint(self(x))

    def vjp(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The value at x and the pullback, which is the adjoint."""
        return self(x), self.adjoint

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """The value at x, and the operator and its adjoint."""
        return self(x), self, self.adjoint

    def guess(self, y: Tensor) -> Tensor:
        """A^+ y."""
        return self.pinv(y)

    @property
    def H(self) -> LinearOperator:
        """The adjoint as an operator."""
        from .algebra import Adjoint

        return Adjoint(self)

    @property
    def gram(self) -> LinearOperator:
        """A^H A as an operator."""
        from .algebra import Gram

        return Gram(self)

    @property
    def spectral(self) -> bool:
        """Whether `spectrum` is known; override it where that depends on more than the class."""
        return self.unitary or type(self).spectrum is not LinearOperator.spectrum

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        """A^H A = V diag(a^2) V^H with a fast V, see `core.spectrum`; V = I where the operator is unitary.

        Args:
            like: for the precision and the device of the values; None is float64 on the CPU.

        Raises:
            CapabilityError: the operator has none, see `spectral`.
        """
        if not self.unitary:
            raise CapabilityError(
                f"{type(self).__name__} has no singular values in closed form: core.spectrum.Decomposed(operator) computes "
                "them, of up to 4096 unknowns"
            )
        from .spectrum import Spectrum, unchanged

        values = torch.ones(self.in_shape, dtype=torch.float64)
        return Spectrum(values if like is None else values.to(like.device, like.real.dtype), unchanged, unchanged)

    def solve(self, b: Tensor, rho: Tensor | float) -> Tensor:
        """(A^H A + rho I)^-1 b for rho > 0, a number or one per item (B,); here by conjugate gradients per item."""
        weight = expand(torch.as_tensor(rho), b)
        result = cg(lambda x: self.normal(x) + weight * x, b, max_iter=2000, tol=_tolerance(b))
        _require_convergence(self, "solve", result.residual, result.iterations, b)
        return result.x

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, the least-squares solution of smallest norm; here by conjugate gradients on the normal equations."""
        b = self.adjoint(y)
        result = cg(self.normal, b, max_iter=2000, tol=_tolerance(b))
        _require_convergence(self, "pinv", result.residual, result.iterations, b)
        return result.x


def _tolerance(b: Tensor) -> float:
    return 1e-11 if b.dtype in (torch.float64, torch.complex128) else 1e-6


def _require_convergence(operator: Operator, what: str, residual: Tensor, iterations: int, b: Tensor) -> None:
    worst = float(residual.max())
    # what is not finite came with b; who made b knows the place
    if worst > 10.0 * _tolerance(b):
        raise NumericalError(
            f"{type(operator).__name__}.{what}: conjugate gradients stopped after {iterations} iterations at a relative "
            "residual of "
            f"{worst:.1e}: use solve(b, rho) with a larger rho"
        )
