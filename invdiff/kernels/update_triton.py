"""Triton form of `update`: one program reads a run of values of one item from every term and writes their combination.

Four normals come from one block of Philox4x32-10, so a program of B values computes B / 4 blocks. The words are those of
`core.rng` bit for bit; logarithm, root, cosine and sine are in float64, whose last digit may differ between libraries, which
a float32 normal shows in one of some 10^8.
"""

# ruff: noqa: ANN001, ANN202 (the arguments of a kernel have Triton's types)

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["launch", "words"]

_BLOCK = 1024


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32 on uint32."""
    for _ in tl.static_range(10):
        h0 = tl.umulhi(c0, tl.full(c0.shape, 0xD2511F53, tl.uint32))
        h1 = tl.umulhi(c2, tl.full(c2.shape, 0xCD9E8D57, tl.uint32))
        l0 = c0 * tl.full(c0.shape, 0xD2511F53, tl.uint32)
        l1 = c2 * tl.full(c2.shape, 0xCD9E8D57, tl.uint32)
        c0 = h1 ^ c1 ^ k0
        c1 = l1
        c2 = h0 ^ c3 ^ k1
        c3 = l0
        k0 += tl.full(c0.shape, 0x9E3779B9, tl.uint32)
        k1 += tl.full(c0.shape, 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _counter(block, draw, step, purpose, seed0, seed1):
    """The words of blocks of four values; scalars are int32 that hold 32 bits."""
    zero = block.to(tl.uint32) * 0
    return _philox(
        block.to(tl.uint32),
        zero + draw.to(tl.uint32, bitcast=True),
        zero + step.to(tl.uint32, bitcast=True),
        zero + purpose.to(tl.uint32, bitcast=True),
        zero + seed0.to(tl.uint32, bitcast=True),
        zero + seed1.to(tl.uint32, bitcast=True),
    )


@triton.jit
def _box_muller(w0, w1):
    """Two normals, float64, of two words."""
    radius = tl.sqrt(-2.0 * tl.log((w0.to(tl.float64) + 0.5) * 2.3283064365386963e-10))
    angle = 6.283185307179586 * ((w1.to(tl.float64) + 0.5) * 2.3283064365386963e-10)
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit(do_not_specialize=["step", "purpose", "seed0", "seed1"])
def _words(out, draws, count, tiles, step, purpose, seed0, seed1, BLOCK: tl.constexpr):
    """The words themselves, as int64, (draws, 4 * count)."""
    pid = tl.program_id(0)
    item = pid // tiles
    block = (pid % tiles) * BLOCK + tl.arange(0, BLOCK)
    w0, w1, w2, w3 = _counter(block, tl.load(draws + item), step, purpose, seed0, seed1)
    at = out + item.to(tl.int64) * count * 4 + block * 4
    inside = block < count
    tl.store(at, w0.to(tl.int64), mask=inside)
    tl.store(at + 1, w1.to(tl.int64), mask=inside)
    tl.store(at + 2, w2.to(tl.int64), mask=inside)
    tl.store(at + 3, w3.to(tl.int64), mask=inside)


@triton.jit
def _term(x, c, at, inside, low, high, CLIP: tl.constexpr):
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if CLIP:
        # comparisons, so that a NaN stays one
        value = tl.where(value < low, low, value)
        value = tl.where(value > high, high, value)
    return c * value


@triton.jit(do_not_specialize=["step", "purpose", "seed0", "seed1"])
def _combine(
    out, x0, x1, x2, x3, x4, draws, c0, c1, c2, c3, c4, low, high, scale, n, tiles, step, purpose, seed0, seed1,
    TERMS: tl.constexpr, CLIP: tl.constexpr, NOISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    item = pid // tiles
    start = (pid % tiles).to(tl.int64) * BLOCK
    position = start + tl.arange(0, BLOCK)
    inside = position < n
    at = item.to(tl.int64) * n + position
    total = _term(x0, c0, at, inside, low, high, CLIP == 0)
    if TERMS > 1:
        total += _term(x1, c1, at, inside, low, high, CLIP == 1)
    if TERMS > 2:
        total += _term(x2, c2, at, inside, low, high, CLIP == 2)
    if TERMS > 3:
        total += _term(x3, c3, at, inside, low, high, CLIP == 3)
    if TERMS > 4:
        total += _term(x4, c4, at, inside, low, high, CLIP == 4)
    if NOISE:
        block = start // 4 + tl.arange(0, BLOCK // 4)
        w0, w1, w2, w3 = _counter(block, tl.load(draws + item), step, purpose, seed0, seed1)
        z0, z1 = _box_muller(w0, w1)
        z2, z3 = _box_muller(w2, w3)
        z = tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (BLOCK,))
        # to the dtype of the tensors before it is scaled, by way of float32: the roundings of `core.rng`
        total += scale * z.to(tl.float32).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + at, total, mask=inside)


def launch(
    tensors: Sequence[Tensor],
    coefficients: Sequence[float],
    clipped: int,
    low: float,
    high: float,
    scale: float,
    seed: int,
    draws: tuple[int, ...] | None,
    step: int,
    purpose: int,
) -> Tensor:
    """See `update.combine`."""
    xs = [t.contiguous() for t in tensors]
    out = torch.empty_like(xs[0])
    if not out.numel():
        return out
    if clipped >= 0:
        # bounds in the precision of the tensors, as torch.clamp takes them
        low, high = torch.tensor([low, high], dtype=out.dtype).tolist()
    n = out[0].numel()
    block = min(_BLOCK, max(4, 1 << (n - 1).bit_length()))
    tiles = -(-n // block)
    pointers = xs + [xs[0]] * (5 - len(xs))
    numbers = [*coefficients, *[0.0] * (5 - len(xs))]
    indices = _indices(draws, out.device) if draws else out
    with _device(out):
        _combine[(tiles * len(out),)](
            out, *pointers, indices, *numbers, low, high, scale, n, tiles, *map(_word, (step, purpose, seed, seed >> 32)),
            TERMS=len(xs), CLIP=clipped, NOISE=bool(draws), BLOCK=block, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def words(seed: int, draws: tuple[int, ...], step: int, purpose: int, count: int, device: torch.device) -> Tensor:
    """The words of `count` blocks, (draws, 4 count) int64: what `Streams` makes its numbers of."""
    out = torch.empty(len(draws), 4 * count, dtype=torch.int64, device=device)
    tiles = -(-count // 256)
    with _device(out):
        _words[(tiles * len(draws),)](
            out, _indices(draws, device), count, tiles, *map(_word, (step, purpose, seed, seed >> 32)),
            BLOCK=256, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def _device(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever the tensors are on."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _word(value: int) -> int:
    """The low 32 bits as a signed integer, which Triton passes as int32 whatever they are."""
    return ((value + 2**31) & 0xFFFFFFFF) - 2**31


@lru_cache(maxsize=64)
def _indices(draws: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return torch.tensor([_word(d) for d in draws], dtype=torch.int32).to(device)
