"""Scattering of waves by a contrast: the Lippmann-Schwinger equation of the plane, and its Born approximation.

    u_t = v_t + k^2 int G(x, x') f(x') u_t(x') dx',        y_tr = k^2 int G(r, x) f(x) u_t(x) dx

f = n^2 - 1 is the contrast, v_t the incident field of transmitter t, u_t the total one and y_tr the scattered field at receiver
r; in matrices over cells, (I - K F) u = v and y = R F u. Fields are sampled at the centres of cells and G is integrated over
them (green.py): second order where f is smooth, about second for a jump when each cell holds the mean of f over it, 1.5 for a
staircase of cells in or out. Born puts v for u: an error of second order in f.

With S = F^(1/2), imaginary where f < 0, I - S K S is complex symmetric: u = v + K S z, (I - S K S) z = S v is solved by
conjugate orthogonal conjugate residuals (COCR), one product with K an iteration where BiCGSTAB has two. K is symmetric, so the
transposed system of a derivative is the same one with another incident field (g is the gradient with respect to u):

    du = (I - K F)^-1 K (df u)        q = (I - K F)^-1 K conj(g),   v_bar = g + conj(f q),   f_bar = sum_t conj(q_t u_t)

By reciprocity the derivative of y is known as a whole from the fields of the transmitters and of the receivers, w_r, whose
incident field is G(r, .): `linearize` pays T + R fields for any number of products, where each of the others pays T.

    dy_tr = k^2 int w_r df u_t dx,        (I - K F) w_r = k^2 G(r, .)

References: Richmond, Scattering by a dielectric cylinder of arbitrary cross section shape, IEEE Trans. Antennas Propag. 13,
1965. Sogabe, Zhang, A COCR method for solving complex symmetric linear systems, J. Comput. Appl. Math. 199, 2007. Zheng et al.,
InverseBench: benchmarking plug-and-play diffusion priors for inverse problems in physical sciences, 2025, arXiv:2503.11043.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import ConfigError, DataError, NumericalError, require_positive
from ...core.operator import LinearOperator, Operator
from ..constants import Constants
from .green import Layout, Positions, Source, convolve

__all__ = ["BornScattering", "LippmannSchwinger"]


class BornScattering(LinearOperator):
    """The scattered field at the receivers by the first Born approximation, u = v.

    Args:
        size: number of cells N along each axis of a square centred at the origin; at least two a wavelength.
        length: side of the square, in metres as the other lengths (or all in another unit).
        wavelength: that of the background. The defaults are InverseBench's: 6 cells a wavelength, 21 wavelengths across.
        transmitters, receivers: their numbers, at equal angles on a circle (`green.ring`), or positions (m, 2) along the first
            and second axis, outside the square.
        radius: that of the circle.
        source: the incident waves, of "point" sources, i/4 H0(k |x - t|), or "plane" waves of amplitude one from t to the
            origin.
        lossy: complex contrasts, with an imaginary part >= 0 where energy is absorbed; compose with ViewAsComplex((1, N, N))
            for two real channels.

    Shapes: contrast (B, 1, N, N), real (complex if lossy) -> field (B, T, R) complex, in the unit of the incident field.

    Raises:
        ConfigError: an option is out of its range, or a transmitter or receiver in the square.
        ShapeError: positions of another shape.
    """

    def __init__(
        self,
        size: int = 128,
        *,
        length: float = 0.18,
        wavelength: float = 0.0084375,
        transmitters: int | Positions = 20,
        receivers: int | Positions = 360,
        radius: float = 1.6,
        source: Source = "point",
        lossy: bool = False,
    ) -> None:
        require_positive(self, size=size, length=length, wavelength=wavelength, radius=radius)
        layout = Layout(type(self).__name__, size, length, wavelength, source)
        sides = layout.points("transmitters", transmitters, radius), layout.points("receivers", receivers, radius)
        super().__init__((1, size, size), (len(sides[0]), len(sides[1])), in_complex=lossy, out_complex=True)
        self.layout, self.constants = layout, Constants(partial(_fields, layout, *sides))

    def forward(self, x: Tensor) -> Tensor:
        incident, radiation = self.constants(x)
        return _received(radiation, x * incident)

    def adjoint(self, y: Tensor) -> Tensor:
        incident, radiation = self.constants(y)
        sources = (y @ radiation.conj().flatten(1)).unflatten(-1, incident.shape[1:])
        f = (incident.conj() * sources).sum(1, keepdim=True)
        return f if self.in_complex else f.real

    def extra_repr(self) -> str:
        return (
            f"size={self.layout.size}, length={self.layout.length}, wavelength={self.layout.wavelength}, {self.layout.source}"
        )


class LippmannSchwinger(Operator):
    """The scattered field at the receivers with all multiple scattering; non-linear in f, differentiable any number of times.

    Args:
        size, length, wavelength, transmitters, receivers, radius, source, lossy: as of `BornScattering`.
        tol: |u - K(f u) - v| / |v| at which the solver stops, for each item and transmitter; not below 50 eps of the precision.
            Derivatives solve their own system to it, so vjp and jvp are transposes of each other to about tol.
        max_iter: limit of its iterations. They grow with the contrast and the size of the object in wavelengths.

    Shapes: contrast (B, 1, N, N), real (complex if lossy) -> field (B, T, R) complex, in the unit of the incident field.

    Raises:
        ConfigError, ShapeError: as `BornScattering`.
        DataError: in a call, a contrast that is not finite; the item is named.
        NumericalError: in a call or its derivative, the tolerance is not reached, or values are no longer finite; item,
            transmitter and residual are named.
    """

    def __init__(
        self,
        size: int = 128,
        *,
        length: float = 0.18,
        wavelength: float = 0.0084375,
        transmitters: int | Positions = 20,
        receivers: int | Positions = 360,
        radius: float = 1.6,
        source: Source = "point",
        lossy: bool = False,
        tol: float = 1e-8,
        max_iter: int = 2000,
    ) -> None:
        require_positive(self, size=size, length=length, wavelength=wavelength, radius=radius, tol=tol, max_iter=max_iter)
        layout = Layout(type(self).__name__, size, length, wavelength, source)
        sides = layout.points("transmitters", transmitters, radius), layout.points("receivers", receivers, radius)
        super().__init__((1, size, size), (len(sides[0]), len(sides[1])), in_complex=lossy, out_complex=True)
        if tol >= 1.0:
            raise ConfigError(f"LippmannSchwinger: expected tol < 1, got {tol}")
        self.layout, self.solver = layout, _Solver(tol, max_iter)
        self.constants = Constants(partial(_fields_and_kernel, layout, *sides))

    def forward(self, x: Tensor) -> Tensor:
        _, radiation, _ = self.constants(x)
        return _received(radiation, x * self._total(x))

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """As for any operator; by reciprocity, so that products after the fields of the receivers cost no solution.

        The two products are transposes of each other to rounding, and derivatives of the value to about tol.
        """
        self.check(x, "x")
        f = x.detach()
        incident, radiation, kernel = self.constants(f)
        # a few at a time stay in the cache
        waves = torch.cat([incident, radiation]).split(16)
        fields = torch.cat([self.solver(f, part.expand(len(f), *part.shape), kernel) for part in waves], 1)
        u, w = fields.split([len(incident), len(radiation)], 1)

        def push(t: Tensor) -> Tensor:
            return (u * t.detach()).flatten(2) @ w.flatten(2).mT

        def pull(v: Tensor) -> Tensor:
            sources = (v.detach() @ w.flatten(2).conj()).unflatten(-1, u.shape[2:])
            f_bar = (u.conj() * sources).sum(1, keepdim=True)
            return f_bar if self.in_complex else f_bar.real

        return _received(radiation, f * u), push, pull

    def field(self, f: Tensor) -> Tensor:
        """The total field at the cells, (B, T, N, N) complex; differentiable as the operator is."""
        self.check(f, "x")
        return self._total(f)

    def residual(self, f: Tensor, u: Tensor) -> Tensor:
        """u - K(f u) - v of a total field u, (B, T, N, N): below tol |v| for each transmitter on the operator's own field."""
        self.check(f, "x")
        incident, _, kernel = self.constants(f)
        return u - convolve(kernel, f * u) - incident

    def _total(self, f: Tensor) -> Tensor:
        incident, _, kernel = self.constants(f)
        return _Field.apply(f, incident.expand(len(f), *incident.shape), kernel, self.solver)

    def extra_repr(self) -> str:
        return (
            f"size={self.layout.size}, length={self.layout.length}, wavelength={self.layout.wavelength}, {self.layout.source}"
        )


