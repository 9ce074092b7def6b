"""Gated units: y = a act(b) of the two halves of x = [a, b], as one operation that keeps x alone.

    silu_gate:  act(b) = b sigmoid(b)           geglu:  act(b) = b Phi(b), Phi the normal distribution function, or its
    da = dy act(b),  db = dy a act'(b)                  approximation (1 + tanh(sqrt(2 / pi) (b + 0.044715 b^3))) / 2

Autograd keeps x and act(b); here the backward pass computes act(b) again from x, a third less. Both halves of the gradient are
written into one tensor, where autograd makes two and joins them.

References: Dauphin, Fan, Auli, Grangier, Language modeling with gated convolutional networks, 2017, arXiv:1612.08083. Shazeer,
GLU variants improve transformer, 2020, arXiv:2002.05202.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ConfigError, ShapeError
from .dispatch import own_backward, transformed, use_triton

__all__ = ["geglu", "silu_gate"]

_aten = torch.ops.aten


def silu_gate(x: Tensor, *, dim: int = -1) -> Tensor:
    """a silu(b) of the halves [a, b] of x along `dim`.

    Shapes: (..., 2 n, ...) -> (..., n, ...), real; channels of an image may be last in memory and stay so.

    Any order of derivatives, forward mode and `torch.func` work, as in `group_norm_silu`.

    Raises:
        ShapeError: x has no such axis, or its size is odd.
    """
    return _gate(x, "silu", dim)


def geglu(x: Tensor, *, dim: int = -1, approximate: str = "none") -> Tensor:
    """a gelu(b) of the halves [a, b] of x along `dim`.

    Args:
        x: as in `silu_gate`.
        dim: the axis that is halved.
        approximate: of the normal distribution function, as in torch: "none" or "tanh".

    Raises:
        ShapeError: x has no such axis, or its size is odd.
        ConfigError: the approximation is unknown.
    """
    if approximate not in ("none", "tanh"):
        raise ConfigError(f"geglu: expected approximate none or tanh, got {approximate!r}")
    return _gate(x, "gelu" if approximate == "none" else "gelu_tanh", dim)


def _gate(x: Tensor, kind: str, dim: int) -> Tensor:
    """a act(b), by the way that the context asks for."""
    if not -x.ndim <= dim < x.ndim or x.shape[dim] % 2 or not x.is_floating_point():
        raise ShapeError(f"gate: expected real x with an even axis {dim}, got {tuple(x.shape)} {x.dtype}")
    dim %= x.ndim
    if x.numel() == 0 or not own_backward("gate", x):
        a, b = x.chunk(2, dim)
        return a * _activation(b, kind)
    if torch.compiler.is_compiling() or _on_triton(x):
        return torch.ops.invdiff.gate(x, kind, dim)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Eager.apply(x, kind, dim)
    return _forward(x, kind, dim)


def _activation(b: Tensor, kind: str) -> Tensor:
    """act(b)."""
    return F.silu(b) if kind == "silu" else F.gelu(b, approximate=_approximate(kind))


def _approximate(kind: str) -> str:
    """What torch calls it."""
    return "tanh" if kind == "gelu_tanh" else "none"


def _on_triton(*tensors: Tensor) -> bool:
    """Whether the Triton form runs; its arithmetic is float32."""
    return tensors[0].dtype != torch.float64 and use_triton(*tensors, kernel="gate")


def _dense(x: Tensor, dim: int) -> tuple[Tensor, bool]:
    """x, or a copy that has no gaps, and whether its channels, axis 1, are last in memory and are what is halved."""
    if x.is_contiguous():
        return x, False
    last = x.ndim > 2 and dim == 1 and x.movedim(1, -1).is_contiguous()
    return (x, True) if last else (x.contiguous(), False)


def _like(x: Tensor, shape: torch.Size | tuple[int, ...], last: bool) -> Tensor:
    """An empty tensor of a shape, with channels last if x has them."""
    if not last:
        return x.new_empty(shape)
    return x.new_empty(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def _forward(x: Tensor, kind: str, dim: int) -> Tensor:
    """y, on Triton or from torch's operations."""
    x, last = _dense(x, dim)
    a, b = x.chunk(2, dim)
    y = _like(x, a.shape, last)
    if _on_triton(x):
        from . import gates_triton

        gates_triton.forward(x, y, kind, inner=a.shape[1] if last else a[(0,) * dim].numel())
        return y
    if kind == "silu":
        _aten.silu.out(b, out=y)
    else:
        _aten.gelu.out(b, approximate=_approximate(kind), out=y)
    return y.mul_(a)


