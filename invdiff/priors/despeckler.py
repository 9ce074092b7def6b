"""Despeckling networks, and what trains them without a clean image.

A network sees the standardised half logarithm of a power p, and answers in the same units:

    h = ((1/2) log(p + floor) - shift) / scale,      u = log R = 2 (shift + scale f(h))

An image a + j b of one look has a, b ~ N(0, R / 2), independent given R: each is a measurement of R in which the other has no
part (MERLIN). An intensity I of L looks is split into two independent ones (R2R; the thinning of a Gamma law),

    I1 = I B / alpha,  I2 = I (1 - B) / (1 - alpha),  B ~ Beta(alpha L, (1 - alpha) L):     of alpha L and (1 - alpha) L looks.

The losses are the negative log-densities of the part that the network has not seen, u/2 + b^2 e^-u and
(1 - alpha) L (u + I2 e^-u). Both are least for u = log E[R | what it has seen], because 2 E[b^2 | a] = E[R | a] and
E[I2 | I1] = E[R | I1]. A complex image becomes R = (R_a + R_b) / 2, from both of its parts.

MERLIN wants real and imaginary parts that are independent: a spectrum that is centred and symmetric, see `whiten_spectrum`.
Neighbours of correlated speckle tell a network about the part that it has not seen, which then stays.

References: Dalsasso, Denis, Tupin, As if by magic: self-supervised training of deep despeckling networks with MERLIN, IEEE
TGRS 60, 2022, arXiv:2110.13148. Monroy, Bacca, Tachella, Generalized recorrupted-to-recorrupted: self-supervised learning
beyond Gaussian noise, 2024, arXiv:2412.04648.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, DataError, ShapeError
from ..core.rng import Streams, derived
from .files import read, write
from .merlin import MerlinNet, published

__all__ = ["Despeckler", "load_despeckler", "load_merlin", "merlin_losses", "r2r_losses", "r2r_split"]

# of the published network: smallest and largest value of the half logarithm in its training data
_LOWEST, _HIGHEST = -1.429329123112601, 10.089038980848645


def merlin_losses(u: Tensor, other: Tensor) -> Tensor:
    """u/2 + b^2 e^-u, -log p(b | R = e^u) without its constant, of each value; b is the part that u has not seen."""
    return 0.5 * u + other.square() * (-u).exp()


def r2r_losses(u: Tensor, other: Tensor, looks: float) -> Tensor:
    """L2 (u + I2 e^-u), -log p(I2 | R = e^u) without its constant, of each value; I2 of L2 looks is the part u has not seen."""
    return looks * (u + other * (-u).exp())


def r2r_split(intensity: Tensor, looks: float, alpha: float, streams: Streams) -> tuple[Tensor, Tensor]:
    """Two independent intensities of alpha L and (1 - alpha) L looks, of the same reflectivity, from one of L looks.

    Args:
        intensity: (B, ...), a stream for each item.

    Raises:
        ConfigError: looks is not positive, or alpha not in (0, 1).
    """
    if not 0.0 < looks < math.inf or not 0.0 < alpha < 1.0:
        raise ConfigError(f"r2r_split: expected looks > 0 and alpha in (0, 1), got {looks} and {alpha}")
    size = intensity.shape[1:]
    # the logit of B is a difference of logarithms of Gamma variables, G U^(1/k) with G ~ Gamma(k + 1), which do not underflow
    logs = []
    for k, purpose in ((alpha * looks, "first"), ((1.0 - alpha) * looks, "second")):
        shape = torch.full(size, k + 1.0, dtype=torch.float64)
        gamma = [torch._standard_gamma(shape, generator=g) for g in streams.generators(0, purpose)]
        logs.append(torch.stack(gamma).log() + streams.uniform(0, size, purpose, torch.float64).log() / k)
    logit = (logs[0] - logs[1]).to(intensity)
    return intensity * logit.sigmoid() / alpha, intensity * (-logit).sigmoid() / (1.0 - alpha)


class Despeckler(nn.Module):
    """A network from the logarithm of a speckled image to that of its reflectivity; what `fit` trains without a clean image.

    Args:
        network: f, (B, 1, H, W) -> (B, 1, H, W), without a noise level.
        shift, scale: of the half logarithm: its mean and its standard deviation, or its smallest value and its range.
        floor: of the power, in the units of the image squared.
        looks: L of the intensities that train it.
        alpha: share of the looks that the network sees in training by R2R.

    What trains it is said by the source: images of two channels, real and imaginary part, by MERLIN; of one, intensities, by
    R2R.

    Attributes:
        divisor: what the sizes must be multiples of. facts: what the file says about it.

    Raises:
        ConfigError: an option is out of its range.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        shift: float = 0.0,
        scale: float = 1.0,
        floor: float = 0.0,
        looks: float = 1.0,
        alpha: float = 0.5,
    ) -> None:
        super().__init__()
        if not (
            math.isfinite(shift) and 0.0 < scale < math.inf and floor >= 0.0 and 0.0 < looks < math.inf and 0.0 < alpha < 1.0
        ):
            raise ConfigError(
                "Despeckler: expected a finite shift, scale and looks > 0, floor >= 0 and alpha in (0, 1), got "
                f"{shift}, {scale}, {looks}, {floor} and {alpha}"
            )
        self.network, self.shift, self.scale, self.floor = network, float(shift), float(scale), float(floor)
        self.looks, self.alpha = float(looks), float(alpha)
        # what the training loop asks of a network
        self.divisor = int(getattr(network, "divisor", 1))
        self.sigma_data, self.bf16, self.dims, self.classes, self.memory_format = 1.0, False, 2, 0, torch.contiguous_format
        self.facts: dict[str, Any] = {}

    @property
    def net(self) -> Despeckler:
        """Itself: what is trained."""
        return self

    def forward(self, observed: Tensor) -> Tensor:
        """u = log R, (B, 1, H, W) real, of a complex image of one look or of an intensity, (B, 1, H, W).

        Raises:
            ShapeError: another shape, or sizes that are no multiples of `divisor`. DataError: a negative intensity, or one of
            zero where the floor is zero.
        """
        if observed.is_complex():
            parts = [self._single(part.square()) for part in (observed.real, observed.imag)]
            return torch.logaddexp(*parts) - math.log(2.0)
        return self._single(observed)

    def averaged(self, intensity: Tensor, splits: int = 8, *, seed: int = 0) -> Tensor:
        """log of the mean of R over first parts of random splits, of as many looks as the network was trained to see.

        What `forward` says of the whole intensity, of more looks than those, is off where it has learnt their number.

        Raises:
            ConfigError: splits is not positive. ShapeError, DataError: as of `forward`.
        """
        if splits < 1:
            raise ConfigError(f"Despeckler: expected splits >= 1, got {splits}")
        parts = []
        for k in range(splits):
            streams = Streams(derived(seed, k), len(intensity))
            parts.append(self._single(r2r_split(intensity, self.looks, self.alpha, streams)[0]))
        return torch.stack(parts).logsumexp(0) - math.log(splits)

    def losses(self, images: Tensor, streams: Streams) -> Tensor:
        """The loss of each item of (B, 2, H, W), real and imaginary part, or (B, 1, H, W), intensities: (B,).

        Raises:
            ShapeError: other channels.
        """
        if images.ndim == 4 and images.shape[1] == 2:
            a, b = images.split(1, 1)
            each = 0.5 * (merlin_losses(self._single(a.square()), b) + merlin_losses(self._single(b.square()), a))
        elif images.ndim == 4 and images.shape[1] == 1:
            seen, other = r2r_split(images, self.looks, self.alpha, streams)
            each = r2r_losses(self._single(seen), other, (1.0 - self.alpha) * self.looks)
        else:
            raise ShapeError(
                "Despeckler: expected images (B, 2, H, W) of real and imaginary part, or intensities (B, 1, H, W), "
                f"got {tuple(images.shape)}"
            )
        return each.flatten(1).mean(1)

    def _single(self, power: Tensor) -> Tensor:
        if power.ndim != 4 or power.shape[1] != 1 or any(n % self.divisor for n in power.shape[2:]):
            raise ShapeError(
                f"Despeckler: expected (B, 1, H, W) with sizes that are multiples of {self.divisor}, got {tuple(power.shape)}: "
                "pad or cut into tiles"
            )
        if not bool((power + self.floor > 0).all()) or bool((power < 0).any()):
            raise DataError("Despeckler: expected positive intensities; zeros need a floor > 0")
        h = (0.5 * (power + self.floor).log() - self.shift) / self.scale
        with torch.autocast(h.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.network(h.to(next((p.dtype for p in self.network.parameters()), h.dtype)))
        return 2.0 * (self.shift + self.scale * out.to(h.dtype))

    @property
    def header(self) -> dict[str, Any]:
        """What makes the same network again, but for its weights."""
        units = {name: getattr(self, name) for name in ("shift", "scale", "floor", "looks", "alpha")}
        inner = {"name": type(self.network).__name__, "options": dict(getattr(self.network, "architecture", {}))}
        return {"network": "Despeckler", "architecture": {"net": inner, **units}}

    def save(self, path: str | Path, facts: Mapping[str, Any] | None = None, *, dtype: torch.dtype | None = None) -> None:
        """Write weights, units and facts as one safetensors file, for `load_despeckler`."""
        write(path, self.state_dict(), self.header | {"facts": dict(self.facts if facts is None else facts)}, dtype)


def load_despeckler(path: str | Path, *, network: nn.Module | None = None, sha256: str | None = None) -> Despeckler:
    """What `Despeckler.save` wrote, frozen, on the CPU.

    Args:
        network: of the kind that the weights are of; None for a `MerlinNet`, which is made as the file says.
        sha256: expected hash of the file, hexadecimal; None to accept any.

    Raises:
        DataError: the file is missing, truncated, of something else, or has another hash.
    """

    def make(header: dict[str, Any], weights: dict[str, Tensor]) -> Despeckler:
        made = dict(header["architecture"])
        if header["network"] != "Despeckler":
            raise ValueError(f"it is a {header['network']}")
        inner = made.pop("net")
        if network is None and inner["name"] != "MerlinNet":
            raise ValueError(f"of a {inner['name']}: give one as network")
        model = Despeckler(MerlinNet(**inner["options"]) if network is None else network, **made)
        model.load_state_dict(weights)
        model.facts = dict(header["facts"])
        return model

    return read(path, make, who="load_despeckler", sha256=sha256).eval().requires_grad_(False)


def load_merlin(path: str | Path, *, sha256: str | None = None, floor: float = 1e-3) -> Despeckler:
    """A published MERLIN network (hi-paris/deepdespeckling, MIT) from your copy of its weights, frozen, on the CPU.

    Its images are complex, in the units of its training: half logarithms of the power from -1.43 to 10.1.

    Args:
        path: the state dictionary, .pth (read as weights only) or .safetensors.
        sha256: expected hash of the file, hexadecimal; None to accept any.
        floor: of the squares; the published program's value.

    Raises:
        DataError: the file is missing, damaged, of something else, or has another hash.
    """
    model = Despeckler(published(path, sha256), shift=_LOWEST, scale=_HIGHEST - _LOWEST, floor=floor)
    return model.eval().requires_grad_(False)
