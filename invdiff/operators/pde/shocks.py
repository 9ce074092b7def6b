"""Burgers' equation with shocks and forcing, by finite volumes.

    u_t + (u^2 / 2)_x = nu u_xx + f(t, x)       on (0, length), n cells of h = length / n, f constant on each slot of time

    N(u)_i = -(F_{i+1/2} - F_{i-1/2}) / h + f_i,    F_{i+1/2} = F(u_i + s_i / 2, u_{i+1} - s_{i+1} / 2)
    (L u)_i = nu (u_{i-1} - 2 u_i + u_{i+1}) / h^2

Space: MUSCL with slopes limited by monotonized central differences (MC), s = minmod(2 d^-, (d^- + d^+) / 2, 2 d^+), and with p
before and q behind a face the flux of Godunov, max(max(p, 0)^2, min(q, 0)^2) / 2, or of Rusanov, (p^2 + q^2) / 4 -
max(|p|, |q|) (q - p) / 2. Order 2 where u is smooth and has no extremum, which the limiter clips; order 1 in L1 about a shock.
With u = 0 at the walls, the cells beyond are mirrored and negated, and the flux of a wall is Godunov's against 0.

Time: an IMEX Runge-Kutta method of order 2. Its explicit part, for N, is strong stability preserving (SSP); its implicit part,
for L, has one matrix, diagonal in the FFT of the periodic, or oddly continued, cells:

    U_j = u + dt sum_{k<j} (a_jk N(U_k) + b_jk L U_k) + d dt L U_j,   U_1 = u,     u(t + dt) = u + dt sum_j w_j (N + L)(U_j)

Both parts have the same abscissae and weights: order 2 follows, and steady states N + L u = 0 are kept to round-off whatever
dt, which a splitting would not do.

    scheme    explicit part              abscissae   weights         implicit part                            R(infinity)
    ssprk2    nu = 0: SSP-RK2, order 2   0, 1        1/2, 1/2
              nu > 0: SSP-RK(3, 2)       0, 1/2, 1   1/3, 1/3, 1/3   b = 1/6; 1/3, 1/3; d = 1/3               -1/2
    ssprk3    SSP-RK3, order 3           0, 1, 1/2   1/6, 1/6, 2/3   b = 3/5; 1/25, 3/50; d = 2/5              0.875

R(infinity) is the factor of the stiffest modes of diffusion in a step: they are damped. For nu > 0 the linear scheme (one
speed, slopes not limited) is stable for Courant numbers c = dt max|u| / h up to 0.9 at every nu dt / h^2. SSP-RK2 with
Crank-Nicolson is not: its stiff modes have the factor -1 - dt N, and at c = 0.9 it grows from nu dt / h^2 = 1.7 on
(`tests/exact/test_pde_shocks.py` holds both). For nu = 0 both schemes are total variation diminishing (f = 0) for c up to 1/2,
and linearly stable up to 1, above which a state is refused.

Of a u(0) that is not 0 at a wall the first steps lose the layer of width sqrt(nu dt) that it makes: errors are of order 3/2 in
dt, order 2 in h where steps grow as n^2, 3/2 where they grow as n.

The map is differentiable but where an argument of the limiter or of the flux ties with another: there autograd takes a
derivative of one side, or between the sides. Steps next to such a kink have no Taylor remainder of second order.

References: van Leer, Towards the ultimate conservative difference scheme IV and V, JCP 23, 1977 and 32, 1979. Gottlieb, Shu,
Tadmor, Strong stability-preserving high-order time discretization methods, SIAM Review 43, 2001. Pareschi, Russo,
Implicit-explicit Runge-Kutta schemes and applications to hyperbolic systems with relaxation, J. Sci. Comput. 25, 2005.
"""

from __future__ import annotations

from math import pi
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...core.memory import Memory, Tensors
from ..constants import Constants
from .slots import Forced

__all__ = ["Boundary", "BurgersShocks", "Flux", "Stages"]

Flux = Literal["godunov", "rusanov"]
Boundary = Literal["dirichlet", "periodic"]
Stages = Literal["ssprk2", "ssprk3"]

# of each stage after the first: explicit and implicit weights of the stages before it; weights of all at the end; d
_TABLES = {
    ("ssprk2", False): ((((1.0,), (0.0,)),), (0.5, 0.5), 0.0),
    ("ssprk2", True): (
        (((0.5,), (1.0 / 6.0,)), ((0.5, 0.5), (1.0 / 3.0, 1.0 / 3.0))),
        (1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0),
        1.0 / 3.0,
    ),
    ("ssprk3", False): ((((1.0,), (0.0,)), ((0.25, 0.25), (0.0, 0.0))), (1.0 / 6.0, 1.0 / 6.0, 2.0 / 3.0), 0.0),
    ("ssprk3", True): ((((1.0,), (0.6,)), ((0.25, 0.25), (0.04, 0.06))), (1.0 / 6.0, 1.0 / 6.0, 2.0 / 3.0), 0.4),
}


