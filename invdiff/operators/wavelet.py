"""Wavelet synthesis as an operator: images from their coefficients, so that coefficients can be the unknown of a problem.

    x = S u = V (s u),    analysis(x) = W x / s,    S analysis(x) = x

V is the inverse transform and s one number per band (and channel), by which coefficients are divided to be of order one. White
noise of standard deviation sigma in u is noise of covariance sigma^2 S S^T in x. Three cases:

    orthonormal   S^T = S^-1      orthonormal filters, as many coefficients as values, s = 1: the noise is white in x as well
    square        S^-1 exists     as many coefficients as values (periodization, sizes that halve exactly); S^T is not S^-1
    neither       S analysis = I  more coefficients than values; analysis(x) is one of many u with S u = x, S^+ x the smallest

`pinv` is the Moore-Penrose inverse S^+ in all of them: `analysis` where S is square, S^T for orthonormal filters and s = 1
(S S^T = I, square or not), conjugate gradients elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..core.errors import ConfigError, ShapeError
from ..core.linalg import expand
from ..core.operator import LinearOperator
from .constants import Constants
from .dwt import DWT, Mode

__all__ = ["WaveletSynthesis", "band_rms"]


class WaveletSynthesis(LinearOperator):
    """Coefficients u -> image, (B, *dwt.coefficient_shape) -> (B, *shape); the layout is described in `DWT`.

    Args:
        shape: of the image without the batch, (C, *spatial).
        wavelet: name of a discrete wavelet of PyWavelets.
        levels: number of levels.
        mode: "periodization", "symmetric" or "zero"; the last two differ only in `analysis`.
        axes: dimensions of `shape` to transform; None for all but the first.
        scales: positive, one per band in the order of `dwt.names`, (bands,), or per channel and band, (C, bands); None for 1.

    Attributes:
        dwt: the transform.
        orthonormal: whether the adjoint is the inverse.
        square: whether there are as many coefficients as values; then `analysis` is the inverse.

    Raises:
        ConfigError: an unknown wavelet or mode, levels < 1, scales that are not positive.
        ShapeError: an axis is not one of the shape's, or the scales don't fit the bands.
    """

    def __init__(
        self,
        shape: Sequence[int],
        wavelet: str = "db4",
        levels: int = 1,
        mode: Mode = "periodization",
        axes: Sequence[int] | None = None,
        scales: Tensor | Sequence[float] | Sequence[Sequence[float]] | None = None,
    ) -> None:
        dwt = DWT(shape, wavelet, levels, mode, axes)
        super().__init__(dwt.coefficient_shape, dwt.shape)
        self.dwt = dwt
        self.square = prod(self.in_shape) == prod(self.out_shape)
        self.scales = None if scales is None else self._expanded(torch.as_tensor(scales, dtype=torch.float64))
        self.orthonormal = self.unitary = self.square and dwt.tight and self.scales is None

    def _expanded(self, scales: Tensor) -> Constants:
        bands, channels = len(self.dwt.names), self.out_shape[0]
        per_channel = scales.shape == (channels, bands) and self.dwt.axes[0] > 0
        if scales.shape != (bands,) and not per_channel:
            raise ShapeError(
                f"WaveletSynthesis: expected scales of shape ({bands},) or ({channels}, {bands}) for the bands "
                f"{', '.join(self.dwt.names)}, got {tuple(scales.shape)}"
            )
        if not bool((scales > 0).all() and scales.isfinite().all()):
            raise ConfigError(f"WaveletSynthesis: expected positive scales, got {scales.tolist()}")
        index = self.dwt.band_index()
        # all channels have the same layout
        return Constants(_at, scales, index[0] if per_channel else index)

    def _scaled(self, u: Tensor, inverse: bool = False) -> Tensor:
        if self.scales is None:
            return u
        (s,) = self.scales(u)
        return u / s if inverse else u * s

    def forward(self, x: Tensor) -> Tensor:
        return self.dwt.inverse(self._scaled(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._scaled(self.dwt.inverse_adjoint(y))

    def normal(self, x: Tensor) -> Tensor:
        return x if self.orthonormal else self.adjoint(self(x))

    def analysis(self, x: Tensor) -> Tensor:
        """The coefficients that the transform gives an image, (B, *shape) -> (B, *coefficients); forward(analysis(x)) = x."""
        self.check(x, "y")
        return self._scaled(self.dwt.analysis(x), inverse=True)

    def solve(self, b: Tensor, rho: Tensor) -> Tensor:
        weight = expand(rho, b)
        if self.orthonormal:
            return b / (1.0 + weight)
        if self.dwt.tight and self.scales is None:
            # S^T S is a projection
            inside = self.normal(b)
            return (b - inside) / weight + inside / (1.0 + weight)
        return LinearOperator.solve(self, b, rho)

    def pinv(self, y: Tensor) -> Tensor:
        if self.square:
            return self.analysis(y)
        return self.adjoint(y) if self.dwt.tight and self.scales is None else super().pinv(y)

    def extra_repr(self) -> str:
        return f"{self.out_shape}, {self.dwt.wavelet}, levels={len(self.dwt.levels)}, {self.dwt.mode}"


def band_rms(synthesis: WaveletSynthesis, images: Tensor) -> Tensor:
    """Root mean square of the coefficients of images (B, *shape) in each channel and band, (C, bands).

    As `scales` of a synthesis like the one without them it makes coefficients of root mean square 1.

    Raises:
        ConfigError: the channels are transformed as well.
    """
    if synthesis.dwt.axes[0] == 0:
        raise ConfigError("band_rms: expected the first dimension to hold channels, but it is transformed")
    bands = synthesis.dwt.split(synthesis.analysis(images))
    return torch.stack([band.square().movedim(1, 0).flatten(1).mean(1).sqrt() for band in bands], dim=1)


def _at(scales: Tensor, index: Tensor) -> tuple[Tensor]:
    return (scales[..., index],)
