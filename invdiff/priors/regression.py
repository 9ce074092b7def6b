"""Regression networks on fields: the solution of an equation from its data, F(a) ~ u, in one evaluation.

    L = E |F(a) - u| / |u|      of each item; in any units of u

a are the channels that `FieldCode.condition` makes of what is told, coordinates included. A Fourier network takes fields for
periodic, so that they are continued by a few of their last values before, and cut after it.

References: Li, Kovachki, Azizzadenesheli, Liu, Bhattacharya, Stuart, Anandkumar, Fourier neural operator for parametric partial
differential equations, 2021, arXiv:2010.08895.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.linalg import norm
from .files import read, write
from .fno import FNO
from .wdno import FieldCode

__all__ = ["Regression", "load_regression"]


class Regression(nn.Module):
    """A network from what is told to the unknown of a code, (B, K, *grid) -> (B, len(unknown), *grid).

    Args:
        net: without a noise level.
        code: without a wavelet.
        pad: points by which every axis is continued.

    Attributes:
        facts: what the file says about it.

    Raises:
        ConfigError: the network has a noise level or other channels than the code, or the code has a wavelet.
    """

    def __init__(self, net: FNO, code: FieldCode, *, pad: int = 0) -> None:
        super().__init__()
        dims = net.dims
        wanted = code.concat_channels(dims), len(code.unknown)
        found = net.channels_in, net.architecture["channels_out"]
        if net.noise or net.concat_channels or code.wavelet is not None or found != wanted or pad < 0:
            raise ConfigError(
                f"Regression: expected a network without a noise level from {wanted[0]} channels to {wanted[1]} for a code "
                f"without a wavelet, and pad >= 0, got channels {found}, noise={net.noise}, wavelet={code.wavelet} and {pad}"
            )
        self.network, self.code, self.pad = net, code, pad
        # what the training loop asks of a network
        self.sigma_data, self.divisor, self.bf16, self.dims, self.classes = 1.0, net.divisor, False, dims, 0
        self.memory_format = net.memory_format
        self.facts: dict[str, Any] = {}

    @property
    def net(self) -> Regression:
        """Itself: what is trained."""
        return self

    def forward(self, told: Tensor) -> Tensor:
        """The unknown, in the units of the code, from the channels of what is told."""
        sizes = told.shape[2:]
        if self.pad:
            told = F.pad(told, [n for _ in sizes for n in (0, self.pad)], mode="replicate")
        with torch.autocast(told.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.network(told)
        return out.to(told.dtype)[(..., *(slice(n) for n in sizes))]

    def losses(self, clean: Tensor, told: Tensor) -> Tensor:
        """The relative error of each item of (B, C, *grid), (B,)."""
        return norm(self(told) - clean) / norm(clean)

    def predict(self, grid: tuple[int, ...], told: Mapping[str, Tensor]) -> Tensor:
        """The fields of what is told, {name: (N, 1, ...)}, in their units."""
        like = next(self.parameters()).detach()
        return self.code.synthesis(grid)(self(self.code.condition(grid, told, like=like)))

    @property
    def header(self) -> dict[str, Any]:
        """What makes the same network again, but for its weights."""
        architecture = {"fno": self.network.architecture, "code": self.code.header, "pad": self.pad}
        return {"network": "Regression", "architecture": architecture}

    def save(self, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write weights, architecture, code and facts as one safetensors file, for `load_regression`."""
        write(path, self.state_dict(), self.header | {"facts": self.facts}, dtype)


def load_regression(path: str | Path, *, sha256: str | None = None) -> Regression:
    """The network that `Regression.save` wrote, frozen, on the CPU.

    Args:
        sha256: expected hash of the file, hexadecimal; None to accept any.

    Raises:
        DataError: the file is missing, truncated, not one of these, or has another hash.
    """

    def make(header: dict[str, Any], weights: dict[str, Tensor]) -> Regression:
        if header["network"] != "Regression":
            raise ValueError(f"it is a {header['network']}")
        made = header["architecture"]
        network = Regression(FNO(**made["fno"]), FieldCode(**made["code"]), pad=made["pad"])
        network.facts = dict(header["facts"])
        network.load_state_dict(weights)
        return network

    return read(path, make, who="load_regression", sha256=sha256).eval().requires_grad_(False)