class BurgersShocks(Forced):
    """u(0) and the forcing -> u at equally spaced times; averages over cells.

    Args:
        size: number of cells n, >= 4.
        viscosity: nu >= 0, length^2 / time.
        slots: equal time intervals on each of which f is constant, >= 0; divides `steps`. 0: no forcing.
        boundary: "dirichlet", u = 0 at both walls, or "periodic".
        flux: "godunov" or "rusanov".
        scheme: "ssprk2" or "ssprk3".
        length: of the interval.
        time, steps, save, memory: see `Evolution`.

    Shapes: (B, 1 + slots, n), u(0), in length / time, before the slots of f, in length / time^2 -> (B, save, n).

    Raises:
        ConfigError: an argument is out of its range or unknown.
        NumericalError: an initial or a saved state too fast for the step (see `courant`), or not finite.
    """

    reach: ClassVar[float] = 1.0
    number: ClassVar[str] = "dt max|u| / h"

    def __init__(
        self,
        size: int,
        viscosity: float = 0.01,
        *,
        slots: int = 0,
        boundary: Boundary = "dirichlet",
        flux: Flux = "godunov",
        scheme: Stages = "ssprk2",
        length: float = 1.0,
        time: float = 1.0,
        steps: int = 512,
        save: int = 1,
        memory: str | Memory = "checkpoint(step)",
    ) -> None:
        super().__init__(size, viscosity, slots=slots, length=length, time=time, steps=steps, save=save, memory=memory)
        for name, value, kind in (("boundary", boundary, Boundary), ("flux", flux, Flux), ("scheme", scheme, Stages)):
            if value not in get_args(kind):
                raise ConfigError(f"BurgersShocks: expected {name} of {', '.join(get_args(kind))}, got {value!r}")
        self.boundary, self.flux, self.scheme = boundary, flux, scheme
        self.spacing, self.interval = length / size, time / steps
        self.table = _TABLES[scheme, viscosity > 0.0]
        stiffness = self.table[2] * self.interval * viscosity / self.spacing**2
        self.constants = Constants(_damping, stiffness * _eigenvalues(size, boundary))

    def rate(self, u: Tensor) -> Tensor:
        return u[:, :1].abs().flatten(1).amax(1) / self.spacing

    def advance(self, v: Tensor, force: Tensor | None) -> Tensors:
        stages, weights, diagonal = self.table
        explicit, implicit = [self._explicit(v, force)], [self._diffusion(v)] if self.viscosity else []
        for a, b in stages:
            stage = self._sum(self._sum(v, a, explicit), b, implicit)
            if self.viscosity:
                start, stage = stage, self._solve(stage)
                implicit.append((stage - start) * (1.0 / (diagonal * self.interval)))
            explicit.append(self._explicit(stage, force))
        return (self._sum(self._sum(v, weights, explicit), weights, implicit),)

    def extra_repr(self) -> str:
        return (
            f"size={self.size}, viscosity={self.viscosity}, slots={self.slots}, boundary={self.boundary}, flux={self.flux}, "
            f"scheme={self.scheme}, length={self.length}, time={self.time}, steps={self.steps}, save={self.save}"
        )

    def _sum(self, u: Tensor, weights: tuple[float, ...], rates: list[Tensor]) -> Tensor:
        for weight, rate in zip(weights, rates, strict=False):
            if weight:
                u = torch.add(u, rate, alpha=weight * self.interval)
        return u

    def _solve(self, u: Tensor) -> Tensor:
        """(1 - d dt L)^-1 u."""
        (damping,) = self.constants(u)
        # between walls of u = 0 the odd continuation, of twice the length, is periodic
        wide = u if self.boundary == "periodic" else torch.cat((u, -u.flip(-1)), -1)
        return torch.fft.irfft(torch.fft.rfft(wide) * damping, n=wide.shape[-1])[..., : self.size]

    def _diffusion(self, u: Tensor) -> Tensor:
        """L u."""
        return self._beyond(u, 1).diff(n=2, dim=-1) * (self.viscosity / self.spacing**2)

    def _beyond(self, u: Tensor, cells: int) -> Tensor:
        """u and some cells beyond both ends."""
        first, last = u[..., :cells], u[..., -cells:]
        parts = (last, u, first) if self.boundary == "periodic" else (-first.flip(-1), u, -last.flip(-1))
        return torch.cat(parts, -1)

    def _explicit(self, u: Tensor, force: Tensor | None) -> Tensor:
        """N(u)."""
        wide = self._beyond(u, 2)
        half = 0.5 * _limited(wide.diff(dim=-1))
        before, behind = (wide[..., 1:-1] + half)[..., :-1], (wide[..., 1:-1] - half)[..., 1:]
        flux = _godunov(before, behind) if self.flux == "godunov" else _rusanov(before, behind)
        if self.boundary == "dirichlet":
            first, last = behind[..., :1].clamp(max=0.0), before[..., -1:].clamp(min=0.0)
            flux = torch.cat((0.5 * first.square(), flux[..., 1:-1], 0.5 * last.square()), -1)
        rate = flux.diff(dim=-1) / -self.spacing
        return rate if force is None else rate + force


def _eigenvalues(size: int, boundary: Boundary) -> Tensor:
    """Of the negative second difference of a unit spacing, in the order of the real FFT of the periodic cells."""
    period = size if boundary == "periodic" else 2 * size
    return 4.0 * (pi * torch.arange(period // 2 + 1, dtype=torch.float64) / period).sin().square()


def _damping(stiffness: Tensor) -> tuple[Tensor]:
    return (1.0 / (1.0 + stiffness),)


def _limited(d: Tensor) -> Tensor:
    """MC slopes of n cells from the n + 1 differences to their neighbours."""
    before, behind = d[..., :-1], d[..., 1:]
    centre = 0.5 * (before + behind)
    bound = 2.0 * torch.minimum(before.abs(), behind.abs())
    slope = torch.minimum(torch.maximum(centre, -bound), bound)
    return torch.where(before * behind > 0.0, slope, 0.0)


def _godunov(before: Tensor, behind: Tensor) -> Tensor:
    return 0.5 * torch.maximum(before.clamp(min=0.0).square(), behind.clamp(max=0.0).square())


def _rusanov(before: Tensor, behind: Tensor) -> Tensor:
    fastest = torch.maximum(before.abs(), behind.abs())
    return 0.25 * (before.square() + behind.square()) - 0.5 * fastest * (behind - before)
