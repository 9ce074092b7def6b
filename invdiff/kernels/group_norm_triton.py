# ruff: noqa: ANN001, ANN202 (what a kernel takes are pointers and numbers of the device)
"""The Triton form of the fused group normalisation; the equations are in `group_norm`.

A group of an item is cut along space into tiles of about `TILE` entries, each the work of one program, so that a batch of one
fills the device. Forward: every tile's mean and sum of squared deviations M2; their combination in a fixed order,

    mean = sum_i n_i m_i / sum_i n_i,   M2 = sum_i (M2_i + n_i (m_i - mean)^2);

then every tile's y: x is read twice and y written once. Backward: every tile's sums of g and g n per channel; their sums in a
fixed order, and from these the two means of the group; then every tile's dx: x and dy are read twice and dx written once. A
group that is one tile is read once. There are no atomic operations: the same call gives the same bits.

References: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .group_norm_torch import channels_last

__all__ = ["backward", "forward"]

TILE, WHOLE, CHUNK = 4096, 8192, 1024  # entries of a tile, of a group that is one tile, and partial sums added at a time


@triton.jit
def _tile(x, row, part, channels, groups, width, size, stride_c, stride_s, BC: tl.constexpr, BS: tl.constexpr):
    """Pointers, (BC, BS), and mask of a tile, and the (BC,) channels with theirs."""
    c, s = tl.arange(0, BC), tl.arange(0, BS)
    inside = c < width
    item, first = row // groups, (row % groups) * width
    # an item may have more than 2^31 entries, a tile's channel or piece of space may not
    start = x + item.to(tl.int64) * channels * size + (part * BS).to(tl.int64) * stride_s
    lines = start + (first + c).to(tl.int64) * stride_c
    mask = inside[:, None] & (part * BS + s < size)[None, :]
    return lines[:, None] + (s * stride_s)[None, :], mask, first + c, inside


@triton.jit
def _vector(gamma, row, groups, stride_b, channel, inside):
    """The entries of a (B or 1, C) vector for some channels of an item."""
    return tl.load(gamma + (row // groups) * stride_b + channel, mask=inside, other=0.0)


@triton.jit
def _slope(dy, u, ACTIVATION: tl.constexpr):
    """dL/du."""
    if ACTIVATION:
        s = 1.0 / (1.0 + tl.exp(-u))
        return dy * s * (1.0 + u * (1.0 - s))
    return dy


@triton.jit
def _moments(x, means, squares, parts, channels, groups, width, size, stride_c, stride_s, BC: tl.constexpr, BS: tl.constexpr):
    """Mean and sum of squared deviations of every tile."""
    row, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    at, mask, _, _ = _tile(x, row, part, channels, groups, width, size, stride_c, stride_s, BC, BS)
    v = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    count = tl.minimum(size - part * BS, BS) * width
    mean = tl.sum(tl.sum(v, axis=1), axis=0) / count
    d = tl.where(mask, v - mean, 0.0)
    tl.store(means + tl.program_id(0), mean)
    tl.store(squares + tl.program_id(0), tl.sum(tl.sum(d * d, axis=1), axis=0))


@triton.jit
def _statistics(means, squares, mean, rstd, parts, width, size, eps, BS: tl.constexpr, CHUNK: tl.constexpr):
    """Mean and reciprocal standard deviation of a (item, group) from those of its tiles."""
    row = tl.program_id(0).to(tl.int64)
    entries = size.to(tl.float32) * width
    total = tl.zeros((CHUNK,), tl.float32)
    for start in range(0, parts, CHUNK):
        i = start + tl.arange(0, CHUNK)
        share = tl.minimum(size - i * BS, BS) * width / entries
        total += tl.load(means + row * parts + i, mask=i < parts, other=0.0) * share
    centre = tl.sum(total, axis=0)
    total = tl.zeros((CHUNK,), tl.float32)
    for start in range(0, parts, CHUNK):
        i = start + tl.arange(0, CHUNK)
        share = tl.minimum(size - i * BS, BS) * width / entries
        d = tl.load(means + row * parts + i, mask=i < parts, other=0.0) - centre
        m2 = tl.load(squares + row * parts + i, mask=i < parts, other=0.0)
        total += tl.where(i < parts, m2 / entries + share * d * d, 0.0)
    tl.store(mean + row, centre)
    tl.store(rstd + row, 1.0 / tl.sqrt(tl.sum(total, axis=0) + eps))


@triton.jit
def _apply(
    x, y, gamma, beta, mean, rstd, parts, channels, groups, width, size, stride_c, stride_s, stride_b, eps,
    WHOLE: tl.constexpr, ACTIVATION: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """y of every tile; where the tile is the group, its statistics too."""
    row, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    at, mask, channel, inside = _tile(x, row, part, channels, groups, width, size, stride_c, stride_s, BC, BS)
    v = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if WHOLE:
        entries = size * width
        centre = tl.sum(tl.sum(v, axis=1), axis=0) / entries
        d = tl.where(mask, v - centre, 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(tl.sum(d * d, axis=1), axis=0) / entries + eps)
        tl.store(mean + row, centre)
        tl.store(rstd + row, inverse)
    else:
        centre, inverse = tl.load(mean + row), tl.load(rstd + row)
    g = _vector(gamma, row, groups, stride_b, channel, inside)
    b = _vector(beta, row, groups, stride_b, channel, inside)
    u = (v - centre) * inverse * g[:, None] + b[:, None]
    if ACTIVATION:
        u = u / (1.0 + tl.exp(-u))
    out, _, _, _ = _tile(y, row, part, channels, groups, width, size, stride_c, stride_s, BC, BS)
    tl.store(out, u.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _sums(
    dy, x, gamma, beta, mean, rstd, by_gn, by_g, parts, channels, groups, width, size, stride_c, stride_s, stride_b,
    ACTIVATION: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Sums of g n and of g over every tile, per channel: (rows, parts, width)."""
    row, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    at, mask, channel, inside = _tile(x, row, part, channels, groups, width, size, stride_c, stride_s, BC, BS)
    n = (tl.load(at, mask=mask, other=0.0).to(tl.float32) - tl.load(mean + row)) * tl.load(rstd + row)
    at, _, _, _ = _tile(dy, row, part, channels, groups, width, size, stride_c, stride_s, BC, BS)
    g = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    factor = _vector(gamma, row, groups, stride_b, channel, inside)
    term = _vector(beta, row, groups, stride_b, channel, inside)
    g = _slope(g, n * factor[:, None] + term[:, None], ACTIVATION)
    place = tl.program_id(0).to(tl.int64) * width + tl.arange(0, BC)
    tl.store(by_gn + place, tl.sum(g * n, axis=1), mask=inside)
    tl.store(by_g + place, tl.sum(g, axis=1), mask=inside)


