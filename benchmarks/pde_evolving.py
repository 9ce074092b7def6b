"""Rows of `pde_orders`: operators that step through time."""

from __future__ import annotations

import math

import torch
from pde_rows import F64, KINDS, PI, axis, in_steps, measure
from torch import Tensor

from invdiff.core import Streams
from invdiff.operators.pde.forced import BurgersWalls
from invdiff.operators.pde.shocks import BurgersShocks
from invdiff.operators.pde.smoke import Smoke
from invdiff.operators.pde.smoke_grid import rectangles
from invdiff.operators.pde.spectral import Burgers, KdV, KuramotoSivashinsky
from invdiff.operators.pde.transport import AdvectionDiffusion
from invdiff.operators.pde.vorticity import NavierStokes2D, kolmogorov


def advection_diffusion() -> list[dict]:
    """u = exp(-t) phi in kappa = kappa_0 (1 + a phi^2), v = kappa_0 a phi grad(phi), with -kappa_0 lap phi = phi."""

    def pair(n: int, kind: str, advection: str, strength: float) -> tuple[Tensor, Tensor]:
        k = 2.0 * PI if kind == "periodic" else PI
        x, kappa = axis(n, "neumann"), 1.0 / (2.0 * k * k)
        wave, slope = ((k * x).cos(), -k * (k * x).sin()) if kind == "neumann" else ((k * x).sin(), k * (k * x).cos())
        phi = torch.outer(wave, wave)
        v = kappa * strength * phi * torch.stack([torch.outer(slope, wave), torch.outer(wave, slope)])
        how = {"boundary": kind, "advection": advection, "time": 1.0, "steps": n // 2}
        late = AdvectionDiffusion((n, n), kappa * (1.0 + strength * phi.square()), v, **how)(phi[None, None])[0, 0]
        return late, math.exp(-1.0) * phi

    cases = [(kind, "central", 2.0, 0.5, (16, 32, 64)) for kind in KINDS]
    cases += [(kind, "upwind", 1.0, 4.0, (32, 64, 128)) for kind in KINDS]
    rows = [
        measure(
            "AdvectionDiffusion",
            f"{advection}, Crank-Nicolson, {kind}",
            order,
            points,
            lambda n, kind=kind, advection=advection, a=a: pair(n, kind, advection, a),
            refined="points, steps",
        )
        for kind, advection, order, a, points in cases
    ]

    def in_time(steps: int) -> AdvectionDiffusion:
        n, kappa = 32, 0.1 + 0.05 * (PI * axis(32, "neumann")).sin()
        v = 0.5 * (PI * axis(n, "neumann")).sin()[None]
        return AdvectionDiffusion((n,), kappa, v, boundary="dirichlet", source=True, steps=steps)

    start = torch.stack([(PI * axis(32, "neumann")).sin(), (2.0 * PI * axis(32, "neumann")).sin()])[None]
    scheme = "Crank-Nicolson, dirichlet, source"
    return [*rows, in_steps("AdvectionDiffusion", scheme, 2.0, (16, 32, 64), in_time, start, finer=16)]


def burgers() -> list[dict]:
    """u = -2 nu phi_x / phi, phi the heat flow of exp((cos x - 1) / (2 nu)) (Cole, Hopf): u(0) = sin x."""
    n, nu, fine = 256, 0.1, 1024
    x, k = 2.0 * PI * axis(n, "periodic"), torch.arange(fine // 2 + 1, dtype=F64)
    start = ((2.0 * PI * axis(fine, "periodic")).cos() - 1.0) / (2.0 * nu)
    hat = torch.fft.rfft(start.exp()) * (-nu * k**2).exp()
    late = (-2.0 * nu * torch.fft.irfft(1j * k * hat, n=fine) / torch.fft.irfft(hat, n=fine))[:: fine // n]
    make = lambda s: Burgers(n, nu, length=2.0 * PI, steps=s)(x.sin()[None, None])[0, 0]  # noqa: E731
    return [measure("Burgers", "ETDRK4", 4.0, (32, 64, 128), lambda s: (make(s), late), refined="steps")]


def kdv() -> list[dict]:
    """A soliton of speed 2 on a period of 40."""
    n, length, c = 256, 40.0, 2.0

    def soliton(t: float) -> Tensor:
        place = torch.remainder(length * axis(n, "periodic") - c * t, length) - length / 2.0
        return (c / 2.0 / torch.cosh(c**0.5 / 2.0 * place) ** 2)[None, None]

    def pair(steps: int) -> tuple[Tensor, Tensor]:
        return KdV(n, length=length, time=2.0, steps=steps)(soliton(0.0)), soliton(2.0)

    return [measure("KdV", "ETDRK4", 4.0, (128, 256, 512), pair, refined="steps")]


def kuramoto_sivashinsky() -> list[dict]:
    """Before chaos, on 22; the damping of high modes delays the order."""
    x = 2.0 * PI * axis(32, "periodic")
    u = (x.cos() * (1.0 + x.sin()) + 0.5 * (3.0 * x).sin())[None, None]
    return [in_steps("KuramotoSivashinsky", "ETDRK4", 4.0, (250, 500), lambda s: KuramotoSivashinsky(32, time=2.5, steps=s), u)]


def navier_stokes() -> list[dict]:
    """A smooth vorticity of standard deviation 2 under a Kolmogorov forcing."""
    n = 32
    k = torch.fft.fftfreq(n, 1.0 / n, dtype=F64)[:, None] ** 2 + torch.fft.rfftfreq(n, 1.0 / n, dtype=F64) ** 2
    white = torch.fft.rfft2(Streams(3).normal(0, (1, n, n), "field", F64)) * torch.exp(-k / 8.0) * (k > 0.0)
    w = torch.fft.irfft2(white, s=(n, n))
    make = lambda s: NavierStokes2D((n, n), 0.01, forcing=kolmogorov((n, n)), steps=s)  # noqa: E731
    return [in_steps("NavierStokes2D", "ETDRK4", 4.0, (64, 128), make, 2.0 * w / w.std())]


def burgers_walls() -> list[dict]:
    """u = -2 nu phi_x / phi, phi = 1 + 0.4 exp(-nu pi^2 t) cos(pi x); and a u(0) that is not 0 at the walls."""
    nu, x = 0.1, axis(32, "neumann")

    def wave(t: float) -> Tensor:
        b = 0.4 * math.exp(-nu * PI**2 * t)
        return (2.0 * nu * b * PI * (PI * x).sin() / (1.0 + b * (PI * x).cos()))[None, None]

    def in_time(steps: int) -> tuple[Tensor, Tensor]:
        return BurgersWalls(32, nu, time=0.5, steps=steps)(wave(0.0)), wave(0.5)

    def state(n: int) -> Tensor:
        return BurgersWalls(n, nu, time=0.1, steps=400)((1.0 + axis(n, "neumann"))[None, None])[0, 0]

    # of three times the points every third is one of the coarse grid
    finest, more = state(972), {"refined": "points", "against": "972 points"}
    smooth = measure("BurgersWalls", "ETDRK4", 4.0, (16, 32, 64), in_time, refined="steps")
    rough = lambda n: (state(n)[n // 72 :: n // 36], finest[13::27])  # noqa: E731
    return [smooth, measure("BurgersWalls", "sine series, jumps at the walls", 2.0, (36, 108), rough, **more)]


def burgers_shocks() -> list[dict]:
    """u = c - c tanh(c (x - c t - x0) / (2 nu)), monotone, where the fan of the wall has not come; averages over cells."""
    nu, c, length = 0.05, 0.5, 4.0

    def wave(t: float, n: int) -> Tensor:
        x = length * torch.arange(n + 1, dtype=F64) / n
        y = c * (x - 2.2 - c * t) / (2.0 * nu)
        primitive = c * x - 2.0 * nu * (y.abs() + torch.log1p(torch.exp(-2.0 * y.abs())))
        return primitive.diff() * (n / length)

    def pair(n: int, scheme: str) -> tuple[Tensor, Tensor]:
        behind = length * axis(n, "neumann") > 1.6
        late = BurgersShocks(n, nu, scheme=scheme, length=length, time=0.5, steps=n // 4)(wave(0.0, n)[None, None])[0, 0]
        return late[behind], wave(0.5, n)[behind]

    return [
        measure(
            "BurgersShocks",
            f"MUSCL, IMEX {scheme}, monotone",
            2.0,
            (256, 512, 1024),
            lambda n, scheme=scheme: pair(n, scheme),
            refined="points, steps",
        )
        for scheme in ("ssprk2", "ssprk3")
    ]


def smoke() -> list[dict]:
    """The steady vortex psi = sin(pi x) sin(pi y) / pi and what it carries; and steps of time among obstacles on one grid."""
    time = 0.25

    def velocity(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return (PI * x).sin() * (PI * y).cos(), -(PI * x).cos() * (PI * y).sin()

    def vortex(n: int, trace: str) -> tuple[Tensor, Tensor]:
        """Half a cell a step. Where the smoke has been is found by the method of Runge and Kutta."""
        c = axis(n, "neumann")
        y, x = c[:, None].expand(n, n), c.expand(n, n)
        back, h = torch.stack([y, x]), time / 40
        for _ in range(40):
            rates = [torch.stack(velocity(*back)[::-1])]
            for part in (0.5, 0.5, 1.0):
                rates.append(torch.stack(velocity(*(back - part * h * rates[-1]))[::-1]))
            back = back - h / 6.0 * (rates[0] + 2.0 * rates[1] + 2.0 * rates[2] + rates[3])
        start, late = (1.0 + (PI * q).cos() * (2.0 * PI * p).cos() for p, q in ((y, x), back))
        flow = torch.stack(velocity(y, x))
        operator = Smoke((n, n), time=time, steps=round(2 * n * time), velocity=None, fields="all", trace=trace)
        return operator(torch.cat([start[None], flow])[None])[0], torch.cat([late[None], flow])

    def in_time(steps: int, trace: str) -> Smoke:
        masks = {"obstacles": rectangles((16, 16), [(5, 6, 4, 3)]), "outlets": rectangles((16, 16), [(15, 3, 1, 4)])}
        how = {"time": 0.5, "controls": 1, "velocity": None, "buoyancy": 1.0, "fields": "all", "trace": trace}
        return Smoke((16, 16), steps=steps, **masks, **how)

    a = axis(16, "neumann")
    y, x = a[:, None].expand(16, 16), a.expand(16, 16)
    first = torch.stack([1.0 + 0.5 * (PI * x).cos() * (PI * y).cos(), *velocity(y, x), *velocity(y, x)])
    first[2] = 0.5 * (2.0 * PI * x).cos() * (PI * y).sin()
    rows = []
    for trace in ("euler", "midpoint"):
        pair, make = (lambda n, t=trace: vortex(n, t)), (lambda s, t=trace: in_time(s, t))
        rows.append(measure("Smoke", f"{trace}, vortex", 1.0, (32, 64), pair, refined="points, steps"))
        rows.append(in_steps("Smoke", f"{trace}, obstacle and outlet", 1.0, (32, 64), make, first[None], finer=32))
    return rows
