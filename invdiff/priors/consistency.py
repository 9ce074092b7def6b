"""Consistency functions: from any point of the probability flow to its end in one evaluation.

The flow dx/dsigma = (x - D(x, sigma)) / sigma carries x at sigma to x at sigma_min. A consistency function says where it ends:

    f(x(sigma), sigma) = x(sigma_min)  along every path,    f(x, sigma_min) = x,

the second of which the preconditioning makes an identity, whatever the network says. With x counted from the data's mean,

    f(x, sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4),           c_in   = 1 / sqrt(sigma^2 + sigma_d^2)
    c_skip = sigma_d^2 / ((sigma - sigma_min)^2 + sigma_d^2),          c_out  = (sigma - sigma_min) sigma_d c_in.

Up to O(sigma_min / sigma) these are EDM's, so that the weights of a denoiser are a start: f is D then. f is *not* the posterior
mean E[x0 | x] of other priors but one point of the posterior, which no formula with a score, with Tweedie's covariance or with
D - x may take. For x0 ~ N(m, s^2): f(x, sigma) = m + sqrt((s^2 + sigma_min^2) / (s^2 + sigma^2)) (x - m).

References: Song, Dhariwal, Chen, Sutskever, Consistency models, 2023, arXiv:2303.01469, Appendix C.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ConfigError
from .files import read
from .layers import Network, over
from .network import NETWORKS, EDMDenoiser, Preconditioned

__all__ = ["Consistency", "ConsistencyModel", "load_consistency"]


class Consistency(Denoiser):
    """Base of consistency functions: the interface of a denoiser, and another meaning, for `samplers.Multistep` alone."""

    @property
    def posterior_mean(self) -> bool:
        """False: samplers that need E[x0 | x] refuse it."""
        return False


class ConsistencyModel(Consistency, Preconditioned):
    """A consistency function from a preconditioned network.

    Args:
        net: F(x, noise, condition) for x of unit root mean square, as of an `EDMDenoiser`.
        sigma_data: root mean square of the data about `mean`, in its units.
        sigma_min: where the paths end; f(x, sigma_min) is x to the bit.
        sigma_max: where they begin.
        mean: one number for all channels and pixels.
        bf16: run the network under bfloat16 autocast. The skip path stays in the input's dtype.

    Shapes: (B, C, *spatial), (B,) -> (B, C, *spatial), in the dtype of x; a conditional network is called as
    `model(x, sigma, condition)`.

    Raises:
        ConfigError: sigma_data is not positive, the network's channels in and out differ, or it has no noise level.
        ShapeError: on a call, a size is not a multiple of `divisor`.
    """

    def __init__(
        self,
        net: Network,
        *,
        sigma_data: float,
        sigma_min: float = 0.005,
        sigma_max: float = 40.0,
        mean: float = 0.0,
        bf16: bool = False,
    ) -> None:
        units = {"sigma_data": sigma_data, "mean": mean, "sigma_min": sigma_min, "sigma_max": sigma_max}
        super().__init__(net, **units, bf16=bf16, preconditioning="consistency")

    @classmethod
    def of(cls, teacher: EDMDenoiser) -> ConsistencyModel:
        """A student with a copy of the teacher's network, its units and levels.

        Raises:
            ConfigError: the teacher is preconditioned otherwise than as in EDM: its network predicts something else.
        """
        if not isinstance(teacher, EDMDenoiser) or teacher.preconditioning != "edm":
            found = getattr(teacher, "preconditioning", type(teacher).__name__)
            raise ConfigError(f"ConsistencyModel.of: expected an EDMDenoiser with the preconditioning 'edm', got {found}")
        units = {name: getattr(teacher, name) for name in ("sigma_data", "mean", "sigma_min", "sigma_max", "bf16")}
        model = cls(copy.deepcopy(teacher.net), **units)
        model.value_range = teacher.value_range
        return model

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """f(x, sigma), given the condition if the network has one."""
        self.require_size(x)
        dtype = next(self.net.parameters()).dtype
        # in the dtype that sigma came in, where sigma_min is rounded as it was
        gap = over((sigma - self.sigma_min).to(x.dtype), x.ndim - 1)
        sigma, centred = sigma.to(x.dtype), x - self.mean
        total = over((sigma.square() + self.sigma_data**2).sqrt(), x.ndim - 1)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.net((centred / total).to(dtype), (sigma.log() / 4).to(dtype), condition)
        shrink = gap.square() / (gap.square() + self.sigma_data**2)
        return x - shrink * centred + (gap * self.sigma_data / total) * out.to(x.dtype)


def load_consistency(path: str | Path, *, sha256: str | None = None, bf16: bool = False) -> ConsistencyModel:
    """The model that `ConsistencyModel.save` wrote, in evaluation mode on the CPU; what was said about it is in `.facts`.

    Args:
        sha256: expected hash of the file, hexadecimal; None to accept any.

    Raises:
        DataError: the file is missing, truncated, not one of these, or has another hash.
    """

    def make(header: dict[str, Any], weights: dict[str, Tensor]) -> ConsistencyModel:
        if header.get("preconditioning") != "consistency":
            raise ValueError("it is no consistency model: load_network reads denoisers")
        if header["network"] not in NETWORKS:
            raise ValueError(f"no network is called {header['network']!r}")
        units = {name: header[name] for name in ("sigma_data", "mean", "sigma_min", "sigma_max")}
        model = ConsistencyModel(NETWORKS[header["network"]](**header["architecture"]), **units, bf16=bf16)
        model.facts = dict(header["facts"])
        model.net.load_state_dict(weights)
        return model

    model = read(path, make, who="load_consistency", sha256=sha256)
    return model.eval().requires_grad_(False).to(memory_format=model.net.memory_format)
