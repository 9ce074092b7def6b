"""A U-Net in wavelet coordinates that is a denoiser of fields in white noise.

    c = P W y,      D_c = skip c + out U(c / total),      D = V P^T D_c              y = x0 + sigma n

    total_b^2 = s_b^2 + sigma^2 g_b^2,      skip_b = s_b^2 / total_b^2,      out_b = sigma g_b s_b / total_b

W, V, P are those of `packed`, s_b the root mean square of the coefficients of band b, and g_b that of W n, the image of white
noise: every band has the preconditioning of EDM for the data and the noise that it has. A network U = 0 is the Wiener filter of
the bands. Inside an `EDMDenoiser` with sigma_data = 1 and mean = 0, whose D is y / (1 + sigma^2) + sigma F / sqrt(1 + sigma^2),
that is the network

    F = V P^T ((s^2 - g^2) sigma / (total^2 sqrt(1 + sigma^2)) c + g s sqrt(1 + sigma^2) / total U(c / total)),

with sigma = exp(4 noise) from the noise coordinate. The fields have to be of unit root mean square each. For filters that are
not orthonormal the noise of c has covariance sigma^2 W W^T, which U sees as it is.

References: Hu et al., Wavelet diffusion neural operator, 2024, arXiv:2412.04833. Karras, Aittala, Aila, Laine, Elucidating the
design space of diffusion-based generative models, 2022, arXiv:2206.00364.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..core.denoiser import Condition
from ..core.errors import ConfigError
from ..operators.dwt import DWT
from .layers import Network, over, unshuffle
from .packed import PackedSynthesis
from .unet import UNet

__all__ = ["BandUNet"]


class BandUNet(Network):
    """F(x, noise, condition): (B, channels_in, *grid), (B,) -> the same shape; sizes multiples of `divisor`.

    Args:
        channels_in, channels_out: the fields, as many out as in.
        wavelet, levels: of the transform, periodization.
        scales: s, root mean square of the coefficients of fields of unit scale, (channels_in, bands).
        widths, blocks, embedding: of the U-Net on the coarse grid.
        dims: axes of the grid.
        concat_channels: of the condition, on the fields' grid; its phases become channels as those of the fields do.
        seed: of the initial weights.

    Raises:
        ConfigError: channels out other than in, or scales that do not fit or are not positive.
    """

    data: Tensor
    gains: Tensor

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        wavelet: str = "haar",
        levels: int = 1,
        scales: Sequence[Sequence[float]],
        widths: Sequence[int] = (64, 96),
        blocks: int = 2,
        embedding: int = 128,
        dims: int = 2,
        concat_channels: int = 0,
        seed: int = 0,
    ) -> None:
        if channels_in != channels_out:
            raise ConfigError(f"BandUNet: expected as many channels out as in, got {channels_in} and {channels_out}")
        factor = 2**levels
        inner = UNet(
            channels_in * factor**dims,
            channels_in * factor**dims,
            widths=widths,
            blocks=blocks,
            embedding=embedding,
            patch=1,
            dims=dims,
            concat_channels=concat_channels * factor**dims,
            seed=seed,
        )
        super().__init__(
            channels_in,
            channels_out,
            dims=dims,
            divisor=factor * inner.divisor,
            embedding=embedding,
            noise=False,
            concat_channels=concat_channels,
            vector=0,
            classes=0,
        )
        # the embedding of the noise level is the inner network's
        self.noise, self.inner, self.factor = True, inner, factor
        self.memory_format = inner.memory_format
        self.wavelet, self.levels = wavelet, levels
        self.architecture = {
            "channels_in": channels_in,
            "channels_out": channels_out,
            "wavelet": wavelet,
            "levels": levels,
            "scales": [list(row) for row in scales],
            "widths": list(widths),
            "blocks": blocks,
            "embedding": embedding,
            "dims": dims,
            "concat_channels": concat_channels,
        }
        # one grid stands for all: the rows of W are shifts of each other
        basis, rows = _basis((1, *[16 * factor] * dims), wavelet, levels), torch.tensor(scales, dtype=torch.float64)
        if rows.shape != (channels_in, len(basis.dwt.names)) or not bool((rows > 0).all()):
            raise ConfigError(
                f"BandUNet: expected positive scales, ({channels_in}, {len(basis.dwt.names)}) for the bands "
                f"{', '.join(basis.dwt.names)}, got {tuple(rows.shape)}"
            )
        gains = torch.tensor(_gains(basis.dwt), dtype=torch.float64)[list(basis.bands)].repeat(channels_in)
        self.register_buffer("data", rows[:, list(basis.bands)].flatten().float(), persistent=False)
        self.register_buffer("gains", gains.float(), persistent=False)

    def forward(self, x: Tensor, noise: Tensor, condition: Condition | None = None) -> Tensor:
        """The network's output for inputs of unit scale and their noise coordinate, ln(sigma) / 4."""
        basis = _basis((self.channels_in, *x.shape[2:]), self.wavelet, self.levels)
        sigma = (4.0 * noise).exp().to(x.dtype)[:, None]
        s, g, whole = self.data.to(x.dtype), self.gains.to(x.dtype), (1.0 + sigma.square()).sqrt()
        total = (s.square() + (sigma * g).square()).sqrt()
        c = over(whole, self.dims) * basis.analysis(x)
        told = (
            None if condition is None else {k: unshuffle(v, self.factor) if k == "concat" else v for k, v in condition.items()}
        )
        out = self.inner(c / over(total, self.dims), noise, told).to(x.dtype)
        skip = (s.square() - g.square()) * sigma / (total.square() * whole)
        return basis(over(skip, self.dims) * c + over(g * s * whole / total, self.dims) * out)


@lru_cache(maxsize=16)
def _basis(shape: tuple[int, ...], wavelet: str, levels: int) -> PackedSynthesis:
    return PackedSynthesis(shape, wavelet, levels)


def _gains(dwt: DWT) -> list[float]:
    """Norm of a row of W in each band, which is the standard deviation of the coefficients of white noise."""
    gains = []
    for i in range(len(dwt.names)):
        bands = [torch.zeros_like(b) for b in dwt.split(torch.zeros(1, *dwt.coefficient_shape, dtype=torch.float64))]
        bands[i].flatten()[bands[i].numel() // 2] = 1.0
        gains.append(float(dwt.adjoint(dwt.join(bands)).norm()))
    return gains
