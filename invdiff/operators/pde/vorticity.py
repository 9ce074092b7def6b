"""Incompressible flow in a periodic rectangle: the vorticity equation.

    w_t + u . grad w = nu Laplace w + f,      -Laplace psi = w,      u = (psi_y, -psi_x),      mean velocity 0

The advection is written div(u w), of modes below the 2/3 rule on each axis, by 3 inverse and 2 forward FFTs; the truncated
equation then keeps energy and enstrophy where nu = 0 and f = 0. Time steps as in `spectral`.

Without viscosity the equation can be undone: z(s) = -w(T - s) obeys it with the same forcing. With viscosity that is a guess at
w(0), off by what was damped. Damping may be undone too, by growth exp(nu k^2 T), and is not: in a field interpolated between
points it multiplies what is aliased.

References: Kassam, Trefethen, Fourth-order time-stepping for stiff PDEs, SIAM J. Sci. Comput. 26, 2005. Canuto, Hussaini,
Quarteroni, Zang, Spectral methods: fundamentals in single domains, 2006.
"""

from __future__ import annotations

from math import ceil, inf, log, pi

import torch
from torch import Tensor

from ...core.errors import ConfigError, NumericalError, ShapeError, require_positive
from ...core.memory import Memory
from ..constants import Constants
from .spectral import ETDRK4, REACH, Evolution, below_two_thirds, frequencies

__all__ = ["NavierStokes2D", "kolmogorov"]


def kolmogorov(size: tuple[int, int], wave: int = 4, amplitude: float = -4.0) -> Tensor:
    """The forcing amplitude cos(2 pi wave y / length_y) of vorticity, (H, W), float64, in 1 / time^2; y runs along H."""
    y = torch.arange(size[0], dtype=torch.float64) / size[0]
    return (amplitude * torch.cos(2.0 * pi * wave * y)).unsqueeze(1).expand(tuple(size)).clone()


class NavierStokes2D(Evolution):
    """w(0) -> w(T) of the vorticity of an incompressible flow.

    Args:
        size: grid points (H, W), of y and x.
        viscosity: nu >= 0, length^2 / time; 1 / Re on a period of 2 pi and a unit velocity.
        forcing: f, (H, W), real, constant in time, in 1 / time^2; None for none.
        length: periods (of y, of x).
        time, steps, save, memory: see `Evolution`. The bound of the step is checked for the initial velocity alone: a flow
            that its forcing accelerates needs steps to spare.

    Shapes: vorticity (B, 1, H, W) -> (B, save, H, W), in 1 / time.

    Raises:
        ShapeError: the forcing is not real or not on the grid.
    """

    def __init__(
        self,
        size: tuple[int, int],
        viscosity: float,
        *,
        forcing: Tensor | None = None,
        length: tuple[float, float] = (2.0 * pi, 2.0 * pi),
        time: float = 1.0,
        steps: int = 64,
        save: int = 1,
        memory: str | Memory = "checkpoint(step, 8)",
    ) -> None:
        h, w = size
        super().__init__((h, w), time=time, steps=steps, save=save, memory=memory)
        require_positive(self, length_y=length[0], length_x=length[1])
        if not 0.0 <= viscosity < inf:
            raise ConfigError(f"NavierStokes2D: expected viscosity >= 0, got {viscosity}")
        f = torch.zeros(h, w, dtype=torch.float64) if forcing is None else forcing
        if f.shape != (h, w) or not f.is_floating_point():
            raise ShapeError(
                f"NavierStokes2D: expected a real forcing of shape {(h, w)}, got {tuple(f.shape)} {str(f.dtype)[6:]}"
            )
        self.size, self.length, self.viscosity = (h, w), (float(length[0]), float(length[1])), viscosity
        square = frequencies(h, length[0], half=False).square()[:, None] + frequencies(w, length[1], half=True).square()
        self.square = square
        self.stepper = ETDRK4(-viscosity * square, time / steps)
        keep = below_two_thirds(h, half=False)[:, None] & below_two_thirds(w, half=True)
        ky = frequencies(h, length[0], half=False, odd=True)[:, None] * keep
        kx = frequencies(w, length[1], half=True, odd=True) * keep
        self.fastest = float(ky.max()), float(kx.max())
        self.forcing = f.detach().to("cpu", torch.float64)
        self.constants = Constants(_operators, ky, kx, square, keep, self.forcing)

    def velocity(self, w: Tensor) -> Tensor:
        """(B, 2, H, W), the components along x and y of the modes that advect."""
        self.check(w, "x")
        return self._physical(torch.fft.rfft2(w))[:, 1:]

    def rate(self, u: Tensor) -> Tensor:
        ky, kx = self.fastest
        along_x, along_y = self._physical(torch.fft.rfft2(u))[:, 1:].abs().unbind(1)
        return (kx * along_x + ky * along_y).flatten(1).amax(1)

    def step(self, u: Tensor) -> Tensor:
        return torch.fft.irfft2(self.stepper(torch.fft.rfft2(u), self._nonlinear), s=self.size)

    @torch.no_grad()
    def guess(self, y: Tensor) -> Tensor:
        """w(0) from the first saved state by the equation backward in time, (B, save, H, W) -> (B, 1, H, W).

        What viscosity took is given back, to each mode at most twofold: more would raise noise and aliases. Takes the steps of
        `forward`, or more: a state that comes twice as fast as y is would still be stable.

        Raises:
            NumericalError: the backward flow is not finite.
        """
        self.check(y, "y")
        z, time = -y[:, :1], self.time / self.save
        rate = float(self.rate(z).max()) if len(y) else 0.0
        if not rate < inf:
            raise NumericalError("NavierStokes2D.guess: expected finite vorticities, got others: start from the prior")
        steps = max(self.steps // self.save, ceil(2.0 * rate * time / REACH))
        # w -> -w turns the inviscid equation around
        back = NavierStokes2D(self.size, 0.0, forcing=self.forcing, length=self.length, time=time, steps=steps, memory="full")
        back.stepper = ETDRK4((self.viscosity * self.square).clamp(max=log(2.0) / time), time / steps)
        undone = -back.to(y.device)(z)
        if not bool(undone.isfinite().all()):
            raise NumericalError(
                f"NavierStokes2D.guess: the backward flow is not finite after {steps} steps: start from the prior, or give a "
                "shorter time"
            )
        return undone

    def _physical(self, v: Tensor) -> Tensor:
        """Vorticity and the two velocities on the grid, (B, 3, H, W), from the spectrum (B, 1, H, W // 2 + 1)."""
        return torch.fft.irfft2(v * self.constants(v)[0], s=self.size)

    def _nonlinear(self, v: Tensor) -> Tensor:
        _, divergence, force = self.constants(v)
        fields = self._physical(v)
        flux = torch.fft.rfft2(fields[:, 1:] * fields[:, :1])
        return force - (divergence * flux).sum(1, keepdim=True)


def _operators(ky: Tensor, kx: Tensor, square: Tensor, keep: Tensor, force: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Spectrum of the vorticity to that of (w, u, v); of the flux to its divergence; spectrum of the forcing."""
    inverse = torch.where(square > 0.0, 1.0 / square, 0.0)
    fields = torch.stack((keep.to(torch.complex128), 1j * ky * inverse, -1j * kx * inverse))
    return fields, torch.stack((1j * kx, 1j * ky)), torch.fft.rfft2(force)
