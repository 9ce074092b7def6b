"""The torch form of the fused group normalisation; the equations are in `group_norm`.

One pass of torch's normalisation and one of its SiLU. A factor for each item is had, where the channels are first, by treating
all items' channels as channels of one item; where they are last, by products with (B, C) vectors. In mixed precision these are
rounded as torch rounds them, and the backward pass goes item by item. On the CPU it works in pieces of about `PIECE` entries,
in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["backward", "channels_last", "dense", "forward"]

PIECE = 1 << 19
_aten = torch.ops.aten


def channels_last(x: Tensor) -> bool:
    """Whether the channels are the fastest axis of a dense x."""
    return not x.is_contiguous()


def dense(x: Tensor) -> Tensor:
    """x if its channels are first or last in memory, otherwise a copy that has them first."""
    return x if x.is_contiguous() or x.movedim(1, -1).is_contiguous() else x.contiguous()


def forward(x: Tensor, groups: int, gamma: Tensor, beta: Tensor, activation: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y like x, and mean and rstd (B, groups), of a dense x and of gamma and beta, (B, C) or (1, C)."""
    batch, channels, size = *x.shape[:2], x[0, 0].numel()
    # CUDA's normalisation has no mixed precision: it would round the statistics
    wide = x if x.is_cpu else x.to(gamma.dtype)
    if len(gamma) == 1:
        y, mean, rstd = torch.native_group_norm(_flat(wide), gamma[0], beta[0], batch, channels, size, groups, eps)
    elif channels_last(x):
        h = _flat(wide)
        ones, zeros = torch.ones_like(gamma[0]), torch.zeros_like(gamma[0])
        y, mean, rstd = torch.native_group_norm(h, ones, zeros, batch, channels, size, groups, eps)
        factor, term = (v.to(y.dtype)[..., None, None] for v in (gamma, beta))
        torch.addcmul(term, y, factor, out=y)
    else:
        h = wide.view(1, batch * channels, size)
        y, mean, rstd = torch.native_group_norm(
            h, gamma.flatten(), beta.flatten(), 1, batch * channels, size, batch * groups, eps
        )
    if activation:
        F.silu(y, inplace=True)
    return _shaped(y, x).to(x.dtype), mean.view(batch, groups), rstd.view(batch, groups)


