"""A speckled complex image as a function of its reflectivity and of standard normals.

    x = e^{u/2} (a + j b) / sqrt(2),      a, b ~ N(0, 1),   hence x | u ~ CN(0, e^u)

The unknown is (u, a, b): the log-reflectivity, which has structure and a prior, and the speckle, which has none. Composed with
an operator on complex images it makes of every sampler one for the hierarchical model (`priors.SpeckledPrior` is its prior).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.operator import Operator

__all__ = ["Speckled", "speckle_of"]


class Speckled(Operator):
    """(u, a, b) -> x.

    Args:
        size: of the image, (H, W).

    Shapes: (B, 3, H, W) real -> (B, 1, H, W) complex.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__((3, *size), (1, *size), out_complex=True)

    def forward(self, x: Tensor) -> Tensor:
        scale = (0.5 * x[:, :1]).exp() * math.sqrt(0.5)
        return torch.complex(scale * x[:, 1:2], scale * x[:, 2:])

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        image, scale = self(x), (0.5 * x[:, :1]).exp() * math.sqrt(0.5)

        def push(t: Tensor) -> Tensor:
            return 0.5 * t[:, :1] * image + torch.complex(scale * t[:, 1:2], scale * t[:, 2:])

        def pull(v: Tensor) -> Tensor:
            return torch.cat((0.5 * (image.conj() * v).real, scale * v.real, scale * v.imag), 1)

        return image, push, pull

    def vjp(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        y, _, pull = self.linearize(x)
        return y, pull

    def jvp(self, x: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        y, push, _ = self.linearize(x)
        return y, push(tangent)


def speckle_of(u: Tensor, image: Tensor) -> Tensor:
    """(u, a, b) of a log-reflectivity (B, 1, H, W) and a complex image."""
    z = image * (math.sqrt(2.0) * (-0.5 * u).exp())
    return torch.cat((u, z.real, z.imag), 1)