@triton.jit
def _gather(
    by_gn, by_g, gamma, dgamma, dbeta, mean_gn, mean_g, parts, groups, width, size, stride_b,
    BC: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The gradients of gamma and beta, and the group's means of gamma g n and gamma g, from the tiles' sums."""
    row, c = tl.program_id(0), tl.arange(0, BC)
    inside = c < width
    total_gn, total_g = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    for start in range(0, parts, CHUNK):
        i = start + tl.arange(0, CHUNK)
        place = (row.to(tl.int64) * parts + i)[None, :] * width + c[:, None]
        mask = inside[:, None] & (i < parts)[None, :]
        total_gn += tl.sum(tl.load(by_gn + place, mask=mask, other=0.0), axis=1)
        total_g += tl.sum(tl.load(by_g + place, mask=mask, other=0.0), axis=1)
    tl.store(dgamma + row * width + c, total_gn, mask=inside)
    tl.store(dbeta + row * width + c, total_g, mask=inside)
    factor = _vector(gamma, row, groups, stride_b, (row % groups) * width + c, inside)
    entries = size.to(tl.float32) * width
    tl.store(mean_gn + row, tl.sum(factor * total_gn, axis=0) / entries)
    tl.store(mean_g + row, tl.sum(factor * total_g, axis=0) / entries)


@triton.jit
def _pull(
    dy, x, dx, gamma, beta, mean, rstd, dgamma, dbeta, mean_gn, mean_g,
    parts, channels, groups, width, size, stride_c, stride_s, stride_b,
    WHOLE: tl.constexpr, ACTIVATION: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """dx of every tile; where the tile is the group, the gradients of gamma and beta too."""
    row, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    at, mask, channel, inside = _tile(x, row, part, channels, groups, width, size, stride_c, stride_s, BC, BS)
    inverse = tl.load(rstd + row)
    n = (tl.load(at, mask=mask, other=0.0).to(tl.float32) - tl.load(mean + row)) * inverse
    at, _, _, _ = _tile(dy, row, part, channels, groups, width, size, stride_c, stride_s, BC, BS)
    g = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    factor = _vector(gamma, row, groups, stride_b, channel, inside)
    term = _vector(beta, row, groups, stride_b, channel, inside)
    g = _slope(g, n * factor[:, None] + term[:, None], ACTIVATION)
    if WHOLE:
        total_gn, total_g = tl.sum(g * n, axis=1), tl.sum(g, axis=1)
        place = row * width + tl.arange(0, BC)
        tl.store(dgamma + place, total_gn, mask=inside)
        tl.store(dbeta + place, total_g, mask=inside)
        entries = size * width
        m_gn, m_g = tl.sum(factor * total_gn, axis=0) / entries, tl.sum(factor * total_g, axis=0) / entries
    else:
        m_gn, m_g = tl.load(mean_gn + row), tl.load(mean_g + row)
    out, _, _, _ = _tile(dx, row, part, channels, groups, width, size, stride_c, stride_s, BC, BS)
    tl.store(out, (inverse * (g * factor[:, None] - m_g - n * m_gn)).to(dx.dtype.element_ty), mask=mask)


def forward(x: Tensor, groups: int, gamma: Tensor, beta: Tensor, activation: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y like x, and mean and rstd (B, groups), of a dense x and of gamma and beta, (B, C) or (1, C), float32."""
    rows, parts, numbers, blocks = _cut(x, groups)
    y, gamma, beta = torch.empty_like(x), gamma.contiguous(), beta.contiguous()
    mean, rstd = (gamma.new_empty(x.shape[0], groups) for _ in range(2))
    stride_b = gamma.shape[1] if len(gamma) > 1 else 0
    if parts > 1:
        partial = gamma.new_empty(2, rows, parts)
        _moments[(rows * parts,)](x, *partial, parts, *numbers, **blocks, num_warps=4)
        _statistics[(rows,)](*partial, mean, rstd, parts, *numbers[2:4], eps, BS=blocks["BS"], CHUNK=CHUNK, num_warps=4)
    _apply[(rows * parts,)](
        x, y, gamma, beta, mean, rstd, parts, *numbers, stride_b, eps,
        WHOLE=parts == 1, ACTIVATION=activation, **blocks, num_warps=_warps(blocks),
    )  # fmt: skip
    return y, mean, rstd


def backward(
    dy: Tensor, x: Tensor, groups: int, gamma: Tensor, beta: Tensor, mean: Tensor, rstd: Tensor, activation: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, gamma and beta, like them; dy has the memory layout of x."""
    rows, parts, numbers, blocks = _cut(x, groups)
    dx, gamma, beta = torch.empty_like(x), gamma.contiguous(), beta.contiguous()
    dgamma, dbeta = (gamma.new_empty(x.shape[:2]) for _ in range(2))
    means = gamma.new_empty(2, rows)
    stride_b, width = gamma.shape[1] if len(gamma) > 1 else 0, numbers[2]
    if parts > 1:
        sums = gamma.new_empty(2, rows, parts, width)
        _sums[(rows * parts,)](
            dy, x, gamma, beta, mean, rstd, *sums, parts, *numbers, stride_b,
            ACTIVATION=activation, **blocks, num_warps=4,
        )  # fmt: skip
        chunk = min(CHUNK, triton.next_power_of_2(parts), max(1, TILE // blocks["BC"]))
        _gather[(rows,)](
            *sums,
            gamma,
            dgamma,
            dbeta,
            *means,
            parts,
            groups,
            *numbers[2:4],
            stride_b,
            BC=blocks["BC"],
            CHUNK=chunk,
            num_warps=4,
        )
    _pull[(rows * parts,)](
        dy, x, dx, gamma, beta, mean, rstd, dgamma, dbeta, *means, parts, *numbers, stride_b,
        WHOLE=parts == 1, ACTIVATION=activation, **blocks, num_warps=_warps(blocks),
    )  # fmt: skip
    if len(gamma) < len(x):
        dgamma, dbeta = dgamma.sum(0, keepdim=True), dbeta.sum(0, keepdim=True)
    return dx, dgamma, dbeta


def _cut(x: Tensor, groups: int) -> tuple[int, int, tuple[int, ...], dict[str, int]]:
    """Rows (items times groups), tiles of a row, the numbers that all kernels take, and the shape of a tile."""
    batch, channels, size = *x.shape[:2], x[0, 0].numel()
    width = channels // groups
    strides = (1, channels) if channels_last(x) else (size, 1)
    block_c, block_s = triton.next_power_of_2(width), triton.next_power_of_2(size)
    if block_c * block_s > WHOLE:
        block_s = min(block_s, max(1, TILE // block_c))
    return batch * groups, -(-size // block_s), (channels, groups, width, size, *strides), {"BC": block_c, "BS": block_s}


def _warps(blocks: dict[str, int]) -> int:
    """Four, eight for the largest tiles."""
    return 4 if blocks["BC"] * blocks["BS"] <= TILE else 8
