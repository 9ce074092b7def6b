"""Triton form of `wavelet`: one level along one axis, or along the last two at once.

A program computes both components (pairs or bands) of a tile of positions; along two axes it filters the rows of its tile in
registers, then the columns, so that a value comes from memory once and the taps that overlap come from the cache. Where a
mirrored signal is transposed, the images of a position that reach into the coefficients are summed: three per axis for
signals longer than the filters, and two of them only in tiles at an edge.

Block sizes are chosen by hand and were not tuned on a GPU.
"""

# ruff: noqa: ANN001, ANN202 (the arguments of a kernel have Triton's types)

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from .wavelet import EDGES, coefficients_of, polyphase

__all__ = ["transform"]


@triton.jit
def _source(k, v: tl.constexpr, n, m, EDGE: tl.constexpr, UP: tl.constexpr):
    """Where component v of position k is along an axis of n values and 2 m coefficients, and whether it is anywhere."""
    if UP:
        if (EDGE == 1) or (EDGE == 2):
            # a remainder of either sign
            k = ((k % m) + m) % m
        p = v * m + k
        inside = (k >= 0) & (k < m)
    else:
        p = 2 * k + v
        if EDGE == 0:
            inside = (p >= 0) & (p < n)
        elif EDGE == 3:
            p = ((p % (2 * n)) + 2 * n) % (2 * n)
            p = tl.where(p >= n, 2 * n - 1 - p, p)
            inside = p >= 0
        else:
            p = ((p % (2 * m)) + 2 * m) % (2 * m)
            inside = p < n
            if EDGE == 2:
                p = tl.where(inside, p, n - 1)
                inside = p >= 0
    return p, inside


@triton.jit
def _target(k, v: tl.constexpr, n, m, UP: tl.constexpr):
    """Where component v of position k goes, and whether it is there."""
    if UP:
        p = 2 * k + v
        inside = p < n
    else:
        p = v * m + k
        inside = k < m
    return p, inside


@triton.jit
def _image(k, g, n):
    """Position whose value the g-th image of position k has: shifted by a multiple of n for even g, mirrored for odd."""
    return (1 - 2 * (g & 1)) * k + n * ((g + 1) >> 1) - (g & 1)


@triton.jit
def _reaches(start, g, n, m, first, B: tl.constexpr, W: tl.constexpr):
    """Whether the g-th image of a tile of B positions reads a coefficient."""
    low = _image(start, g, n) - (g & 1) * (B - 1)
    return (low + B - 1 + first + W - 1 >= 0) & (low + first < m)


