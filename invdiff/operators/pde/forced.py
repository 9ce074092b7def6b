"""Burgers' equation with viscosity and forcing between walls, by a sine series and ETDRK4.

    u_t + (u^2 / 2)_x = nu u_xx + f(t, x)     on (0, L),      u = 0 at both walls,      f constant on each slot of time

    u(x) = sum_{k <= n} b_k sin(pi k x / L),     v = F(u, -u reversed),     v_t = -nu (pi k / L)^2 v + N(v)
    N(v) = f^ - (1/2) i (pi k / L) P F (F^-1 P v)^2,     P the modes k < 2 n / 3

Points are the centres of n cells, x_j = (j + 1/2) L / n, as of the sine transform of type II (`operators.cosine.dst`) and of
`BurgersShocks`; the odd continuation about the walls, of period 2 L and 2 n points, is periodic, and its FFT is that sine
transform up to phases which no derivative sees. In time ETDRK4 as in `spectral`: diffusion is exact, steady states are kept to
round-off whatever the step.

Order 4 in time, for u(0) that is 0 at the walls; f need not be. Of any other u(0) the equation makes a layer of width
sqrt(nu t) at once, which resolves with the steps: the order is then from 2 up until nu k_max^2 dt is small. In space spectral
for u(0) and f that are odd about the walls; samples of a jump there alias at order 2 in 1 / n (`tests/exact/test_pde_forced.py`
holds these orders). Values of the sine series cut at n (`dst` on a finer grid, `idst` of its first n) do not.

References: Cox, Matthews, Exponential time differencing for stiff systems, JCP 176, 2002. Kassam, Trefethen, Fourth-order
time-stepping for stiff PDEs, SIAM J. Sci. Comput. 26, 2005. Hochbruck, Ostermann, Exponential integrators, Acta Numerica 19,
2010 (loss of order by boundary conditions).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...core.memory import Memory, Tensors
from ..constants import Constants, as_given
from .slots import Forced
from .spectral import ETDRK4, below_two_thirds, frequencies

__all__ = ["BurgersWalls"]


class BurgersWalls(Forced):
    """u(0) and the forcing -> u at equally spaced times; values at the centres of cells, u = 0 at both walls.

    Args:
        size: number of points n, >= 4.
        viscosity: nu >= 0, length^2 / time. A front, of width nu / |u|, must span some points.
        slots: equal time intervals on each of which f is constant, >= 0; divides `steps`. 0: no forcing.
        length: L, between the walls.
        time, steps, save, memory: see `Evolution`.

    Shapes: (B, 1 + slots, n), u(0), in length / time, before the slots of f, in length / time^2 -> (B, save, n).

    Raises:
        ConfigError: an argument is out of its range.
        NumericalError: an initial or a saved state too fast for the step (see `courant`), or not finite.
    """

    def __init__(
        self,
        size: int,
        viscosity: float = 0.01,
        *,
        slots: int = 0,
        length: float = 1.0,
        time: float = 1.0,
        steps: int = 512,
        save: int = 1,
        memory: str | Memory = "checkpoint(step)",
    ) -> None:
        super().__init__(size, viscosity, slots=slots, length=length, time=time, steps=steps, save=save, memory=memory)
        self.stepper = ETDRK4(-viscosity * frequencies(2 * size, 2.0 * length, half=True).square(), time / steps)
        keep = below_two_thirds(2 * size, half=True).double()
        k = keep * frequencies(2 * size, 2.0 * length, half=True, odd=True)
        self.fastest = float(k.max())
        self.constants = Constants(as_given, keep, -0.5j * k)

    def rate(self, u: Tensor) -> Tensor:
        return u[:, :1].abs().flatten(1).amax(1) * self.fastest

    def extra_repr(self) -> str:
        return (
            f"size={self.size}, viscosity={self.viscosity}, slots={self.slots}, length={self.length}, time={self.time}, "
            f"steps={self.steps}, save={self.save}"
        )

    def advance(self, v: Tensor, force: Tensor | None) -> Tensors:
        return (self.stepper(v, partial(self._nonlinear, force=force)),)

    def _nonlinear(self, v: Tensor, force: Tensor | None) -> Tensor:
        keep, flux = self.constants(v)
        rate = flux * torch.fft.rfft(torch.fft.irfft(keep * v, n=2 * self.size).square())
        return rate if force is None else rate + force

    def into(self, u: Tensor) -> Tensor:
        """FFT of the odd continuation, (B, rows, n) -> (B, rows, n + 1)."""
        if not u.numel():
            return u.new_zeros(*u.shape[:-1], u.shape[-1] + 1, dtype=torch.promote_types(u.dtype, torch.complex64))
        return torch.fft.rfft(torch.cat((u, -u.flip(-1)), -1))

    def back(self, v: Tensor) -> Tensor:
        """The points between the walls."""
        return torch.fft.irfft(v, n=2 * self.size)[..., : self.size]
