"""Linear observations by weights: functionals of a field, and a series of fields at irregular times or over windows of time.

    Functionals    y_m = sum_i w_mi u_i                                          any weights
    TimeSamples    y_m = u(t_m)                                                  u linear between the frames
    TimeWindows    y_m = 1 / (b_m - a_m) int from a_m to b_m of u(t) dt          u linear between the frames

The means are exact for the interpolant, and of second order for smooth series. The weights W = U diag(s) V^T are a dense
matrix on the first axes of the field, so that

    (A^T A + rho)^-1 = V diag(1 / (s^2 + rho)) V^T + (I - V V^T) / rho,    A^+ = V diag(1 / s) U^T

Noise of another strength at each sensor is `Gaussian(sigma)` with a tensor that broadcasts to the measurement; `whitened` is
the same problem in units of it, for methods that need one noise level.

References: Tarantola, Inverse problem theory, SIAM 2005.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf, prod

import torch
from torch import Tensor

from ...core.errors import CapabilityError, ConfigError, ShapeError, require_positive
from ...core.noise import Gaussian
from ...core.operator import LinearOperator
from ...core.problem import Problem
from ...core.rng import Streams
from ...core.spectrum import Spectrum, given, reflect, reflect_back, reflectors
from ..axes import per_axis
from ..constants import Constants
from .poisson import Boundary
from .sensors import AROUND

__all__ = ["Functionals", "TimeSamples", "TimeWindows", "domain", "random_apertures", "whitened"]


class _Dense(LinearOperator):
    """A dense matrix on the first `axes` dimensions of the field, flattened."""

    def __init__(self, shape: tuple[int, ...], axes: int, weights: Tensor) -> None:
        super().__init__(shape, (len(weights), *shape[axes:]))
        self.size = prod(shape[:axes])
        matrix = weights.reshape(-1, self.size).to(torch.float64)
        self.constants, self.decomposition = Constants(_itself, matrix), Constants(_decomposed, matrix)
        self.basis = Constants(_reflected, matrix)

    def forward(self, x: Tensor) -> Tensor:
        (w,) = self.constants(x)
        return (w @ self._columns(x)).reshape(-1, *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        (w,) = self.constants(y)
        return (w.mT @ self._rows(y)).reshape(-1, *self.in_shape)

    def solve(self, b: Tensor, rho: Tensor | float) -> Tensor:
        # 1 / rho would make the rounding of float32 large in the directions that are seen
        columns = self._columns(b).double()
        _, s, v = self.decomposition(columns)
        weight = torch.as_tensor(rho, dtype=torch.float64, device=b.device).reshape(-1, 1, 1)
        seen = v.mT @ columns
        known = v @ (seen / (s.square()[:, None] + weight))
        return (known + (columns - v @ seen) / weight).reshape(b.shape).to(b.dtype)

    def pinv(self, y: Tensor) -> Tensor:
        u, s, v = self.decomposition(y)
        inverse = torch.where(s > 0.0, 1.0 / s, 0.0)[:, None]
        return (v @ (inverse * (u.mT @ self._rows(y)))).reshape(-1, *self.in_shape)

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        like = given(like)
        s, h, tau = self.basis(like)
        values = torch.cat((s, s.new_zeros(self.size - len(s))))
        columns = prod(self.in_shape) // self.size
        return Spectrum(values.expand(columns, -1), partial(self._modes, h=h, tau=tau), partial(self._field, h=h, tau=tau))

    def _modes(self, x: Tensor, h: Tensor, tau: Tensor) -> Tensor:
        return reflect(self._columns(x).mT, h, tau)

    def _field(self, c: Tensor, h: Tensor, tau: Tensor) -> Tensor:
        return reflect_back(c, h, tau).mT.reshape(-1, *self.in_shape)

    def _columns(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.size, -1)

    def _rows(self, y: Tensor) -> Tensor:
        return y.reshape(len(y), self.out_shape[0], -1)


class Functionals(_Dense):
    """Fields to M weighted sums of their values.

    Args:
        weights: real, (M, *shape); in the unit of y over that of u (for an average, times a cell's share of the support).

    Shapes: (B, *shape) -> (B, M).

    Raises:
        ShapeError: the weights are not real, or have fewer than two dimensions.
    """

    def __init__(self, weights: Tensor) -> None:
        if weights.ndim < 2 or weights.is_complex() or not weights.numel():
            raise ShapeError(
                f"Functionals: expected real weights (M, *shape), got {tuple(weights.shape)} {str(weights.dtype)[6:]}"
            )
        super().__init__(tuple(weights.shape[1:]), weights.ndim - 1, weights)


def random_apertures(
    shape: Sequence[int],
    count: int,
    width: float,
    *,
    seed: int = 0,
    length: float | Sequence[float] = 1.0,
    boundary: Boundary | Sequence[Boundary] = "dirichlet",
) -> Functionals:
    """Means under a Gaussian aperture about `count` points, uniform in the domain and a function of the seed.

    Args:
        shape: (C, *grid); every channel is seen through the same apertures, so that there are C count functionals.
        width: standard deviation of the aperture, in the unit of `length`. Its weights on the points of the grid are
            normalised to the sum one; with a periodic axis it is that of the nearest image.
        seed, length, boundary: as `random_sensors`.

    Raises:
        ConfigError, ShapeError: count or width is not positive; or as `PointSensors`.
    """
    channels, *grid = shape
    lengths, kinds = domain("random_apertures", shape, length, boundary)
    if count < 1 or not 0.0 < width < inf:
        raise ConfigError(f"random_apertures: expected count >= 1 and width > 0, got {count} and {width}")
    centres = Streams(seed).uniform(0, (count, len(grid)), "sensors", torch.float64)[0]
    exponent = torch.zeros(count, dtype=torch.float64)
    for n, side, kind, unit in zip(grid, lengths, kinds, centres.T, strict=True):
        extra, first, _ = AROUND[kind]
        gap = (torch.arange(n, dtype=torch.float64) + first) * (side / (n + extra)) - unit[:, None] * side
        gap = gap - side * (gap / side).round() if kind == "periodic" else gap
        exponent = exponent[..., None] + gap.square().reshape(count, *[1] * (exponent.ndim - 1), n)
    aperture = torch.softmax(-exponent.reshape(count, -1) / (2.0 * width**2), 1)
    weights = torch.einsum("cd,mg->cmdg", torch.eye(channels, dtype=torch.float64), aperture)
    return Functionals(weights.reshape(channels * count, *shape))


class TimeSamples(_Dense):
    """A series of fields to its values at irregular times, by linear interpolation along the first axis.

    Args:
        shape: (T, *grid), the frames, T >= 2; any *grid, or none.
        times: (M,), from the first frame to the last, in the unit of `frames`.
        frames: times of the frames, increasing (T,); or the time of the last one of equally spaced ones whose zeroth, which is
            no frame, is at 0: those that an `Evolution` saves.

    Shapes: (B, T, *grid) -> (B, M, *grid).

    Raises:
        ShapeError: fewer than two frames, or times that are not a vector.
        ConfigError: frames that do not increase, or a time outside them.
    """

    def __init__(
        self, shape: Sequence[int], times: Tensor | Sequence[float], *, frames: float | Tensor | Sequence[float] = 1.0
    ) -> None:
        knots, t = _times(self, shape, times, frames, 1)
        super().__init__(tuple(shape), 1, _at(knots, t))


class TimeWindows(_Dense):
    """A series of fields to its means over windows of time, exact for linear interpolation between the frames.

    Args:
        shape, frames: as `TimeSamples`.
        windows: (M, 2), beginning and end, between the first frame and the last; beginning < end.

    Shapes: (B, T, *grid) -> (B, M, *grid).

    Raises:
        ShapeError, ConfigError: as `TimeSamples`; or a window that ends before it begins.
    """

    def __init__(
        self,
        shape: Sequence[int],
        windows: Tensor | Sequence[Sequence[float]],
        *,
        frames: float | Tensor | Sequence[float] = 1.0,
    ) -> None:
        knots, w = _times(self, shape, windows, frames, 2)
        width = w[:, 1] - w[:, 0]
        if not bool((width > 0.0).all()):
            m = int((width <= 0.0).nonzero()[0])
            raise ConfigError(f"TimeWindows: expected windows that end after they begin, got {w[m].tolist()} as number {m}")
        # the part of every interval that lies in a window, where the trapezium of a linear function is its integral
        begin, end = (torch.maximum(torch.minimum(edge[:, None], knots[1:]), knots[:-1]) for edge in w.T)
        weight = sum(0.5 * _at(knots, edge.flatten()).reshape(*edge.shape, -1) for edge in (begin, end))
        super().__init__(tuple(shape), 1, ((end - begin)[..., None] * weight).sum(1) / width[:, None])


def whitened(problem: Problem) -> Problem:
    """The same problem with every value in units of its standard deviation: diag(1 / sigma) A, y / sigma, Gaussian(1).

    Posterior, chi2 and likelihood, but for a constant, are the same. For methods that need one noise level where that of the
    sensors differs; a closed form that the operator has for `solve` is lost.

    Raises:
        CapabilityError: the noise is not Gaussian.
    """
    if not isinstance(problem.noise, Gaussian):
        raise CapabilityError(f"whitened needs Gaussian noise, the problem has {type(problem.noise).__name__}")
    operator = problem.operator
    scaling = _Whitening(problem.noise.sigma, operator.out_shape, operator.out_complex)
    # what scales zero has not measured it
    scaling.register_buffer("measured", operator.measured, persistent=False)
    return Problem(scaling @ operator, Gaussian(1.0), scaling(problem.y))


class _Whitening(LinearOperator):
    """Division of each value by its standard deviation."""

    def __init__(self, sigma: Tensor, shape: tuple[int, ...], is_complex: bool) -> None:
        super().__init__(shape, shape, in_complex=is_complex, out_complex=is_complex)
        self.constants = Constants(_reciprocal, sigma.detach().to(torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.constants(x)[0] * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.constants(y)[0] * y


def _itself(w: Tensor) -> tuple[Tensor]:
    return (w,)


def _reciprocal(sigma: Tensor) -> tuple[Tensor]:
    return (1.0 / sigma,)


def _decomposed(w: Tensor) -> tuple[Tensor, ...]:
    """U, s, V with zero for the singular values that are rounding."""
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return u, torch.where(s > max(w.shape) * torch.finfo(s.dtype).eps * s[:1], s, 0.0), vh.mT


def _reflected(w: Tensor) -> tuple[Tensor, ...]:
    """s, and the reflections of V."""
    _, s, v = _decomposed(w)
    return s, *reflectors(v)


def domain(
    who: str, shape: Sequence[int], length: float | Sequence[float], boundary: Boundary | Sequence[Boundary]
) -> tuple[tuple[float, ...], tuple[Boundary, ...]]:
    """One length and one boundary per axis."""
    axes = len(tuple(shape)) - 1
    if not 1 <= axes <= 3:
        raise ShapeError(f"{who}: expected a shape (C, *grid) with 1 to 3 axes, got {tuple(shape)}")
    lengths = per_axis(length, axes)
    kinds = per_axis(boundary, axes)
    if not len(lengths) == len(kinds) == axes or not all(0.0 < v < inf for v in lengths) or not set(kinds) <= set(AROUND):
        raise ConfigError(
            f"{who}: expected positive lengths and boundaries of {', '.join(AROUND)}, one per axis of {tuple(shape)[1:]}, got "
            f"{length} and {boundary}"
        )
    return tuple(map(float, lengths)), kinds


def _times(
    owner: object,
    shape: Sequence[int],
    values: Tensor | Sequence[float] | Sequence[Sequence[float]],
    frames: float | Tensor | Sequence[float],
    dimensions: int,
) -> tuple[Tensor, Tensor]:
    """The times of the frames and those asked for, checked."""
    who, t = type(owner).__name__, torch.as_tensor(values, dtype=torch.float64)
    count = next(iter(shape), 0)
    want = "(M,)" if dimensions == 1 else "(M, 2)"
    if count < 2 or t.ndim != dimensions or not t.numel() or (dimensions == 2 and t.shape[1] != 2):
        raise ShapeError(
            f"{who}: expected a shape (T, *grid), T >= 2, and times {want}, got {tuple(shape)} and {tuple(t.shape)}"
        )
    if isinstance(frames, int | float):
        require_positive(owner, frames=frames)
        knots = torch.arange(1, count + 1, dtype=torch.float64) * (float(frames) / count)
    else:
        knots = torch.as_tensor(frames, dtype=torch.float64)
    if knots.shape != (count,) or not bool((knots.diff() > 0.0).all() and knots.isfinite().all()):
        raise ConfigError(f"{who}: expected {count} increasing times of frames, got {knots.tolist()}")
    slack = 1e-12 * float(knots[-1] - knots[0])
    wrong = ~((t >= knots[0] - slack) & (t <= knots[-1] + slack))
    if bool(wrong.any()):
        raise ConfigError(
            f"{who}: time {float(t[wrong][0])} is outside the frames, from {float(knots[0])} to {float(knots[-1])}"
        )
    return knots, t.clamp(knots[0], knots[-1]).contiguous()


def _at(knots: Tensor, t: Tensor) -> Tensor:
    """The weights of linear interpolation, (M, T)."""
    low = (torch.searchsorted(knots, t, right=True) - 1).clamp(0, len(knots) - 2)
    share = (t - knots[low]) / (knots[low + 1] - knots[low])
    rows, weights = torch.arange(len(t)), t.new_zeros(len(t), len(knots))
    weights[rows, low], weights[rows, low + 1] = 1.0 - share, share
    return weights
