"""One level of a separable wavelet transform along several axes in one operation, and its transpose.

With the values of an axis in pairs, x_v[k] = x[2k + v], an analysis by the filters h_0, h_1 of length F is a 2 x 2 matrix of
short filters, and so is its transpose with the same numbers in another order:

    down    c_b[k] = sum_{v,i} P[b,v,i] x_v[k + i],      P[b,v,i] = h_b[s - 2i - v]
    up      x_v[k] = sum_{b,i} P[b,v,i] c_b[k - i]

so that one kernel, with the tables P and P^T and the addresses of pairs and bands exchanged, computes both; s = F / 2 in a
periodic transform and 1 elsewhere. Each is the other's backward pass, and nothing is saved for it. Two axes at the end of the
tensor are one launch for filters of up to 8 taps (each value is read once from memory, then F^2 / 4 times from the cache);
longer filters, and the other axes, take one launch per axis.

There is a Triton form only: elsewhere `operators.dwt` multiplies by its dense tiles.

References: Mallat, A theory for multiresolution signal decomposition, IEEE TPAMI 11, 1989; Vetterli, Kovacevic, Wavelets and
subband coding, 1995, section 3.2 (polyphase).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..core.errors import CapabilityError, ConfigError, ShapeError
from .dispatch import interpreting

__all__ = ["EDGES", "coefficients_of", "polyphase", "wavelet_down", "wavelet_up"]

# what continues a signal: zeros; itself, the value added to an odd length being zero; itself, that value being the last one
# again; its mirror image
EDGES = ("zero", "crop", "periodization", "symmetric")


def coefficients_of(size: int, taps: int, edge: str) -> int:
    """Number of approximations, and of details, of an axis of `size` values."""
    return (size + 1) // 2 if edge in ("crop", "periodization") else (size + taps - 1) // 2


@lru_cache(maxsize=128)
def polyphase(bank: tuple[float, ...], shift: int, up: bool) -> tuple[tuple[tuple[tuple[float, ...], ...], ...], int]:
    """Table T[u][v][i] of out_u[k] = sum_{v,i} T[u,v,i] in_v[k + first + i], and `first`; bank is h_0 and h_1 in a row."""
    taps = len(bank) // 2
    # s - 2i - v in [0, F - 1] for v = 0 or 1
    first, last = -((taps - shift) // 2), shift // 2

    def entry(b: int, v: int, i: int) -> float:
        j = shift - 2 * i - v
        return bank[b * taps + j] if 0 <= j < taps else 0.0

    if up:
        window = range(-last, -first + 1)
        return tuple(tuple(tuple(entry(b, v, -i) for i in window) for b in (0, 1)) for v in (0, 1)), window.start
    window = range(first, last + 1)
    return tuple(tuple(tuple(entry(b, v, i) for i in window) for v in (0, 1)) for b in (0, 1)), window.start


@torch.library.custom_op("invdiff::wavelet_down", mutates_args=())
def wavelet_down(x: Tensor, dims: Sequence[int], bank: Sequence[float], edge: str) -> Tensor:
    """One level of analysis along `dims`.

    Args:
        x: real, any shape and strides.
        dims: different non-negative dimensions.
        bank: low-pass, then high-pass filter, 2 F numbers with F even.
        edge: one of `EDGES`.

    Returns:
        contiguous, of the dtype of x; each size n in dims becomes 2 m, the m approximations before the m details. Sums are
        in float32, in float64 for float64.

    Raises:
        ConfigError: an unknown edge, a bank of odd filters.
        ShapeError: dims that are not different dimensions of x, an axis without values, x not real.
        CapabilityError: x is on a device that Triton does not run on.
    """
    _check("wavelet_down", x, dims, bank, edge)
    from .wavelet_triton import transform

    sizes = [x.shape[d] for d in dims]
    for group in _groups(x.dim(), dims, len(bank) // 2):
        x = transform(x, group, [sizes[list(dims).index(d)] for d in group], tuple(bank), edge, up=False)
    return x


@torch.library.custom_op("invdiff::wavelet_up", mutates_args=())
def wavelet_up(c: Tensor, dims: Sequence[int], sizes: Sequence[int], bank: Sequence[float], edge: str) -> Tensor:
    """The transpose of `wavelet_down` to `sizes` along `dims`, with the same filters.

    Raises:
        ConfigError, ShapeError, CapabilityError: as `wavelet_down`; ShapeError also where c does not have the coefficients
            of such sizes.
    """
    _check("wavelet_up", c, dims, bank, edge)
    want = [2 * coefficients_of(n, len(bank) // 2, edge) for n in sizes]
    if len(sizes) != len(dims) or min(sizes) < 1 or [c.shape[d] for d in dims] != want:
        raise ShapeError(
            f"wavelet_up: expected {want} coefficients along the dimensions {list(dims)} for sizes {list(sizes)}, "
            f"got a tensor of shape {tuple(c.shape)}"
        )
    from .wavelet_triton import transform

    for group in reversed(_groups(c.dim(), dims, len(bank) // 2)):
        c = transform(c, group, [sizes[list(dims).index(d)] for d in group], tuple(bank), edge, up=True)
    return c


@wavelet_down.register_fake
def _(x: Tensor, dims: Sequence[int], bank: Sequence[float], edge: str) -> Tensor:
    shape = list(x.shape)
    for d in dims:
        shape[d] = 2 * coefficients_of(shape[d], len(bank) // 2, edge)
    return x.new_empty(shape)


@wavelet_up.register_fake
def _(c: Tensor, dims: Sequence[int], sizes: Sequence[int], bank: Sequence[float], edge: str) -> Tensor:  # noqa: ARG001
    shape = list(c.shape)
    for d, n in zip(dims, sizes, strict=True):
        shape[d] = n
    return c.new_empty(shape)


def _keep_down(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, ctx.dims, ctx.bank, ctx.edge = inputs
    ctx.sizes = [x.shape[d] for d in ctx.dims]


def _backward_down(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return wavelet_up(gradient, ctx.dims, ctx.sizes, ctx.bank, ctx.edge), None, None, None


def _keep_up(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, ctx.dims, _, ctx.bank, ctx.edge = inputs


def _backward_up(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return wavelet_down(gradient, ctx.dims, ctx.bank, ctx.edge), None, None, None, None


wavelet_down.register_autograd(_backward_down, setup_context=_keep_down)
wavelet_up.register_autograd(_backward_up, setup_context=_keep_up)


@wavelet_down.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], x: Tensor, dims: Sequence[int], bank: Sequence[float], edge: str) -> Any:  # noqa: ARG001
    return wavelet_down(x.movedim(in_dims[0], 0), [d + 1 for d in dims], bank, edge), 0


@wavelet_up.register_vmap
def _(
    info: Any,  # noqa: ARG001
    in_dims: tuple[Any, ...],
    c: Tensor,
    dims: Sequence[int],
    sizes: Sequence[int],
    bank: Sequence[float],
    edge: str,
) -> Any:
    return wavelet_up(c.movedim(in_dims[0], 0), [d + 1 for d in dims], sizes, bank, edge), 0


# taps up to which a pair of axes is one launch: beyond, F^2 / 4 cached reads of a value are estimated to cost more than a pass
_PAIRED_TAPS = 8


def _groups(rank: int, dims: Sequence[int], taps: int) -> list[tuple[int, ...]]:
    """Dimensions that share a launch, in the order of an analysis: the last two first, whose input may have any strides."""
    rest = sorted(dims, reverse=True)
    pair = (rank - 2, rank - 1)
    if taps <= _PAIRED_TAPS and set(pair) <= set(rest):
        return [pair, *((d,) for d in rest[2:])]
    return [(d,) for d in rest]


def _check(who: str, x: Tensor, dims: Sequence[int], bank: Sequence[float], edge: str) -> None:
    if edge not in EDGES:
        raise ConfigError(f"{who}: expected edge {', '.join(EDGES)}, got {edge!r}")
    if len(bank) < 4 or len(bank) % 4:
        raise ConfigError(f"{who}: expected two filters of the same even length, got {len(bank)} numbers")
    if not dims or len(set(dims)) != len(dims) or not all(0 <= d < x.dim() and x.shape[d] for d in dims):
        raise ShapeError(f"{who}: expected different dimensions that hold values, got {list(dims)} of {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ShapeError(f"{who}: expected a real tensor, got {x.dtype}")
    if not (x.is_cuda or interpreting()):
        raise CapabilityError(f"{who}: expected a CUDA tensor (or TRITON_INTERPRET=1), got one on {x.device}: use DWT")