def backward(
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
    """The gradients of x, gamma and beta, like them; dy has the memory layout of x."""
    wide = x if x.is_cpu else x.to(gamma.dtype)
    arguments = (dy.to(wide.dtype), wide, groups, gamma, beta, mean, rstd, activation, eps)
    if len(gamma) == 1 or (channels_last(x) and wide.dtype != gamma.dtype):
        dx, dgamma, dbeta = _backward_items(*arguments)
    elif channels_last(x):
        dx, dgamma, dbeta = _backward_last(*arguments[:-1])
    else:
        dx, dgamma, dbeta = _backward_first(*arguments)
    return dx.to(x.dtype), dgamma, dbeta


def _flat(x: Tensor) -> Tensor:
    """A dense x with its space in one axis: (B, C, size), or, channels last, (B, C, 1, size), which torch has in four axes."""
    batch, channels, size = *x.shape[:2], x[0, 0].numel()
    if not channels_last(x):
        return x.view(batch, channels, size)
    # for axes of size 1 torch's normalisation wants these strides
    return x.as_strided((batch, channels, 1, size), (channels * size, 1, channels * size, channels))


def _shaped(flat: Tensor, x: Tensor) -> Tensor:
    """The inverse of `_flat`, for an x of this shape and layout."""
    return flat.squeeze(2).unflatten(2, x.shape[2:]) if channels_last(x) else flat.view(x.shape)


def _backward_items(
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
    """Gradients of x, gamma and beta: one item at a time, or some where all have the same gamma and beta."""
    (batch, channels), size, shared = x.shape[:2], x[0, 0].numel(), len(gamma) == 1
    dgamma, dbeta, h, g = torch.zeros_like(gamma), torch.zeros_like(beta), _flat(x), _flat(dy)
    whole = max(1, PIECE // (channels * size)) if x.is_cpu else batch
    count = whole if shared else 1
    dx = None if count >= batch else torch.empty_like(h)
    for start in range(0, batch, count):
        some, own = slice(start, start + count), 0 if shared else start
        part, slope, n = h[some], g[some], len(h[some])
        if activation:
            u = torch.native_group_norm(part, gamma[own], beta[own], n, channels, size, groups, eps)[0]
            slope = _aten.silu_backward.grad_input(slope, u, grad_input=u)
        piece, by_gamma, by_beta = _aten.native_group_norm_backward(
            slope, part, mean[some], rstd[some], gamma[own], n, channels, size, groups, [True, True, True]
        )
        dgamma[own] += by_gamma
        dbeta[own] += by_beta
        if dx is not None:
            dx[some] = piece
    return _shaped(piece if dx is None else dx, x), dgamma, dbeta


def _backward_first(
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
    """Gradients of x and, per item, of gamma and beta, channels first: some (item, group) rows at a time."""
    batch, channels, size = *x.shape[:2], x[0, 0].numel()
    rows, width = batch * groups, channels // groups
    gamma, beta = (v.expand(batch, channels).reshape(rows, width) for v in (gamma, beta))
    x_rows, dy_rows = (t.view(rows, width, size) for t in (x, dy))
    count = max(1, PIECE // (width * size)) if x.is_cpu else rows
    found: Sequence[Tensor] = ()
    whole = [torch.empty_like(t) for t in (x_rows, gamma, beta)] if count < rows else []
    for start in range(0, rows, count):
        part = slice(start, start + count)
        n = len(gamma[part])
        h, g = (t[part].view(1, n * width, size) for t in (x_rows, dy_rows))
        factor, term = gamma[part].reshape(-1), beta[part].reshape(-1)
        if activation:
            u = torch.native_group_norm(h, factor, term, 1, n * width, size, n, eps)[0]
            g = _aten.silu_backward.grad_input(g, u, grad_input=u)
        at = (v.view(1, rows)[:, part] for v in (mean, rstd))
        found = _aten.native_group_norm_backward(g, h, *at, factor, 1, n * width, size, n, [True, True, True])
        for total, piece in zip(whole, found, strict=False):
            total[part] = piece.view_as(total[part])
    dx, dgamma, dbeta = whole or found
    return dx.view(x.shape), dgamma.view(batch, channels), dbeta.view(batch, channels)


def _backward_last(
    dy: Tensor,
    x: Tensor,
    groups: int,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    rstd: Tensor,
    activation: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and, per item, of gamma and beta, channels last, without mixed precision.

    Some items at a time, or pieces of one; dx holds g until the sums are known.
    """
    (batch, channels), size = x.shape[:2], x[0, 0].numel()
    dx = torch.empty_like(x)
    x3, dy3, dx3 = (t.as_strided((batch, channels, size), (channels * size, 1, channels)) for t in (x, dy, dx))
    items = PIECE // (channels * size) if x.is_cpu else batch
    items, length = (items, size) if items else (1, max(1, PIECE // channels))
    spans = [slice(start, start + length) for start in range(0, size, length)]
    room = gamma.new_empty(min(items, batch), min(length, size), channels).transpose(1, 2)
    mean, rstd = mean[..., None], rstd[..., None]
    slope, offset = _affine(gamma, beta, mean, rstd)
    dgamma, dbeta = (gamma.new_empty(batch, channels) for _ in range(2))
    for start in range(0, batch, items):
        some = slice(start, start + items)
        factor, term = slope[some, :, None], offset[some, :, None]
        n = len(factor)
        by_g, by_gx = gamma.new_zeros(2, n, groups, channels // groups)
        source = dx3 if activation else dy3
        for span in spans:
            part, g = x3[some, :, span], source[some, :, span]
            u = room[:n, :, : part.shape[2]]
            if activation:
                torch.addcmul(term, part, factor, out=u)
                _aten.silu_backward.grad_input(dy3[some, :, span], u, grad_input=g)
            by_g += g.sum(2).view_as(by_g)
            by_gx += torch.mul(g, part, out=u).sum(2).view_as(by_g)
        # dx = slope g - rstd m(gamma g) - rstd^2 m(gamma g n) (x - mean), m: the mean over the group
        centre, inverse, weight = mean[some], rstd[some], gamma[some].view_as(by_g)
        by_gn = (by_gx - centre * by_g) * inverse
        m_g, m_gn = ((weight * v).sum(2, keepdim=True) / (size * v.shape[2]) for v in (by_g, by_gn))
        by_x = -inverse.square() * m_gn
        rest = -inverse * m_g - by_x * centre
        by_x, rest = (v.expand_as(by_g).reshape(n, channels, 1) for v in (by_x, rest))
        for span in spans:
            part = x3[some, :, span]
            u = torch.addcmul(rest, part, by_x, out=room[:n, :, : part.shape[2]])
            torch.addcmul(u, source[some, :, span], factor, out=dx3[some, :, span])
        dgamma[some], dbeta[some] = by_gn.flatten(1), by_g.flatten(1)
    return dx, dgamma, dbeta


def _affine(gamma: Tensor, beta: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """gamma n + beta = slope x + offset, each (B, C); mean and rstd are (B, groups, 1)."""
    gamma, beta = (v.view(len(v), mean.shape[1], -1) for v in (gamma, beta))
    slope = gamma * rstd
    return slope.flatten(1), torch.addcmul(beta, mean, slope, value=-1).flatten(1)
