"""A problem: a forward operator, a noise model and a measurement.

y ~ p(y | A x),    posterior  p(x | y) ~ p(x) p(y | A x)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .algebra import Unmeasured, compose
from .errors import ConfigError, NumericalError, ShapeError
from .noise import Gaussian, Noise
from .operator import Operator
from .rng import Streams

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """One measurement and how it came about.

    Args:
        operator: (B, *in_shape) -> (B, *out_shape).
        noise: the density of y given A x.
        y: the measurement, (*out_shape) or (1, *out_shape), finite; zero where `operator.measured` is False.

    Raises:
        ConfigError: a part is of another class.
        ShapeError, NumericalError: y is not of the operator's output space, or not finite.
    """

    operator: Operator
    noise: Noise
    y: Tensor

    def __post_init__(self) -> None:
        for part, kind in (("operator", Operator), ("noise", Noise), ("y", Tensor)):
            if not isinstance(getattr(self, part), kind):
                got = type(getattr(self, part)).__name__
                raise ConfigError(f"Problem: expected {part} to be a {kind.__name__}, got {got}")
        y = self.y[None] if self.y.ndim == len(self.operator.out_shape) else self.y
        if self.noise.makes_complex and not (y.is_complex() and not self.operator.out_complex):
            raise ShapeError(
                f"Problem: {type(self.noise).__name__} makes a complex measurement of a real one: expected y to be complex and "
                f"{type(self.operator).__name__} to be real, got {y.dtype} and out_complex={self.operator.out_complex}"
            )
        self.operator.check(y.real if self.noise.makes_complex else y, "y")
        self.noise.check(self.operator.out_shape)
        if not bool(torch.isfinite(torch.view_as_real(y) if y.is_complex() else y).all()):
            count = int((~torch.isfinite(y)).sum())
            raise NumericalError(
                f"Problem: {count} of the {y.numel()} values of y are not finite: mask them out or mend the file"
            )
        object.__setattr__(self, "y", y)

    @classmethod
    def simulate(cls, operator: Operator, noise: Noise, x: Tensor, seed: int = 0) -> Problem:
        """The problem whose measurement is drawn from p(y | A x); x is (*in_shape) or (1, *in_shape)."""
        x = x[None] if x.ndim == len(operator.in_shape) else x
        noise.check(operator.out_shape)
        with torch.no_grad():
            y = noise.sample(operator(x), Streams(seed, len(x)))
        return cls(operator, noise, y if operator.measured is None else y * operator.measured)

    @classmethod
    def unmeasured(
        cls, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, *, device: torch.device | str = "cpu"
    ) -> Problem:
        """The problem without data on unknowns of the given shape: its posterior is the prior."""
        return cls(Unmeasured(shape), Gaussian(1.0), torch.zeros(1, 0, dtype=dtype, device=device))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the unknown without the batch."""
        return self.operator.in_shape

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(y | A x) of each item, (B, *shape) -> (B,)."""
        return self.noise.log_prob(self.y, self.operator(x))

    def chi2(self, x: Tensor) -> Tensor:
        """Squared residual per measured real value in units of the noise variance, (B,); about 1 at the truth."""
        count = self.operator.count_measured() * (2 if self.noise.makes_complex else 1)
        return self.noise.chi2(self.y, self.operator(x)) / max(count, 1)

    def through(self, synthesis: Operator) -> Problem:
        """The same problem for coefficients c with x = synthesis(c)."""
        return Problem(compose(self.operator, synthesis), self.noise, self.y)

    def gaussian(self) -> Problem:
        """The problem with the Gaussian noise model that the data suggest; itself where the noise is Gaussian."""
        noise, y = self.noise.gaussian(self.y)
        return Problem(self.operator, noise, y)
