"""The projectors of projector.py for Triton: one program per view and block of rays, and per tile of pixels.

Along a view the rays of a block read neighbouring pixels of one line. Those whose dominant axis is x read a copy of the image
with its lines and columns exchanged, so that they do too. A program of the transpose loops over the views and over the few
rays of each that can touch one of its pixels. Items of a batch share the weights, up to eight in a program. The positions are
rounded once, by explicit fused multiply-adds, so that both kernels see the same weight whatever the compiler contracts.

Block sizes were chosen by hand and not tuned on a GPU.
"""

# ruff: noqa: ANN001, ANN202 (the arguments of a kernel have Triton's types)

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from .beams import SLACK, Layout, Rays

__all__ = ["launch_backproject", "launch_project"]


def launch_project(image: Tensor, rays: Rays, layout: Layout) -> Tensor:
    """Sums of weighted pixels along rays, (B, D, H, W) -> (B, views, R, K), without the lengths of the rays' steps."""
    (d, h, w), (rows, columns), views, batch = layout.size, layout.panel, len(rays.lines), len(image)
    both = torch.stack((image.flatten(1), image.transpose(2, 3).flatten(1)))
    out = image.new_empty(batch, views, rows, columns)
    items, block = _items(batch), min(128, triton.next_power_of_2(columns))
    grid = (views * rows, triton.cdiv(columns, block), triton.cdiv(batch, items))
    with _device(image):
        _project[grid](
            both, rays.lines.contiguous(), rays.rise, out, batch, d, h, w, views, rows, columns,
            FLAT=layout.flat, ITEMS=items, BLOCK=block,
        )  # fmt: skip
    return out


def launch_backproject(weighted: Tensor, rays: Rays, layout: Layout) -> Tensor:
    """The transpose of `launch_project`, (B, views, R, K) -> (B, D, H, W)."""
    (d, h, w), (rows, columns), views, batch = layout.size, layout.panel, len(rays.lines), len(weighted)
    (reach_rows, reach), out = layout.reach, weighted.new_empty(batch, d, h, w)
    items, block = _items(batch), min(128, triton.next_power_of_2(h * w))
    grid = (triton.cdiv(h * w, block), d, triton.cdiv(batch, items))
    with _device(weighted):
        _backproject[grid](
            weighted.contiguous(), rays.lines.contiguous(), rays.rise, rays.axes, out, batch, d, h, w, views, rows, columns,
            reach_rows, reach, layout.curvature, *layout.first, *layout.step,
            FLAT=layout.flat, SLACK=SLACK, ITEMS=items, BLOCK=block,
        )  # fmt: skip
    return out


