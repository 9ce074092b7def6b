"""The DnCNN family: plain chains of convolutions that estimate the noise in an image, without being told its level.

    h_0 = s(c_0(x)),    h_l = relu(n_l(c_l(h_{l-1}))),  0 < l < L - 1,    out = c_{L-1}(h_{L-2})

with zero padding, s = relu or the identity, and n_l one of

    norm           n(h)                                       after
    None           h                                          Zhang et al. with the batch norm folded into weights and biases
    "variance"     weight h / (sqrt(running) + 1e-5)          Mohan et al.
    "deviation"    weight h / running                         Kadkhodaie et al.

Without biases the network is homogeneous, out(a x) = a out(x) for a > 0, which is why one trained for some noise levels works
at others. It is made a prior by `Blind`.

References: Zhang, Zuo, Chen, Meng, Zhang, Beyond a Gaussian denoiser: residual learning of deep CNN for image denoising, 2017,
arXiv:1608.03981. Mohan, Kadkhodaie, Simoncelli, Fernandez-Granda, Robust and interpretable blind image denoising via bias-free
convolutional neural networks, ICLR 2020, arXiv:1906.05478. Kadkhodaie, Guth, Mallat, Simoncelli, Learning multi-scale local
conditional probability models of images, ICLR 2023, arXiv:2303.02984.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from .layers import Conv2d

__all__ = ["DnCNN"]


class DnCNN(nn.Module):
    """(B, channels_in, H, W) -> (B, channels_out, H, W), for any H and W.

    Args:
        channels_in, channels_out: of the image, or of what is known and what is estimated.
        width: channels of every hidden layer.
        kernels: size of each of the L convolutions, odd.
        bias: of all convolutions.
        norm: None, "variance" or "deviation"; see the module. `running` is a statistic of the training, not updated here; it
            and `weight` have the shape of the published files: (width,) and (1, width, 1, 1).
        first_linear: no relu after the first convolution.
        seed: of the initial weights; the global generator is left alone.

    Tensors: `convs.l.weight`, `convs.l.bias`, and, of the layer l, `norms.(l-1).weight`, `norms.(l-1).running`.

    Raises:
        ConfigError: fewer than 2 convolutions, an even kernel, no channels, or an unknown norm.
    """

    def __init__(
        self,
        channels_in: int = 1,
        channels_out: int = 1,
        *,
        width: int = 64,
        kernels: Sequence[int] = (3,) * 17,
        bias: bool = True,
        norm: Literal["variance", "deviation"] | None = None,
        first_linear: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(kernels) < 2 or any(k < 1 or k % 2 == 0 for k in kernels) or min(channels_in, channels_out, width) < 1:
            raise ConfigError(
                "DnCNN: expected 2 or more odd kernels and positive channels and width, got "
                f"{tuple(kernels)}, {channels_in}, {channels_out} and {width}"
            )
        if norm not in (None, "variance", "deviation"):
            raise ConfigError(f'DnCNN: expected norm None, "variance" or "deviation", got {norm!r}')
        channels = [channels_in, *[width] * (len(kernels) - 1), channels_out]
        convs = [
            Conv2d(a, b, k, padding=k // 2, bias=bias) for a, b, k in zip(channels[:-1], channels[1:], kernels, strict=True)
        ]
        self.convs = nn.ModuleList(convs)
        hidden = len(kernels) - 2
        self.norms = nn.ModuleList(nn.Identity() if norm is None else _Scale(width, norm) for _ in range(hidden))
        self.first_linear = first_linear
        generator = torch.Generator().manual_seed(seed)
        for conv in convs:
            # keeps the variance through a relu
            bound = (6.0 / conv.weight[0].numel()) ** 0.5
            nn.init.uniform_(conv.weight, -bound, bound, generator=generator)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.convs[0](x)
        h = h if self.first_linear else h.relu()
        for conv, norm in zip(self.convs[1:-1], self.norms, strict=True):
            h = norm(conv(h)).relu()
        return self.convs[-1](h)


class _Scale(nn.Module):
    """Batch normalisation without mean and bias, its statistic fixed."""

    running: Tensor

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        shape = (width,) if norm == "variance" else (1, width, 1, 1)
        self.squared = norm == "variance"
        self.weight = nn.Parameter(torch.ones(shape))
        self.register_buffer("running", torch.ones(shape))

    def forward(self, h: Tensor) -> Tensor:
        deviation = self.running.sqrt() + 1e-5 if self.squared else self.running
        return h * (self.weight / deviation).reshape(-1, 1, 1)
