"""The scheme of a published benchmark for the vorticity of a forced periodic flow, from its description, in plain torch.

    w* = ((1 - h g / 2) w + h N(w)) / (1 + h g / 2),               N(w) = -M F(u w_x + v w_y) + f,     g = nu |k|^2
    w+ = ((1 - h g / 2) w + h / 2 (N(w) + N(w*))) / (1 + h g / 2)

Heun's method for the advection, Crank and Nicolson's for the diffusion, second order. The mask M keeps the disc
|k| <= sqrt(2) N / 3. The step follows the flow, h = min(0.5 dx / max speed, what is left to T), read from the device before
each step and shared by the batch. As published dx is 1 / N on a domain of side L = 2 pi, and the steps are 2 pi times too
short; `mended` takes dx = L / N.

References: Zheng et al., InverseBench, 2025, arXiv:2503.11043.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["HeunCrankNicolson"]


class HeunCrankNicolson:
    """w(0) -> w(T), (B, 1, N, N).

    Args:
        size: N.
        viscosity: nu.
        forcing: of the vorticity, (N, N).
        time: T.
        mended: take the distance of the points for dx.
        like: a tensor of the dtype and device of the run.

    Attributes:
        steps: of the last call.
    """

    def __init__(self, size: int, viscosity: float, forcing: Tensor, *, time: float, mended: bool, like: Tensor) -> None:
        kind = {"dtype": like.dtype, "device": like.device}
        k = torch.fft.fftfreq(size, 1.0 / size, dtype=torch.float64)
        ky, kx = k[:, None], torch.fft.rfftfreq(size, 1.0 / size, dtype=torch.float64)
        square = ky.square() + kx.square()
        inverse = torch.where(square > 0, 1.0 / square, 0.0)
        self.fields = torch.stack([1j * ky * inverse, -1j * kx * inverse, 1j * kx + 0 * ky, 1j * ky + 0 * kx]).to(
            device=like.device, dtype=torch.complex(like.new_zeros(()), like.new_zeros(())).dtype
        )
        self.mask = (square <= 2.0 * (size / 3.0) ** 2).to(**kind)
        self.half = (0.5 * viscosity * square).to(**kind)
        self.force = torch.fft.rfft2(forcing.to(**kind))
        self.size, self.time, self.steps = size, time, 0
        self.spacing = (2.0 * math.pi if mended else 1.0) / size

    def __call__(self, w: Tensor) -> Tensor:
        v, now, self.steps = torch.fft.rfft2(w), 0.0, 0
        while now < self.time:
            u = torch.fft.irfft2(v * self.fields[:2], s=(self.size, self.size))
            speed = float(u.square().sum(1).sqrt().max())
            h = min(0.5 * self.spacing / speed, self.time - now)
            decay, grow = 1.0 / (1.0 + h * self.half), 1.0 - h * self.half
            n = self.rate(v)
            ahead = (grow * v + h * n) * decay
            v = (grow * v + 0.5 * h * (n + self.rate(ahead))) * decay
            # rounding can leave a step of 1e-16 to go
            now, self.steps = now + h if self.time - now - h > 1e-12 else self.time, self.steps + 1
        return torch.fft.irfft2(v, s=(self.size, self.size))

    def rate(self, v: Tensor) -> Tensor:
        """N, by 4 inverse transforms and 1 forward."""
        u, s, w_x, w_y = torch.fft.irfft2(v * self.fields, s=(self.size, self.size)).split(1, dim=1)
        return self.force - self.mask * torch.fft.rfft2(u * w_x + s * w_y)