@triton.jit
def _project(
    image, lines, rise, out, batch, d, h, w, views, rows, columns,
    FLAT: tl.constexpr, ITEMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    view, row = tl.program_id(0) // rows, tl.program_id(0) % rows
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    item = (tl.program_id(2) * ITEMS + tl.arange(0, ITEMS)).to(tl.int64)[:, None]
    on = column < columns
    ray = lines + view * 6 * columns + column
    a, b = tl.load(ray, on, 0.0), tl.load(ray + columns, on, 0.0)
    e, f = tl.load(ray + 2 * columns, on, 0.0), tl.load(ray + 3 * columns, on, 0.0)
    upright = tl.load(ray + 4 * columns, on, 0.0) > 0.0
    v = tl.fma(_as(row, a), _as(tl.load(rise + 1), a), _as(tl.load(rise), a))
    along, across = tl.where(upright, h, w), tl.where(upright, w, h)
    # the second half holds the image with lines and columns exchanged
    start = tl.where(upright, 0, 1).to(tl.int64)[None, :] * (batch * d * h * w) + item * (d * h * w)
    total = tl.zeros((ITEMS, BLOCK), dtype=out.dtype.element_ty)
    for step in range(tl.maximum(h, w)):
        line = _as(step, a) - 0.5 * _as(along - 1, a)
        position = tl.fma(b, line, a)
        lower = tl.floor(position)
        reads = on & (step < along)
        pixel = step * across + lower.to(tl.int32)
        near, far = reads & (lower >= 0.0) & (lower < across), reads & (lower >= -1.0) & (lower < across - 1)
        low, high = _hat(lower - position), _hat(lower + 1.0 - position)
        if FLAT:
            source = image + start + pixel[None, :]
            seen = item < batch
            total += low[None, :] * tl.load(source, seen & near[None, :], 0.0)
            total += high[None, :] * tl.load(source + 1, seen & far[None, :], 0.0)
        else:
            height = tl.fma(v, tl.fma(f, line, e), 0.5 * _as(d - 1, a))
            level = tl.floor(height)
            for above in tl.static_range(2):
                share = _hat(level + above - height)
                seen = (item < batch) & ((level + above >= 0.0) & (level + above < d))[None, :]
                source = image + start + ((level.to(tl.int32) + above) * (h * w) + pixel)[None, :]
                total += (low * share)[None, :] * tl.load(source, seen & near[None, :], 0.0)
                total += (high * share)[None, :] * tl.load(source + 1, seen & far[None, :], 0.0)
    target = out + ((item * views + view) * rows + row) * columns + column[None, :]
    tl.store(target, total, (item < batch) & on[None, :])


@triton.jit
def _backproject(
    weighted, lines, rise, axes, out, batch, d, h, w, views, rows, columns,
    reach_rows, reach, kappa, first_v, first_u, step_v, step_u,
    FLAT: tl.constexpr, SLACK: tl.constexpr, ITEMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    item = (tl.program_id(2) * ITEMS + tl.arange(0, ITEMS)).to(tl.int64)[:, None]
    level, on = tl.program_id(1), pixel < h * w
    zero = tl.zeros((BLOCK,), dtype=out.dtype.element_ty)
    v0, dv, middle = zero + tl.load(rise), zero + tl.load(rise + 1), 0.5 * (zero + (d - 1))
    i, j, k = zero + pixel // w, zero + pixel % w, zero + level
    x, y, z = j - 0.5 * (zero + (w - 1)), 0.5 * (zero + (h - 1)) - i, k - middle
    total, inside = tl.zeros((ITEMS, BLOCK), dtype=out.dtype.element_ty), (item < batch) & on[None, :]
    for view in range(views):
        c, s = tl.load(axes + 2 * view), tl.load(axes + 2 * view + 1)
        lateral, m = x * c + y * s, 1.0 - kappa * (x * s - y * c)
        half = tl.sqrt(m * m + kappa * kappa * lateral * lateral) / (m * (m - kappa))
        first = _first_bin((lateral / m - half - first_u) / step_u - SLACK, reach, columns)
        for n in range(reach):
            column = first + n
            ray = lines + view * 6 * columns + column
            a, b = tl.load(ray, on, 0.0), tl.load(ray + columns, on, 0.0)
            upright = tl.load(ray + 4 * columns, on, 0.0) > 0.0
            line, across = tl.where(upright, -y, x), tl.where(upright, j, i)
            weight = _hat(across - tl.fma(b, line, a))
            if FLAT:
                source = weighted + (item * views + view) * columns + column[None, :]
                total += weight[None, :] * tl.load(source, inside, 0.0)
            else:
                e, f = tl.load(ray + 2 * columns, on, 0.0), tl.load(ray + 3 * columns, on, 0.0)
                shrink = tl.fma(f, line, e)
                lowest = (z - 1.0) / tl.maximum(shrink, 1e-3)
                bottom = _first_bin((lowest - first_v) / step_v - SLACK, reach_rows, rows)
                for r in range(reach_rows):
                    row = bottom + r
                    height = tl.fma(tl.fma(zero + row, dv, v0), shrink, middle)
                    share = weight * _hat(k - height)
                    source = weighted + ((item * views + view) * rows + row[None, :]) * columns + column[None, :]
                    total += share[None, :] * tl.load(source, inside, 0.0)
    tl.store(out + (item * d + level) * (h * w) + pixel[None, :], total, inside)


@triton.jit
def _as(number, like):
    # arguments equal to one, and the interpreter's, are numbers without a type of their own
    return tl.zeros_like(like) + number


@triton.jit
def _hat(distance):
    return tl.maximum(1.0 - tl.abs(distance), 0.0)


@triton.jit
def _first_bin(position, reach, size):
    # on the detector with those that follow, which the hat makes zero where they are not seen
    return tl.minimum(tl.maximum(tl.ceil(position), 0), size - reach).to(tl.int32)


def _items(batch: int) -> int:
    return min(8, triton.next_power_of_2(batch))


def _device(tensor: Tensor) -> torch.cuda.device | nullcontext[None]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
