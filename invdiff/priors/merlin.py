"""The U-Net of MERLIN and SAR2SAR, with the published names of its weights.

Encoder: two convolutions at full resolution, then one after each halving by maximum, all of one width w. Decoder: doubling by
repetition, what the encoder had at that resolution concatenated, two convolutions of 2 w; at full resolution the input itself
is concatenated, and 4/3 w, 2/3 w and 1 channels follow. Leaky ReLU of slope 0.1 but for the last, whose output is subtracted
from the input: y = x - n(x).

References: Lehtinen et al., Noise2Noise: learning image restoration without clean data, 2018, arXiv:1803.04189 (the network).
Dalsasso, Denis, Tupin, As if by magic: self-supervised training of deep despeckling networks with MERLIN, IEEE TGRS 60, 2022,
arXiv:2110.13148.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ConfigError, DataError, ShapeError
from .layers import conv, initialise

__all__ = ["MerlinNet", "published"]


class MerlinNet(nn.Module):
    """(B, 1, H, W) -> (B, 1, H, W), sizes multiples of `divisor` = 2^depth.

    Args:
        width: channels of the encoder, a multiple of 3.
        depth: halvings.
        seed: of the initial weights; the last layer starts at zero, and the network as the identity.

    Raises:
        ConfigError: the width or the depth. ShapeError: other channels, or a size that is no multiple.
    """

    def __init__(self, width: int = 48, depth: int = 5, *, seed: int = 0) -> None:
        super().__init__()
        if width < 3 or width % 3 or depth < 1:
            raise ConfigError(f"MerlinNet: expected a width that is a multiple of 3 and depth >= 1, got {width} and {depth}")
        self.architecture = {"width": width, "depth": depth}
        self.depth, self.divisor = depth, 2**depth
        for k in range(depth + 2):
            self.add_module(f"enc{k}", conv(2, width if k else 1, width, 3))
        below = width
        for k in range(depth, 1, -1):
            self.add_module(f"dec{k}", conv(2, below + width, 2 * width, 3))
            self.add_module(f"dec{k}b", conv(2, 2 * width, 2 * width, 3))
            below = 2 * width
        self.dec1a = conv(2, below + 1, 4 * width // 3, 3)
        self.dec1b = conv(2, 4 * width // 3, 2 * width // 3, 3)
        self.dec1 = conv(2, 2 * width // 3, 1, 3)
        initialise(self, torch.Generator().manual_seed(seed), zero=[self.dec1])

    def forward(self, x: Tensor) -> Tensor:
        """x - n(x)."""
        if x.ndim != 4 or x.shape[1] != 1 or any(n % self.divisor for n in x.shape[2:]):
            raise ShapeError(
                f"MerlinNet: expected (B, 1, H, W) with sizes that are multiples of {self.divisor}, got {tuple(x.shape)}"
            )
        h, kept = self._layer("enc0", x), [x]
        for k in range(1, self.depth + 1):
            h = F.max_pool2d(self._layer(f"enc{k}", h), 2)
            kept.append(h)
        # what was halved last is what the next layer starts from
        kept.pop()
        h = self._layer(f"enc{self.depth + 1}", h)
        for k in range(self.depth, 0, -1):
            h = torch.cat((F.interpolate(h, scale_factor=2.0, mode="nearest"), kept.pop()), 1)
            for name in (f"dec{k}", f"dec{k}b") if k > 1 else ("dec1a", "dec1b"):
                h = self._layer(name, h)
        return x - self.dec1(h)

    def _layer(self, name: str, x: Tensor) -> Tensor:
        return F.leaky_relu(self.get_submodule(name)(x), 0.1)


def published(path: str | Path, sha256: str | None) -> MerlinNet:
    """The network of a state dictionary, .pth (read as weights only) or .safetensors.

    Raises:
        DataError: the file is missing, damaged, of something else, or has another hash.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        blob = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"load_merlin: can't read {path}: {error.strerror}") from None
    found = hashlib.sha256(blob).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise DataError(f"load_merlin: {path} is truncated or altered: expected sha256 {sha256}, found {found}")
    try:
        if Path(path).suffix == ".safetensors":
            weights = load(blob)
        else:
            weights = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
        depth = sum(name.startswith("enc") and name.endswith(".weight") for name in weights) - 2
        net = MerlinNet(len(weights["enc0.bias"]), depth)
        net.load_state_dict(weights)
    except SafetensorError as error:
        raise DataError(f"load_merlin: {path} is truncated or no safetensors file ({error})") from None
    except Exception as error:  # torch.load raises at least five kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"load_merlin: {path} holds no weights of this network ({reason})") from None
    return net
