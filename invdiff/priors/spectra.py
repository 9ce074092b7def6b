"""Isotropic power spectra P(q) of Gaussian fields, and the fit of one to images.

    q = 2 pi |k * length|,    k the frequencies per axis in cycles per unit of length

is what a spectrum is a function of: dimensionless, and isotropic in units of the field's correlation length along each axis.
With length = 1 it is the angular wave number.

    Matern               (1 + q^2)^-decay                 decay = nu + d / 2 of the Matern covariance in d dimensions
    SquaredExponential   exp(-q^2 / 2)                    covariance exp(-r^2 / 2 length^2)
    PowerLaw             max(q, low)^-power for q <= high, zero beyond
    Laplacian            scale^2 (q^2 + tau^2)^-alpha     N(0, scale^2 (-Laplace + tau^2)^-alpha), with length = 1
    Tabulated            linear between given values

References: Lindgren, Rue, Lindstrom, An explicit link between Gaussian fields and Gaussian Markov random fields, JRSS B 73,
2011. Sykulski, Olhede, Guillaumin, Lilly, Early, The debiased Whittle likelihood, Biometrika 106, 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import ConfigError, NumericalError, ShapeError
from ..core.errors import require_positive

__all__ = ["Laplacian", "Matern", "PowerLaw", "SquaredExponential", "Tabulated", "fit_spectrum", "radial_spectrum"]


@dataclass(frozen=True)
class Matern:
    """(1 + q^2)^-decay.

    Args:
        decay: half the power of the decay, positive.
    """

    decay: float

    def __post_init__(self) -> None:
        require_positive(self, decay=self.decay)

    def __call__(self, q: Tensor) -> Tensor:
        return (1.0 + q * q) ** -self.decay


@dataclass(frozen=True)
class SquaredExponential:
    """exp(-q^2 / 2): covariance exp(-r^2 / (2 length^2)), smooth draws."""

    def __call__(self, q: Tensor) -> Tensor:
        return torch.exp(-0.5 * q * q)


@dataclass(frozen=True)
class PowerLaw:
    """max(q, low)^-power up to `high`, and zero beyond.

    Args:
        power: of the decay.
        low: below it the spectrum is flat, positive.
        high: above it there is nothing.
    """

    power: float
    low: float
    high: float = math.inf

    def __post_init__(self) -> None:
        require_positive(self, low=self.low)
        if not self.high > self.low:
            raise ConfigError(f"PowerLaw: expected high > low, got {self.high} and {self.low}")

    def __call__(self, q: Tensor) -> Tensor:
        return torch.where(q <= self.high, q.clamp_min(self.low) ** -self.power, 0.0)


@dataclass(frozen=True)
class Laplacian:
    """scale^2 (q^2 + tau^2)^-alpha, the law of Darcy, Poisson, Navier-Stokes and Burgers data sets.

    Args:
        scale, tau, alpha: positive; in d dimensions a draw has a finite variance in the continuum for alpha > d / 2.
    """

    scale: float
    tau: float
    alpha: float

    def __post_init__(self) -> None:
        require_positive(self, scale=self.scale, tau=self.tau, alpha=self.alpha)

    def __call__(self, q: Tensor) -> Tensor:
        return self.scale**2 * (q * q + self.tau**2) ** -self.alpha


@dataclass(frozen=True)
class Tabulated:
    """Linear between the values p at the increasing wave numbers q; asked for beyond them it is a ConfigError.

    Args:
        q: wave numbers, at least two.
        p: values, not negative.
    """

    q: Sequence[float]
    p: Sequence[float]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.q, self.q[1:], strict=False))
        if len(self.q) != len(self.p) or len(self.q) < 2 or not rising:
            raise ConfigError(
                f"Tabulated: expected increasing q and as many p, at least 2, got {len(self.q)} and {len(self.p)} values"
            )

    def __call__(self, q: Tensor) -> Tensor:
        nodes, values = (torch.as_tensor(v, dtype=q.dtype, device=q.device) for v in (self.q, self.p))
        if bool((q < nodes[0]).any() or (q > nodes[-1]).any()):
            raise ConfigError(
                f"Tabulated: the grid has wave numbers from {float(q.min()):.4g} to {float(q.max()):.4g}, the table from "
                f"{self.q[0]:.4g} to {self.q[-1]:.4g}: extend the table"
            )
        right = torch.searchsorted(nodes, q).clamp(1, len(nodes) - 1)
        part = (q - nodes[right - 1]) / (nodes[right] - nodes[right - 1])
        return torch.lerp(values[right - 1], values[right], part)


def radial_spectrum(fields: Tensor, *, spacing: float = 1.0) -> Tabulated:
    """The spectral density of periodic fields on a square or cubic grid, averaged over directions, in `GaussianField`'s units.

    Means of the periodogram over rings of wave numbers, one step 2 pi / (n spacing) wide, for std=None and length=1.

    Args:
        fields: (M, C, *spatial), as many points on every axis; their mean is taken as zero.
        spacing: of the grid.

    Raises:
        ShapeError: the fields are not on such a grid.
    """
    size = fields.shape[2:]
    if fields.ndim < 3 or len(set(size)) > 1 or size[0] < 4:
        raise ShapeError(f"radial_spectrum: expected fields (M, C, n, ..., n), n >= 4, got {tuple(fields.shape)}")
    n, dims = size[0], len(size)
    power = torch.fft.fftn(fields.double(), dim=tuple(range(2, fields.ndim))).abs().square().mean((0, 1)) / n**dims
    k = torch.fft.fftfreq(n, 1.0 / n, dtype=torch.float64)
    radius = torch.stack([a * a for a in torch.meshgrid(*[k] * dims, indexing="ij")]).sum(0).sqrt().flatten()
    ring = radius.round().long()
    count = torch.bincount(ring)

    def averaged(values: Tensor) -> list[float]:
        return (torch.zeros(len(count), dtype=torch.float64).index_add_(0, ring, values.flatten()) / count).tolist()

    # at the rings' own average, and up to the farthest mode
    unit, p = 2.0 * math.pi / (n * spacing), [v * spacing**dims for v in averaged(power)]
    return Tabulated([unit * r for r in (*averaged(radius), float(radius.max()) + 1.0)], [*p, p[-1]])


def fit_spectrum(images: Tensor, *, spacing: float = 1.0) -> dict[str, float]:
    """Mean, std, length and decay of the Matern-like field that images are crops of: `StationaryGaussian(shape, **fit)`.

    The least sum_k |k|^-d (log E_k + I_k / E_k), Whittle's likelihood of the periodogram I of the images times a Hann window,
    weighted so that every octave counts alike (images are no such field exactly, and most modes are of the highest octave).
    E is the exact expectation of I under the model on a torus of twice the crop's size: what leaks through the window and over
    the edges of the crop is part of it. `std` is profiled out.

    Args:
        images: (M, C, *spatial), channels alike; at least 8 points per axis.
        spacing: of the grid, in the unit in which `length` is wanted.

    Raises:
        ShapeError: the images are not (M, C, *spatial).
        NumericalError: the images are constant or not finite, or no optimum lies between lengths of 1/20 pixel and 20 crops
            and decays of 0.05 and 20 (a pure power law has no length).
    """
    from scipy.optimize import minimize

    if images.ndim < 3 or min(images.shape[2:]) < 8:
        raise ShapeError(f"fit_spectrum: expected images (M, C, *spatial) of 8 points or more, got {tuple(images.shape)}")
    x = images.detach().double().cpu().flatten(0, 1)
    mean, size = x.mean(), x.shape[1:]
    dims, window = tuple(range(1, x.ndim)), torch.ones(size, dtype=torch.float64)
    for axis, n in enumerate(size):
        hann = torch.sin(math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n) ** 2
        window = window * hann.reshape(-1, *([1] * (len(size) - 1 - axis)))
    observed = torch.fft.fftn(window * (x - mean), dim=dims).abs().square().mean(0).flatten()[1:]
    if not bool(x.amax() > x.amin() and observed.isfinite().all()):
        raise NumericalError("fit_spectrum: the images are constant, or not finite")
    doubled = [2 * n for n in size]
    overlap = torch.fft.ifftn(torch.fft.fftn(window, s=doubled).abs().square()).real
    axes = torch.meshgrid(*[torch.fft.fftfreq(n, dtype=torch.float64) for n in doubled], indexing="ij")
    squared = (2.0 * math.pi) ** 2 * sum(a * a for a in axes)
    even = tuple(slice(None, None, 2) for _ in size)  # the crop's own frequencies
    weight = squared[even].flatten()[1:] ** (-0.5 * len(size))
    weight = weight / weight.sum()

    def profile(parameters: Sequence[float]) -> tuple[float, float]:
        """The objective at log length and log decay, and the variance that minimises it."""
        length, decay = map(math.exp, parameters)
        shape = (1.0 + length**2 * squared) ** -decay
        covariance = torch.fft.ifftn(shape / shape.mean()).real
        expected = torch.fft.fftn(covariance * overlap).real[even].flatten()[1:]
        if not bool((expected > 0).all()):  # steeper than float64 resolves
            return math.inf, math.inf
        variance = float((weight * observed / expected).sum())
        return float((weight * expected.log()).sum()) + math.log(variance), variance

    bounds = [(math.log(0.05), math.log(20.0 * max(size))), (math.log(0.05), math.log(20.0))]
    start = [math.log(max(size) / 16.0), math.log(1.5)]
    options = {"xatol": 1e-5, "fatol": 1e-10}
    found = minimize(lambda v: profile(v)[0], start, method="Nelder-Mead", bounds=bounds, options=options).x
    length, decay = map(math.exp, found)
    if not all(low + 1e-3 < v < high - 1e-3 for v, (low, high) in zip(found, bounds, strict=True)):
        raise NumericalError(f"fit_spectrum: no such spectrum fits: stopped at length {length:.3g} px, decay {decay:.3g}")
    std = math.sqrt(profile(found)[1])
    return {"mean": float(mean), "std": std, "length": length * spacing, "decay": decay}
