"""Group normalisation, scale and shift (FiLM), and SiLU as one operation that keeps one tensor.

    n = (x - mean) rstd  over each (item, group),   u = gamma n + beta,   y = u sigmoid(u)   (or y = u)
    gamma = (1 + scale) weight,   beta = (1 + scale) bias + shift

Autograd keeps three tensors of the size of x for this: x, n and u. Here x is kept, with mean and rstd (B, groups), gamma and
beta (B, C), and the backward pass computes u again. With s = sigmoid(u), g = dL/du = dy s (1 + u (1 - s)), M entries a group,

    dL/dbeta = sum_space g,   dL/dgamma = sum_space g n   (per item and channel)
    dL/dx = rstd (gamma g - sum_group(gamma dL/dbeta) / M - n sum_group(gamma dL/dgamma) / M)

gamma and beta come from the small vectors by ordinary autograd. Statistics are in float32 for bfloat16 and float16, and so is
the arithmetic of the Triton form. Items of a batch do not touch each other. In memory x may have its channels first or last,
and y has them there too.

References: Wu, He, Group normalization, 2018, arXiv:1803.08494. Perez, Strub, de Vries, Dumoulin, Courville, FiLM, 2017,
arXiv:1709.07871. Elfwing, Uchibe, Doya, Sigmoid-weighted linear units, 2017, arXiv:1702.03118.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from ..core.errors import ShapeError
from . import group_norm_torch
from .dispatch import own_backward, transformed, use_triton
from .group_norm_torch import channels_last, dense

__all__ = ["group_norm_silu", "plain"]


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """silu((1 + scale) GN(x) + shift), of the shape, dtype and memory layout of x.

    Args:
        x: (B, C, *spatial), float32, float64, bfloat16 or float16.
        groups: divides C.
        weight, bias: of the normalisation, (C,).
        scale, shift: (B, C), or None for none.
        activation: False for the argument of the SiLU.
        eps: added to the variances.

    Any order of derivatives, forward mode and `torch.func` work; what is not a plain backward pass goes through torch's own
    operations. So does a compiled graph, which its compiler fuses, unless the Triton form is switched on.

    Raises:
        ShapeError: groups do not divide C, or a vector has another shape.
    """
    _check(x, groups, weight, bias, scale, shift)
    if x.numel() == 0 or not own_backward("group_norm", x, weight, bias, scale, shift):
        return plain(x, groups, weight, bias, scale=scale, shift=shift, activation=activation, eps=eps)
    gamma, beta = _fold(weight, bias, scale, shift, torch.promote_types(x.dtype, torch.float32))
    if torch.compiler.is_compiling() or _on_triton(x, gamma, beta):
        return torch.ops.invdiff.group_norm_silu(x, groups, gamma, beta, activation, eps)[0]
    if torch.is_grad_enabled() and (x.requires_grad or gamma.requires_grad or beta.requires_grad):
        return _Eager.apply(x, groups, gamma, beta, activation, eps)[0]
    return _forward(x, groups, gamma, beta, activation, eps)[0]


def plain(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """The same from torch's operations, each with its own derivatives; shapes as in `group_norm_silu`, unchecked."""
    if forward_ad._current_level >= 0:
        x = x.contiguous()  # torch's forward derivative of the normalisation has no channels last
    u = F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if scale is not None:
        u = u * (1 + _over(scale, x))
    if shift is not None:
        u = u + _over(shift, x)
    # mixed precision may have widened it
    return (F.silu(u) if activation else u).to(x.dtype)


def _on_triton(x: Tensor, *others: Tensor) -> bool:
    """Whether the Triton form runs; its arithmetic is float32."""
    return x.dtype != torch.float64 and use_triton(x, *others, kernel="group_norm")


def _check(x: Tensor, groups: int, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None) -> None:
    """Raise a ShapeError unless the shapes agree."""
    if x.ndim < 2 or groups < 1 or x.shape[1] % groups or not x.is_floating_point():
        raise ShapeError(
            f"group_norm_silu: expected real x (B, C, *spatial) and groups that divide C, "
            f"got {tuple(x.shape)} {x.dtype} and {groups} groups"
        )
    wanted = {"weight": (x.shape[1],), "bias": (x.shape[1],), "scale": tuple(x.shape[:2]), "shift": tuple(x.shape[:2])}
    found = {"weight": weight, "bias": bias, "scale": scale, "shift": shift}
    for name, shape in wanted.items():
        vector = found[name]
        if vector is not None and tuple(vector.shape) != shape:
            raise ShapeError(f"group_norm_silu: expected {name} {shape}, got {tuple(vector.shape)}")


