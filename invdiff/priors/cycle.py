"""Cycle spinning: the mean of a denoiser over circular shifts of its input.

    D(x, sigma) = mean over s of T_s^-1 D_0(T_s x, sigma),      T_s x(r) = x(r - s), the indices modulo the sizes

A prior that is invariant stays as it is. Of another one (tiles, patches, strided layers, a wavelet basis) it takes out what
hangs on the position: the unknown shifted by a random s has the posterior mean with weights p(s | x) in place of equal ones. An
image that is not periodic has a seam where its ends meet. It costs one evaluation for each shift.

References: Coifman, Donoho, Translation-invariant de-noising, Wavelets and Statistics, 1995. Perera, Nair, Bandara, Patel,
SAR despeckling using a denoising diffusion probabilistic model, 2022, arXiv:2206.04514.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ConfigError
from .adapter import SameUnknown, require_image

__all__ = ["CycleSpun", "shift_grid"]


def shift_grid(stride: int, sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """All shifts by multiples of a stride below the sizes: (0, 0), (0, stride), ...

    Raises:
        ConfigError: the stride is not positive.
    """
    if stride < 1:
        raise ConfigError(f"shift_grid: expected a stride >= 1, got {stride}")
    return list(itertools.product(*(range(0, n, stride) for n in sizes)))


class CycleSpun(SameUnknown):
    """A prior averaged over circular shifts.

    Args:
        prior: of images (not of latents or coefficients: shifts of these are none of the image).
        shifts: in pixels, one number for each spatial axis, ((0, 0), (5, 3), ...); or a stride, for all multiples of it below
            the sizes of the image. The published despeckler takes 100 at 256 x 256: nine evaluations.

    Raises:
        ConfigError: no shift, one of another length than there are axes, or a prior of an encoded unknown.
    """

    def __init__(self, prior: Denoiser, shifts: Sequence[Sequence[int]] | int) -> None:
        require_image(prior, "CycleSpun")
        super().__init__(prior)
        axes = len(prior.shape) - 1
        if isinstance(shifts, int):
            shift_grid(shifts, ())
        elif not shifts or any(len(s) != axes for s in shifts):
            raise ConfigError(f"CycleSpun: expected a stride, or shifts of {axes} numbers each, got {list(shifts)}")
        self.shifts = shifts if isinstance(shifts, int) else tuple(tuple(int(n) for n in s) for s in shifts)

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """The mean over the shifts; what is concatenated moves with the image."""
        axes = tuple(range(2, x.ndim))
        shifts = shift_grid(self.shifts, x.shape[2:]) if isinstance(self.shifts, int) else self.shifts
        total = None
        for shift in shifts:
            moved = condition
            if condition is not None and "concat" in condition:
                moved = {**condition, "concat": condition["concat"].roll(shift, axes)}
            part = self.prior(x.roll(shift, axes), sigma, moved).roll([-n for n in shift], axes)
            total = part if total is None else total + part
        assert total is not None
        return total / len(shifts)

    def extra_repr(self) -> str:
        return f"shifts={self.shifts}"
