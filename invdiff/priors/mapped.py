"""A prior seen through a function: x = g(u) with u from a prior that is known.

    D is that of u,    p(u | y) ~ p(u) p(y | A(g(u)))

A Gaussian field u cut off at zero is a prior of media that are empty in places, exp(u) one of positive coefficients, a step of
u one of two materials. The unknown of a sampler is u, its level sigma that of u; `synthesis` is g, which a task composes with
its own operator, so that draws are decoded and compared as x. Where g is not linear, nor is A(g(u)).

References: Iglesias, Lu, Stuart, A Bayesian level set method for geometric inverse problems, Interfaces Free Bound. 18, 2016.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ShapeError
from ..core.operator import Operator
from .adapter import Adapter, require_image

__all__ = ["Mapped"]


class Mapped(Adapter):
    """A denoiser of u with the way to x = g(u).

    Args:
        prior: on u, of a fixed shape.
        operator: g, from the prior's shape to that of x, real.
        inverse: from x to a u with g(u) = x, for the distance of an image from the prior; None where u = x will do, as for
            `Clip`.

    Raises:
        ShapeError: the operators do not fit the prior and each other, or are complex.
        ConfigError: the prior's unknown is a latent itself.
    """

    def __init__(self, prior: Denoiser, operator: Operator, inverse: Operator | None = None) -> None:
        require_image(prior, "Mapped")
        super().__init__(prior, prior.shape)
        back = (operator.out_shape, operator.in_shape) if inverse is None else (inverse.in_shape, inverse.out_shape)
        complexes = (operator.in_complex, operator.out_complex)
        if operator.in_shape != tuple(prior.shape) or back != (operator.out_shape, operator.in_shape) or any(complexes):
            raise ShapeError(
                f"Mapped: expected real operators from the prior's {tuple(prior.shape)} and back, got "
                f"{operator.in_shape} -> {operator.out_shape} and {back[0]} -> {back[1]}"
            )
        if inverse is None and operator.in_shape != operator.out_shape:
            raise ShapeError(f"Mapped: expected an inverse of {operator.in_shape} -> {operator.out_shape}, got none")
        self.operator, self.inverse, self.value_range = operator, inverse, None

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """E[u0 | u]."""
        return self.prior(x, sigma, condition)

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """That of x."""
        return self.operator.out_shape

    def synthesis(self, shape: Sequence[int]) -> Operator:
        """g."""
        return self.operator

    def analyse(self, x: Tensor) -> Tensor:
        """A u for each x."""
        return x if self.inverse is None else self.inverse(x)
