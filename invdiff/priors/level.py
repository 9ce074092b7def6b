"""A prior of fields whose level nobody knows: a number is added to all pixels, and every number is as likely.

    x0 = u + c 1,  p(c) constant:      D(x, sigma) = m + d - mean d,    d = D_u(x - m, sigma),    m = mean x over the pixels

With a constant p(c) the posterior mean of the mean of x0 is m, which the noise moves by sigma / sqrt(N) of N pixels; the rest
is exact where the mean of u is zero, or independent of u without it. Images of a radar without calibration are of this kind: a
gain is a level of their logarithm.
"""

from __future__ import annotations

from torch import Tensor

from ..core import Denoiser
from .adapter import SameUnknown

__all__ = ["AnyLevel"]


class AnyLevel(SameUnknown):
    """A prior of u + c, of one that knows u about zero.

    Args:
        prior: of u; scenes whose own mean is about zero.
    """

    def __init__(self, prior: Denoiser) -> None:
        super().__init__(prior)
        # any value may occur
        self.value_range = None

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[u + c | x]."""
        mean = x.flatten(1).mean(1).reshape(len(x), *[1] * (x.ndim - 1))
        own = self.prior(x - mean, sigma)
        return own + (mean - own.flatten(1).mean(1).reshape(mean.shape))
