"""Fields from wavelet coefficients that are packed as channels on the coarsest grid, as a convolutional network wants them.

    x = S u = V P^T (s u),      analysis(x) = P W x / s,      S analysis(x) = x

W, V are the transform and its inverse (`operators.dwt`), s one number per field and band, and P the packing. A transform of J
levels has coarse bands, and details of level j < J on a grid 2^(J - j) times finer; each of those is cut into its 2^(d (J - j))
phases, all on the coarse grid, after zeros at the end where its size is no such multiple. In d dimensions a field becomes
2^(d J) channels. P P^T = I but for the zeros that were added, on which S does not depend:

    adjoint        S^T y = s P V^T y
    inverse        S^+ y = P W y / s      where there are as many coefficients as values (periodization, sizes that halve
                                          exactly); the added zeros stay zero
    noise          white u of level sigma is noise of covariance sigma^2 S S^T in x; white noise of level sigma in x is noise
                   of covariance sigma^2 Q Q^T, Q = P W / s, in u. Both are sigma^2 I for orthonormal filters, s = 1, no zeros.

References: Hu et al., Wavelet diffusion neural operator, 2024, arXiv:2412.04833 (one level, bands as channels).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ConfigError, ShapeError
from ..core.operator import LinearOperator
from ..operators.constants import Constants, as_given
from ..operators.dwt import DWT, Mode
from .layers import shuffle, unshuffle

__all__ = ["ChannelScale", "PackedSynthesis"]


class PackedSynthesis(LinearOperator):
    """Packed coefficients u -> fields x, (B, C 2^(d J), *coarse) -> (B, C, *grid).

    Channels are ordered by field, then by band in the order of `dwt.names`, then by phase (row-major).

    Args:
        shape: of the fields without the batch, (C, *grid), one to three grid axes; all are transformed.
        wavelet: name of a discrete wavelet of PyWavelets.
        levels: J.
        mode: "periodization", "symmetric" or "zero".
        scales: s, positive, (C, bands); None for 1.
        multiple: what the sizes of the coarse grid are filled up to multiples of, with zeros.

    Attributes:
        dwt: the transform.
        square: whether S has an inverse but for the added zeros.
        orthonormal: whether S^T is that inverse.
        bands: which band each of the channels of one field belongs to.

    Raises:
        ConfigError: an unknown wavelet or mode, levels or multiple < 1, scales that are not positive.
        ShapeError: the scales don't fit the bands.
    """

    def __init__(
        self,
        shape: Sequence[int],
        wavelet: str = "bior2.4",
        levels: int = 1,
        mode: Mode = "periodization",
        *,
        scales: Tensor | Sequence[Sequence[float]] | None = None,
        multiple: int = 1,
    ) -> None:
        if multiple < 1:
            raise ConfigError(f"PackedSynthesis: expected multiple >= 1, got {multiple}")
        dwt = DWT(shape, wavelet, levels, mode)
        dims = len(dwt.shape) - 1
        sizes = [tuple(band.shape[2:]) for band in dwt.split(torch.empty(1, *dwt.coefficient_shape))]
        coarse = tuple(-(-n // multiple) * multiple for n in sizes[0])
        factors = [2 ** (levels - int(name.rstrip("ad"))) for name in dwt.names]
        self.bands = tuple(i for i, factor in enumerate(factors) for _ in range(factor**dims))
        super().__init__((dwt.shape[0] * len(self.bands), *coarse), dwt.shape)
        self.dwt, self._sizes, self._factors = dwt, sizes, factors
        self.square = prod(dwt.coefficient_shape) == prod(dwt.shape)
        self._filled = any(tuple(f * n for n in coarse) != size for f, size in zip(factors, sizes, strict=True))
        self.scales = None if scales is None else self._expanded(torch.as_tensor(scales, dtype=torch.float64))
        self.orthonormal = self.square and dwt.tight and self.scales is None

    def _expanded(self, scales: Tensor) -> Constants:
        if scales.shape != (self.out_shape[0], len(self.dwt.names)):
            raise ShapeError(
                f"PackedSynthesis: expected scales of shape ({self.out_shape[0]}, {len(self.dwt.names)}) for the bands "
                f"{', '.join(self.dwt.names)}, got {tuple(scales.shape)}"
            )
        if not bool((scales > 0).all() and scales.isfinite().all()):
            raise ConfigError(f"PackedSynthesis: expected positive scales, got {scales.tolist()}")
        flat = scales[:, list(self.bands)].flatten()
        return Constants(as_given, flat[(..., *[None] * (len(self.out_shape) - 1))])

    def _scaled(self, u: Tensor, inverse: bool = False) -> Tensor:
        if self.scales is None:
            return u
        (s,) = self.scales(u)
        return u / s if inverse else u * s

    def pack(self, c: Tensor) -> Tensor:
        """P c: coefficients of the transform, (B, *dwt.coefficient_shape), as channels (B, *in_shape)."""
        parts, coarse = [], self.in_shape[1:]
        for band, size, factor in zip(self.dwt.split(c), self._sizes, self._factors, strict=True):
            missing = [m for n, g in zip(size, coarse, strict=True) for m in (factor * g - n, 0)]
            filled = F.pad(band, missing[::-1]) if any(missing) else band
            parts.append(unshuffle(filled, factor).unflatten(1, (len(band[0]), -1)))
        return torch.cat(parts, dim=2).flatten(1, 2)

    def unpack(self, u: Tensor) -> Tensor:
        """P^T u: the coefficients of the transform, without what was added."""
        channels, bands, dims = self.out_shape[0], [], len(self.in_shape) - 1
        counts = [factor**dims for factor in self._factors]
        for part, size, factor in zip(
            u.unflatten(1, (channels, -1)).split(counts, dim=2), self._sizes, self._factors, strict=True
        ):
            whole = shuffle(part.flatten(1, 2), factor)
            inside: tuple[Any, ...] = (..., *(slice(n) for n in size))
            bands.append(whole[inside])
        return self.dwt.join(bands)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwt.inverse(self.unpack(self._scaled(x)))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._scaled(self.pack(self.dwt.inverse_adjoint(y)))

    def normal(self, x: Tensor) -> Tensor:
        return x if self.orthonormal and not self._filled else self.adjoint(self(x))

    def analysis(self, x: Tensor) -> Tensor:
        """The coefficients that the transform gives fields, (B, *out_shape) -> (B, *in_shape); forward(analysis(x)) = x."""
        self.check(x, "y")
        return self._scaled(self.pack(self.dwt.analysis(x)), inverse=True)

    def pinv(self, y: Tensor) -> Tensor:
        if self.square:
            return self.analysis(y)
        return self.adjoint(y) if self.dwt.tight and self.scales is None else super().pinv(y)

    def band_rms(self, x: Tensor) -> Tensor:
        """Root mean square of the coefficients of fields in each band, (C, bands), as `scales` of a code."""
        bands = self.dwt.split(self.dwt.analysis(x))
        return torch.stack([band.double().square().movedim(1, 0).flatten(1).mean(1).sqrt() for band in bands], dim=1)

    def extra_repr(self) -> str:
        return f"{self.out_shape}, {self.dwt.wavelet}, levels={len(self.dwt.levels)}, {self.dwt.mode}"


class ChannelScale(LinearOperator):
    """x = s u, one positive number per channel, (B, C, *grid) -> (B, C, *grid).

    Raises:
        ConfigError: a scale is not positive.
        ShapeError: there is not one scale for each channel.
    """

    def __init__(self, shape: Sequence[int], scales: Sequence[float]) -> None:
        super().__init__(tuple(shape), tuple(shape))
        s = torch.as_tensor(scales, dtype=torch.float64)
        if s.shape != (shape[0],):
            raise ShapeError(f"ChannelScale: expected {shape[0]} scales, got {tuple(s.shape)}")
        if not bool((s > 0).all() and s.isfinite().all()):
            raise ConfigError(f"ChannelScale: expected positive scales, got {s.tolist()}")
        self.scales = Constants(as_given, s[(..., *[None] * (len(shape) - 1))])

    def forward(self, x: Tensor) -> Tensor:
        return self.scales(x)[0] * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.scales(y)[0] * y

    def analysis(self, x: Tensor) -> Tensor:
        """u = x / s, the inverse."""
        self.check(x, "y")
        return x / self.scales(x)[0]

    def pinv(self, y: Tensor) -> Tensor:
        return self.analysis(y)
