"""A diffusion transformer: patches as tokens, steered by adaptive layer norms that start at zero.

    h <- h + g1 attend((1 + a1) norm(h) + b1),    h <- h + g2 mlp((1 + a2) norm(h) + b2),    (a, b, g) = W code, W = 0 at first,

so that every block starts as the identity and the network as F = 0. Positions are fixed sines and cosines of the patch's index
on each axis, wavelengths 2 pi to 2 pi 10^4 in geometric progression: any size that the patch divides works, in one to three
dimensions, though a network knows only the positions that it was trained on.

References: Peebles, Xie, Scalable diffusion models with transformers, 2023, arXiv:2212.09748. Vaswani et al., Attention is all
you need, 2017, arXiv:1706.03762 (positions). Dosovitskiy et al., An image is worth 16 x 16 words, 2021, arXiv:2010.11929.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.denoiser import Condition
from ..core.errors import ConfigError
from ..core.memory import run_block
from .layers import Network, SelfAttention, initialise, linear, shuffle, unshuffle

__all__ = ["DiT", "positions"]


class DiT(Network):
    """F(x, noise, condition): (B, channels_in, *spatial), (B,) -> (B, channels_out, *spatial), sizes multiples of `patch`.

    Args:
        channels_in, channels_out: channels of the input and of the output.
        width: features of a token, a multiple of 32.
        depth: transformer blocks.
        patch: side of the patches.
        embedding: width of the noise embedding.
        dims: spatial dimensions, 1, 2 or 3.
        concat_channels, vector, classes: the condition (see `layers`); 0 for none.
        seed: of the initial weights; the global generator is left alone.

    Raises:
        ConfigError: a width or a count is not possible.
        ShapeError: the input has other channels, or a size is not a multiple of `patch`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        width: int = 256,
        depth: int = 6,
        patch: int = 4,
        embedding: int = 128,
        dims: int = 2,
        concat_channels: int = 0,
        vector: int = 0,
        classes: int = 0,
        seed: int = 0,
    ) -> None:
        if width < 32 or width % 32 or depth < 1:
            raise ConfigError(f"DiT: expected a width that is a multiple of 32 and a positive depth, got {width=}, {depth=}")
        super().__init__(
            channels_in,
            channels_out,
            dims=dims,
            divisor=patch,
            embedding=embedding,
            noise=True,
            concat_channels=concat_channels,
            vector=vector,
            classes=classes,
        )
        self.architecture = {"channels_in": channels_in, "channels_out": channels_out, "width": width, "depth": depth}
        self.architecture |= {"patch": patch, "embedding": embedding, "dims": dims}
        conditions = {"concat_channels": concat_channels, "vector": vector, "classes": classes}
        self.architecture |= {name: value for name, value in conditions.items() if value}
        self.patch, self.width = patch, width
        self.enter = linear((channels_in + concat_channels) * patch**dims, width)
        blocks = [_Block(width, embedding) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.modulate = linear(embedding, 2 * width)
        self.exit = linear(width, channels_out * patch**dims)
        steering = [block.modulate for block in blocks]
        initialise(self, torch.Generator().manual_seed(seed), zero=[*steering, self.modulate, self.exit])

    def forward(self, x: Tensor, noise: Tensor, condition: Condition | None = None) -> Tensor:
        """The network's output for inputs of unit scale and their noise coordinate, ln(sigma) / 4."""
        x, code = self.prepare(x, noise, condition)
        patches = unshuffle(x, self.patch)
        grid = patches.shape[2:]
        h = self.enter(patches.flatten(2).transpose(1, 2)) + positions(grid, self.width, like=x)
        for block in self.blocks:
            h = run_block(block, h, code)
        h = self.exit(_modulated(h, *self.modulate(code)[:, None].chunk(2, dim=-1)))
        return shuffle(h.transpose(1, 2).unflatten(2, grid), self.patch)


class _Block(nn.Module):
    """Attention and a perceptron of four times the width, each behind a steered norm and a steered gate."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.attend = SelfAttention(width)
        self.mlp = nn.Sequential(linear(width, 4 * width), nn.GELU(approximate="tanh"), linear(4 * width, width))
        self.modulate = linear(embedding, 6 * width)

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulate(code)[:, None].chunk(6, dim=-1)
        h = h + gate1 * self.attend(_modulated(h, scale1, shift1))
        return h + gate2 * self.mlp(_modulated(h, scale2, shift2))


def _modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=1e-6), 1 + scale)


def positions(grid: Sequence[int], width: int, *, like: Tensor) -> Tensor:
    """Sines and cosines of the indices of a grid, (prod(grid), width), in the dtype of `like`.

    Every axis has an equal share of the features, n = width // (2 len(grid)) sines and as many cosines; sine and cosine j have
    the frequency 10^(-4 j / n). What is left over is zero.
    """
    count = width // (2 * len(grid))
    options: dict[str, Any] = {"dtype": torch.promote_types(like.dtype, torch.float32), "device": like.device}
    frequency = 1e-4 ** (torch.arange(count, **options) / count)
    parts = []
    for axis, size in enumerate(grid):
        angle = torch.arange(size, **options)[:, None] * frequency
        angle = angle.reshape(*(size if d == axis else 1 for d in range(len(grid))), count).expand(*grid, count)
        parts += [angle.sin(), angle.cos()]
    table = torch.cat(parts, dim=-1).flatten(0, -2)
    return F.pad(table, (0, width - table.shape[-1])).to(like.dtype)
