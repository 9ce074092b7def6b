"""Priors of fields for tasks: what is told belongs to an item, and the image is the solution alone where that is asked for.

u = S x                 the first of the unknown fields
u = coarse + S x        of a network for refinement, whose unknown is "r" (`refine`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.errors import CapabilityError, DataError, ShapeError
from ..core.operator import LinearOperator, Operator
from .network import EDMDenoiser
from .wdno import FieldCode, FieldPrior, Synthesis

__all__ = ["Solution", "field_prior"]


class Solution(FieldPrior):
    """A `FieldPrior` whose images are u alone, (1, *grid), or all of the unknown fields, as the task has it.

    Args: see `FieldPrior`.

    Attributes:
        base: what is added to the unknown field, (1 or N, 1, *grid); None but for refinement.
    """

    base: Tensor | None

    def __init__(
        self, network: Denoiser, code: FieldCode, grid: Sequence[int], told: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(network, code, grid, told)
        base = None
        if code.unknown == ("r",):
            coarse = (told or {}).get("coarse", torch.zeros(1, 1, *self.grid))
            base = (coarse if coarse.ndim == len(self.grid) + 2 else coarse[None]).to(self.concat)
        self.register_buffer("base", base)

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """(any, *grid)."""
        return (None, *self.grid)

    def synthesis(self, shape: Sequence[int]) -> Synthesis | Operator:  # type: ignore[override]
        """From the unknown to images of a shape, one channel or all of them."""
        fields = self.basis.out_shape[0]
        if tuple(shape[1:]) != self.grid or shape[0] not in (1, fields):
            raise ShapeError(f"Solution: expected fields of shape (1 or {fields}, *{self.grid}), got {tuple(shape)}")
        if self.base is not None:
            return _Refined(self.basis, self.base)
        return self.basis if shape[0] == fields else _First(self.basis.out_shape) @ self.basis

    def analyse(self, x: Tensor) -> Tensor:
        """The unknown of images (B, 1 or fields, *grid).

        Raises:
            CapabilityError: another unknown field is neither in the image nor told.
        """
        if self.base is not None:
            return self.basis.analysis(x - self.base.to(x))
        fields = self.basis.out_shape[0]
        if x.shape[1] == fields:
            return self.basis.analysis(x)
        per = len(self.keep) // fields
        if not bool(self.keep[per:].all()):
            raise CapabilityError("Solution: the solution alone does not say what the other fields are: tell them")
        rest = x.new_zeros(len(x), fields - 1, *self.grid)
        return torch.where(self.keep, self.given.to(x), self.basis.analysis(torch.cat([x, rest], dim=1)))

    def tell(self, told: Mapping[str, Tensor], grid: Sequence[int] | None = None) -> Solution:
        """The same network told something else, on another grid if one is given."""
        return Solution(self.prior, self.code, self.grid if grid is None else grid, told)


def field_prior(network: EDMDenoiser, grid: Sequence[int]) -> Solution:
    """The prior of a network that `field_network` made, by the code among its facts; nothing is told yet.

    Args:
        grid: of the fields, time first where there is one.

    Raises:
        DataError: the facts hold no code of fields.
    """
    if "fields" not in network.facts:
        raise DataError("field_prior: the network says nothing of fields: expected one of `field_network`")
    return Solution(network, FieldCode(**network.facts["fields"]), tuple(grid))


class _First(LinearOperator):
    """The first of several fields, (B, C, *grid) -> (B, 1, *grid)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, (1, *shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([y, y.new_zeros(len(y), self.in_shape[0] - 1, *self.in_shape[1:])], dim=1)


class _Refined(Operator):
    """x -> base + S x."""

    base: Tensor

    def __init__(self, basis: Synthesis, base: Tensor) -> None:
        super().__init__(basis.in_shape, basis.out_shape)
        self.basis = basis
        self.register_buffer("base", base)

    def forward(self, x: Tensor) -> Tensor:
        return self.base.to(x.dtype) + self.basis(x)
