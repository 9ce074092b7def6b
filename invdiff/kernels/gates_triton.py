# ruff: noqa: ANN001, ANN202 (what a kernel takes are pointers and numbers of the device)
"""The Triton form of the gated units; the equations are in `gates`.

In memory x is (outer, 2, inner). One program reads both halves of an entry, computes in float32, and everything is read and
written once: three halves forward, five backward.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["backward", "forward"]

BLOCK = 1024
KINDS = ("silu", "gelu", "gelu_tanh")


@triton.jit
def _sigmoid(b):
    return 1.0 / (1.0 + tl.exp(-b))


@triton.jit
def _factor(b, KIND: tl.constexpr):
    """f of act(b) = b f(b), and its derivative."""
    if KIND == 0:
        f = _sigmoid(b)
        return f, f * (1.0 - f)
    elif KIND == 1:
        # erf(b / sqrt(2)); the density of the normal distribution
        return 0.5 * (1.0 + tl.erf(b * 0.7071067811865476)), 0.3989422804014327 * tl.exp(-0.5 * b * b)
    else:
        # (1 + tanh(z)) / 2 = sigmoid(2 z), 2 z = 2 sqrt(2 / pi) (b + 0.044715 b^3)
        f = _sigmoid(1.5957691216057308 * (b + 0.044715 * b * b * b))
        return f, f * (1.0 - f) * 1.5957691216057308 * (1.0 + 0.134145 * b * b)


@triton.jit
def _places(total, inner, BLOCK: tl.constexpr):
    """Entries of y, where their halves are in x, and the mask."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return i, i + (i // inner) * inner, i < total


@triton.jit
def _forward(x, y, total, inner, KIND: tl.constexpr, BLOCK: tl.constexpr):
    i, at, mask = _places(total, inner, BLOCK)
    a = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x + at + inner, mask=mask, other=0.0).to(tl.float32)
    f, _ = _factor(b, KIND)
    tl.store(y + i, (a * b * f).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _backward(dy, x, dx, total, inner, KIND: tl.constexpr, BLOCK: tl.constexpr):
    i, at, mask = _places(total, inner, BLOCK)
    a = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x + at + inner, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(dy + i, mask=mask, other=0.0).to(tl.float32)
    f, slope = _factor(b, KIND)
    tl.store(dx + at, (g * b * f).to(dx.dtype.element_ty), mask=mask)
    tl.store(dx + at + inner, (g * a * (f + b * slope)).to(dx.dtype.element_ty), mask=mask)


def forward(x: Tensor, y: Tensor, kind: str, *, inner: int) -> None:
    """Write y = a act(b); in memory x is (outer, 2, inner) and y (outer, inner)."""
    _forward[(triton.cdiv(y.numel(), BLOCK),)](x, y, y.numel(), inner, KIND=KINDS.index(kind), BLOCK=BLOCK, num_warps=4)


def backward(dy: Tensor, x: Tensor, dx: Tensor, kind: str, *, inner: int) -> None:
    """Write dx; in memory x and dx are (outer, 2, inner) and dy (outer, inner)."""
    _backward[(triton.cdiv(dy.numel(), BLOCK),)](dy, x, dx, dy.numel(), inner, KIND=KINDS.index(kind), BLOCK=BLOCK, num_warps=4)
