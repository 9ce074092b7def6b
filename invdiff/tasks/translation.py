"""From radar to colours as a task: nothing is measured, a conditional prior is told the radar's log-intensity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .data import Item
from .told import ToldItems

__all__ = ["RadarPairs"]


@dataclass(frozen=True, kw_only=True)
class RadarPairs(ToldItems):
    """Pairs of a radar and an optical image; see `ToldItems`.

    Args:
        use: "translate".
        generator: `LandCover`.
        path: .npz or HDF5 with sar (H, W), log-intensity in nats as the prior knows it, calibrated.
    """

    needed = MappingProxyType({"translate": ("sar",)})
    axes = MappingProxyType({"sar": ("H", "W")})

    use: str = "translate"

    def fields(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: raw[name] for name in ("sar", "optical")}

    def item(self, name: str, fields: dict[str, Tensor], facts: dict[str, Any]) -> Item:
        sar = fields["sar"]
        truth = fields["optical"][0] if "optical" in fields else None
        # nothing is measured
        return Item(name, (3, *sar.shape[2:]), truth, torch.zeros(0), facts=facts, told={"sar": sar})