@triton.jit
def _axis(
    x, out, table, n, m, tiles, inner, first, images, outer_count, stride, stride_inside,
    W: tl.constexpr, EDGE: tl.constexpr, UP: tl.constexpr, BK: tl.constexpr, BI: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Along the middle of (outer, length, inner); the outer index is cut in two, each with its stride."""
    pid = tl.program_id(0)
    start = (pid % tiles) * BK
    k = start + tl.arange(0, BK)
    rest = pid // tiles
    blocks = (inner + BI - 1) // BI
    i = (rest % blocks) * BI + tl.arange(0, BI)
    outer = (rest // blocks).to(tl.int64)
    x += (outer // outer_count) * stride + (outer % outer_count) * stride_inside
    if UP:
        out += outer * n * inner
    else:
        out += outer * (2 * m) * inner
    column = i[None, :] < inner
    zero = tl.full((BK, BI), 0.0, ACC)
    out0 = zero
    out1 = zero
    for g in range(-images, images + 1):
        if (not (UP and EDGE == 3)) or _reaches(start, g, n, m, first, BK, W):
            at = _image(k, g, n)
            a0 = zero
            a1 = zero
            for w in range(W):
                for v in tl.static_range(2):
                    p, inside = _source(at + first + w, v, n, m, EDGE, UP)
                    value = tl.load(x + p[:, None].to(tl.int64) * inner + i[None, :], mask=inside[:, None] & column, other=0.0)
                    value = value.to(ACC)
                    a0 += tl.load(table + v * W + w) * value
                    a1 += tl.load(table + (2 + v) * W + w) * value
            odd = (g & 1) == 1
            out0 += tl.where(odd, a1, a0)
            out1 += tl.where(odd, a0, a1)
    if UP and EDGE == 2:
        # an odd length repeats its last value, which belongs to the same pair
        out0 += tl.where(2 * k[:, None] + 1 == n, out1, 0.0)
    p, inside = _target(k, 0, n, m, UP)
    tl.store(out + p[:, None].to(tl.int64) * inner + i[None, :], out0, mask=inside[:, None] & column)
    p, inside = _target(k, 1, n, m, UP)
    tl.store(out + p[:, None].to(tl.int64) * inner + i[None, :], out1, mask=inside[:, None] & column)


@triton.jit
def _pair(
    x, out, table, na, ma, nb, mb, tiles_a, tiles_b, first, images_a, images_b,
    outer_count, stride, stride_inside, stride_a,
    W: tl.constexpr, EDGE: tl.constexpr, UP: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Along the last two axes of (outer, A, B); the outer index is cut in two, each with its stride."""
    pid = tl.program_id(0)
    start_b = (pid % tiles_b) * BB
    start_a = ((pid // tiles_b) % tiles_a) * BA
    outer = (pid // tiles_b // tiles_a).to(tl.int64)
    ka = start_a + tl.arange(0, BA)
    kb = start_b + tl.arange(0, BB)
    x += (outer // outer_count) * stride + (outer % outer_count) * stride_inside
    width = 2 * mb
    if UP:
        width = nb
        out += outer * na * nb
    else:
        out += outer * (2 * ma) * (2 * mb)
    zero = tl.full((BA, BB), 0.0, ACC)
    out00 = zero
    out01 = zero
    out10 = zero
    out11 = zero
    for ga in range(-images_a, images_a + 1):
        for gb in range(-images_b, images_b + 1):
            if (not (UP and EDGE == 3)) or (
                _reaches(start_a, ga, na, ma, first, BA, W) & _reaches(start_b, gb, nb, mb, first, BB, W)
            ):
                at_a = _image(ka, ga, na)
                at_b = _image(kb, gb, nb)
                a00 = zero
                a01 = zero
                a10 = zero
                a11 = zero
                for wa in range(W):
                    for va in tl.static_range(2):
                        pa, inside_a = _source(at_a + first + wa, va, na, ma, EDGE, UP)
                        row = x + pa[:, None].to(tl.int64) * stride_a
                        t0 = zero
                        t1 = zero
                        for wb in tl.static_range(W):
                            for vb in tl.static_range(2):
                                pb, inside_b = _source(at_b + first + wb, vb, nb, mb, EDGE, UP)
                                inside = inside_a[:, None] & inside_b[None, :]
                                value = tl.load(row + pb[None, :], mask=inside, other=0.0).to(ACC)
                                t0 += tl.load(table + vb * W + wb) * value
                                t1 += tl.load(table + (2 + vb) * W + wb) * value
                        h0 = tl.load(table + va * W + wa)
                        h1 = tl.load(table + (2 + va) * W + wa)
                        a00 += h0 * t0
                        a01 += h0 * t1
                        a10 += h1 * t0
                        a11 += h1 * t1
                if UP and EDGE == 3:
                    odd_a = (ga & 1) == 1
                    b00 = tl.where(odd_a, a10, a00)
                    b01 = tl.where(odd_a, a11, a01)
                    b10 = tl.where(odd_a, a00, a10)
                    b11 = tl.where(odd_a, a01, a11)
                    odd_b = (gb & 1) == 1
                    a00 = tl.where(odd_b, b01, b00)
                    a01 = tl.where(odd_b, b00, b01)
                    a10 = tl.where(odd_b, b11, b10)
                    a11 = tl.where(odd_b, b10, b11)
                out00 += a00
                out01 += a01
                out10 += a10
                out11 += a11
    if UP and EDGE == 2:
        # an odd length repeats its last value, which belongs to the same pair
        last_a = (2 * ka + 1 == na)[:, None]
        last_b = (2 * kb + 1 == nb)[None, :]
        out00 += tl.where(last_a, out10, 0.0)
        out01 += tl.where(last_a, out11, 0.0)
        out00 += tl.where(last_b, out01, 0.0)
        out10 += tl.where(last_b, out11, 0.0)
    if UP:
        # neighbours of a pair are written together
        pb = 2 * start_b + tl.arange(0, 2 * BB)
        column = pb[None, :] < nb
        pa, inside_a = _target(ka, 0, na, ma, UP)
        line = tl.reshape(tl.join(out00, out01), (BA, 2 * BB))
        tl.store(out + pa[:, None].to(tl.int64) * width + pb[None, :], line, mask=inside_a[:, None] & column)
        pa, inside_a = _target(ka, 1, na, ma, UP)
        line = tl.reshape(tl.join(out10, out11), (BA, 2 * BB))
        tl.store(out + pa[:, None].to(tl.int64) * width + pb[None, :], line, mask=inside_a[:, None] & column)
    else:
        inside = (ka < ma)[:, None] & (kb < mb)[None, :]
        out += ka[:, None].to(tl.int64) * width + kb[None, :]
        tl.store(out, out00, mask=inside)
        tl.store(out + mb, out01, mask=inside)
        out += tl.full((1, 1), ma, tl.int64) * width
        tl.store(out, out10, mask=inside)
        tl.store(out + mb, out11, mask=inside)


def transform(x: Tensor, dims: tuple[int, ...], sizes: list[int], bank: tuple[float, ...], edge: str, *, up: bool) -> Tensor:
    """One launch: a level along one dimension or the last two, down from `sizes` values or up to them."""
    taps = len(bank) // 2
    shift = taps // 2 if edge in ("crop", "periodization") else 1
    accumulated = torch.float64 if x.dtype == torch.float64 else torch.float32
    table, first, window = _table(bank, shift, up, accumulated, x.device)
    sizes = [n for _, n in sorted(zip(dims, sizes, strict=True))]
    dims = tuple(sorted(dims))
    halves = [coefficients_of(n, taps, edge) for n in sizes]
    shape = list(x.shape)
    for d, n, m in zip(dims, sizes, halves, strict=True):
        shape[d] = n if up else 2 * m
    out = x.new_empty(shape)
    # a transposed mirror image can repeat in short signals
    images = [2 * (taps // n) + 1 if up and edge == "symmetric" else 0 for n in sizes]
    counts = [-(-n // 2) if up else m for n, m in zip(sizes, halves, strict=True)]
    inner = prod(shape[dims[-1] + 1 :])
    if not out.numel():
        return out
    x, outer, strides = _planes(x, dims[0], dense_from=dims[0] if len(dims) == 1 else x.dim() - 1)
    meta = {"W": window, "EDGE": EDGES.index(edge), "UP": up, "ACC": tl.float64 if x.dtype == torch.float64 else tl.float32}
    if len(dims) == 1:
        bi = min(_power(inner), 128)
        bk = min(_power(counts[0]), max(512 // bi, 1))
        tiles = -(-counts[0] // bk)
        grid = (tiles * outer * -(-inner // bi),)
        with _device(x):
            _axis[grid](
                x, out, table, sizes[0], halves[0], tiles, inner, first, images[0], *strides,
                **meta, BK=bk, BI=bi, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
        return out
    bb = min(_power(counts[1]), 64)
    ba = min(_power(counts[0]), 512 // bb)
    tiles_a, tiles_b = -(-counts[0] // ba), -(-counts[1] // bb)
    with _device(x):
        _pair[(tiles_a * tiles_b * outer,)](
            x, out, table, sizes[0], halves[0], sizes[1], halves[1], tiles_a, tiles_b, first, *images, *strides,
            x.stride(dims[0]), **meta, BA=ba, BB=bb, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def _planes(x: Tensor, first: int, dense_from: int) -> tuple[Tensor, int, tuple[int, int, int]]:
    """x, the number of its items before dimension `first`, and (b, s, t): item o begins at (o // b) s + (o % b) t.

    x is copied where its strides are no such two, or where its dimensions from `dense_from` on are not dense.
    """
    groups: list[tuple[int, int]] = []
    for size, stride in zip(x.shape[:first], x.stride()[:first], strict=True):
        if groups and groups[-1][1] == size * stride:
            groups[-1] = (groups[-1][0] * size, stride)
        elif size != 1:
            groups.append((size, stride))
    if len(groups) > 2 or not x[(0,) * dense_from].is_contiguous():
        x, groups = x.contiguous(), [(prod(x.shape[:first]), prod(x.shape[first:]))]
    groups = [(1, 0)] * (2 - len(groups)) + groups
    return x, groups[0][0] * groups[1][0], (groups[1][0], groups[0][1], groups[1][1])


def _device(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever the tensors are on."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _power(n: int) -> int:
    """Smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


@lru_cache(maxsize=128)
def _table(bank: tuple[float, ...], shift: int, up: bool, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, int, int]:
    """The polyphase table, (2, 2, W), its first offset, and W."""
    rows, first = polyphase(bank, shift, up)
    with torch.inference_mode(False), torch.no_grad():
        table = torch.tensor(rows, dtype=torch.float64).to(device, dtype)
    return table, first, table.shape[-1]
