"""The one contract that every prior is wrapped into.

    D(x, sigma) ~ E[x0 | x0 + sigma n = x],    n ~ N(0, I),

in data units. sigma is the only noise coordinate: a variance-preserving network with x_t = alpha_t x0 + sigma_t eps is
evaluated at x = x_t / alpha_t, sigma = sigma_t / alpha_t; a rectified flow has sigma = t / (1 - t). Score and noise follow:

    score = (D - x) / sigma^2,    eps = (x - D) / sigma,    Cov[x0 | x] = sigma^2 dD/dx   (Tweedie).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .errors import CapabilityError, ConfigError, ShapeError

if TYPE_CHECKING:
    from .health import Health
    from .operator import Operator

__all__ = ["Condition", "Denoiser"]

# what a conditional prior is told: `concat` (B or 1, C', *spatial), `vector` (B or 1, K), `label` (B or 1,)
Condition = Mapping[str, Tensor]


class Denoiser(nn.Module):
    """A prior: E[x0 | x0 + sigma n = x] as a module.

    Args:
        shape: shape of one unknown without the batch dimension; None in a dimension that is free.
        sigma_min, sigma_max: the noise levels, in data units, between which the denoiser may be called.

    Subclasses write `forward(x, sigma)`: (B, *shape), (B,) -> (B, *shape), items of a batch independent of each other.
    A conditional one, E[x0 | x, condition], writes `forward(x, sigma, condition=None)`.

    Attributes:
        divisor: what the free dimensions of the shape must be multiples of.
        value_range: smallest and largest value of the data it was trained on; None if nobody said.
        known: the only noise levels that it was trained at, (T,) increasing; None for all in the interval.
        image_complex: whether the images that its unknown stands for are complex; of others, complex images have two channels.
    """

    divisor: int = 1
    image_complex: bool = False
    value_range: tuple[float, float] | None = None
    known: Tensor | None = None

    def __init__(self, shape: tuple[int | None, ...], sigma_min: float = 2e-3, sigma_max: float = 80.0) -> None:
        super().__init__()
        if not 0.0 < sigma_min < sigma_max < math.inf:
            raise ConfigError(f"{type(self).__name__}: expected 0 < sigma_min < sigma_max, got {sigma_min}, {sigma_max}")
        self.shape = tuple(shape)
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """Check the shapes once for every prior, then denoise."""
        fits = x.ndim == len(self.shape) + 1 and all(s in (None, n) for s, n in zip(self.shape, x.shape[1:], strict=True))
        if not fits or x.is_complex():
            want = ", ".join("any" if s is None else str(s) for s in self.shape)
            raise ShapeError(f"{type(self).__name__}: expected real x of shape (B, {want}), got {tuple(x.shape)} {x.dtype}")
        if sigma.shape != x.shape[:1]:
            raise ShapeError(f"{type(self).__name__}: expected sigma of shape ({x.shape[0]},), got {tuple(sigma.shape)}")
        return super().__call__(x, sigma) if condition is None else super().__call__(x, sigma, condition)

    def check(
        self,
        data: Tensor,
        *,
        sigmas: Sequence[float] | None = None,
        seed: int = 0,
        expected: Mapping[str, Sequence[float]] | None = None,
        batch: int = 16,
    ) -> Health:
        """Compare with held-out data (N, *shape), N >= 8: a table, or a ConfigError saying what is wrong; see `core.health`."""
        from .health import check

        if not self.posterior_mean:
            raise CapabilityError(
                f"{type(self).__name__}: a consistency function is no posterior mean, whose check this is: compare draws of "
                "Multistep with data (metrics.fid, two_sample_test)"
            )
        return check(self, data, sigmas=sigmas, seed=seed, expected=expected, batch=batch)

    @property
    def origin(self) -> float | Tensor:
        """Roughly the mean of x0, a number or what broadcasts to the unknown: where chains of pure noise start.

        At level sigma the mean over N pixels has a noise of sigma / sqrt(N) only, from which a prior reads how bright all is.
        """
        return 0.0

    @property
    def posterior_mean(self) -> bool:
        """Whether it is E[x0 | x], which samplers take it for: no consistency function, and made of none."""
        return all(inner.posterior_mean for inner in self.modules() if inner is not self and isinstance(inner, Denoiser))

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """Shape of what the unknown stands for: of an image, where the unknown is its latents."""
        return self.shape

    @property
    def image_divisor(self) -> int:
        """What the free dimensions of `image_shape` must be multiples of."""
        return self.divisor

    def synthesis(self, shape: Sequence[int]) -> Operator | None:
        """The operator from unknowns to images of a shape (C, *spatial); None where they are the same."""
        return None

    def analyse(self, x: Tensor) -> Tensor:
        """The unknowns of images (B, C, *spatial)."""
        return x

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x] at noise level sigma, in the units of the data."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward(x, sigma)")
