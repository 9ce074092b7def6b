"""Rows of `pde_orders`: operators without steps of time, and observations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pde_rows import F64, KINDS, PI, axis, measure
from torch import Tensor

from invdiff.core import Streams
from invdiff.operators.pde.band import FourierBand
from invdiff.operators.pde.darcy import Darcy
from invdiff.operators.pde.lines import LineAverages
from invdiff.operators.pde.observe import TimeSamples, TimeWindows
from invdiff.operators.pde.poisson import Heat, Helmholtz, Poisson
from invdiff.operators.pde.sensors import PointSensors


def bumps(n: int, kind: str) -> tuple[Tensor, Tensor]:
    """A field g(x) g(y) that the walls allow and its -lap, (1, 1, n, n); no mode, and of mean zero."""
    x, w = axis(n, kind), PI if kind == "neumann" else 2.0 * PI
    if kind == "dirichlet":
        g, second = x * (PI * x).sin(), 2.0 * PI * (PI * x).cos() - PI**2 * x * (PI * x).sin()
    else:
        g = (w * x).cos().exp()
        second = w**2 * ((w * x).sin().square() - (w * x).cos()) * g
    field = torch.outer(g, g)
    return field[None, None], -(torch.outer(g, second) + torch.outer(second, g))[None, None]


def stencils(name: str, pair: Callable[[int, str, str], tuple[Tensor, Tensor]]) -> list[dict]:
    """The rows of the 5-point scheme under each boundary."""
    return [
        measure(
            name,
            f"5-point, {kind}",
            2.0,
            (31, 63, 127) if kind == "dirichlet" else (32, 64, 128),
            lambda n, kind=kind: pair(n, kind, "5-point"),
            walls=kind == "dirichlet",
        )
        for kind in KINDS
    ]


def poisson() -> list[dict]:
    def pair(n: int, kind: str, scheme: str) -> tuple[Tensor, Tensor]:
        u, f = bumps(n, kind)
        u = u if kind == "dirichlet" else u - u.mean()
        return Poisson((1, n, n), boundary=kind, scheme=scheme)(f), u

    spectral = measure("Poisson", "spectral, periodic", None, (16, 32, 64), lambda n: pair(n, "periodic", "spectral"))
    return [*stencils("Poisson", pair), spectral]


def helmholtz() -> list[dict]:
    def pair(n: int, kind: str, scheme: str) -> tuple[Tensor, Tensor]:
        u, f = bumps(n, kind)
        return Helmholtz((1, n, n), 5.3, boundary=kind, scheme=scheme)(f - 5.3**2 * u), u

    spectral = measure("Helmholtz", "spectral, periodic", None, (16, 32, 64), lambda n: pair(n, "periodic", "spectral"))
    return [*stencils("Helmholtz", pair), spectral]


def heat() -> list[dict]:
    def pair(n: int, kind: str, scheme: str) -> tuple[Tensor, Tensor]:
        """A sum of two products of modes p, q, which decay by exp(-kappa (p^2 + q^2) t)."""
        x = axis(n, kind)
        p, q = {"periodic": (2 * PI, 4 * PI), "dirichlet": (PI, 3 * PI), "neumann": (PI, 2 * PI)}[kind]
        one, two = ((k * x).sin() if kind == "dirichlet" else (k * x).cos() for k in (p, q))
        parts = torch.outer(one, one), torch.outer(one, two)
        late = math.exp(-0.002 * (p * p + p * p)) * parts[0] + math.exp(-0.002 * (p * p + q * q)) * parts[1]
        return Heat((1, n, n), 0.01, 0.2, boundary=kind, scheme=scheme)((parts[0] + parts[1])[None, None])[0, 0], late

    spectral = [measure("Heat", f"spectral, {k}", None, (8, 16), lambda n, k=k: pair(n, k, "spectral")) for k in KINDS]
    return [*stencils("Heat", pair), *spectral]


def darcy() -> list[dict]:
    def smooth(n: int, faces: str) -> tuple[Tensor, Tensor]:
        """u = sin(pi x) sin(2 pi y), a = 2 + cos(pi x) sin(pi y)."""
        x = axis(n, "neumann")
        y, x = x[:, None], x[None]
        u, a = (PI * x).sin() * (2 * PI * y).sin(), 2.0 + (PI * x).cos() * (PI * y).sin()
        f = 5 * PI**2 * a * u + PI**2 * (PI * x).sin() * (PI * y).sin() * (PI * x).cos() * (2 * PI * y).sin()
        f = f - 2 * PI**2 * (PI * x).cos() * (PI * y).cos() * (PI * x).sin() * (2 * PI * y).cos()
        return Darcy(n, f, faces=faces)(a[None, None])[0, 0], u

    def jump(n: int, faces: str) -> tuple[Tensor, Tensor]:
        """u = sin(2 pi x) sin(pi y) / a, a = 1 left of the middle and 12 right of it: the flux is that of a smooth field."""
        x = axis(n, "neumann")
        y, x = x[:, None], x[None]
        a = torch.where(x < 0.5, 1.0, 12.0).double().expand(n, n)
        flux = (2 * PI * x).sin() * (PI * y).sin()
        return Darcy(n, 5 * PI**2 * flux, faces=faces)(a[None, None])[0, 0], flux / a

    cases = [("harmonic", smooth, 2.0), ("arithmetic", smooth, 2.0), ("harmonic", jump, 2.0), ("arithmetic", jump, 1.0)]
    return [
        measure("Darcy", f"{faces}, {f.__name__}", order, (32, 64, 128), lambda n, f=f, faces=faces: f(n, faces))
        for faces, f, order in cases
    ]


def sensors() -> list[dict]:
    """sin(pi x) sin(pi y) at points, and along a diagonal and another segment, where its means are 1/2 and 4 / (3 pi)."""
    where = Streams(0).uniform(0, (2000, 2), "points", F64)[0]
    ends = [[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 0.5]]]
    means = torch.tensor([0.5, 4.0 / (3.0 * PI)], dtype=F64)

    def field(n: int) -> Tensor:
        wave = (PI * axis(n, "dirichlet")).sin()
        return torch.outer(wave, wave)[None, None]

    def at_points(n: int) -> tuple[Tensor, Tensor]:
        return PointSensors((1, n, n), where)(field(n))[0, 0], (PI * where).sin().prod(1)

    def along(n: int) -> tuple[Tensor, Tensor]:
        return LineAverages((1, n, n), ends)(field(n))[0, 0], means

    return [
        measure("PointSensors", "multilinear", 2.0, (31, 63, 127), at_points, walls=True),
        measure("LineAverages", "exact of multilinear", 2.0, (31, 63, 127), along, walls=True),
    ]


def series() -> list[dict]:
    """exp(t) between frames: at irregular times, and its means over windows."""
    t = Streams(0).uniform(0, (5000,), "times", F64)[0]
    windows = torch.tensor([[0.0, 1.0], [0.13, 0.78], [0.4, 0.53]], dtype=F64)

    def at_times(n: int) -> tuple[Tensor, Tensor]:
        frames = torch.linspace(0.0, 1.0, n + 1, dtype=F64)
        return TimeSamples((n + 1,), t, frames=frames)(frames.exp()[None])[0], t.exp()

    def over_windows(n: int) -> tuple[Tensor, Tensor]:
        frames = torch.linspace(0.0, 1.0, n + 1, dtype=F64)
        mean = (windows[:, 1].exp() - windows[:, 0].exp()) / (windows[:, 1] - windows[:, 0])
        return TimeWindows((n + 1,), windows, frames=frames)(frames.exp()[None])[0], mean

    return [
        measure("TimeSamples", "linear", 2.0, (16, 32, 64), at_times, refined="intervals"),
        measure("TimeWindows", "exact of linear", 2.0, (16, 32, 64), over_windows, refined="intervals"),
    ]


def band() -> list[dict]:
    """exp(cos(2 pi x)) has the coefficients I_k(1), Bessel functions, in the unit sqrt(n); the origin is half a period away."""

    def pair(n: int) -> tuple[Tensor, Tensor]:
        operator = FourierBand((1, n), 0.0, 6.0 * PI)
        k, angle = operator.modes[:, 0], PI * (torch.arange(4096, dtype=F64) + 0.5) / 4096
        bessel = (angle.cos().exp() * (k[:, None] * angle).cos()).mean(1) * torch.where(k % 2 == 0, 1.0, -1.0)
        return operator((2.0 * PI * axis(n, "periodic")).cos().exp()[None, None])[0, 0] / math.sqrt(n), bessel

    return [measure("FourierBand", "spectral", None, (8, 16, 32), pair)]
