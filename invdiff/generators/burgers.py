"""Trajectories of a controlled Burgers' equation, with the statistics of the data set of WDNO.

    u_t + (u^2 / 2)_x = nu u_xx + f(t, x)     on (0, 1) x (0, T),      u = 0 at the walls,      nu = 0.01,  T = 8

    u(0) = sum over two of a exp(-(x - m)^2 / (2 s^2)):
        m of U[.2, .4] and U[.6, .8], a of U[0, 2] and U[-2, 0], s of U[.05, .15]
    f = 2 sum over eight, the first always on, the others each with probability 1/2, of
        a exp(-(x - m)^2 / (2 s^2) - (t / T - p)^2 / (2 q^2)):   a of U[-1.5, 1.5],  m, p of U[0, 1],  s, q of U[.1, .4]

f is constant on each of equal slots of time, with its value in the middle. The equation is solved by the sine series of
`operators.pde.forced` on the centres of `factor` times more cells, whose values are averaged over the cells of the result; the
published solver takes differences with an explicit step. Since du/dt <= |f| + viscous decay along dx/dt = u, |u|^2 <=
max|u(0)|^2 + 2 max|f| <= 2^2 + 2 * 24, which fixes the number of steps for all samples alike.

References: Hu, Wang et al., Wavelet diffusion neural operator, 2024, arXiv:2412.04833.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, lcm, pi

import torch
from torch import Tensor

from ..core.errors import ConfigError, require_positive
from ..core.rng import Streams
from ..operators.pde.forced import BurgersWalls

__all__ = ["BurgersControl"]

# |u| <= sqrt(2^2 + 2 * 8 * 3) on an interval of length 1
FASTEST = 52.0**0.5


@dataclass(frozen=True, kw_only=True)
class BurgersControl:
    """Initial states, forcings and trajectories; sample k depends on the seed and k alone.

    Args:
        seed: of all samples.
        size: number n of cells of the result, >= 4.
        frames: equally spaced times after 0, the last one `time`.
        slots: time intervals on each of which f is constant.
        viscosity: nu, > 0; fronts, of width 4 nu / |jump|, must span some of the solver's points.
        time: T, > 0.
        factor: the solver has factor * n points, >= 1; each value of the result is the mean of `factor` of them.
        steps: of the solver, a multiple of frames and of slots; None for dt max|u| k_max below 2.5 (stable: 2.8) whatever the
            sample.
        batch: samples solved at once, which bounds the memory and changes results by rounding at most.

    Raises:
        ConfigError: an argument is out of its range.
    """

    seed: int
    size: int = 120
    frames: int = 80
    slots: int = 80
    viscosity: float = 0.01
    time: float = 8.0
    factor: int = 4
    steps: int | None = None
    batch: int = 64

    def __post_init__(self) -> None:
        Streams(self.seed)
        require_positive(self, viscosity=self.viscosity, time=self.time)
        require_positive(self, size=self.size, frames=self.frames, slots=self.slots, factor=self.factor, batch=self.batch)
        if self.steps is not None and self.steps % lcm(self.frames, self.slots):
            raise ConfigError(
                f"BurgersControl: expected steps that frames {self.frames} and slots {self.slots} divide, got {self.steps}"
            )
        self.solver()

    def __call__(
        self, indices: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Some samples: u0 (N, 1, n), f (N, slots, n) and u (N, frames + 1, n), which starts with u0.

        All are means over cells of values at the solver's points. Computed in float64 and rounded once.
        """
        chosen = list(indices)
        parts = [self._solved(chosen[i : i + self.batch], device) for i in range(0, len(chosen), self.batch)]
        if not parts:
            shapes = {"u0": 1, "f": self.slots, "u": self.frames + 1}
            return {name: torch.zeros(0, rows, self.size, dtype=dtype, device=device) for name, rows in shapes.items()}
        return {name: torch.cat([part[name] for part in parts]).to(dtype) for name in parts[0]}

    def solver(self) -> BurgersWalls:
        """From (B, 1 + slots, factor * n), the initial state and the forcing, to the frames, (B, frames, factor * n)."""
        fine, unit = self.factor * self.size, lcm(self.frames, self.slots)
        # waves below 2 / 3 of those of the grid advect
        steps = self.steps or unit * ceil(self.time * FASTEST * (2.0 * pi * fine / 3.0) / 2.5 / unit)
        return BurgersWalls(
            fine, self.viscosity, slots=self.slots, time=self.time, steps=steps, save=self.frames, memory="full"
        )

    def initial(self, indices: Sequence[int], x: Tensor) -> Tensor:
        """u(0) at points x, (points,) in (0, 1): (N, 1, points), float64."""
        draws = Streams(self.seed, list(indices)).uniform(0, (2, 3, 1), "initial", torch.float64, x.device)
        place, amplitude, width = draws.unbind(2)
        first = place.new_tensor([0.2, 0.6]).unsqueeze(1), place.new_tensor([0.0, -2.0]).unsqueeze(1)
        bumps = _bump(x, first[0] + 0.2 * place, 0.05 + 0.1 * width)
        return ((first[1] + 2.0 * amplitude) * bumps).sum(1, keepdim=True)

    def forcing(self, indices: Sequence[int], x: Tensor) -> Tensor:
        """The slots of f at points x, (points,) in (0, 1): (N, slots, points), float64."""
        draws = Streams(self.seed, list(indices)).uniform(0, (8, 6, 1), "forcing", torch.float64, x.device)
        amplitude, place, moment, width, duration, gate = draws.unbind(2)
        on = gate < 0.5
        on[:, 0] = True
        t = (torch.arange(self.slots, dtype=torch.float64, device=x.device) + 0.5) / self.slots
        space, time = _bump(x, place, 0.1 + 0.3 * width), _bump(t, moment, 0.1 + 0.3 * duration)
        return torch.einsum("bkt,bkx->btx", on * (6.0 * amplitude - 3.0) * time, space)

    def _solved(self, indices: list[int], device: torch.device | str) -> dict[str, Tensor]:
        fine = self.factor * self.size
        x = (torch.arange(fine, dtype=torch.float64, device=device) + 0.5) / fine
        with torch.no_grad():
            given = torch.cat((self.initial(indices, x), self.forcing(indices, x)), 1)
            states = torch.cat((given[:, :1], self.solver().to(device)(given)), 1)
        means = [v.unflatten(-1, (self.size, self.factor)).mean(-1) for v in (given, states)]
        return {"u0": means[0][:, :1], "f": means[0][:, 1:], "u": means[1]}


def _bump(x: Tensor, centre: Tensor, width: Tensor) -> Tensor:
    return torch.exp(-0.5 * ((x - centre) / width).square())
