"""A sampler's update: a linear combination of tensors and fresh noise, in one pass.

    x' = sum_i c_i x_i + s z,     z ~ N(0, I) of `Streams(seed, draws)` at (step, purpose)

with at most five terms, of which one may be clipped to a range first. With eps = (x - D) / sigma the rules of the samplers are

    Euler, DDIM   x' = (sigma' / sigma) x + (1 - sigma' / sigma) D
    ancestral     the same with sqrt(sigma'^2 - c^2) for sigma', and c z
    Heun          x' = x + h (eps + eps') / 2,  terms x, x, D, x', D'
    O-BELM        x' = r^2 x_previous + (1 - r^2) x - h (1 + r) eps
    guidance      one term more, the gradient

The torch form scales the first term and adds the others in place. The Triton form reads each term once and computes z as it
goes, the words of Philox exactly and Box-Muller in float64 as `core.rng` does, so that no noise is written or read.

References: Salmon, Moraes, Dror, Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011; Karras, Aittala, Aila, Laine,
Elucidating the design space of diffusion-based generative models, 2022, arXiv:2206.00364.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from ..core.errors import ConfigError, ShapeError
from ..core.rng import Streams
from .dispatch import use_triton

__all__ = ["MOST_TERMS", "sampler_update"]

MOST_TERMS = 5
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def sampler_update(
    terms: Sequence[tuple[float, Tensor]],
    *,
    clip: tuple[int, float, float] | None = None,
    noise: tuple[float, Streams, int, str] | None = None,
) -> Tensor:
    """sum of coefficient times tensor, plus scale times fresh normal noise.

    float64 takes the torch form always, as does whatever runs under a `torch.func` transform or in forward mode. In half
    precision the torch form rounds after every term, the Triton form once.

    Args:
        terms: up to five (coefficient, tensor), the tensors real, of the same shape (B, *shape), dtype and device.
        clip: (index of a term, low, high): that tensor is clipped before it is scaled.
        noise: (scale, streams, step, purpose), adds scale * streams.normal(step, shape, purpose) for the B draws.

    Returns:
        a new contiguous tensor, (B, *shape). Derivatives are the coefficients, zero where a value was clipped.

    Raises:
        ConfigError: no term or more than five, a clip of a term that is not there or of an empty range.
        ShapeError: the tensors differ in shape, dtype or device, are not real, or the streams hold another number of draws.
    """
    coefficients, tensors = [float(c) for c, _ in terms], [t for _, t in terms]
    _check(tensors, clip, noise)
    like = tensors[0]
    if like.dtype in _DTYPES and use_triton(*tensors, kernel="update") and not _transformed(tensors):
        index, low, high = clip or (-1, 0.0, 0.0)
        scale, streams, step, purpose = noise or (0.0, None, 0, "")
        seed, draws = (streams.seed, streams.draws) if streams else (0, None)
        word = zlib.crc32(purpose.encode())
        return combine(tensors, coefficients, index, low, high, scale, seed, draws, step, word)
    return _combined(tensors, coefficients, clip, noise)


def _combined(
    tensors: Sequence[Tensor],
    coefficients: Sequence[float],
    clip: tuple[int, float, float] | None,
    noise: tuple[float, Streams, int, str] | None,
) -> Tensor:
    """The torch form."""
    terms = list(zip(coefficients, tensors, strict=True))
    if clip is not None:
        index, low, high = clip
        c, t = terms.pop(index)
        out = t.clamp(low, high).mul_(c)
    elif len(terms) > 1 and abs(terms[0][0] + terms[1][0] - 1.0) < 4e-16:
        # a mean of two is one pass, not two
        (c, t), (_, other), terms = terms[0], terms[1], terms[2:]
        out = torch.lerp(other, t, c)
    else:
        c, t = terms.pop(0)
        out = t * c
    for c, t in terms:
        out.add_(t, alpha=c)
    if noise is not None:
        scale, streams, step, purpose = noise
        out.add_(streams.normal(step, out.shape[1:], purpose, out.dtype, out.device), alpha=scale)
    return out.contiguous()


@torch.library.custom_op("invdiff::sampler_update", mutates_args=())
def combine(
    tensors: Sequence[Tensor],
    coefficients: Sequence[float],
    clipped: int,
    low: float,
    high: float,
    scale: float,
    seed: int,
    draws: Sequence[int] | None,
    step: int,
    purpose: int,
) -> Tensor:
    """The Triton form of `sampler_update`, its arguments spread.

    No clip is clipped = -1, no noise is draws = None; purpose is the word of the counter that the purpose has.
    """
    from .update_triton import launch

    kept = None if draws is None else tuple(draws)
    return launch(tensors, coefficients, clipped, low, high, scale, seed, kept, step, purpose)


@combine.register_fake
def _(
    tensors: Sequence[Tensor],
    coefficients: Sequence[float],  # noqa: ARG001
    clipped: int,  # noqa: ARG001
    low: float,  # noqa: ARG001
    high: float,  # noqa: ARG001
    scale: float,  # noqa: ARG001
    seed: int,  # noqa: ARG001
    draws: Sequence[int] | None,  # noqa: ARG001
    step: int,  # noqa: ARG001
    purpose: int,  # noqa: ARG001
) -> Tensor:
    return tensors[0].new_empty(tensors[0].shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    tensors, ctx.coefficients, ctx.clipped, ctx.low, ctx.high = inputs[:5]
    if ctx.clipped >= 0:
        ctx.save_for_backward(tensors[ctx.clipped])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    gradients = [gradient * c for c in ctx.coefficients]
    if ctx.clipped >= 0:
        (t,) = ctx.saved_tensors
        gradients[ctx.clipped] = gradients[ctx.clipped] * ((t >= ctx.low) & (t <= ctx.high))
    return gradients, *(None for _ in range(9))


combine.register_autograd(_backward, setup_context=_keep)


def _transformed(tensors: Sequence[Tensor]) -> bool:
    """Whether a `torch.func` transform runs, or a tensor carries a tangent: the operation has no rule for either."""
    if _functorch.peek_interpreter_stack() is not None:
        return True
    return forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _check(
    tensors: Sequence[Tensor], clip: tuple[int, float, float] | None, noise: tuple[float, Streams, int, str] | None
) -> None:
    if not 1 <= len(tensors) <= MOST_TERMS:
        raise ConfigError(f"sampler_update: expected 1 to {MOST_TERMS} terms, got {len(tensors)}")
    kinds = {(tuple(t.shape), t.dtype, t.device) for t in tensors}
    if len(kinds) > 1 or not tensors[0].is_floating_point() or tensors[0].dim() < 1:
        found = ", ".join(f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in tensors)
        raise ShapeError(f"sampler_update: expected real tensors of one shape (B, ...), dtype and device, got {found}")
    if clip is not None and not (0 <= clip[0] < len(tensors) and clip[1] <= clip[2]):
        raise ConfigError(f"sampler_update: expected clip (0 to {len(tensors) - 1}, low, high >= low), got {clip}")
    if noise is not None and len(noise[1].draws) != len(tensors[0]):
        raise ShapeError(f"sampler_update: expected streams of {len(tensors[0])} draws, got {len(noise[1].draws)}")
