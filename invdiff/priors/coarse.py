"""A prior on a coarse grid as a prior of fields on finer ones.

    x = R c,    R the interpolation by modes of `Regrid`,    p(c | y) ~ p(c) p(y | A(R c))

The unknown is the coarse field c; what the coarse grid can't hold of x is taken to be zero, which is right as far as smooth
fields go. `synthesis(shape)` is R, which a task composes with its own operator; `analyse` is the coarse field of a fine one.

References: Canuto, Hussaini, Quarteroni, Zang, Spectral methods: fundamentals in single domains, 2006, section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ShapeError
from ..operators.regrid import Boundary, Regrid

__all__ = ["Coarse"]


class Coarse(Denoiser):
    """A denoiser of fields on a coarse grid, with the way to a finer one.

    Args:
        prior: on (C, *grid), or free in size.
        grid: points of the coarse grid.
        size: points of the fine grid, for all axes or for each.
        boundary: of the fields, for all axes or for each.

    Raises:
        ShapeError: the prior is not on that grid, or the fine grid is coarser.
    """

    def __init__(
        self,
        prior: Denoiser,
        grid: Sequence[int],
        size: int | Sequence[int],
        *,
        boundary: Boundary | Sequence[Boundary] = "neumann",
    ) -> None:
        channels, *free = prior.shape
        fits = len(free) == len(grid) and all(
            a in (None, b) and b % prior.divisor == 0 for a, b in zip(free, grid, strict=False)
        )
        if channels is None or not fits:
            raise ShapeError(
                f"Coarse: expected a prior on fields of {tuple(grid)}, got one on {prior.shape} of sizes divisible by "
                f"{prior.divisor}"
            )
        shape = (channels, *grid)
        super().__init__(shape, prior.sigma_min, prior.sigma_max)
        up = Regrid(shape, size, boundary=boundary)
        if any(a > b for a, b in zip(shape, up.out_shape, strict=True)):
            raise ShapeError(f"Coarse: expected a grid no coarser than {shape[1:]}, got {up.out_shape[1:]}")
        self.prior, self.up, self.down = prior, up, Regrid(up.out_shape, shape[1:], boundary=boundary)
        self.known = prior.known
        self.facts, self.sigma_data = getattr(prior, "facts", {}), getattr(prior, "sigma_data", 1.0)

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """E[c0 | c]."""
        return self.prior(x, sigma, condition)

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """(C, *size), of the fine fields."""
        return self.up.out_shape

    def synthesis(self, shape: Sequence[int]) -> Regrid:
        """From coarse to fine fields."""
        return self.up

    def analyse(self, x: Tensor) -> Tensor:
        """The coarse fields of fine ones, (B, C, *size)."""
        return self.down(x)