def _fields(layout: Layout, transmitters: np.ndarray, receivers: np.ndarray) -> tuple[Tensor, ...]:
    return layout.incident(transmitters), layout.radiation(receivers)


def _fields_and_kernel(layout: Layout, transmitters: np.ndarray, receivers: np.ndarray) -> tuple[Tensor, ...]:
    return *_fields(layout, transmitters, receivers), layout.kernel()


def _received(radiation: Tensor, sources: Tensor) -> Tensor:
    return sources.flatten(2) @ radiation.flatten(1).mT


class _Field(torch.autograd.Function):
    """(I - K F)^-1 v for contrasts f (B, 1, N, N) and incident fields v (B, T, N, N) complex."""

    @staticmethod
    def forward(f: Tensor, v: Tensor, kernel: Tensor, solver: _Solver) -> Tensor:
        return solver(f, v, kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        f, _, kernel, ctx.solver = inputs
        ctx.save_for_backward(f, output, kernel)
        ctx.save_for_forward(f, output, kernel)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        f, u, kernel = ctx.saved_tensors
        q = _Field.apply(f, convolve(kernel, gradient.conj()), kernel, ctx.solver)
        f_bar = (q * u).conj().sum(1, keepdim=True)
        v_bar = gradient + (f * q).conj() if ctx.needs_input_grad[1] else None
        return f_bar if f.is_complex() else f_bar.real, v_bar, None, None

    @staticmethod
    def jvp(ctx: Any, df: Tensor | None, dv: Tensor | None, *_: None) -> Tensor:
        f, u, kernel = ctx.saved_tensors
        load = torch.zeros_like(u) if dv is None else dv
        if df is not None:
            load = load + convolve(kernel, df * u)
        return _Field.apply(f, load, kernel, ctx.solver)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], f: Tensor, v: Tensor, kernel: Tensor, solver: _Solver) -> tuple[Tensor, int]:
        n = info.batch_size
        f, v = (t.movedim(d, 0) if d is not None else t.expand(n, *t.shape) for t, d in zip((f, v), in_dims, strict=False))
        return _Field.apply(f.flatten(0, 1), v.flatten(0, 1), kernel, solver).unflatten(0, v.shape[:2]), 0


