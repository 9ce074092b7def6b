"""Rows of `pde_orders`: waves, scattered by a contrast and travelling."""

from __future__ import annotations

import numpy as np
import torch
from pde_rows import F64, PI, measure
from scipy.integrate import solve_ivp
from scipy.special import h1vp, hankel1, hankel2, jv, jvp
from torch import Tensor

from invdiff.operators.pde.green import ring
from invdiff.operators.pde.scattering import BornScattering, LippmannSchwinger
from invdiff.operators.pde.wave import AcousticWave, ricker


def scattering() -> list[dict]:
    """f = (1 - r^2 / R^2)^3 by its modes u_m(r) exp(i m theta): u'' + u' / r + (k^2 (1 + f) - m^2 / r^2) u = 0.

    Outside u_m = J_m + c_m H_m, where u_m' / u_m continues; by Born c_m = i pi / 2 k^2 times the integral of f J_m(k r)^2 r dr.
    """
    k, radius, sides, m = 4.0 * PI, 0.45, (ring(2, 1.3), ring(24, 1.7)), np.arange(-18, 19)

    def profile(r: np.ndarray | float) -> np.ndarray | float:
        return (1.0 - (r / radius) ** 2) ** 3

    def slope(order: int) -> float:
        """u' / u at the edge, of u = r^m w, which starts as 1 - k^2 (1 + f(0)) r^2 / (4 m + 4)."""
        first, c = 1e-3, -(k**2) / (2.0 * (order + 1))

        def rates(r: float, w: np.ndarray) -> list[float]:
            return [w[1], -(2 * order + 1) / r * w[1] - k**2 * (1.0 + profile(r)) * w[0]]

        start = [1.0 + c * first**2, 2.0 * c * first]
        end = solve_ivp(rates, (first, radius), start, method="DOP853", rtol=1e-9, atol=1e-12).y[:, -1]
        return end[1] / end[0] + order / radius

    def received(c: np.ndarray) -> Tensor:
        (near, a), (far, b) = ((np.hypot(*p.numpy().T)[:, None], np.arctan2(*p.numpy().T[::-1])[:, None]) for p in sides)
        incident = 0.25j * hankel1(m, k * near) * np.exp(-1j * m * a)
        return torch.from_numpy((incident * c) @ (hankel1(m, k * far) * np.exp(1j * m * b)).T)

    g, edge = np.array([slope(abs(int(i))) for i in m]), k * radius
    whole = received(-(k * jvp(m, edge) - g * jv(m, edge)) / (k * h1vp(m, edge) - g * hankel1(m, edge)))
    nodes, weights = np.polynomial.legendre.leggauss(60)
    r = 0.5 * radius * (nodes + 1.0)[:, None]
    once = received(0.5j * PI * k**2 * (0.5 * radius * weights[:, None] * r * profile(r) * jv(m, k * r) ** 2).sum(0))

    def pair(operator: BornScattering | LippmannSchwinger, want: Tensor) -> tuple[Tensor, Tensor]:
        x = operator.layout.centres()
        f = (1.0 - (x[:, None] ** 2 + x**2) / radius**2).clamp_min(0.0) ** 3
        return operator(f[None, None])[0], want

    how = {"length": 1.0, "wavelength": 0.5, "transmitters": sides[0], "receivers": sides[1]}
    scheme, points, more = "cells as discs, smooth", (32, 64, 96), {"against": "modes"}
    born = lambda n: pair(BornScattering(n, **how), once)  # noqa: E731
    full = lambda n: pair(LippmannSchwinger(n, **how, tol=1e-8), whole)  # noqa: E731
    return [
        measure("BornScattering", scheme, 2.0, points, born, **more),
        measure("LippmannSchwinger", scheme, 2.0, points, full, **more),
    ]


def acoustic_wave() -> list[dict]:
    """A trace at half a wavelength of the crest, before anything returns from the walls; and steps of time on one grid.

    In frequency the steps of time solve Helmholtz's equation too, with s for omega: what is left is the error of space alone.
    """

    def green(n: int, order: int) -> tuple[Tensor, Tensor]:
        """n points per wavelength; the wavelet times -i/4 H_0^(2)(s r / c) in frequency, s = 2 / dt sin(omega dt / 2)."""
        dt, steps, half, periods = 1 / 80, 240, round(1.6 * n), 2**17
        place, wavelet = half / n, ricker(1.0, dt, steps, 1.5)
        at = place - (n // 4) / n
        operator = AcousticWave(
            (2 * half + 1,) * 2, [[place, at]], [[place, at + 0.5]], spacing=1.0 / n, dt=dt, steps=steps, wavelet=wavelet,
            order=order, layer=0, fastest=1.0,
        )  # fmt: skip
        response = np.zeros(periods // 2 + 1, complex)
        response[1:] = -0.25j * hankel2(0, 0.5 * 2.0 / dt * np.sin(PI * dt * np.fft.rfftfreq(periods, dt)[1:]))
        trace = np.fft.irfft(np.fft.rfft(wavelet.numpy(), periods) * response, periods)[1 : steps + 1]
        return operator(torch.ones(1, *operator.in_shape, dtype=F64))[0, 0, 0], torch.from_numpy(trace.copy())

    def trace(steps: int) -> Tensor:
        """Two units of time at 10 points per wavelength."""
        dt, points = 2.0 / steps, {"spacing": 0.1, "layer": 0, "fastest": 1.0, "order": 8, "every": steps // 40}
        operator = AcousticWave(
            (21, 21), [[1.0, 1.0]], [[1.0, 1.4]], dt=dt, steps=steps, wavelet=ricker(1.0, dt, steps, 1.0), **points
        )
        return operator(torch.ones(1, 1, 21, 21, dtype=F64))

    rows = [
        measure(
            "AcousticWave",
            f"order {order} in space",
            float(order),
            points,
            lambda n, order=order: green(n, order),
            against="Green's function of the time steps",
        )
        for order, points in ((2, (24, 32)), (4, (16, 24)), (6, (24, 32)), (8, (32, 40)))
    ]
    fine = trace(16 * 160)
    more = {"refined": "steps", "against": f"{16 * 160} steps"}
    return [*rows, measure("AcousticWave", "leap-frog", 2.0, (40, 80, 160), lambda s: (trace(s), fine), **more)]
