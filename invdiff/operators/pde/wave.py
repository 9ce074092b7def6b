"""Acoustic waves of point sources, recorded by receivers: the forward map of full-waveform inversion.

    p_tt / c^2 = lap p + sum_s w(t) delta(x - x_s),      p = p_t = 0 at t = 0,      d(t) = p(x_r, t)

in two dimensions, by the leap-frog scheme: of second order in time, of order 2, 4, 6 or 8 in space, the Laplacian made of
staggered differences, -G^T G. Absorbing layers around the grid let waves out (`wave_layers`). Away from their damping a step is

    p_{n+1} = 2 p_n - p_{n-1} + (c dt)^2 (-G^T G p_n + w(t_n) s),

s the interpolation weights of the source over the area of a cell. With walls and no source it keeps the energy

    E_{n+1/2} = |(p_{n+1} - p_n) / (c dt)|^2 / 2 + <G p_{n+1}, G p_n> / 2

to rounding, and is stable for dt max(c) sum_j |a_j| sqrt(1 / h_z^2 + 1 / h_x^2) <= 1; a velocity beyond that is refused. The
scheme is symmetric, with layers too: swapping source and receiver gives the same trace.

The number of steps is fixed and the derivative that of the discrete scheme, exactly. The one non-linear term is the product
of c^2 with the Laplacian, so that autograd keeps one field of a step, and a stored state is four.

References: Alford, Kelly, Boore, Accuracy of finite-difference modeling of the acoustic wave equation, Geophysics 39, 1974.
Tarantola, Inversion of seismic reflection data in the acoustic approximation, Geophysics 49, 1984. Grote, Sim, Efficient PML
for the wave equation, 2010, arXiv:1001.0319.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import ceil, inf, pi

import torch
from torch import Tensor
from torch.func import debug_unwrap

from ...core.errors import ConfigError, DataError, NumericalError, ShapeError, require_positive
from ...core.memory import Memory
from ...core.operator import Operator
from ...core.policies import Full
from ..constants import Constants
from .wave_layers import Layers

__all__ = ["AcousticWave", "line", "ricker"]

Positions = Tensor | Sequence[Sequence[float]]
State = tuple[Tensor, Tensor, Tensor, Tensor]


def ricker(frequency: float, dt: float, samples: int, delay: float | None = None) -> Tensor:
    """(1 - 2 a) exp(-a), a = (pi frequency (t - delay))^2, at t = 0, dt, ...: (samples,) float64.

    Args:
        frequency: at which the spectrum is largest, Hz.
        dt: seconds between samples.
        delay: time of the crest, seconds; None for 1.5 / frequency, where the wavelet begins at -1e-8.
    """
    t = dt * torch.arange(samples, dtype=torch.float64) - (1.5 / frequency if delay is None else delay)
    a = (pi * frequency * t).square()
    return (1.0 - 2.0 * a) * (-a).exp()


def line(first: Sequence[float], last: Sequence[float], count: int) -> Tensor:
    """Positions at equal distances from the first to the last, (count, 2)."""
    if count < 1:
        raise ConfigError(f"line: expected count >= 1, got {count}")
    a, b = (torch.tensor(tuple(p), dtype=torch.float64) for p in (first, last))
    return a + (b - a) * torch.linspace(0.0, 1.0, count, dtype=torch.float64)[:, None]


class AcousticWave(Operator):
    """Traces of some shots in a velocity; non-linear in it.

    Args:
        size: points (H, W) of the grid, depth first.
        sources: (shots, 2) depth and distance from the first point, in metres; between points by bilinear interpolation.
        receivers: (R, 2), the same for all shots, or (shots, R, 2), likewise.
        spacing: of the points, metres; one number, or one for each axis.
        dt: seconds of a step.
        steps: number of steps.
        frequency: of a Ricker wavelet, Hz.
        wavelet: w(t) at t = 0, dt, ..., (steps,) or (shots, steps), instead of it.
        order: of the scheme in space, 2, 4, 6 or 8.
        layer: width of the absorbing layers, in points; 0 for walls where the pressure is zero.
        surface: a free surface, one spacing above the first row, where the pressure is zero.
        fastest: the highest velocity that is expected, metres per second: the layers are made for it.
        every: steps between samples; divides `steps`.
        stretch: steps that are one step of the memory policy; None for about sqrt(steps).
        memory: policy of what is kept for the derivative. The transforms of torch.func keep everything.

    Shapes: velocity (B, 1, H, W), metres per second -> pressure (B, shots, R, steps / every), sample j at the time
    (j + 1) every dt. Its unit is that of w (w is pressure: in two dimensions a source is one per length squared).

    Raises:
        ConfigError: an argument is out of its range, or dt too large for `fastest`.
        ShapeError: positions or a wavelet of another shape.
        DataError: in a call, a velocity that is not positive and finite.
        NumericalError: in a call, a velocity too high for the step (see `courant`).
    """

    def __init__(
        self,
        size: Sequence[int],
        sources: Positions,
        receivers: Positions,
        *,
        spacing: float | Sequence[float] = 10.0,
        dt: float = 1e-3,
        steps: int = 1000,
        frequency: float = 10.0,
        wavelet: Tensor | Sequence[float] | Sequence[Sequence[float]] | None = None,
        order: int = 4,
        layer: int = 20,
        surface: bool = False,
        fastest: float = 4500.0,
        every: int = 1,
        stretch: int | None = None,
        memory: str | Memory = "checkpoint(step)",
    ) -> None:
        n, m = size
        h = (float(spacing),) * 2 if isinstance(spacing, int | float) else (float(spacing[0]), float(spacing[1]))
        at, to = (torch.as_tensor(p, dtype=torch.float64) for p in (sources, receivers))
        if at.ndim != 2 or at.shape[-1] != 2 or to.ndim not in (2, 3) or to.shape[-1] != 2 or not at.numel() * to.numel():
            raise ShapeError(f"AcousticWave: expected sources (shots, 2) and receivers (R, 2), got {_shapes(at, to)}")
        if to.ndim == 3 and len(to) != len(at):
            raise ShapeError(f"AcousticWave: expected receivers (shots, R, 2) for each source, got {_shapes(at, to)}")
        require_positive(self, spacing=min(h), dt=dt, frequency=frequency, fastest=fastest)
        if order not in (2, 4, 6, 8) or layer < 0 or min(n, m) < order:
            raise ConfigError(
                f"AcousticWave: expected an order of 2, 4, 6, 8, layer >= 0 and a size of at least the order, got {order}, "
                f"{layer}, {(n, m)}"
            )
        if steps < 1 or every < 1 or steps % every or (stretch is not None and stretch < 1):
            raise ConfigError(
                f"AcousticWave: expected every >= 1 that divides steps >= 1, and stretch >= 1, got {every}, {steps}, {stretch}"
            )
        super().__init__((1, n, m), (len(at), to.shape[-2], steps // every))
        self.layers = Layers((n, m), h, layer, order, surface, fastest, 1e-4)
        self.dt, self.steps, self.every, self.memory = dt, steps, every, Memory.parse(memory)
        self.stretch = max(1, round(steps**0.5)) if stretch is None else stretch
        if self._number(fastest) > 1.0:
            longest = dt / self._number(fastest)
            raise ConfigError(
                f"AcousticWave: dt = {dt:g} is too long for layers of {layer} points and a velocity of {fastest:g}: give "
                f"dt <= {longest:.3g}"
            )
        w = ricker(frequency, dt, steps) if wavelet is None else torch.as_tensor(wavelet, dtype=torch.float64).detach()
        if w.shape not in ((steps,), (len(at), steps)):
            raise ShapeError(f"AcousticWave: expected a wavelet (steps,) or (shots, steps), got {tuple(w.shape)}")
        if not bool(w.isfinite().all()):
            raise ConfigError(f"AcousticWave: expected a finite wavelet, {int((~w.isfinite()).sum())} of its values are not")
        for name, points in (("source", at), ("receiver", to)):
            place = points / torch.tensor(h, dtype=torch.float64)
            inside = ((place >= -1e-9) & (place <= torch.tensor([n - 1, m - 1]) + 1e-9)).all(-1)
            if not bool(inside.all()):
                raise ConfigError(f"AcousticWave: {name} at {points[~inside][0].tolist()} lies outside the grid")
        self.constants = Constants(partial(_constants, self.layers, dt), at, to, w.reshape(-1, steps))

    def forward(self, x: Tensor) -> Tensor:
        self._require_stable(x)
        weights = self._weights(x)
        edges = [*range(0, self.steps, self.stretch), self.steps]
        moves = [partial(self._move, weights, range(a, b)) for a, b in pairwise(edges)]
        memory = self.memory if debug_unwrap(x) is x else Memory.parse("full")
        return torch.cat(memory.chain(moves, self._rest(x))[4:], -1)

    def field(self, x: Tensor) -> Tensor:
        """Pressure at all points and times, (B, shots, steps, *layers.full), at dt, 2 dt, ...; layers included (`inside`)."""
        self.check(x, "x")
        self._require_stable(x)
        weights, state, fields = self._weights(x), self._rest(x), []
        for n in range(self.steps):
            state = self._advance(weights, n, state)
            fields.append(state[0])
        return torch.stack(fields, 2)

    def inside(self, u: Tensor) -> Tensor:
        """A field without its layers, (..., *layers.full) -> (..., H, W)."""
        (n, m), before = self.layers.size, (self.layers.top, self.layers.width)
        return u[..., before[0] : before[0] + n, before[1] : before[1] + m]

    def record(self, u: Tensor) -> Tensor:
        """The traces of a field, (B, shots, steps, *layers.full) -> (B, *out_shape)."""
        taken = u[:, :, self.every - 1 :: self.every].movedim(2, 0)
        constants = self.constants(u)
        return torch.stack([_taken(p, constants[1], constants[2]) for p in taken], -1)

    def residual(self, x: Tensor, u: Tensor) -> Tensor:
        """What each time of a `field` misses of the step from the two times before it, of its shape and unit."""
        self.check(x, "x")
        want = (len(x), self.out_shape[0], self.steps, *self.layers.full)
        if u.shape != want:
            raise ShapeError(f"AcousticWave: expected a field {want}, got {tuple(u.shape)}")
        weights, state, rest = self._weights(x), self._rest(x), []
        for n in range(self.steps):
            after, before, *phi = self._advance(weights, n, state)
            rest.append(u[:, :, n] - after)
            state = u[:, :, n], before, phi[0], phi[1]
        return torch.stack(rest, 2)

    def courant(self, x: Tensor) -> Tensor:
        """dt max(c) sum |a_j| sqrt(1 / h_z^2 + 1 / h_x^2), with a little for the layers, of each item; above 1 is refused."""
        return torch.as_tensor(self._number(x.detach().flatten(1).amax(1)))

    def vjp(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The value at x and the pullback; by autograd, so that the memory policy holds."""
        return super().vjp(x) if debug_unwrap(x) is not x else self.vjp_by_autograd(x)

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """As for any operator; where the memory policy is "full", all products share the states of one run.

        The derivative is then a run of the scheme with what the velocity drives as its source.
        """
        self.check(x, "x")
        if not isinstance(self.memory, Full) or debug_unwrap(x) is not x:
            return super().linearize(x)
        self._require_stable(x)
        pulls: list[Tensor] = []
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            weights = self._weights(at)
            y = self._traces(weights, lambda n, state: self._advance(weights, n, state, pulls), self._rest(at))
        fixed = [w.detach() for w in weights]

        @torch.no_grad()
        def push(t: Tensor) -> Tensor:
            change = 2.0 * self.constants(x)[6] * self.layers.extend(x) * self.layers.extend(t.detach())

            def advance(n: int, state: State) -> State:
                pull, *fields = self._pull(fixed, state)
                q = torch.addcmul(self._coasting(fixed, state), fixed[0], pull, value=-1.0)
                return q.addcmul_(change, pulls[n], value=-1.0), state[0], fields[0], fields[1]

            return self._traces(fixed, advance, self._rest(t.detach()))

        return y.detach(), push, lambda v: torch.autograd.grad(y, at, v.detach(), retain_graph=True)[0]

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}, spacing={self.layers.spacing}, dt={self.dt}, order={self.layers.order}"

    def _rest(self, x: Tensor) -> State:
        shape, (down, across) = (len(x), self.out_shape[0], *self.layers.full), self.layers.differences
        p = x.new_zeros(shape)
        return p, p, torch.zeros_like(down.apply(p)), torch.zeros_like(across.apply(p))

    def _weights(self, x: Tensor) -> tuple[Tensor, ...]:
        """Those of a step in this velocity: of what drives p, and the constant ones."""
        source, index, share, wavelet, now, before, drive, *phi = self.constants(x)
        return drive * self.layers.extend(x).square(), source, index, share, wavelet, now, before, *phi

    def _advance(self, weights: Sequence[Tensor], n: int, state: State, pulls: list[Tensor] | None = None) -> State:
        """p_{n+1}, p_n and the fields of the layers, from p_n, p_{n-1} and theirs; what the velocity scales goes to `pulls`."""
        pull, *fields = self._pull(weights, state)
        # with the source in it, the factor that depends on the velocity is one
        pull = torch.addcmul(pull, weights[1], weights[4][:, n, None, None], value=-1.0)
        if pulls is not None:
            pulls.append(pull.detach())
        return torch.addcmul(self._coasting(weights, state), weights[0], pull, value=-1.0), state[0], fields[0], fields[1]

    def _coasting(self, weights: Sequence[Tensor], state: State) -> Tensor:
        """p_{n+1} where nothing pulls."""
        return torch.addcmul(weights[5] * state[0], weights[6], state[1], value=-1.0)

    def _pull(self, weights: Sequence[Tensor], state: State) -> tuple[Tensor, Tensor, Tensor]:
        """G^T G p_n with the layers in it, and the fields of the layers after the step."""
        phi, (p, _, *fields) = weights[7:], state
        parts, after = [], []
        for k, difference in enumerate(self.layers.differences):
            own, mean, gain, keep = phi[4 * k : 4 * k + 4]
            g = difference(p)
            parts.append(difference.transpose(torch.addcmul(own * g, mean, fields[k])))
            after.append(torch.addcmul(gain * g, keep, fields[k]))
        return parts[0] + parts[1], after[0], after[1]

    def _traces(self, weights: Sequence[Tensor], advance: Callable[[int, State], State], state: State) -> Tensor:
        """What the receivers record of all steps."""
        taken = []
        for n in range(self.steps):
            state = advance(n, state)
            if (n + 1) % self.every == 0:
                taken.append(_taken(state[0], weights[2], weights[3]))
        return torch.stack(taken, -1)

    def _move(self, weights: tuple[Tensor, ...], steps: range, *state: Tensor) -> tuple[Tensor, ...]:
        """A stretch of steps; the traces that it records are put behind the state."""
        now: State = state[:4]  # type: ignore[assignment]
        taken = []
        for n in steps:
            now = self._advance(weights, n, now)
            if (n + 1) % self.every == 0:
                taken.append(_taken(now[0], weights[2], weights[3]))
        return (*now, *state[4:], torch.stack(taken, -1)) if taken else (*now, *state[4:])

    def _number(self, speed: Tensor | float) -> Tensor | float:
        return self.dt / 2.0 * ((speed * self.layers.sharpest) ** 2 + self.layers.strongest**2) ** 0.5

    def _require_stable(self, x: Tensor) -> None:
        c = debug_unwrap(x.detach()).reshape(-1, *self.in_shape)
        bad = (~((c > 0.0) & (c < inf)).flatten(1).all(1)).nonzero()
        if len(bad):
            low, high = (float(v) for v in c[int(bad[0])].aminmax())
            raise DataError(
                f"AcousticWave: expected a velocity > 0 and finite, item {int(bad[0])} lies in [{low:.3g}, {high:.3g}]"
            )
        if not len(c):
            return
        high = float(c.max())
        worst = float(self._number(high))
        if worst > 1.0:
            raise NumericalError(
                f"AcousticWave: expected a courant number <= 1, got {worst:.4g} for a velocity of {high:.4g}: give dt <= "
                f"{self.dt / worst:.3g} and fastest >= {ceil(high)}"
            )


def _shapes(*tensors: Tensor) -> str:
    return " and ".join(str(tuple(t.shape)) for t in tensors)


def _taken(p: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """(B, shots, *full) at the receivers, (B, shots, R), by `index` and `share` (shots or 1, taps, R)."""
    shots = torch.arange(p.shape[1], device=p.device)[:, None]
    # not by gather, which would keep p for its derivative
    values = p.flatten(-2)[:, shots, index.flatten(1)]
    return (values.unflatten(-1, index.shape[1:]) * share).sum(-2)


def _constants(layers: Layers, dt: float, at: Tensor, to: Tensor, wavelet: Tensor) -> tuple[Tensor, ...]:
    """Source densities (shots, *full), places and shares of receivers, the wavelet, and the tables of a step."""
    place, weight = layers.taps(at[:, None])
    source = torch.zeros(len(at), layers.full[0] * layers.full[1], dtype=torch.float64)
    source.scatter_add_(1, place[..., 0], weight[..., 0])
    density = source.reshape(-1, *layers.full) / (layers.spacing[0] * layers.spacing[1])
    return density, *layers.taps(to.reshape(-1, *to.shape[-2:])), wavelet, *layers.tables(dt)
