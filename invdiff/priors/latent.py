"""Latent priors: a denoiser of an autoencoder's latents.

    z ~ p(z),    x = decode(z),    posterior p(z | y) ~ p(z) p(y | A(decode(z)))

`LatentPrior` is a Denoiser of z, and knows its way to images: `synthesis(shape)` is the decoder as an operator, which a task
composes with its own, and `analyse(x)` encodes. sigma is in units of the latents. The posterior of x is exact up to what the
decoder can't represent, and to a sampler's handling of an operator that is no longer linear.

References: Rombach, Blattmann, Lorenz, Esser, Ommer, High-resolution image synthesis with latent diffusion models, 2022,
arXiv:2112.10752.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ShapeError
from .autoencoder import Decoder

__all__ = ["LatentPrior"]


class LatentPrior(Denoiser):
    """A denoiser of latents, with the autoencoder that made them.

    Args:
        prior: denoiser of latents, (latent, h, w), fixed or free in size.
        autoencoder: an `Autoencoder`, or a module with its `encode`, `decode`, `latent_shape`, `channels`, `latent`, `factor`;
            it is frozen.

    Attributes:
        facts, sigma_data: those of the denoiser of latents, by which a report measures how far an image is from the prior.

    Raises:
        ShapeError: the prior's channels are not those of the latents.
    """

    def __init__(self, prior: Denoiser, autoencoder: nn.Module) -> None:
        super().__init__(prior.shape, prior.sigma_min, prior.sigma_max)
        channels = autoencoder.latent
        if len(prior.shape) != 3 or prior.shape[0] not in (None, channels):
            raise ShapeError(
                f"LatentPrior: expected a prior on ({channels}, h, w), the autoencoder's latents, got one on {prior.shape}"
            )
        self.prior, self.autoencoder = prior, autoencoder.eval().requires_grad_(False)
        self.divisor, self.known = prior.divisor, prior.known
        self.facts, self.sigma_data = getattr(prior, "facts", {}), getattr(prior, "sigma_data", 1.0)

    @property
    def origin(self) -> float | Tensor:
        return self.prior.origin

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """E[z0 | z], in the units of the latents."""
        return self.prior(x, sigma, condition)

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """(C, H, W) of the images, None where free."""
        factor = self.autoencoder.factor
        return self.autoencoder.channels, *(None if n is None else n * factor for n in self.shape[1:])

    @property
    def image_divisor(self) -> int:
        """What H and W of the images must be multiples of."""
        return self.autoencoder.factor * self.divisor

    def synthesis(self, shape: Sequence[int]) -> Decoder:
        """The decoder as an operator, for images of a shape (C, H, W)."""
        return Decoder(self.autoencoder, shape)

    def analyse(self, x: Tensor) -> Tensor:
        """The latents of images (B, C, H, W)."""
        return self.autoencoder.encode(x)
