"""A Fourier neural operator: a small network for periodic fields that is the same function on every grid.

    (K h)_k = R_k h_k  for |k_d| <= modes_d on every axis, else 0,      h_k = mean_x h(x) exp(-2 pi i k x),
    h <- h + P gelu((1 + a) (W h + K h) + b),                           (a, b) from the code,

R_k a matrix over channels for each retained wavenumber: a circular convolution with a band-limited kernel. The Fourier
coefficients are those of the field, not of its samples, so that the weights do not know the grid: without the pointwise
nonlinearity a band-limited field gives the same output at the points that two grids share, and with it up to aliasing. Any
size of at least 2 modes + 1 works. The last layer of every block and of the network start at zero: the network starts as F = 0.

As a denoiser it is resolution-free in the same sense only: white noise of one sigma is another problem on another grid.
Without a noise level (`noise=False`) it is a regression network, F(x). Fields that are not periodic should be padded.

References: Li, Kovachki, Azizzadenesheli, Liu, Bhattacharya, Stuart, Anandkumar, Fourier neural operator for parametric partial
differential equations, 2021, arXiv:2010.08895. Tran, Mathews, Xie, Ong, Factorized Fourier neural operators, 2023,
arXiv:2111.13802 (residual after the nonlinearity).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition
from ..core.errors import ConfigError, ShapeError
from ..core.memory import run_block
from .layers import Network, conv, initialise, linear, over

__all__ = ["FNO", "SpectralConv"]


class FNO(Network):
    """F(x, noise, condition): (B, channels_in, *spatial), (B,) -> (B, channels_out, *spatial); F(x) with `noise=False`.

    Args:
        channels_in, channels_out: channels of the input and of the output.
        modes: the largest wavenumber kept on each axis; as many as there are spatial dimensions, one to three.
        width: channels between.
        depth: Fourier blocks.
        noise: whether there is a noise level.
        embedding: width of the noise embedding.
        concat_channels, vector, classes: the condition (see `layers`); 0 for none.
        seed: of the initial weights; the global generator is left alone.

    Raises:
        ConfigError: the modes, the width or the depth are not possible.
        ShapeError: the input has other channels, or fewer than 2 modes + 1 points on an axis.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        modes: Sequence[int],
        width: int = 32,
        depth: int = 4,
        noise: bool = True,
        embedding: int = 128,
        concat_channels: int = 0,
        vector: int = 0,
        classes: int = 0,
        seed: int = 0,
    ) -> None:
        if not modes or min(modes) < 0 or width < 1 or depth < 1:
            raise ConfigError(f"FNO: expected non-negative modes, a positive width and depth, got {modes=}, {width=}, {depth=}")
        dims = len(modes)
        super().__init__(
            channels_in,
            channels_out,
            dims=dims,
            divisor=1,
            embedding=embedding,
            noise=noise,
            concat_channels=concat_channels,
            vector=vector,
            classes=classes,
        )
        self.architecture = {"channels_in": channels_in, "channels_out": channels_out, "modes": list(modes), "width": width}
        self.architecture |= {"depth": depth, "noise": noise, "embedding": embedding}
        conditions = {"concat_channels": concat_channels, "vector": vector, "classes": classes}
        self.architecture |= {name: value for name, value in conditions.items() if value}
        self.modes = tuple(modes)
        self.enter = conv(dims, channels_in + concat_channels, width, 1)
        blocks = [_Block(width, self.modes, embedding if self.steered else None) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.hidden, self.activation = conv(dims, width, width, 1), nn.GELU()
        self.exit = conv(dims, width, channels_out, 1)
        generator = torch.Generator().manual_seed(seed)
        initialise(self, generator, zero=[self.exit, *(block.exit for block in blocks)])
        for block in blocks:
            block.spectral.initialise(generator)

    def forward(self, x: Tensor, noise: Tensor | None = None, condition: Condition | None = None) -> Tensor:
        """The network's output for inputs of unit scale and their noise coordinate, ln(sigma) / 4."""
        h, code = self.prepare(x, noise, condition)
        if any(n < 2 * m + 1 for n, m in zip(x.shape[2:], self.modes, strict=True)):
            least = tuple(2 * m + 1 for m in self.modes)
            raise ShapeError(f"FNO: modes {self.modes} need a grid of at least {least} points, got {tuple(x.shape[2:])}")
        h = self.enter(h)
        for block in self.blocks:
            h = run_block(block, h, code)
        return self.exit(self.activation(self.hidden(h)))


class SpectralConv(nn.Module):
    """K above: (B, channels_in, *spatial) -> (B, channels_out, *spatial), real, at least 2 modes + 1 points on each axis.

    The weights R are kept for wavenumbers 0, ..., m, -m, ..., -1 on each axis, and 0, ..., m on the last one: real fields give
    the others. On the plane of the last axis's zero only their Hermitian part acts. In closed form, with N points,

        K u = kappa * u / N  (circular),    kappa(x) = Re sum_k c_k R_k exp(2 pi i k x),    c_k = 1 where k_last = 0, else 2.

    Real and imaginary parts are stored along a last axis of length 2; the arithmetic is in float32 at least.
    """

    def __init__(self, channels_in: int, channels_out: int, modes: Sequence[int]) -> None:
        super().__init__()
        self.modes = tuple(modes)
        kept = (*(2 * m + 1 for m in self.modes[:-1]), self.modes[-1] + 1)
        self.weight = nn.Parameter(torch.empty(channels_in, channels_out, *kept, 2))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Uniform, with the gain 1 / 3 on the retained modes that the 1 x 1 convolution beside it has."""
        bound = (2 * self.weight.shape[0]) ** -0.5
        self.weight.uniform_(-bound, bound, generator=generator)

    def forward(self, h: Tensor) -> Tensor:
        sizes = h.shape[2:]
        # there is no bfloat16 FFT
        u = torch.fft.rfft(h.to(torch.promote_types(h.dtype, torch.float32)), norm="forward")[..., : self.modes[-1] + 1]
        # only the kept columns go through the other axes
        for axis, m in enumerate(self.modes[:-1], start=2):
            u = torch.fft.fft(u, dim=axis, norm="forward")
            u = torch.cat([u.narrow(axis, 0, m + 1), u.narrow(axis, u.shape[axis] - m, m)], dim=axis)
        u = torch.einsum("bi...,io...->bo...", u, torch.view_as_complex(self.weight.to(u.real.dtype)))
        for axis, m in enumerate(self.modes[:-1], start=2):
            gap = list(u.shape)
            gap[axis] = sizes[axis - 2] - (2 * m + 1)
            u = torch.cat([u.narrow(axis, 0, m + 1), u.new_zeros(gap), u.narrow(axis, m + 1, m)], dim=axis)
            u = torch.fft.ifft(u, dim=axis, norm="forward")
        return torch.fft.irfft(u, n=sizes[-1], norm="forward").to(h.dtype)


class _Block(nn.Module):
    """h + exit(gelu(film(local(h) + spectral(h))))."""

    def __init__(self, width: int, modes: Sequence[int], embedding: int | None) -> None:
        super().__init__()
        dims = len(modes)
        self.spectral, self.local = SpectralConv(width, width, modes), conv(dims, width, width, 1)
        self.film = None if embedding is None else linear(embedding, 2 * width)
        self.activation, self.exit = nn.GELU(), conv(dims, width, width, 1)

    def forward(self, h: Tensor, code: Tensor | None) -> Tensor:
        u = self.local(h) + self.spectral(h)
        if self.film is not None and code is not None:
            scale, shift = over(self.film(code), h.ndim - 2).chunk(2, dim=1)
            u = torch.addcmul(shift, u, 1 + scale)
        return h + self.exit(self.activation(u))
