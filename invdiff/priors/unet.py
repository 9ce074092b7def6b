"""A small convolutional U-Net with FiLM noise conditioning, in one, two or three dimensions.

Pixel-unshuffle at the entrance and pixel-shuffle at the exit (no layer works at full resolution, where a narrow network spends
most of its time and few of its parameters), residual blocks GroupNorm-SiLU-conv, additive skips, and in every block a scale and
a shift h -> (1 + a) h + b computed from the noise level and the condition. Self-attention on the scales that ask for it. There
are no positions, so that any size divisible by `UNet.divisor` works. The last convolution of every block and of the network,
and the projection of every attention, start at zero: the network starts as F = 0 and every block as the identity.

References: Ronneberger, Fischer, Brox, U-Net, MICCAI 2015. Perez et al., FiLM, AAAI 2018. Zhang, Zuo, Zhang, FFDNet, TIP 2018
(unshuffled entrance). Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020, arXiv:2006.11239 (attention, dropout).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.denoiser import Condition
from ..core.errors import ConfigError
from ..core.memory import run_block
from .layers import Network, SelfAttention, conv, initialise, linear, norm_silu, shuffle, unshuffle
from .reversible import Affine, ReversibleChain

__all__ = ["UNet"]


class UNet(Network):
    """F(x, noise, condition): (B, channels_in, *spatial), (B,) -> (B, channels_out, *spatial), sizes multiples of `divisor`.

    Args:
        channels_in, channels_out: channels of the input and of the output.
        widths: channels on each scale, the finest first; multiples of 32. Each scale halves the resolution.
        blocks: residual blocks on each scale of the encoder, and as many of the decoder.
        embedding: width of the noise embedding.
        patch: factor of the pixel-unshuffle at the entrance; 1 for none.
        dims: spatial dimensions, 1, 2 or 3.
        attention: scales (0 is the finest) whose blocks end with self-attention over all positions.
        dropout: probability, in every block, in training only; drawn from torch's global generator.
        coupling: 0, or the v in (0, 1) with which the blocks of a scale make a reversible chain (see `reversible`); the weights
            of a network without it fit one with it, but for the coupling's own.
        periodic: convolutions wrap around, for fields on a torus.
        concat_channels, vector, classes: the condition (see `layers`); 0 for none.
        seed: of the initial weights; the global generator is left alone.

    Raises:
        ConfigError: a width, a count, the patch, dims, attention or dropout is not possible.
        ShapeError: the input has other channels, or a size is not a multiple of `divisor`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        widths: Sequence[int] = (64, 96, 128),
        blocks: int = 2,
        embedding: int = 128,
        patch: int = 2,
        dims: int = 2,
        attention: Sequence[int] = (),
        dropout: float = 0.0,
        coupling: float = 0.0,
        periodic: bool = False,
        concat_channels: int = 0,
        vector: int = 0,
        classes: int = 0,
        seed: int = 0,
    ) -> None:
        counts = (channels_in, channels_out, blocks, patch)
        if not widths or any(w < 1 or w % 32 for w in widths) or min(counts) < 1 or embedding < 2 or embedding % 2:
            raise ConfigError(
                "UNet: expected widths that are multiples of 32, positive channels, blocks and patch, and an even embedding, "
                f"got widths={tuple(widths)}, channels={channels_in}, {channels_out}, {blocks=}, {patch=}, {embedding=}"
            )
        if not set(attention) <= set(range(len(widths))) or not 0.0 <= dropout < 1.0:
            raise ConfigError(
                f"UNet: expected attention on scales 0 to {len(widths) - 1} and 0 <= dropout < 1, "
                f"got {tuple(attention)} and {dropout}"
            )
        super().__init__(
            channels_in,
            channels_out,
            dims=dims,
            divisor=patch * 2 ** (len(widths) - 1),
            embedding=embedding,
            noise=True,
            concat_channels=concat_channels,
            vector=vector,
            classes=classes,
        )
        self.architecture = {
            "channels_in": channels_in,
            "channels_out": channels_out,
            "widths": list(widths),
            "blocks": blocks,
            "embedding": embedding,
            "patch": patch,
        }
        # files from before these options have none of them
        options = {
            "dims": dims if dims != 2 else 0,
            "attention": sorted(set(attention)),
            "dropout": dropout,
            "coupling": coupling,
            "periodic": periodic,
        }
        options |= {"concat_channels": concat_channels, "vector": vector, "classes": classes}
        self.architecture |= {name: value for name, value in options.items() if value}
        self.patch = patch
        self.memory_format = {2: torch.channels_last, 3: torch.channels_last_3d}.get(dims, torch.contiguous_format)
        self.enter = conv(dims, (channels_in + concat_channels) * patch**dims, widths[0], 3, periodic=periodic)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            for half in (self.encoder, self.decoder):
                made = [_Block(dims, width, embedding, dropout, level in attention, periodic) for _ in range(blocks)]
                half.append(ReversibleChain(made, Affine(coupling)) if coupling else nn.ModuleList(made))
        for fine, coarse in itertools.pairwise(widths):
            self.down.append(conv(dims, fine, coarse, 2, stride=2))
            self.up.append(conv(dims, coarse, fine, 1))
        self.norm = nn.GroupNorm(widths[0] // 16, widths[0])
        self.exit = conv(dims, widths[0], channels_out * patch**dims, 3, periodic=periodic)
        last = [m.conv2 for m in self.modules() if isinstance(m, _Block)]
        last += [m.out for m in self.modules() if isinstance(m, SelfAttention)]
        initialise(self, torch.Generator().manual_seed(seed), zero=[self.exit, *last])

    def forward(self, x: Tensor, noise: Tensor, condition: Condition | None = None) -> Tensor:
        """The network's output for inputs of unit scale and their noise coordinate, ln(sigma) / 4."""
        x, code = self.prepare(x, noise, condition)

        def stage(half: nn.ModuleList, level: int, h: Tensor) -> Tensor:
            blocks = half[level]
            if isinstance(blocks, ReversibleChain):
                return blocks(h, code)
            for block in blocks:
                h = run_block(block, h, code)
            return h

        return self.traverse(x, stage)

    def traverse(self, x: Tensor, stage: Callable[[nn.ModuleList, int, Tensor], Tensor]) -> Tensor:
        """From the prepared input down and up to the output, with stage(half, level, h) for the blocks of half[level]."""
        h = self.enter(unshuffle(x, self.patch))
        skips = []
        for level in range(len(self.encoder)):
            h = stage(self.encoder, level, h)
            if level < len(self.down):
                skips.append(h)
                h = self.down[level](h)
        for level in reversed(range(len(self.decoder))):
            if level < len(self.up):
                # a 1 x 1 convolution commutes with nearest upsampling: four times cheaper before it
                h = F.interpolate(self.up[level](h), scale_factor=2, mode="nearest") + skips.pop()
            h = stage(self.decoder, level, h)
        return shuffle(self.exit(norm_silu(self.norm, h)), self.patch)


class _Block(nn.Module):
    """h + conv(dropout(silu(film(norm(conv(silu(norm(h)))))))), then attention where the scale has it."""

    def __init__(self, dims: int, width: int, embedding: int, dropout: float, attention: bool, periodic: bool = False) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(width // 16, width), conv(dims, width, width, 3, periodic=periodic)
        self.norm2, self.conv2 = nn.GroupNorm(width // 16, width), conv(dims, width, width, 3, periodic=periodic)
        self.film = linear(embedding, 2 * width)
        self.attention = _Attention(width) if attention else None
        self.dropout = dropout

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.film(code).chunk(2, dim=1)
        u = norm_silu(self.norm2, self.conv1(norm_silu(self.norm1, h)), (scale, shift))
        if self.dropout and self.training:
            u = F.dropout(u, self.dropout)
        h = h + self.conv2(u)
        return h if self.attention is None else self.attention(h)


class _Attention(nn.Module):
    """h + attend(norm(h)) over all positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attend = nn.GroupNorm(width // 16, width), SelfAttention(width)

    def forward(self, h: Tensor) -> Tensor:
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        return h + self.attend(tokens).transpose(1, 2).unflatten(2, h.shape[2:])
