"""Data sets of evolution equations on periodic domains: initial states and what becomes of them.

    KolmogorovFlow     w_t + u . grad w = nu Laplace w - amplitude cos(wave y) on a square of side 2 pi, nu = 1 / Re, from
                       a Gaussian field of unit variance, after a spin-up in which it forgets where it came from
    NavierStokesPairs  w_t + u . grad w = nu Laplace w + 0.1 (sin 2 pi (x + y) + cos 2 pi (x + y)) on the unit torus, from
                       N(0, scale^2 (-Laplace + tau^2)^-alpha)
    BurgersFlow        u_t + u u_x = nu u_xx on the unit interval, from N(0, scale^2 (-Laplace + tau^2)^-alpha)

Sample i is a function of (seed, i) alone; held-out data are another seed. All is computed in float64 and rounded once: a
chaotic flow makes another sample of the rounding of float32, which differs with the batch.

References: Zheng et al., InverseBench, 2025, arXiv:2503.11043 (Kolmogorov flow). Li, Kovachki, Azizzadenesheli, Liu,
Bhattacharya, Stuart, Anandkumar, Fourier neural operator for parametric partial differential equations, 2021,
arXiv:2010.08895.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigError, require_positive
from ..core.rng import Streams
from ..operators.pde import Burgers, NavierStokes2D, kolmogorov
from ..operators.pde.spectral import REACH
from ..priors.field import GaussianField

__all__ = ["BurgersFlow", "KolmogorovFlow", "NavierStokesPairs"]


@dataclass(frozen=True, kw_only=True)
class KolmogorovFlow:
    """Vorticity of the forced flow at equally spaced times: {"w": (N, frames, size, size)}, in 1 / time.

    Args:
        seed: of the set.
        size: points along each side.
        reynolds: 1 / nu.
        wave, amplitude: of the forcing.
        spinup: time before the first frame.
        interval: time between frames.
        frames: number of them.
        steps: of the solver in each unit of time.
    """

    seed: int = 0
    size: int = 64
    reynolds: float = 200.0
    wave: int = 4
    amplitude: float = 4.0
    spinup: float = 5.0
    interval: float = 1.0
    frames: int = 6
    steps: int = 64

    def __post_init__(self) -> None:
        require_positive(self, reynolds=self.reynolds, spinup=self.spinup, interval=self.interval)
        if self.size < 8 or self.frames < 1 or self.steps < 1:
            raise ConfigError(
                f"KolmogorovFlow: expected size >= 8, frames >= 1 and steps >= 1, got {self.size}, {self.frames}, {self.steps}"
            )

    def __call__(
        self, indices: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        side = 2.0 * math.pi
        law = GaussianField.laplacian(
            (1, self.size, self.size),
            scale=1.0,
            tau=7.0 / side,
            alpha=2.5,
            spacing=side / self.size,
            boundary="periodic",
            zero_mean=True,  # as the curl of a periodic flow has
        )
        start = law.to(device).sample(Streams(self.seed, indices), torch.float64)
        start = start / law.spectrum.mean().sqrt()
        states = [self.solver(self.spinup).to(device)(start)]
        if self.frames > 1:
            after = self.solver(self.interval).to(device)
            for _ in range(self.frames - 1):
                states.append(after(states[-1]))
        return {"w": torch.cat(states, 1).to(dtype)}

    def solver(self, time: float) -> NavierStokes2D:
        """The operator from one state to that `time` later."""
        return NavierStokes2D(
            (self.size, self.size),
            1.0 / self.reynolds,
            forcing=kolmogorov((self.size, self.size), self.wave, -self.amplitude),
            time=time,
            steps=max(1, math.ceil(self.steps * time)),
        )


@dataclass(frozen=True, kw_only=True)
class NavierStokesPairs:
    """Vorticity before and after: {"w0": (N, 1, size, size), "w1": likewise}, in 1 / time.

    Args:
        seed: of the set.
        size: points along each side, of length 1.
        viscosity: nu, length^2 / time.
        time: between the two states.
        steps: of the solver.
        scale, tau, alpha: of the law of w0; the defaults are N(0, 7^1.5 (-Laplace + 49)^-2.5).
    """

    seed: int = 0
    size: int = 128
    viscosity: float = 1e-3
    time: float = 1.0
    steps: int = 32
    scale: float = 7.0**0.75
    tau: float = 7.0
    alpha: float = 2.5

    def __post_init__(self) -> None:
        require_positive(self, viscosity=self.viscosity, time=self.time, scale=self.scale, tau=self.tau, alpha=self.alpha)
        if self.size < 8 or self.steps < 1:
            raise ConfigError(f"NavierStokesPairs: expected size >= 8 and steps >= 1, got {self.size}, {self.steps}")

    def __call__(
        self, indices: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        shape = (1, self.size, self.size)
        law = GaussianField.laplacian(
            shape, scale=self.scale, tau=self.tau, alpha=self.alpha, spacing=1.0 / self.size, boundary="periodic"
        )
        start = law.to(device).sample(Streams(self.seed, indices), torch.float64)
        return {"w0": start.to(dtype), "w1": self.solver().to(device)(start).to(dtype)}

    def solver(self) -> NavierStokes2D:
        """The operator from the first state to the second."""
        axis = torch.arange(self.size, dtype=torch.float64) / self.size
        phase = 2.0 * math.pi * (axis[:, None] + axis)
        return NavierStokes2D(
            (self.size, self.size),
            self.viscosity,
            forcing=0.1 * (phase.sin() + phase.cos()),
            length=(1.0, 1.0),
            time=self.time,
            steps=self.steps,
        )


@dataclass(frozen=True, kw_only=True)
class BurgersFlow:
    """Periodic solutions of Burgers' equation: {"u": (N, frames + 1, size)}, the first frame the initial state.

    Args:
        seed: of the set.
        size: points.
        viscosity: nu, length^2 / time.
        time: of the last frame.
        frames: number of equally spaced frames after the initial state.
        steps: of the solver, a multiple of `frames`; at least those that are stable up to 6 standard deviations of the initial
            state at a point, beyond which 2 of 10^9 are. The default is stable up to 6.9.
        scale, tau, alpha: of the law of the initial state; the defaults are N(0, 625 (-Laplace + 25)^-2).
        solve: False leaves all but the initial state out.
    """

    seed: int = 0
    size: int = 128
    viscosity: float = 0.01
    time: float = 1.0
    frames: int = 127
    steps: int = 762
    scale: float = 25.0
    tau: float = 5.0
    alpha: float = 2.0
    solve: bool = True

    def __post_init__(self) -> None:
        if self.size < 4 or self.frames < 1 or self.steps % self.frames:
            raise ConfigError(
                f"BurgersFlow: expected size >= 4 and frames >= 1 that divide steps, got {self.size}, {self.frames}, "
                f"{self.steps}"
            )
        require_positive(self, steps=self.steps, time=self.time, scale=self.scale, tau=self.tau, alpha=self.alpha)
        if not 0.0 <= self.viscosity < math.inf:
            raise ConfigError(f"BurgersFlow: expected a finite viscosity >= 0, got {self.viscosity}")
        if self.solve:
            deviation = self._law().spectrum.mean().sqrt()
            number = float(self.solver().courant(6.0 * deviation.expand(1, 1, self.size)))  # type: ignore[arg-type]
            if number > REACH:
                raise ConfigError(
                    f"BurgersFlow: expected steps >= {math.ceil(self.steps * number / REACH)}, which are stable up to 6 "
                    f"standard deviations of the initial state, {6.0 * float(deviation):.3g}, got {self.steps}"
                )

    def __call__(
        self, indices: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        start = self._law().to(device).sample(Streams(self.seed, indices), torch.float64)
        if not self.solve:
            return {"u": start.to(dtype)}
        return {"u": torch.cat((start, self.solver().to(device)(start)), 1).to(dtype)}

    def solver(self) -> Burgers:
        """The operator from the initial state to the frames after it."""
        return Burgers(self.size, self.viscosity, time=self.time, steps=self.steps, save=self.frames)

    def _law(self) -> GaussianField:
        return GaussianField.laplacian(
            (1, self.size), scale=self.scale, tau=self.tau, alpha=self.alpha, spacing=1.0 / self.size, boundary="periodic"
        )