def _fold(
    weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """gamma and beta, (B, C), or (1, C) where all items have the same."""
    gamma, beta = weight.to(dtype)[None], bias.to(dtype)[None]
    if scale is not None:
        factor = 1 + scale.to(dtype)
        gamma, beta = gamma * factor, beta * factor
    if shift is not None:
        beta = beta + shift.to(dtype)
    return (gamma, beta) if len(gamma) == len(beta) else (gamma.expand_as(beta), beta)


def _over(vector: Tensor, x: Tensor) -> Tensor:
    """(B, C) -> (B, C, 1, ..., 1), with the axes of x."""
    return vector[(..., *[None] * (x.ndim - 2))]


@torch.library.custom_op("invdiff::group_norm_silu", mutates_args=())
def _op(x: Tensor, groups: int, gamma: Tensor, beta: Tensor, activation: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y like x, and mean and rstd (B, groups), of gamma and beta (B or 1, C), which are at least float32."""
    return _forward(x, groups, gamma, beta, activation, eps)


@torch.library.custom_op("invdiff::group_norm_silu_backward", mutates_args=())
def _op_backward(
    dy: Tensor,
    x: Tensor,
    groups: int,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    rstd: Tensor,
    activation: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, gamma and beta, like them."""
    return _backward(dy, x, groups, gamma, beta, mean, rstd, activation, eps)


def _backward(
    dy: Tensor,
    x: Tensor,
    groups: int,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    rstd: Tensor,
    activation: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gamma and beta, like them, on Triton or from torch's operations."""
    x = dense(x)
    dy = dy.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last(x) else dy.contiguous()
    if _on_triton(x, dy, gamma, beta, mean, rstd):
        from . import group_norm_triton

        return group_norm_triton.backward(dy, x, groups, gamma, beta, mean, rstd, activation)
    return group_norm_torch.backward(dy, x, groups, gamma, beta, mean, rstd, activation, eps)


def _forward(
    x: Tensor, groups: int, gamma: Tensor, beta: Tensor, activation: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and rstd, on Triton or from torch's operations."""
    x = dense(x)
    if _on_triton(x, gamma, beta):
        from . import group_norm_triton

        return group_norm_triton.forward(x, groups, gamma, beta, activation, eps)
    return group_norm_torch.forward(x, groups, gamma, beta, activation, eps)


@_op.register_fake
def _(x: Tensor, groups: int, gamma: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    statistics = gamma.new_empty(x.shape[0], groups)
    return torch.empty_like(dense(x)), statistics, torch.empty_like(statistics)


@_op_backward.register_fake
def _(_: Tensor, x: Tensor, __: int, gamma: Tensor, *___: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(dense(x)), gamma.new_empty(gamma.shape), gamma.new_empty(gamma.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, groups, gamma, beta, activation, eps = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, gamma, beta, mean, rstd)
    ctx.options, ctx.direct = (groups, activation, eps), False


def _pullback(ctx: Any, dy: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, gamma, beta, mean, rstd = ctx.saved_tensors
    groups, activation, eps = ctx.options
    twice = torch.is_grad_enabled()
    if twice or transformed(dy):
        # a gradient that is differentiated again, or a batch of them: through torch's own operations
        with torch.enable_grad():
            u = F.group_norm(x.to(gamma.dtype).contiguous(), groups, eps=eps) * _over(gamma, x) + _over(beta, x)
            y = (F.silu(u) if activation else u).to(x.dtype)
            inputs = [t for t, needed in zip((x, gamma, beta), _needs(ctx), strict=True) if needed]
            found = iter(torch.autograd.grad(y, inputs, dy, create_graph=twice))
        dx, dgamma, dbeta = (next(found) if needed else None for needed in _needs(ctx))
    else:
        pull = _backward if ctx.direct else torch.ops.invdiff.group_norm_silu_backward
        dx, dgamma, dbeta = pull(dy, x, groups, gamma, beta, mean, rstd, activation, eps)
    return dx, None, dgamma, dbeta, None, None


def _needs(ctx: Any) -> tuple[bool, bool, bool]:
    """Which of x, gamma and beta need a gradient."""
    needed = ctx.needs_input_grad
    return needed[0], needed[2], needed[3]


_op.register_autograd(_pullback, setup_context=_setup)


class _Eager(torch.autograd.Function):
    """The same operation past the dispatcher, which for a small x costs more than the arithmetic."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _setup(ctx, inputs, output)
        ctx.direct = True

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return _pullback(ctx, dy)
