"""A conditional network as a prior that a task can tell something by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..core import CapabilityError, ConfigError, Denoiser, ShapeError
from ..core.denoiser import Condition
from .adapter import SameUnknown, require_conditional
from .conditional import Given

__all__ = ["Named"]


class Named(SameUnknown):
    """E[x0 | x, what is told], the condition `concat` made of named fields.

    Args:
        prior: with `forward(x, sigma, condition)`.
        names: of the fields, in the order of their channels.

    Raises:
        ConfigError: no name.
        CapabilityError: the prior is not conditional; or it is called before it was told anything.
    """

    def __init__(self, prior: Denoiser, names: Sequence[str]) -> None:
        require_conditional(prior, "Named")
        super().__init__(prior)
        self.names = tuple(names)
        if not self.names:
            raise ConfigError("Named: expected the name of a field, or more of them, got none")

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """E[x0 | x, condition]."""
        if condition is None:
            raise CapabilityError(f"Named: expected to be told {', '.join(self.names)}: call tell, or choose a task that does")
        return self.prior(x, sigma, condition)

    def tell(self, told: Mapping[str, Tensor]) -> Given:
        """The prior given fields (1, C, H, W).

        Raises:
            ConfigError: a field is missing. ShapeError: they differ in more than their channels.
        """
        if missing := [name for name in self.names if name not in told]:
            raise ConfigError(f"Named: expected to be told {', '.join(self.names)}, {', '.join(missing)} is missing")
        fields = [told[name] for name in self.names]
        if len({(len(field), *field.shape[2:]) for field in fields}) > 1:
            found = ", ".join(f"{name} {tuple(field.shape)}" for name, field in zip(self.names, fields, strict=True))
            raise ShapeError(f"Named: expected fields (1, C, H, W) of the same sizes, got {found}")
        return Given(self.prior, {"concat": torch.cat(fields, 1)})

    def extra_repr(self) -> str:
        return f"names={self.names}"