@dataclass(frozen=True)
class _Solver:
    """The total field by COCR, to a tolerance within a number of iterations."""

    tol: float
    max_iter: int

    def __call__(self, f: Tensor, v: Tensor, kernel: Tensor) -> Tensor:
        """COCR starts again from the true residual until that of the field reaches the tolerance."""
        finite = f.isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            raise DataError(f"LippmannSchwinger: expected a finite contrast, item {int((~finite).nonzero()[0])} is not")
        root = f.to(v.dtype).sqrt()
        tol = max(self.tol, 50.0 * torch.finfo(v.dtype).eps)
        z, u, used, want = torch.zeros_like(v), v.clone(), 0, tol * _norm(v)
        while True:
            defect = u - convolve(kernel, f * u) - v
            rest = _norm(defect)
            missed = ~(rest <= want)
            if not bool(missed.any()):
                return u
            # what has become NaN or infinite stays so
            lost = missed & ~rest.isfinite()
            if used >= self.max_iter or bool(lost.any()):
                self._refuse(rest / _norm(v), lost if bool(lost.any()) else missed, used)
            # the defect of the field is K S r for the residual r of z: they fall together, but for what a new start mends
            share = torch.where(missed, 0.5 * want / rest.clamp_min(torch.finfo(rest.dtype).tiny), 2.0)
            step, count = _cocr(kernel, root, root * u - z, share, self.max_iter - used)
            z, used = z + step, used + count
            u = v + convolve(kernel, root * z)

    def _refuse(self, relative: Tensor, missed: Tensor, used: int) -> None:
        item, transmitter = missed.nonzero()[0, :2].tolist()
        raise NumericalError(
            f"LippmannSchwinger: item {item}, transmitter {transmitter} is at a relative residual of "
            f"{float(relative[item, transmitter]):.1e} after {used} iterations: raise max_iter or tol, or lower the "
            "contrast"
        )


def _cocr(kernel: Tensor, root: Tensor, r: Tensor, share: Tensor, max_iter: int) -> tuple[Tensor, int]:
    """(I - S K S)^-1 r until |residual| <= share |r| for each item and transmitter, and the number of iterations."""

    def product(z: Tensor) -> Tensor:
        return z - root * convolve(kernel, root * z)

    z, goal, k = torch.zeros_like(r), share * _norm(r), 0
    p, ar = r, product(r)
    ap, rho = ar, _bilinear(r, ar)
    active = _norm(r) > goal
    while k < max_iter and bool(active.any()):
        k += 1
        square = _bilinear(ap, ap)
        # a zero ends the item's sequence: it starts again from its residual
        active = active & (square != 0) & (rho != 0)
        alpha = torch.where(active, rho / torch.where(square != 0, square, 1.0), 0.0)[..., None, None]
        z, r = z + alpha * p, r - alpha * ap
        active = active & (_norm(r) > goal)
        ar = product(r)
        new = _bilinear(r, ar)
        beta = torch.where(active, new / torch.where(rho != 0, rho, 1.0), 0.0)[..., None, None]
        p, ap, rho = r + beta * p, ar + beta * ap, new
    return z, max(k, 1)


def _bilinear(a: Tensor, b: Tensor) -> Tensor:
    """sum a b without a conjugate, (B, T, N, N) -> (B, T)."""
    return (a * b).sum((-2, -1))


def _norm(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a, dim=(-2, -1))
