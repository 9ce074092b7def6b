"""Priors on wavelet coefficients and the images they stand for.

A coefficient prior D(u, sigma) ~ E[u0 | u0 + sigma n = u] is trained on u0 = analysis(x0) with white noise n. With x = S u:

    prior of images        the law of S u0; it is the law of the data, since S analysis(x0) = x0
    posterior              of y = A x + noise: sample u of `problem.through(S)` with D, then x = S u      `WaveletPrior`
    noise in the image     sigma S n ~ N(0, sigma^2 S S^T), white only for an orthonormal S               `synthesized_noise`
    denoiser, S square     E[x0 | x0 + sigma S n = z] = S D(S^-1 z, sigma)                                `denoise_coloured`
    the same, orthonormal  E[x0 | x0 + sigma n = x] = S D(S^T x, sigma), a prior on images                `WaveletDomain`

The second line is exact whatever S is: the noise of sampling is white in u, where D was trained. For an S that is not
orthonormal no denoiser of white image noise follows from D, and `WaveletDomain` refuses.

References: Hu et al., Wavelet diffusion neural operator, 2024, arXiv:2412.04833 (bior2.4 and bior1.3, bands divided by
constants).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ConfigError, ShapeError
from ..core.linalg import expand
from ..core.rng import Streams
from ..operators.wavelet import WaveletSynthesis
from .adapter import Adapter, SameUnknown, require_image

__all__ = ["CoefficientDomain", "WaveletDomain", "WaveletPrior", "denoise_coloured", "synthesized_noise"]


class WaveletPrior(SameUnknown):
    """A prior on wavelet coefficients that knows its images; exact for every synthesis.

    Args:
        prior: on coefficients of the synthesis's layout; sigma is in their units.
        synthesis: of any wavelet, mode and scales.

    Raises:
        ConfigError: the unknown of the prior already stands for something else.
        ShapeError: the prior is not on the coefficients.
    """

    def __init__(self, prior: Denoiser, synthesis: WaveletSynthesis) -> None:
        require_image(prior, "WaveletPrior")
        _require_shape("WaveletPrior", prior, synthesis.in_shape, "coefficients")
        super().__init__(prior)
        self.shape, self.basis = synthesis.in_shape, synthesis

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """E[u0 | u], in the units of the coefficients."""
        return self.prior(x, sigma, condition)

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """(C, *spatial) of the images."""
        return self.basis.out_shape

    def synthesis(self, shape: Sequence[int]) -> WaveletSynthesis:
        """The operator from coefficients to images, whose shape must be the given one."""
        if tuple(shape) != self.basis.out_shape:
            raise ShapeError(f"WaveletPrior: expected images of shape {self.basis.out_shape}, got {tuple(shape)}")
        return self.basis

    def analyse(self, x: Tensor) -> Tensor:
        """The coefficients of images (B, *shape)."""
        return self.basis.analysis(x)


class WaveletDomain(Adapter):
    """A prior on orthonormal wavelet coefficients as a prior on images, S D(S^T x, sigma); exact.

    Args:
        prior: on coefficients of the synthesis's layout; a conditional one stays conditional.
        synthesis: orthonormal.

    Raises:
        ConfigError: the synthesis is not orthonormal, or the unknown of the prior already stands for something else.
        ShapeError: the prior is not on its coefficients.
    """

    def __init__(self, prior: Denoiser, synthesis: WaveletSynthesis) -> None:
        _require_orthonormal("WaveletDomain", synthesis, "use a WaveletPrior, or problem.through(synthesis)")
        require_image(prior, "WaveletDomain")
        _require_shape("WaveletDomain", prior, synthesis.in_shape, "coefficients")
        super().__init__(prior, synthesis.out_shape)
        self.basis, self.value_range = synthesis, None

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        return self.basis(self.prior(self.basis.adjoint(x), sigma, condition))


class CoefficientDomain(Adapter):
    """A prior on images as a prior on their orthonormal wavelet coefficients, S^T D(S u, sigma); exact.

    Args:
        prior: on images of the synthesis's shape; a conditional one stays conditional.
        synthesis: orthonormal.

    Raises:
        ConfigError: the synthesis is not orthonormal, or the unknown of the prior is not an image.
        ShapeError: the prior is not on its images.
    """

    def __init__(self, prior: Denoiser, synthesis: WaveletSynthesis) -> None:
        _require_orthonormal("CoefficientDomain", synthesis, "use the prior on images as it is")
        require_image(prior, "CoefficientDomain")
        _require_shape("CoefficientDomain", prior, synthesis.out_shape, "images")
        super().__init__(prior, synthesis.in_shape)
        self.basis, self.value_range = synthesis, None

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        return self.basis.adjoint(self.prior(self.basis(x), sigma, condition))


def denoise_coloured(prior: Denoiser, synthesis: WaveletSynthesis, z: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x0 + sigma S n = z] of images z (B, *shape) at levels sigma (B,) in units of the coefficients.

    Args:
        prior: on coefficients of the synthesis's layout.
        synthesis: with as many coefficients as values.

    Raises:
        ConfigError: there are more coefficients than values: then z does not determine u0 + sigma n.
        ShapeError: the prior is not on the coefficients.
    """
    if not synthesis.square:
        raise ConfigError(
            f"denoise_coloured: expected as many coefficients as values, got {synthesis.in_shape} for {synthesis.out_shape}: "
            "use mode periodization with sizes that halve exactly"
        )
    _require_shape("denoise_coloured", prior, synthesis.in_shape, "coefficients")
    return synthesis(prior(synthesis.analysis(z), sigma))


def synthesized_noise(
    synthesis: WaveletSynthesis,
    sigma: Tensor,
    streams: Streams,
    *,
    step: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draws of sigma S n ~ N(0, sigma^2 S S^T), what white noise of the coefficients is in the image, (draws, *shape).

    Args:
        sigma: noise level of the coefficients, one number or one per draw.
    """
    noise = streams.normal(step, synthesis.in_shape, "synthesized_noise", dtype, device)
    return synthesis(expand(torch.as_tensor(sigma, dtype=dtype, device=device), noise) * noise)


def _require_orthonormal(who: str, synthesis: WaveletSynthesis, instead: str) -> None:
    if not synthesis.orthonormal:
        raise ConfigError(
            f"{who}: expected an orthonormal synthesis, got {synthesis.dwt.wavelet} in mode {synthesis.dwt.mode} from "
            f"{synthesis.in_shape} to {synthesis.out_shape}{'' if synthesis.scales is None else ' with scales'}, which colours "
            f"white noise: {instead}"
        )


def _require_shape(who: str, prior: Denoiser, shape: tuple[int, ...], what: str) -> None:
    if len(prior.shape) != len(shape) or any(p not in (None, n) for p, n in zip(prior.shape, shape, strict=True)):
        raise ShapeError(f"{who}: expected a prior on {what} of shape {shape}, got one on {prior.shape}")
