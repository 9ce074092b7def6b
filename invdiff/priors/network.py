"""A network as a denoiser: its preconditioning, and a file format that carries everything needed to use it.

With x counted from the data's mean, sigma_d their root mean square from there, and c_in = 1 / sqrt(sigma^2 + sigma_d^2),

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise),

            c_skip                             c_out                                            c_noise
    edm     sigma_d^2 / (sigma^2 + sigma_d^2)  sigma sigma_d / sqrt(sigma^2 + sigma_d^2)        ln(sigma) / 4
    flow    sigma_d / (sigma + sigma_d)        -sigma sigma_d / (sigma + sigma_d)               ln(sigma / sigma_d) / 4

The second is a rectified flow in units of sigma_d: at the time tau = sigma / (sigma + sigma_d) its state is
x_tau = (1 - tau) x0 + tau eps = (1 - tau) x / sigma_d, F is its velocity v = eps - x0, and D = x_tau - tau v. The network sees
x_tau divided by its standard deviation sqrt((1 - tau)^2 + tau^2), which is c_in x again. As sigma -> 0, D -> x whatever the
network says.

References: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022,
arXiv:2206.00364, Table 1 and Appendix B.6. Liu, Gong, Liu, Flow straight and fast: learning to generate and transfer data with
rectified flow, 2022, arXiv:2209.03003.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ConfigError, ShapeError
from ..core.rng import Streams
from .bands import BandUNet
from .dit import DiT
from .files import read, write
from .fno import FNO
from .layers import Network, over
from .unet import UNet

__all__ = ["NETWORKS", "EDMDenoiser", "Preconditioned", "denoising_error", "load_network"]

NETWORKS = {cls.__name__: cls for cls in (UNet, DiT, FNO, BandUNet)}


class Preconditioned(Denoiser):
    """Base of the functions that a network makes with a preconditioning: units, header and file.

    Args:
        net: F(x, noise, condition) for x of unit root mean square: a UNet, a DiT or an FNO.
        sigma_data: root mean square of the data about `mean`, in its units.
        mean: one number for all channels and pixels.
        sigma_min, sigma_max: its noise levels.
        bf16: run the network under bfloat16 autocast. The skip path stays in the input's dtype.
        preconditioning: its name in the file.

    Attributes:
        facts: what the file says about it.

    Raises:
        ConfigError: sigma_data is not positive, the network's channels in and out differ, or it has no noise level.
    """

    def __init__(
        self,
        net: Network,
        *,
        sigma_data: float,
        mean: float,
        sigma_min: float,
        sigma_max: float,
        bf16: bool,
        preconditioning: str,
    ) -> None:
        channels, name = net.architecture["channels_in"], type(self).__name__
        super().__init__((channels, *[None] * net.dims), sigma_min, sigma_max)
        if net.architecture["channels_out"] != channels:
            raise ConfigError(f"{name}: the network maps {channels} channels to {net.architecture['channels_out']}")
        if not net.noise:
            raise ConfigError(f"{name}: the {type(net).__name__} has no noise level: make it with noise=True")
        if not (0.0 < sigma_data < float("inf") and abs(mean) < float("inf")):
            raise ConfigError(f"{name}: expected sigma_data > 0 and a finite mean, got {sigma_data} and {mean}")
        self.net, self.sigma_data, self.mean, self.bf16 = net, float(sigma_data), float(mean), bf16
        self.preconditioning, self.divisor = preconditioning, net.divisor
        self.facts: dict[str, Any] = {}

    @property
    def origin(self) -> float:
        return self.mean

    def require_size(self, x: Tensor) -> None:
        """Raise a ShapeError where a size of x (B, C, *spatial) is no multiple of `divisor`."""
        if any(n % self.divisor for n in x.shape[2:]):
            name, size = type(self).__name__, tuple(x.shape[2:])
            raise ShapeError(f"{name}: expected sizes that are multiples of {self.divisor}, got {size}: pad or crop")

    def null(self, condition: Condition) -> dict[str, Tensor]:
        """What the network was told in place of a condition, if it was trained with `drop`; for classifier-free guidance."""
        return self.net.null(condition)

    @property
    def header(self) -> dict[str, Any]:
        """What makes the same function again, but for its weights."""
        return {
            "network": type(self.net).__name__,
            "architecture": self.net.architecture,
            "preconditioning": self.preconditioning,
            "sigma_data": self.sigma_data,
            "mean": self.mean,
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "shape": list(self.shape),
        }

    def save(self, path: str | Path, facts: Mapping[str, Any] | None = None, *, dtype: torch.dtype | None = None) -> None:
        """Write weights, architecture and facts (anything JSON can hold: data, licence, errors) as one safetensors file.

        The file is written under a temporary name and renamed.

        Args:
            facts: None for its own.
            dtype: of the stored weights, float32, float16 or bfloat16; None for that of the network. They are read as float32.

        Raises:
            ConfigError: the facts are no JSON, the dtype is another, or a weight is beyond its range.
            DataError: the file can't be written.
        """
        header = self.header | {"facts": dict(self.facts if facts is None else facts)}
        write(path, self.net.state_dict(), header, dtype)


class EDMDenoiser(Preconditioned):
    """E[x0 | x] from a preconditioned network; signals, images and volumes of any size that the network divides.

    Args:
        net: F(x, noise, condition) for x of unit root mean square: a UNet, a DiT or an FNO.
        sigma_data: root mean square of the data about `mean`, in its units.
        mean: one number for all channels and pixels.
        sigma_min, sigma_max: the noise levels it was trained for.
        bf16: run the network under bfloat16 autocast. The skip path stays in the input's dtype.
        preconditioning: "edm", or "flow" for a network that predicts the velocity of a rectified flow.

    Shapes: (B, C, *spatial), (B,) -> (B, C, *spatial), in the dtype of x; the network runs in the dtype of its weights, which
    `.double()` changes. A conditional network is called as `denoiser(x, sigma, condition)`.

    Raises:
        ConfigError: sigma_data is not positive, the preconditioning is unknown, the network's channels in and out differ, or it
            has no noise level; on a call, the condition is not the one that the network was declared with.
        ShapeError: a size is not a multiple of `divisor`.
    """

    def __init__(
        self,
        net: Network,
        *,
        sigma_data: float,
        mean: float = 0.0,
        sigma_min: float = 0.005,
        sigma_max: float = 40.0,
        bf16: bool = False,
        preconditioning: Literal["edm", "flow"] = "edm",
    ) -> None:
        if preconditioning not in ("edm", "flow"):
            raise ConfigError(f"EDMDenoiser: expected preconditioning to be 'edm' or 'flow', got {preconditioning!r}")
        units = {"sigma_data": sigma_data, "mean": mean, "sigma_min": sigma_min, "sigma_max": sigma_max}
        super().__init__(net, **units, bf16=bf16, preconditioning=preconditioning)

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """D(x, sigma), given the condition if the network has one."""
        return self.through(self.net, x, sigma, condition)

    def through(self, net: Callable[..., Tensor], x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """D(x, sigma) with net(input, noise, condition) in place of the network, for those who look into it."""
        self.require_size(x)
        dtype = next(self.net.parameters()).dtype
        sigma, centred = sigma.to(x.dtype), x - self.mean
        s = over(sigma, x.ndim - 1)
        total = (s.square() + self.sigma_data**2).sqrt()
        flow = self.preconditioning == "flow"
        noise = (sigma / self.sigma_data if flow else sigma).log() / 4
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            out = net((centred / total).to(dtype), noise.to(dtype), condition)
        # 1 - c_skip, so that D - x = O(sigma) without cancellation
        shrink = s / (s + self.sigma_data) if flow else (s / total).square()
        return x - shrink * centred + over(self.output_scale(sigma), x.ndim - 1) * out.to(x.dtype)

    def output_scale(self, sigma: Tensor) -> Tensor:
        """c_out(sigma), (B,) -> (B,): what one unit of the network's output is in data units.

        The loss weight 1 / c_out^2 on |D - x0|^2 is the plain squared error of F: of EDM, or of flow matching.
        """
        if self.preconditioning == "flow":
            return -sigma * self.sigma_data / (sigma + self.sigma_data)
        return sigma * self.sigma_data / (sigma.square() + self.sigma_data**2).sqrt()


def load_network(path: str | Path, *, sha256: str | None = None, bf16: bool = False) -> EDMDenoiser:
    """The denoiser that `EDMDenoiser.save` wrote, in evaluation mode on the CPU; what was said about it is in `.facts`.

    Args:
        sha256: expected hash of the file, hexadecimal; None to accept any.

    Raises:
        DataError: the file is missing, truncated, not one of these, or has another hash.
    """

    def make(header: dict[str, Any], weights: dict[str, Tensor]) -> EDMDenoiser:
        limits = {name: header[name] for name in ("sigma_data", "sigma_min", "sigma_max")}
        kind = header.get("network", "UNet")
        if kind not in NETWORKS:
            raise ValueError(f"no network is called {kind!r}")
        # files from before these options are of a U-Net about zero, preconditioned as in EDM
        options = {"mean": header.get("mean", 0.0), "preconditioning": header.get("preconditioning", "edm")}
        denoiser = EDMDenoiser(NETWORKS[kind](**header["architecture"]), **limits, **options, bf16=bf16)
        denoiser.facts = dict(header["facts"])
        denoiser.net.load_state_dict(weights)
        return denoiser

    denoiser = read(path, make, who="load_network", sha256=sha256)
    return denoiser.eval().requires_grad_(False).to(memory_format=denoiser.net.memory_format)


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
