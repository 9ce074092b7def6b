"""A small convolutional U-Net with FiLM noise conditioning.

Pixel-unshuffle at the entrance and pixel-shuffle at the exit (no layer works at full resolution, where a narrow network spends
most of its time and few of its parameters), residual blocks GroupNorm-SiLU-conv, additive skips, and in every block a scale and
a shift h -> (1 + a) h + b computed from the noise level. There is no attention and no position, so that any size divisible by
`UNet.divisor` works. The last convolution of every block and of the network starts at zero: the network starts as F = 0 and
every block as the identity.

References: Ronneberger, Fischer, Brox, U-Net, MICCAI 2015. Perez et al., FiLM, AAAI 2018. Zhang, Zuo, Zhang, FFDNet, TIP 2018
(unshuffled entrance). Tancik et al., Fourier features let networks learn high frequency functions, NeurIPS 2020.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ConfigError, ShapeError

__all__ = ["UNet"]


class UNet(nn.Module):
    """F(x, noise): (B, channels_in, H, W), (B,) -> (B, channels_out, H, W), H and W multiples of `divisor`.

    Args:
        channels_in, channels_out: channels of the input and of the output.
        widths: channels on each scale, the finest first; multiples of 32. Each scale halves the resolution.
        blocks: residual blocks on each scale of the encoder, and as many of the decoder.
        embedding: width of the noise embedding.
        patch: factor of the pixel-unshuffle at the entrance; 1 for none.
        seed: of the initial weights; the global generator is left alone.

    Raises:
        ConfigError: a width, a count or the patch is not possible.
        ShapeError: the input has other channels, or H or W is not a multiple of `divisor`.
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
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = (channels_in, channels_out, blocks, patch)
        if not widths or any(w < 1 or w % 32 for w in widths) or min(counts) < 1 or embedding < 2 or embedding % 2:
            raise ConfigError(
                "UNet: expected widths that are multiples of 32, positive channels, blocks and patch, and an even embedding, "
                f"got widths={tuple(widths)}, channels={channels_in}, {channels_out}, {blocks=}, {patch=}, {embedding=}"
            )
        self.architecture = {
            "channels_in": channels_in,
            "channels_out": channels_out,
            "widths": list(widths),
            "blocks": blocks,
            "embedding": embedding,
            "patch": patch,
        }
        self.channels_in, self.patch = channels_in, patch
        self.divisor = patch * 2 ** (len(widths) - 1)
        # ln(sigma) / 4 spans about [-1.3, 1]: a quarter of a turn to eight turns
        self.register_buffer("frequencies", 2 * math.pi * 2.0 ** torch.linspace(-2, 3, embedding // 2), persistent=False)
        self.embed = nn.Sequential(_linear(embedding, embedding), nn.SiLU(), _linear(embedding, embedding), nn.SiLU())
        self.enter = _conv(channels_in * patch**2, widths[0], 3)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for width in widths:
            self.encoder.append(nn.ModuleList(_Block(width, embedding) for _ in range(blocks)))
            self.decoder.append(nn.ModuleList(_Block(width, embedding) for _ in range(blocks)))
        for fine, coarse in itertools.pairwise(widths):
            self.down.append(_conv(fine, coarse, 2, stride=2))
            self.up.append(_conv(coarse, fine, 1))
        self.norm = nn.GroupNorm(widths[0] // 16, widths[0])
        self.exit = _conv(widths[0], channels_out * patch**2, 3)
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Uniform with the variance 1 / (3 fan_in) that torch's layers have, and zero for the last layers."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                bound = module.weight[0].numel() ** -0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                module.bias.uniform_(-bound, bound, generator=generator)
        for last in [self.exit, *(m.conv2 for m in self.modules() if isinstance(m, _Block))]:
            last.weight.zero_()
            last.bias.zero_()

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """The network's output for inputs of unit scale and their noise coordinate, ln(sigma) / 4."""
        if x.ndim != 4 or x.shape[1] != self.channels_in or x.shape[2] % self.divisor or x.shape[3] % self.divisor:
            raise ShapeError(
                f"UNet: expected (B, {self.channels_in}, H, W) with H and W multiples of {self.divisor}, got {tuple(x.shape)}"
            )
        angle = noise[:, None] * self.frequencies
        code = self.embed(torch.cat([angle.sin(), angle.cos()], dim=1).to(x.dtype))
        h = self.enter(F.pixel_unshuffle(x, self.patch))
        skips = []
        for level, stage in enumerate(self.encoder):
            for block in stage:
                h = block(h, code)
            if level < len(self.down):
                skips.append(h)
                h = self.down[level](h)
        for level in reversed(range(len(self.decoder))):
            if level < len(self.up):
                # a 1 x 1 convolution commutes with nearest upsampling: four times cheaper before it
                h = F.interpolate(self.up[level](h), scale_factor=2, mode="nearest") + skips[level]
            for block in self.decoder[level]:
                h = block(h, code)
        return F.pixel_shuffle(self.exit(F.silu(self.norm(h))), self.patch)


class _Block(nn.Module):
    """h + conv(silu(film(norm(conv(silu(norm(h)))))))."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(width // 16, width), _conv(width, width, 3)
        self.norm2, self.conv2 = nn.GroupNorm(width // 16, width), _conv(width, width, 3)
        self.film = _linear(embedding, 2 * width)

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.film(code)[:, :, None, None].chunk(2, dim=1)
        u = self.conv1(F.silu(self.norm1(h)))
        return h + self.conv2(F.silu(torch.addcmul(shift, self.norm2(u), 1 + scale)))


def _conv(channels_in: int, channels_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    """An uninitialised convolution; "same" padding for odd sizes."""
    padding = size // 2 if stride == 1 else 0
    return nn.utils.skip_init(nn.Conv2d, channels_in, channels_out, size, stride=stride, padding=padding)


def _linear(features_in: int, features_out: int) -> nn.Linear:
    return nn.utils.skip_init(nn.Linear, features_in, features_out)