def _backward(dy: Tensor, x: Tensor, kind: str, dim: int) -> Tensor:
    """dx, on Triton or from torch's operations, which need no other tensor for it."""
    x, last = _dense(x, dim)
    a, b = x.chunk(2, dim)
    dx = _like(x, x.shape, last)
    if _on_triton(x, dy):
        from . import gates_triton

        dy = dy.movedim(1, -1).contiguous() if last else dy.contiguous()
        gates_triton.backward(dy, x, dx, kind, inner=a.shape[1] if last else a[(0,) * dim].numel())
        return dx
    da, db = dx.chunk(2, dim)
    torch.mul(dy, a, out=db)
    if kind == "silu":
        _aten.silu_backward.grad_input(db, b, grad_input=db)
        _aten.silu.out(b, out=da)
    else:
        _aten.gelu_backward.grad_input(db, b, approximate=_approximate(kind), grad_input=db)
        _aten.gelu.out(b, approximate=_approximate(kind), out=da)
    da.mul_(dy)
    return dx


@torch.library.custom_op("invdiff::gate", mutates_args=())
def _op(x: Tensor, kind: str, dim: int) -> Tensor:
    """a act(b); kind is silu, gelu or gelu_tanh, and dim is not negative."""
    return _forward(x, kind, dim)


@torch.library.custom_op("invdiff::gate_backward", mutates_args=())
def _op_backward(dy: Tensor, x: Tensor, kind: str, dim: int) -> Tensor:
    """dx."""
    return _backward(dy, x, kind, dim)


@_op.register_fake
def _(x: Tensor, _: str, dim: int) -> Tensor:
    x, last = _dense(x, dim)
    return _like(x, x.chunk(2, dim)[0].shape, last)


@_op_backward.register_fake
def _(_: Tensor, x: Tensor, __: str, dim: int) -> Tensor:
    x, last = _dense(x, dim)
    return _like(x, x.shape, last)


def _setup(ctx: Any, inputs: tuple[Tensor, str, int], output: Tensor) -> None:  # noqa: ARG001 (names that torch passes)
    ctx.save_for_backward(inputs[0])
    ctx.options, ctx.direct = inputs[1:], False


def _pullback(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
    (x,), (kind, dim) = ctx.saved_tensors, ctx.options
    twice = torch.is_grad_enabled()
    if twice or transformed(dy):
        # a gradient that is differentiated again, or a batch of them: through torch's own operations
        with torch.enable_grad():
            a, b = x.chunk(2, dim)
            (dx,) = torch.autograd.grad(a * _activation(b, kind), x, dy, create_graph=twice)
        return dx, None, None
    pull = _backward if ctx.direct else torch.ops.invdiff.gate_backward
    return pull(dy, x, kind, dim), None, None


_op.register_autograd(_pullback, setup_context=_setup)


class _Eager(torch.autograd.Function):
    """The same operation past the dispatcher, which for a small x costs more than the arithmetic."""

    @staticmethod
    def forward(x: Tensor, kind: str, dim: int) -> Tensor:
        return _forward(x, kind, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str, int], output: Tensor) -> None:
        _setup(ctx, inputs, output)
        ctx.direct = True

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return _pullback(ctx, dy)
