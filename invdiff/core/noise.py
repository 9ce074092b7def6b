"""Noise models: the density p(y | A x) of a measurement given its noise-free value.

    Gaussian   y = c + sigma n
    Poisson    y ~ Poisson(gain c + background), counts

with c = A x. Every model samples, has a log-density, and offers the Gaussian that the data suggest for the methods that need
one.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from .errors import ConfigError, NumericalError, ShapeError
from .held import Held
from .rng import Streams

__all__ = ["Gaussian", "Noise", "Poisson"]


class Noise(nn.Module):
    """p(y | c) for a noise-free measurement c; all results are per item of the batch.

    Attributes:
        makes_complex: whether y is complex of a real c.
    """

    makes_complex: ClassVar[bool] = False

    def sample(self, clean: Tensor, streams: Streams) -> Tensor:
        """A measurement of `clean`, (B, *out_shape), one stream for each item."""
        raise NotImplementedError(f"{type(self).__name__} does not define sample")

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        """log p(y | clean), (B,)."""
        raise NotImplementedError(f"{type(self).__name__} does not define log_prob")

    def chi2(self, y: Tensor, clean: Tensor) -> Tensor:
        """Sum of squared residuals in units of their variance, (B,); its mean over the noise is the number of real values."""
        raise NotImplementedError(f"{type(self).__name__} does not define chi2")

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise a ShapeError if a measurement of this shape, without the batch, can't have this noise."""

    def gaussian(self, y: Tensor) -> tuple[Gaussian, Tensor]:
        """A Gaussian model of A x and the data in its units: itself, or the approximation that y suggests."""
        raise NotImplementedError(f"{type(self).__name__} does not define gaussian")


class Gaussian(Noise):
    """Additive white Gaussian noise.

    Args:
        sigma: standard deviation of **each real component**, a number or a tensor that broadcasts to the measurement; a complex
            sample then has variance 2 sigma^2. In the units of y, positive.

    Attributes:
        held: what the host has read from sigma.
    """

    sigma: Tensor

    def __init__(self, sigma: float | Tensor) -> None:
        super().__init__()
        if isinstance(sigma, bool) or not isinstance(sigma, int | float | Tensor):
            raise ConfigError(f"Gaussian: expected sigma to be a number or a tensor, got {sigma!r}")
        value = torch.as_tensor(sigma, dtype=sigma.dtype if isinstance(sigma, Tensor) else torch.float64)
        if not bool((value > 0).all() and value.isfinite().all()):
            raise ConfigError(f"Gaussian: expected sigma > 0, got {sigma if value.ndim == 0 else float(value.min())}")
        self.register_buffer("sigma", value)
        self.held: Held[float] = Held()

    def sample(self, clean: Tensor, streams: Streams) -> Tensor:
        noise = streams.normal(0, clean.shape[1:], "noise", clean.dtype, clean.device)
        return clean + self.sigma.to(clean.real.dtype) * noise

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        sigma = self.sigma.to(clean.real.dtype).expand(clean.shape[1:])
        constant = (sigma.log() + 0.5 * math.log(2.0 * math.pi)).sum() * (2.0 if clean.is_complex() else 1.0)
        return -0.5 * self.chi2(y, clean) - constant

    def chi2(self, y: Tensor, clean: Tensor) -> Tensor:
        residual = (y - clean) / self.sigma.to(clean.real.dtype)
        return residual.abs().square().flatten(1).sum(1)

    def check(self, shape: tuple[int, ...]) -> None:
        own = tuple(self.sigma.shape)
        if len(own) > len(shape) or any(a not in (1, b) for a, b in zip(own[::-1], shape[::-1], strict=False)):
            raise ShapeError(f"Gaussian: expected sigma to broadcast to the measurement {tuple(shape)}, got {own}")

    def gaussian(self, y: Tensor) -> tuple[Gaussian, Tensor]:
        return self, y

    def extra_repr(self) -> str:
        return f"sigma={float(self.sigma):g}" if self.sigma.ndim == 0 else f"sigma={tuple(self.sigma.shape)}"


class Poisson(Noise):
    """Counting noise, y ~ Poisson(gain c + background).

    Args:
        gain: counts per unit of the noise-free measurement, positive.
        background: mean counts that do not come from the object, not negative.

    Raises:
        NumericalError: a mean is negative, where no Poisson law exists.
    """

    def __init__(self, gain: float, background: float = 0.0) -> None:
        super().__init__()
        if not (0.0 < gain < math.inf and 0.0 <= background < math.inf):
            raise ConfigError(f"Poisson: expected gain > 0 and background >= 0, got gain {gain}, background {background}")
        self.gain, self.background = float(gain), float(background)

    def _mean(self, clean: Tensor) -> Tensor:
        mean = self.gain * clean + self.background
        # transforms leave rounding errors below zero where the object is empty; anything larger is an error of the user
        slack = 1e-4 * float(mean.abs().max()) if mean.numel() else 0.0
        if bool((mean < -slack).any()):
            raise NumericalError(f"Poisson: the mean gain * A x + background is negative ({float(mean.min()):.3g})")
        return mean.clamp_min(0.0)

    def sample(self, clean: Tensor, streams: Streams) -> Tensor:
        mean = self._mean(clean)
        generators = streams.generators(0, "noise")
        counts = [torch.poisson(m.cpu(), generator=g) for m, g in zip(mean, generators, strict=True)]
        return torch.stack(counts).to(clean)

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        mean = self.gain * clean + self.background
        inside = mean > 0
        value = torch.xlogy(y, torch.where(inside, mean, 1.0)) - mean - torch.lgamma(y + 1.0)
        return torch.where(inside | ((mean == 0) & (y == 0)), value, -math.inf).flatten(1).sum(1)

    def chi2(self, y: Tensor, clean: Tensor) -> Tensor:
        mean = self._mean(clean).clamp_min(1.0 / 3.0)
        return ((y - mean).square() / mean).flatten(1).sum(1)

    def gaussian(self, y: Tensor) -> tuple[Gaussian, Tensor]:
        return Gaussian(y.clamp_min(1.0).sqrt()[0] / self.gain), (y - self.background) / self.gain

    def extra_repr(self) -> str:
        return f"gain={self.gain:g}, background={self.background:g}"
