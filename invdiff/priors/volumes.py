"""Priors on larger unknowns that are made of independent parts: channels of an image, slices of a volume.

    x = (u_1, ..., u_n) independent:    p(x) = prod p(u_i),    D_x(x, sigma) = (D_u(u_1, sigma), ..., D_u(u_n, sigma))

Exact if the parts are independent. They seldom are: slices of a volume are alike, and a prior of slices along one axis leaves
neighbours to the measurement. Two heuristics join the axes, both of them with priors of slices along different axes:

    Average([Slices(axial, 0), Slices(coronal, 1)])        the mean of the scores at every noise level
    Alternating([Slices(axial, 0), Slices(coronal, 1)])    one of them at each level: what TPDM does, at one call a step

Neither is the posterior mean of a density of volumes: the first has the score of the geometric mean of the smoothed densities.

References: Lee, Chung, Park, Park, Ryu, Ye, Improving 3D imaging with pre-trained perpendicular 2D diffusion models, ICCV 2023,
arXiv:2303.08440 (TPDM).
"""

from __future__ import annotations

from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ConfigError, ShapeError
from .adapter import Adapter, chunked, require_image, spread

__all__ = ["ChannelWise", "Slices"]


class ChannelWise(Adapter):
    """A prior of k channels on each group of k channels: real and imaginary part, bands, coils.

    Args:
        prior: on (k, *spatial).
        channels: of the unknown, a multiple of k; None for any number.
        batch: groups in a call of the prior; None for all at once.

    Shapes: (B, channels, *spatial), groups consecutive. A condition's `concat` goes to every group.

    Raises:
        ConfigError: the prior's channels are free, channels is no multiple of them, batch < 1, or the unknown is a latent.
        ShapeError: an unknown whose channels do not divide.
    """

    def __init__(self, prior: Denoiser, channels: int | None = None, *, batch: int | None = None) -> None:
        require_image(prior, "ChannelWise")
        width = prior.shape[0]
        if width is None or (channels is not None and (channels < 1 or channels % width)) or (batch is not None and batch < 1):
            raise ConfigError(
                f"ChannelWise: expected channels to be a multiple of the prior's ({width}) and batch >= 1, got {channels} and "
                f"{batch}"
            )
        super().__init__(prior, (channels, *prior.shape[1:]))
        self.width, self.batch = width, batch

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """E[x0 | x] of independent groups of channels."""
        if x.shape[1] % self.width:
            raise ShapeError(f"ChannelWise: expected a multiple of {self.width} channels, got {tuple(x.shape)}")
        items, groups = len(x), x.shape[1] // self.width
        parts = x.unflatten(1, (groups, self.width)).movedim(1, 0).flatten(0, 1)
        told = spread(condition, items, groups, lambda c: c.repeat(groups, *[1] * (c.ndim - 1)))
        out = chunked(self.prior, parts, sigma.repeat(groups), told, self.batch)
        return out.unflatten(0, (groups, items)).movedim(0, 1).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"channels={self.shape[0]}"


class Slices(Adapter):
    """A prior of d-dimensional slices on (d + 1)-dimensional volumes, along one axis; frames of a film, rows of an image.

    Args:
        prior: on slices (C, *spatial).
        axis: the spatial axis that counts the slices: 0 ... d.
        count: number of slices, None for any; where the prior needs multiples of a divisor, a given count is exempt.
        batch: slices in a call of the prior; None for all at once.

    Shapes: (B, C, *spatial with the axis put in).

    Raises:
        ConfigError: no such axis, batch < 1, or the unknown is a latent.
    """

    def __init__(self, prior: Denoiser, axis: int = 0, *, count: int | None = None, batch: int | None = None) -> None:
        require_image(prior, "Slices")
        if not 0 <= axis < len(prior.shape) or (batch is not None and batch < 1):
            raise ConfigError(
                f"Slices: expected an axis in 0 ... {len(prior.shape) - 1} and batch >= 1, got {axis} and {batch}"
            )
        super().__init__(prior, (*prior.shape[: axis + 1], count, *prior.shape[axis + 1 :]))
        self.axis, self.batch = axis, batch

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """E[x0 | x] of independent slices."""
        dim = self.axis + 2
        items, count = len(x), x.shape[dim]

        def cut(v: Tensor) -> Tensor:
            return v.movedim(dim, 0).flatten(0, 1)

        told = spread(condition, items, count, cut)
        out = chunked(self.prior, cut(x), sigma.repeat(count), told, self.batch)
        return out.unflatten(0, (count, items)).movedim(0, dim)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"
