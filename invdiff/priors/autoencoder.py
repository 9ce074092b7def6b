"""A small convolutional autoencoder, and its decoder as a forward operator.

    z = encode(x),    x ~ decode(z),    encode and decode differentiable, any size that `factor` divides

A latent prior is a Denoiser of z; the problem for z is `problem.through(Decoder(autoencoder, shape))`, whose samples are
decoded by the same operator. The Jacobian of decode is `Decoder.jvp` and `Decoder.vjp`, exact by automatic differentiation.

Trained, by `invdiff.learning.fit`, as a variational autoencoder whose decoder has a fixed standard deviation s,

    L = E |x - decode(m + v n)|^2 / (2 s^2) + KL(N(m, v^2) || N(0, 1)),     (m, v) from the encoder;

the latents that the prior is trained on are the means m, which are then close to unit scale; `encode` returns them. What the
decoder can't represent no prior and no measurement brings back: `reconstruction` in the facts is that error. As priors know
nothing of the s either, latents carry no meaning below the noise levels v, of which `posterior` tells.

References: Kingma, Welling, Auto-encoding variational Bayes, 2014, arXiv:1312.6114. Rombach, Blattmann, Lorenz, Esser, Ommer,
High-resolution image synthesis with latent diffusion models, 2022, arXiv:2112.10752.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ConfigError, ShapeError
from ..core.memory import run_block
from ..core.operator import Operator
from .files import read, write
from .layers import Conv2d

__all__ = ["Autoencoder", "Decoder", "load_autoencoder"]


class Autoencoder(nn.Module):
    """(B, channels, H, W) <-> (B, latent, H / factor, W / factor).

    Args:
        channels: of the images.
        latent: channels of the latents.
        widths: channels on each scale, the finest first, multiples of 16; the finest is at half the resolution of the image
            (pixel-unshuffle), each further one halves it again: factor = 2^len(widths).
        blocks: residual blocks on each scale of the encoder; the decoder has one more.
        sigma_data, mean: root mean square of the images about `mean`, in their units.
        fidelity: s, the standard deviation of the decoder, in units of the images; smaller keeps more detail in the latents.
        seed: of the initial weights; the global generator is left alone.

    Raises:
        ConfigError: a width or a count is not possible.
        ShapeError: H or W is not a multiple of `factor`, or the channels differ.
    """

    # what the training loop asks of a network
    memory_format, classes, dims = torch.channels_last, 0, 2

    def __init__(
        self,
        channels: int,
        latent: int,
        *,
        widths: Sequence[int] = (64, 96),
        blocks: int = 2,
        sigma_data: float = 1.0,
        mean: float = 0.0,
        fidelity: float = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (
            not widths
            or any(w < 16 or w % 16 for w in widths)
            or min(channels, latent, blocks) < 1
            or not min(sigma_data, fidelity) > 0
        ):
            raise ConfigError(
                "Autoencoder: expected widths that are multiples of 16, and positive channels, latent, blocks, sigma_data and "
                f"fidelity, got {tuple(widths)}, {channels}, {latent}, {blocks}, {sigma_data} and {fidelity}"
            )
        self.architecture = {"channels": channels, "latent": latent, "widths": list(widths), "blocks": blocks}
        self.sigma_data, self.mean, self.fidelity, self.bf16 = float(sigma_data), float(mean), float(fidelity), False
        self.channels, self.latent, self.factor = channels, latent, 2 ** len(widths)
        self.divisor = self.factor
        self.facts: dict[str, Any] = {}
        down: list[nn.Module] = [nn.PixelUnshuffle(2), Conv2d(4 * channels, widths[0], 3, padding=1)]
        down += [_Block(widths[0]) for _ in range(blocks)]
        for fine, coarse in itertools.pairwise(widths):
            down += [Conv2d(fine, coarse, 2, stride=2), *(_Block(coarse) for _ in range(blocks))]
        self.down = nn.Sequential(*down, nn.GroupNorm(widths[-1] // 16, widths[-1]), nn.SiLU())
        self.moments = Conv2d(widths[-1], 2 * latent, 3, padding=1)
        up: list[nn.Module] = [Conv2d(latent, widths[-1], 3, padding=1), *(_Block(widths[-1]) for _ in range(blocks + 1))]
        for fine, coarse in reversed(list(itertools.pairwise(widths))):
            up += [Conv2d(coarse, fine, 1), nn.Upsample(scale_factor=2), *(_Block(fine) for _ in range(blocks + 1))]
        self.up = nn.Sequential(*up, nn.GroupNorm(widths[0] // 16, widths[0]), nn.SiLU())
        self.exit = nn.Sequential(Conv2d(widths[0], 4 * channels, 3, padding=1), nn.PixelShuffle(2))
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, Conv2d):
                bound = module.weight[0].numel() ** -0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def net(self) -> Autoencoder:
        """Itself: what is trained."""
        return self

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the encoder's Gaussian, (B, latent, H / factor, W / factor) each."""
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ShapeError(
                f"Autoencoder: expected images (B, {self.channels}, H, W) with H and W multiples of {self.factor}, got "
                f"{tuple(x.shape)}"
            )
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            m, log_v = self.moments(self.down((x - self.mean) / self.sigma_data)).to(x.dtype).chunk(2, dim=1)
        # between e^-6 and e^6: neither an overflow nor a division by zero
        return m, (6.0 * torch.tanh(log_v / 6.0)).exp()

    def encode(self, x: Tensor) -> Tensor:
        """The latents of images, the encoder's mean."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """The images of latents."""
        if z.ndim != 4 or z.shape[1] != self.latent:
            raise ShapeError(f"Autoencoder: expected latents (B, {self.latent}, h, w), got {tuple(z.shape)}")
        with torch.autocast(z.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.exit(self.up(z))
        return self.mean + self.sigma_data * out.to(z.dtype)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Shape of the latents of images of a shape (C, H, W)."""
        if len(shape) != 3 or shape[0] != self.channels or shape[1] % self.factor or shape[2] % self.factor:
            raise ShapeError(
                f"Autoencoder: expected an image shape ({self.channels}, H, W), multiples of {self.factor}, got {tuple(shape)}"
            )
        return self.latent, shape[1] // self.factor, shape[2] // self.factor

    @property
    def header(self) -> dict[str, Any]:
        """What makes the same autoencoder again, but for its weights."""
        units = {"sigma_data": self.sigma_data, "mean": self.mean, "fidelity": self.fidelity}
        return {"network": "Autoencoder", "architecture": self.architecture | units}

    def save(self, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write weights, architecture, units and facts as one safetensors file, for `load_autoencoder`."""
        write(path, self.state_dict(), self.header | {"facts": self.facts}, dtype)


def load_autoencoder(path: str | Path, *, sha256: str | None = None) -> Autoencoder:
    """The autoencoder that `Autoencoder.save` wrote, frozen, on the CPU.

    Args:
        sha256: expected hash of the file, hexadecimal; None to accept any.

    Raises:
        DataError: the file is missing, truncated, not one of these, or has another hash.
    """

    def make(header: dict[str, Any], weights: dict[str, Tensor]) -> Autoencoder:
        if header["network"] != "Autoencoder":
            raise ValueError(f"it is a {header['network']}")
        autoencoder = Autoencoder(**header["architecture"])
        autoencoder.facts = dict(header["facts"])
        autoencoder.load_state_dict(weights)
        return autoencoder

    return read(path, make, who="load_autoencoder", sha256=sha256).eval().requires_grad_(False)


class Decoder(Operator):
    """decode as a forward operator: latents -> images of one shape.

    Args:
        autoencoder: anything with `decode(z)` and `latent_shape(shape)`; its weights are not trained through the operator.
        shape: of the images, (C, H, W).
    """

    def __init__(self, autoencoder: nn.Module, shape: Sequence[int]) -> None:
        super().__init__(autoencoder.latent_shape(shape), tuple(shape))
        self.autoencoder = autoencoder.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.autoencoder.decode(x)


class _Block(nn.Module):
    """h + conv(silu(norm(conv(silu(norm(h))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        groups = width // 16
        self.norm1, self.conv1 = nn.GroupNorm(groups, width), Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, width), Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return run_block(self.evaluate, h)

    def evaluate(self, h: Tensor) -> Tensor:
        """The block, whose activations a memory policy may have recomputed."""
        return h + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(h))))))
