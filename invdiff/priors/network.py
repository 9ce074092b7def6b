"""A network as a denoiser: EDM preconditioning, and a file format that carries everything needed to use it.

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)
    c_skip = sigma_d^2 / (sigma^2 + sigma_d^2),    c_out = sigma sigma_d / sqrt(sigma^2 + sigma_d^2),
    c_in = 1 / sqrt(sigma^2 + sigma_d^2),          c_noise = ln(sigma) / 4,

x counted from the data's mean, sigma_d their root mean square from there. As sigma -> 0, D -> x whatever the network says.

References: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022,
arXiv:2206.00364, Table 1 and Appendix B.6.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.errors import ConfigError, DataError, ShapeError
from ..core.files import atomic
from ..core.rng import Streams
from .unet import UNet

__all__ = ["EDMDenoiser", "denoising_error", "load_network"]

_KEY = "invdiff.network"


class EDMDenoiser(Denoiser):
    """E[x0 | x] from a preconditioned network; images of any size that the network divides.

    Args:
        net: F(x, noise) for x of unit root mean square.
        sigma_data: root mean square of the data about `mean`, in its units.
        mean: one number for all channels and pixels.
        sigma_min, sigma_max: the noise levels it was trained for.
        bf16: run the network under bfloat16 autocast. The skip path stays in the input's dtype.

    Shapes: (B, C, H, W), (B,) -> (B, C, H, W), in the dtype of x; the network runs in the dtype of its weights, which
    `.double()` changes.

    Raises:
        ConfigError: sigma_data is not positive, or the network's channels in and out differ.
        ShapeError: H or W is not a multiple of `net.divisor`.
    """

    def __init__(
        self,
        net: UNet,
        *,
        sigma_data: float,
        mean: float = 0.0,
        sigma_min: float = 0.005,
        sigma_max: float = 40.0,
        bf16: bool = False,
    ) -> None:
        channels = net.architecture["channels_in"]
        super().__init__((channels, None, None), sigma_min, sigma_max)
        if net.architecture["channels_out"] != channels:
            raise ConfigError(f"EDMDenoiser: the network maps {channels} channels to {net.architecture['channels_out']}")
        if not (0.0 < sigma_data < float("inf") and abs(mean) < float("inf")):
            raise ConfigError(f"EDMDenoiser: expected sigma_data > 0 and a finite mean, got {sigma_data} and {mean}")
        self.net, self.sigma_data, self.mean, self.bf16 = net, float(sigma_data), float(mean), bf16
        self.facts: dict[str, Any] = {}

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma)."""
        if x.shape[2] % self.net.divisor or x.shape[3] % self.net.divisor:
            size, divisor = tuple(x.shape[2:]), self.net.divisor
            raise ShapeError(f"EDMDenoiser: expected H and W to be multiples of {divisor}, got {size}: pad or crop the image")
        dtype = self.net.exit.weight.dtype
        s = sigma.to(x.dtype)[:, None, None, None]
        total = (s.square() + self.sigma_data**2).sqrt()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.net(((x - self.mean) / total).to(dtype), (sigma.log() / 4).to(dtype))
        # 1 - sigma^2 / total^2 keeps c_skip <= 1 and D - x = O(sigma) without cancellation
        return x - (s / total).square() * (x - self.mean) + s * self.sigma_data / total * out.to(x.dtype)

    def save(self, path: str | Path, facts: Mapping[str, Any] | None = None) -> None:
        """Write weights, architecture and facts (anything JSON can hold: data, licence, errors) as one safetensors file.

        The file is written under a temporary name and renamed. Raises DataError when it can't be written.
        """
        from safetensors.torch import save

        header = {
            "architecture": self.net.architecture,
            "sigma_data": self.sigma_data,
            "mean": self.mean,
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "shape": list(self.shape),
            "facts": dict(self.facts if facts is None else facts),
        }
        weights = {name: t.detach().cpu().contiguous() for name, t in self.net.state_dict().items()}
        try:
            blob = save(weights, metadata={_KEY: json.dumps(header, allow_nan=False)})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"EDMDenoiser: the facts can't be written as JSON: {error}") from None
        with atomic(path, parents=True) as part:
            part.write_bytes(blob)


def load_network(path: str | Path, *, sha256: str | None = None, bf16: bool = False) -> EDMDenoiser:
    """The denoiser that `EDMDenoiser.save` wrote, in evaluation mode on the CPU; what was said about it is in `.facts`.

    Args:
        sha256: expected hash of the file, hexadecimal; None to accept any.

    Raises:
        DataError: the file is missing, truncated, not one of these, or has another hash.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        blob = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"load_network: can't read {path}: {error.strerror}") from None
    found = hashlib.sha256(blob).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise DataError(
            f"load_network: {path} is truncated or altered: expected sha256 {sha256}, found {found}: get the file again"
        )
    try:
        weights = load(blob)
        size = int.from_bytes(blob[:8], "little")
        header = json.loads(json.loads(blob[8 : 8 + size])["__metadata__"][_KEY])
        limits = {name: header[name] for name in ("sigma_data", "sigma_min", "sigma_max")}
        denoiser = EDMDenoiser(UNet(**header["architecture"]), **limits, mean=header.get("mean", 0.0), bf16=bf16)
        denoiser.facts = dict(header["facts"])
        denoiser.net.load_state_dict(weights)
    except SafetensorError as error:
        raise DataError(f"load_network: {path} is truncated or no safetensors file ({error})") from None
    except KeyError as error:
        raise DataError(f"load_network: {path} is no network of invdiff: its metadata has no {error}") from None
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"load_network: {path} describes a network that its weights do not fit ({reason})") from None
    return denoiser.eval().requires_grad_(False).to(memory_format=torch.channels_last)


@torch.no_grad()
def denoising_error(prior: Denoiser, images: Tensor, sigmas: Sequence[float], *, seed: int, batch: int = 16) -> list[float]:
    """Root mean square of D(x0 + sigma n, sigma) - x0 over images (N, *shape) and pixels, one number for each sigma.

    The noise of image k is draw k of the seed, the same at every sigma.
    """
    errors = []
    for sigma in sigmas:
        total = 0.0
        for start in range(0, len(images), batch):
            clean = images[start : start + batch]
            draws = range(start, start + len(clean))
            noise = Streams(seed, draws).normal(0, clean.shape[1:], "denoising_error", clean.dtype, clean.device)
            level = torch.full((len(clean),), sigma, dtype=clean.dtype, device=clean.device)
            total += (prior(clean + sigma * noise, level) - clean).double().square().sum().item()
        errors.append((total / images.numel()) ** 0.5)
    return errors
