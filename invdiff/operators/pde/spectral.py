"""Periodic semilinear equations by a spectral method in space and ETDRK4 in time.

    u_t = L u + N(u),      v = F u,      v_t = l v + F N(F^-1 v),      h = T / steps

    a = e^{lh/2} v + q N(v)              v(t + h) = e^{lh} v + f1 N(v) + 2 f2 (N(a) + N(b)) + f3 N(c)
    b = e^{lh/2} v + q N(a)              q  = h (e^{z/2} - 1) / z                      at z = l h
    c = e^{lh/2} a + q (2 N(b) - N(v))   f1 = h (-4 - z + e^z (4 - 3 z + z^2)) / z^3
                                         f2 = h (2 + z + e^z (z - 2)) / z^3
                                         f3 = h (-4 - 3 z - z^2 + e^z (4 - z)) / z^3

The linear part is exact, the rest of order 4. The coefficients lose all digits near z = 0 as they are written; they are means
over a circle of radius 1 about z instead. Products are formed of the modes |k| < n / 3 alone and cut to them (the 2/3 rule), so
that they are free of aliasing and the truncated equation keeps the quadratic invariants of the true one; modes above follow the
linear part. The Nyquist mode has no odd derivative.

    Burgers                 u_t + u u_x = nu u_xx
    KdV                     u_t + 6 u u_x + u_xxx = 0
    Kuramoto-Sivashinsky    u_t + u u_x + u_xx + u_xxxx = 0

The number of steps is fixed: the map is smooth and its derivative that of the discrete scheme, exactly. Where the linear part
damps little, a step is stable only for h max|speed| k_max below 2.8, the reach of a Runge-Kutta method of order 4 on the
imaginary axis; an initial state beyond it is refused.

References: Cox, Matthews, Exponential time differencing for stiff systems, JCP 176, 2002. Kassam, Trefethen, Fourth-order
time-stepping for stiff PDEs, SIAM J. Sci. Comput. 26, 2005.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from math import ceil, inf, pi
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import debug_unwrap

from ...core.errors import ConfigError, NumericalError, require_positive
from ...core.memory import Closed, Memory
from ...core.operator import Operator
from ...core.policies import Full
from ..constants import Constants, as_given

__all__ = ["ETDRK4", "Burgers", "Evolution", "KdV", "KuramotoSivashinsky", "below_two_thirds", "frequencies"]

REACH = 2.8


def frequencies(size: int, length: float, *, half: bool, odd: bool = False) -> Tensor:
    """Angular wave numbers of an axis, radians per unit of `length`, in (real: `half`) FFT order; for `odd`, 0 at Nyquist."""
    k = 2.0 * pi * (torch.fft.rfftfreq if half else torch.fft.fftfreq)(size, length / size, dtype=torch.float64)
    if odd and size % 2 == 0:
        k[size // 2] = 0.0
    return k


def below_two_thirds(size: int, *, half: bool) -> Tensor:
    """Boolean, the modes whose pairwise products alias onto none of them."""
    return 3 * (frequencies(size, size, half=half) * size / (2.0 * pi)).round().abs() < size


def _coefficients(symbol: Tensor, step: float, points: int = 32) -> tuple[Tensor, ...]:
    """e^z, e^{z/2}, q, f1, f2, f3 at z = step * symbol; real for a real symbol."""
    angle = 2.0 * pi * (torch.arange(points, dtype=torch.float64) + 0.5) / points
    z = step * symbol.unsqueeze(-1) + torch.polar(torch.ones_like(angle), angle)
    e, cube = z.exp(), z**3
    terms = (
        ((z / 2.0).exp() - 1.0) / z,
        (-4.0 - z + e * (4.0 - 3.0 * z + z**2)) / cube,
        (2.0 + z + e * (z - 2.0)) / cube,
        (-4.0 - 3.0 * z - z**2 + e * (4.0 - z)) / cube,
    )
    means = (step * t.mean(-1) for t in terms)
    real = not symbol.is_complex()
    return (step * symbol).exp(), (step * symbol / 2.0).exp(), *(m.real if real else m for m in means)


class ETDRK4(nn.Module):
    """One step of v_t = l v + n(v) for a diagonal l.

    Args:
        symbol: l, real or complex, broadcastable to the spectrum, in 1 / time.
        step: h, > 0, in the unit of time.
    """

    def __init__(self, symbol: Tensor, step: float) -> None:
        super().__init__()
        require_positive(self, step=step)
        self.constants = Constants(partial(_coefficients, step=step), symbol)

    def forward(self, v: Tensor, nonlinear: Callable[[Tensor], Tensor]) -> Tensor:
        """v at the next time, of the shape of v, complex."""
        e, half, q, f1, f2, f3 = self.constants(v)
        n = nonlinear(v)
        a = half * v + q * n
        n_a = nonlinear(a)
        n_b = nonlinear(half * v + q * n_a)
        n_c = nonlinear(half * a + q * (2.0 * n_b - n))
        return e * v + f1 * n + 2.0 * f2 * (n_a + n_b) + f3 * n_c


class Evolution(Operator):
    """u(0) -> u(T), by equal steps; the state is real, on the grid.

    Args:
        size: of the grid.
        time: T, > 0.
        steps: number of steps to T, >= 1.
        save: number of equally spaced times kept as channels, the last one T; divides `steps`.
        memory: policy of what is kept for the derivative, of each stretch between saved times. The transforms of torch.func,
            which have no hooks for recomputation, keep everything: a composition's `vjp`, say, but not autograd through it.

    Shapes: (B, 1, *size) -> (B, save, *size).

    Raises:
        ConfigError: an argument is out of its range.
        NumericalError: an initial state too fast for the step (see `courant`).
    """

    reach: ClassVar[float] = REACH
    number: ClassVar[str] = "h max|speed| k_max"

    def __init__(self, size: tuple[int, ...], *, time: float, steps: int, save: int, memory: str | Memory) -> None:
        super().__init__((1, *size), (save, *size))
        require_positive(self, time=time)
        if min(size) < 4:
            raise ConfigError(f"{type(self).__name__}: expected a size of at least 4 on each axis, got {size}")
        if steps < 1 or save < 1 or steps % save:
            raise ConfigError(f"{type(self).__name__}: expected save >= 1 that divides steps >= 1, got {save} and {steps}")
        self.time, self.steps, self.save, self.memory = time, steps, save, Memory.parse(memory)

    def step(self, u: Tensor) -> Tensor:
        """The state one step later."""
        raise NotImplementedError(f"{type(self).__name__} does not define step(u)")

    def rate(self, u: Tensor) -> Tensor | None:
        """Largest |speed| k of each item, (B,), in 1 / time; None where no bound of the step is known."""
        raise NotImplementedError(f"{type(self).__name__} does not define rate(u)")

    def courant(self, u: Tensor) -> Tensor | None:
        """The `number` of each item, (B,); a state above `reach` is refused. None where no bound is known."""
        rate = self.rate(u.detach())
        return None if rate is None else rate * (self.time / self.steps)

    def forward(self, x: Tensor) -> Tensor:
        self._require_stable(x)
        states = [x]
        for _ in range(self.save):
            states.append(self._stretch(states[-1]))
        return torch.cat(states[1:], 1)

    def residual(self, x: Tensor, u: Tensor) -> Tensor:
        """What each saved state, (B, save, *size), misses of the one before it (the first of x) carried on by the scheme."""
        self.check(x, "x")
        self.check(u, "y")
        before = torch.cat((x, u[:, :-1]), 1)
        after = self._stretch(before.flatten(0, 1).unsqueeze(1))
        return u - after.reshape(u.shape)

    def vjp(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The value at x and the pullback; by autograd, so that the memory policy holds."""
        return super().vjp(x) if debug_unwrap(x) is not x else self.vjp_by_autograd(x)

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """As for any operator; where the memory policy is "full", all products share the states of one run.

        The derivative is then the adjoint of the adjoint, v -> J^H v being linear in v: a pass through stored graphs, where
        `jvp` runs the scheme again.
        """
        if not isinstance(self.memory, Full) or debug_unwrap(x) is not x:
            return super().linearize(x)
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            y = self(at)
            dummy = torch.zeros_like(y, requires_grad=True)
            back = torch.autograd.grad(y, at, dummy, create_graph=True)[0]

        def push(t: Tensor) -> Tensor:
            return torch.autograd.grad(back, dummy, t.detach(), retain_graph=True)[0]

        def pull(v: Tensor) -> Tensor:
            return torch.autograd.grad(y, at, v.detach(), retain_graph=True)[0]

        return y.detach(), push, pull

    def _stretch(self, u: Tensor) -> Tensor:
        memory = self.memory if debug_unwrap(u) is u else Memory.parse("full")

        def step(u: Tensor) -> tuple[Tensor]:
            return (self.step(u),)

        # a subclass may learn its coefficients; the recomputation of a closed step would not reach them
        learns = any(t.requires_grad for t in chain(self.parameters(), self.buffers()))
        return memory.chain([step if learns else Closed(step)] * (self.steps // self.save), (u,))[0]

    def _require_stable(self, u: Tensor) -> None:
        number = self.courant(u)
        if number is None or not len(u):
            return
        worst = float(debug_unwrap(number).max())
        if not worst <= self.reach:
            advice = f"give steps >= {ceil(self.steps * worst / self.reach)}" if worst < inf else "the state is not finite"
            raise NumericalError(f"{type(self).__name__}: expected {self.number} <= {self.reach:g}, got {worst:.2g}: {advice}")


class _Quadratic(Evolution):
    """u_t = L u - s (u^2)_x on a periodic interval."""

    def __init__(
        self,
        size: int,
        symbol: Callable[[Tensor], Tensor],
        factor: float,
        *,
        length: float,
        time: float,
        steps: int,
        save: int,
        memory: str | Memory,
    ) -> None:
        super().__init__((size,), time=time, steps=steps, save=save, memory=memory)
        self.size, self.length, self.factor = size, length, factor
        require_positive(self, length=length)
        linear = symbol(frequencies(size, length, half=True))
        if size % 2 == 0 and linear.is_complex():
            linear.imag[-1] = 0.0
        self.stepper = ETDRK4(linear, time / steps)
        keep = below_two_thirds(size, half=True).double()
        k = keep * frequencies(size, length, half=True, odd=True)
        self.fastest = float(k.max())
        self.constants = Constants(as_given, keep, -1j * factor * k)

    def rate(self, u: Tensor) -> Tensor | None:
        return 2.0 * abs(self.factor) * u.abs().flatten(1).amax(1) * self.fastest

    def step(self, u: Tensor) -> Tensor:
        return torch.fft.irfft(self.stepper(torch.fft.rfft(u), self._nonlinear), n=self.size)

    def _nonlinear(self, v: Tensor) -> Tensor:
        keep, flux = self.constants(v)
        return flux * torch.fft.rfft(torch.fft.irfft(keep * v, n=self.size).square())


class Burgers(_Quadratic):
    """u_t + u u_x = nu u_xx.

    Args:
        size: number of grid points.
        viscosity: nu >= 0, length^2 / time. Smooth solutions only: a front of width nu / |u| must span some points.
        length: of the period.
        time, steps, save, memory: see `Evolution`.
    """

    def __init__(
        self,
        size: int,
        viscosity: float,
        *,
        length: float = 1.0,
        time: float = 1.0,
        steps: int = 128,
        save: int = 1,
        memory: str | Memory = "checkpoint(step, 8)",
    ) -> None:
        if not 0.0 <= viscosity < inf:
            raise ConfigError(f"Burgers: expected viscosity >= 0, got {viscosity}")

        def symbol(k: Tensor) -> Tensor:
            return -viscosity * k**2

        super().__init__(size, symbol, 0.5, length=length, time=time, steps=steps, save=save, memory=memory)


class KdV(_Quadratic):
    """u_t + 6 u u_x + u_xxx = 0, Korteweg and de Vries; its waves are solitons, c / 2 sech^2(sqrt(c) (x - c t) / 2).

    Args:
        size: number of grid points.
        length: of the period.
        time, steps, save, memory: see `Evolution`.
    """

    def __init__(
        self,
        size: int,
        *,
        length: float = 40.0,
        time: float = 1.0,
        steps: int = 256,
        save: int = 1,
        memory: str | Memory = "checkpoint(step, 8)",
    ) -> None:
        super().__init__(size, lambda k: 1j * k**3, 3.0, length=length, time=time, steps=steps, save=save, memory=memory)


class KuramotoSivashinsky(_Quadratic):
    """u_t + u u_x + u_xx + u_xxxx = 0; chaotic for lengths from about 22.

    The damping of high modes bounds the step, by no simple formula, and delays the order: at 32 points on 22 it is 3.7 from
    h = 0.05 to 0.025 and 3.9 from 0.01 on.

    Args:
        size: number of grid points.
        length: of the period.
        time, steps, save, memory: see `Evolution`.
    """

    def __init__(
        self,
        size: int,
        *,
        length: float = 22.0,
        time: float = 5.0,
        steps: int = 100,
        save: int = 1,
        memory: str | Memory = "checkpoint(step, 8)",
    ) -> None:
        super().__init__(size, lambda k: k**2 - k**4, 0.5, length=length, time=time, steps=steps, save=save, memory=memory)

    def rate(self, u: Tensor) -> Tensor | None:
        return None
