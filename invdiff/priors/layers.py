"""What the networks share: their interface, the embedding of noise level and conditions, self-attention, N-D convolutions.

    F(x, noise, condition): (B, channels_in, *spatial), (B,), mapping -> (B, channels_out, *spatial)
    code = silu(W2 silu(W1 fourier(noise)) + V vector + E[label])

`noise` is a coordinate of the noise level that spans a few units, ln(sigma) / 4. A condition has exactly the keys that the
network declares: `concat` (B or 1, concat_channels, *spatial) is joined to the input as channels and should be of unit scale
like it; `vector` (B or 1, K) and `label` (B or 1,) go into the code, from which the layers compute scales and shifts. The label
`classes` says that there is none, which is what classifier-free guidance trains and calls.

References: Tancik et al., Fourier features let networks learn high frequency functions, NeurIPS 2020. Vaswani et al., Attention
is all you need, 2017, arXiv:1706.03762. Ho, Salimans, Classifier-free diffusion guidance, 2022, arXiv:2207.12598.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.denoiser import Condition
from ..core.errors import ConfigError, ShapeError
from ..kernels import enabled, group_norm_silu

__all__ = ["Conv2d", "Network", "SelfAttention", "conv", "initialise", "linear", "norm_silu", "over", "shuffle", "unshuffle"]


class _Bare(nn.Module):
    """Before a layer of torch: its weights are left as they are allocated.

    `nn.utils.skip_init` does the same by way of the meta device, for which torch imports sympy: half a second.
    """

    def reset_parameters(self) -> None:
        pass


class Conv1d(_Bare, nn.Conv1d):
    """An uninitialised layer."""


class Conv2d(_Bare, nn.Conv2d):
    """An uninitialised layer."""


class Conv3d(_Bare, nn.Conv3d):
    """An uninitialised layer."""


class Linear(_Bare, nn.Linear):
    """An uninitialised layer."""


class Embedding(_Bare, nn.Embedding):
    """An uninitialised layer."""


_CONV: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: Conv1d, 2: Conv2d, 3: Conv3d}


class Network(nn.Module):
    """Base of the networks: input checks, conditions and the code that steers the layers.

    Args:
        channels_in, channels_out: channels of the input (without the condition's) and of the output.
        dims: spatial dimensions, 1, 2 or 3.
        divisor: what every size must be a multiple of.
        embedding: width of the code, even.
        noise: False for a network without a noise level.
        concat_channels, vector, classes: the condition's channels, entries and classes; 0 for a condition without them.

    Attributes:
        architecture: the arguments that make the same network again, as JSON can hold them.
        memory_format: of the weights, for speed.

    Raises:
        ConfigError: dims, a count or the embedding is not possible.
    """

    architecture: dict[str, Any]
    memory_format: torch.memory_format = torch.contiguous_format
    frequencies: Tensor

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        dims: int,
        divisor: int,
        embedding: int,
        noise: bool,
        concat_channels: int,
        vector: int,
        classes: int,
    ) -> None:
        super().__init__()
        if dims not in _CONV or min(channels_in, channels_out, divisor) < 1 or embedding < 2 or embedding % 2:
            raise ConfigError(
                f"{type(self).__name__}: expected dims of 1, 2 or 3, positive channels and patch, and an even embedding, got "
                f"{dims=}, channels={channels_in}, {channels_out}, patch or divisor={divisor}, {embedding=}"
            )
        if min(concat_channels, vector, classes) < 0:
            raise ConfigError(f"{type(self).__name__}: negative {concat_channels=}, {vector=} or {classes=}")
        self.channels_in, self.dims, self.divisor, self.noise = channels_in, dims, divisor, noise
        self.concat_channels, self.vector_size, self.classes = concat_channels, vector, classes
        if noise:
            # ln(sigma) / 4 spans about [-1.3, 1]: a quarter of a turn to eight turns
            self.register_buffer("frequencies", 2 * math.pi * 2.0 ** torch.linspace(-2, 3, embedding // 2), persistent=False)
            self.embed = nn.Sequential(linear(embedding, embedding), nn.SiLU(), linear(embedding, embedding))
        if vector:
            self.vector = linear(vector, embedding)
        if classes:
            self.label = Embedding(classes + 1, embedding)

    @property
    def steered(self) -> bool:
        """Whether there is a code: a noise level, a vector or a label."""
        return bool(self.noise or self.vector_size or self.classes)

    def prepare(self, x: Tensor, noise: Tensor | None, condition: Condition | None) -> tuple[Tensor, Tensor | None]:
        """The input with the condition's channels, (B, channels_in + concat_channels, *spatial), and the code (B, embedding).

        Raises:
            ConfigError: the condition has other keys than the network was declared with, a label is out of range, or the
                noise level is missing or not wanted.
            ShapeError: the input, the noise level or a part of the condition has the wrong shape or dtype.
        """
        name = type(self).__name__
        if x.ndim != self.dims + 2 or x.shape[1] != self.channels_in or any(n % self.divisor for n in x.shape[2:]):
            raise ShapeError(
                f"{name}: expected (B, {self.channels_in}, {self.dims} sizes that are multiples of {self.divisor}), "
                f"got {tuple(x.shape)}"
            )
        if (noise is not None) != self.noise:
            raise ConfigError(f"{name}: expected {'a' if self.noise else 'no'} noise level")
        parts = self._parts(condition, x)
        terms = []
        if noise is not None:
            if noise.shape != x.shape[:1]:
                raise ShapeError(f"{name}: expected noise levels of shape ({len(x)},), got {tuple(noise.shape)}")
            angle = noise[:, None] * self.frequencies
            terms.append(self.embed(torch.cat([angle.sin(), angle.cos()], dim=1).to(x.dtype)))
        if "vector" in parts:
            terms.append(self.vector(parts["vector"].to(x.dtype)))
        if "label" in parts:
            terms.append(self.label(parts["label"]))
        if "concat" in parts:
            x = torch.cat([x, parts["concat"].to(x.dtype).expand(len(x), *[-1] * (x.ndim - 1))], dim=1)
        return x, F.silu(sum(terms[1:], terms[0])) if terms else None

    def null(self, condition: Condition) -> dict[str, Tensor]:
        """What stands for no condition, of the shapes of one: the label `classes`, zeros for the rest. Trained by dropping."""
        return {key: torch.full_like(value, self.classes if key == "label" else 0) for key, value in condition.items()}

    def _parts(self, condition: Condition | None, x: Tensor) -> dict[str, Tensor]:
        """The condition, checked."""
        name, sizes = type(self).__name__, tuple(x.shape[2:])
        wanted: dict[str, tuple[int, ...]] = {}
        if self.concat_channels:
            wanted["concat"] = (self.concat_channels, *sizes)
        if self.vector_size:
            wanted["vector"] = (self.vector_size,)
        if self.classes:
            wanted["label"] = ()
        parts = dict(condition or {})
        if parts.keys() != wanted.keys():
            want, got = (", ".join(sorted(keys)) or "nothing" for keys in (wanted, parts))
            raise ConfigError(f"{name}: expected a condition of {want}, got {got}")
        for key, shape in wanted.items():
            part = parts[key]
            kind = (part.dtype == torch.int64) if key == "label" else part.is_floating_point()
            # torch.compile finds no size that it took for a variable with `in`
            shared = part.ndim > 0 and (part.shape[0] == 1 or part.shape[0] == x.shape[0])
            if tuple(part.shape[1:]) != shape or not shared or not kind:
                want = ", ".join(map(str, (f"{x.shape[0]} or 1", *shape)))
                raise ShapeError(
                    f"{name}: expected {'int64' if key == 'label' else 'real'} condition {key} of shape ({want}), "
                    f"got {tuple(part.shape)} {part.dtype}"
                )
        # a compiled graph can't look at values; there the embedding's own check remains
        if self.classes and not torch.compiler.is_compiling():
            low, high = (int(v) for v in parts["label"].aminmax())
            if low < 0 or high > self.classes:
                raise ConfigError(f"{name}: expected labels 0 to {self.classes} (none), got {low} to {high}")
        return parts


class SelfAttention(nn.Module):
    """Multi-head self-attention of tokens (B, N, width), heads of 64 channels, or of 32 where 64 does not divide the width.

    Without positions in the tokens it commutes with their permutations. The fused kernels of
    `scaled_dot_product_attention` have no second derivative and no forward mode: choose
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` around code that needs them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // (32 if width % 64 else 64)
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def conv(dims: int, channels_in: int, channels_out: int, size: int, stride: int = 1, periodic: bool = False) -> nn.Module:
    """An uninitialised convolution; "same" padding for odd sizes, with zeros or by wrapping around."""
    padding = size // 2 if stride == 1 else 0
    mode = "circular" if periodic and padding else "zeros"
    return _CONV[dims](channels_in, channels_out, size, stride=stride, padding=padding, padding_mode=mode)


def linear(features_in: int, features_out: int) -> nn.Linear:
    """An uninitialised linear layer."""
    return Linear(features_in, features_out)


@torch.no_grad()
def initialise(net: nn.Module, generator: torch.Generator, zero: Iterable[nn.Module]) -> None:
    """Uniform with the variance 1 / (3 fan_in) that torch's layers have, and zero for the layers named."""
    for module in net.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)):
            bound = module.weight[0].numel() ** -0.5
            module.weight.uniform_(-bound, bound, generator=generator)
            if not isinstance(module, nn.Embedding) and module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=generator)
    for module in zero:
        for parameter in module.parameters():
            parameter.zero_()


def norm_silu(norm: nn.GroupNorm, h: Tensor, code: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """silu((1 + scale) norm(h) + shift), code = (scale, shift), (B, C) each; None for silu(norm(h)).

    With the kernel "group_norm" switched on it keeps h and the statistics for its derivative, not three tensors.
    """
    scale, shift = (None, None) if code is None else code
    if "group_norm" in enabled():
        return group_norm_silu(h, norm.num_groups, norm.weight, norm.bias, scale=scale, shift=shift, eps=norm.eps)
    out = norm(h)
    if scale is not None and shift is not None:
        out = torch.addcmul(over(shift, h.ndim - 2), out, 1 + over(scale, h.ndim - 2))
    return F.silu(out)


def over(code: Tensor, dims: int) -> Tensor:
    """(B, ...) -> (B, ..., 1, ..., 1) with so many more axes, to act on fields."""
    return code[(..., *[None] * dims)]


def unshuffle(x: Tensor, patch: int) -> Tensor:
    """(B, C, n_1 p, ..., n_d p) -> (B, C p^d, n_1, ..., n_d), the offsets in a patch in row-major order after the channel."""
    if x.ndim == 4:  # the same numbers, and it keeps channels-last
        return F.pixel_unshuffle(x, patch)
    dims = x.ndim - 2
    split: Sequence[int] = [m for n in x.shape[2:] for m in (n // patch, patch)]
    order = [0, 1, *range(3, 2 * dims + 2, 2), *range(2, 2 * dims + 2, 2)]
    return x.reshape(*x.shape[:2], *split).permute(order).flatten(1, dims + 1)


def shuffle(x: Tensor, patch: int) -> Tensor:
    """The inverse of `unshuffle`."""
    if x.ndim == 4:
        return F.pixel_shuffle(x, patch)
    dims, sizes = x.ndim - 2, x.shape[2:]
    order = [0, 1, *(axis for d in range(dims) for axis in (2 + dims + d, 2 + d))]
    return x.reshape(len(x), -1, *[patch] * dims, *sizes).permute(order).reshape(len(x), -1, *(n * patch for n in sizes))
