"""Gaussian random fields on regular grids: the denoiser, draws, density and posterior by fast transforms, O(N log N).

    x = mean + B^T S^(1/2) n,    D(x, sigma) = mean + B^T S / (S + sigma^2) B (x - mean),    B orthonormal, S_j >= 0

Along each axis B is the Fourier (periodic), the cosine (Neumann, zero slope at the walls) or the sine transform (Dirichlet,
zero at the walls); the points are the centres of the cells, the walls their outer faces. On a box of n cells of width h the
mode j has the frequency j / (n h), j / (2 n h) or (j + 1) / (2 n h), and S is a power spectrum at it,

    S_j = P(2 pi |k_j * length|) / cell volume,            `std=None`: P is a spectral density in physical units
    S_j = std^2 P(...) / mean_j P(...),                    otherwise: std^2 is the variance of a point, averaged over the grid

The first makes fields on different grids the same field seen at different resolutions. Between walls the field is the
stationary one on the doubled torus, made even or odd and of the same mean power: near a Neumann (Dirichlet) wall its variance
is up to twice that of the middle (goes to zero).

References: Rue, Held, Gaussian Markov random fields, 2005, section 2.6. Stuart, Inverse problems: a Bayesian perspective, Acta
Numerica 19, 2010, section 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, LinearOperator, NumericalError, Problem, ShapeError, Streams, cg, expand
from ..operators.cosine import dct, dst, idct, idst
from .linear import linear_gaussian
from .spectra import Laplacian

__all__ = ["DENSE", "GaussianField", "SpectralGaussian", "StationaryGaussian", "rows"]

Boundary = Literal["periodic", "neumann", "dirichlet"]

# real measurements up to which a covariance of the measurement is held
DENSE = 4096


def rows(operator: LinearOperator, like: Tensor, block: int = 256) -> Tensor:
    """The matrix of a real operator with few measurements, (M, *in_shape), of the dtype and device of `like`."""
    shape, count = operator.out_shape, math.prod(operator.out_shape)
    unit = torch.eye(count, dtype=like.dtype, device=like.device).reshape(count, *shape)
    return torch.cat([operator.adjoint(part) for part in unit.split(block)])


class SpectralGaussian(Denoiser):
    """A Gaussian whose covariance is diagonal in the transform of each axis; channels are independent. Abstract: the classes
    below say what the diagonal is.

    Args:
        shape: (C, *spatial).
        spectrum: variances of the modes, (*spatial), not negative.
        boundary: one for each spatial axis.
        mean: value of the mean, in data units.
    """

    spectrum: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        spectrum: Tensor,
        boundary: Sequence[Boundary],
        *,
        mean: float,
        sigma_min: float,
        sigma_max: float,
    ) -> None:
        super().__init__(tuple(shape), sigma_min, sigma_max)
        if not bool((spectrum.isfinite() & (spectrum >= 0)).all() and spectrum.sum() > 0):
            raise ConfigError(f"{type(self).__name__}: expected a finite spectrum >= 0 that is not zero everywhere")
        self.mean, self.boundary = float(mean), tuple(boundary)
        self._periodic = tuple(i + 2 for i, b in enumerate(boundary) if b == "periodic")
        self.register_buffer("spectrum", spectrum, persistent=False)

    @property
    def origin(self) -> float:
        return self.mean

    def extra_repr(self) -> str:
        return f"{self.shape}, mean={self.mean}, boundary={self.boundary}"

    def _power(self, x: Tensor) -> Tensor:
        """Squares of the deviations of the modes from the mean, (B, C, *spatial), of the scale of the spectrum."""
        return self._modes(x - self.mean).abs().square() / math.prod(x.shape[i] for i in self._periodic)

    def _modes(self, x: Tensor) -> Tensor:
        """Coefficients of (B, C, *spatial): orthonormal along walls, with torch's unscaled FFT along the periodic axes."""
        for axis, kind in enumerate(self.boundary, 2):
            if kind != "periodic":
                x = (dct if kind == "neumann" else dst)(x, axis)
        return torch.fft.fftn(x, dim=self._periodic) if self._periodic else x

    def _filter(self, x: Tensor, weight: Tensor) -> Tensor:
        dtype, x = x.dtype, self._modes(x) * weight
        x = torch.fft.ifftn(x, dim=self._periodic).real if self._periodic else x
        for axis, kind in enumerate(self.boundary, 2):
            if kind != "periodic":
                x = (idct if kind == "neumann" else idst)(x, axis)
        return x.to(dtype)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The exact posterior mean of x0 (the Wiener filter)."""
        spectrum = self.spectrum.to(x.dtype)
        weight = spectrum / (spectrum + expand(sigma, x) ** 2)
        return self.mean + self._filter(x - self.mean, weight)

    def covariance(self, x: Tensor) -> Tensor:
        """C x for deviations from the mean, (B, *shape)."""
        return self._filter(x, self.spectrum.to(x.dtype))

    def gram(self, rows: Tensor) -> Callable[[float], Tensor]:
        """sigma -> R V R^T, (M, M) float64, of the rows R of a matrix, (M, *shape), and V = sigma^2 C / (C + sigma^2), the
        covariance of x0 given x; C itself for sigma = inf. One transform of the rows serves every sigma.
        """
        if not len(rows):
            # which the FFT of MKL refuses
            return lambda _: torch.zeros(0, 0, dtype=torch.float64, device=rows.device)
        points = math.prod(rows.shape[i] for i in self._periodic)
        modes = (self._modes(rows.double()) / math.sqrt(points)).flatten(2)
        spectrum = self.spectrum.double().flatten()

        def at(sigma: float) -> Tensor:
            v = spectrum if math.isinf(sigma) else spectrum * sigma**2 / (spectrum + sigma**2)
            half = (modes * v.sqrt()).flatten(1)
            return (half @ half.mH).real

        return at

    def supported(self, x: Tensor) -> Tensor:
        """x, (B, *shape), with the mean in the modes that have no variance."""
        return self.mean + self._filter(x - self.mean, (self.spectrum > 0).to(x.dtype))

    def distance(self, x: Tensor) -> Tensor:
        """|x - mean|^2 in units of the variances of the modes that have one, (B, *shape) -> (B,) float64."""
        spectrum = self.spectrum.double()
        power = torch.where(spectrum > 0, self._power(x.double()) / torch.where(spectrum > 0, spectrum, 1.0), 0.0)
        return power.flatten(1).sum(1)

    def log_prob(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """log density of x = x0 + sigma n, (B, *shape), (B,) -> (B,); without sigma that of x0.

        Raises:
            NumericalError: without sigma, where the spectrum has a zero and the density of x0 does not exist.
        """
        if sigma is None and not bool((self.spectrum > 0).all()):
            raise NumericalError(f"{type(self).__name__}: the spectrum has zeros, so x0 has no density: give a sigma")
        variance = self.spectrum.to(x.dtype).expand(x.shape)
        variance = variance if sigma is None else variance + expand(sigma, x) ** 2
        return -0.5 * (self._power(x) / variance + (2.0 * math.pi * variance).log()).flatten(1).sum(1)

    def sample(self, streams: Streams, dtype: torch.dtype = torch.float32, purpose: str = "prior") -> Tensor:
        """Exact draws, (draws, *shape)."""
        z = streams.normal(0, self.shape, purpose, dtype, self.spectrum.device)  # type: ignore[arg-type]
        return self.mean + self._filter(z, self.spectrum.to(dtype).sqrt())

    def posterior_draws(
        self, problem: Problem, n: int, *, seed: int, max_iter: int = 2000, tol: float = 1e-5
    ) -> tuple[Tensor, Tensor]:
        """The exact posterior mean, (*shape), and n exact draws, (n, *shape), of a linear problem with Gaussian noise.

        Matheron's rule: with x0 from the prior and n0 from the noise, x0 + K (y - A x0 - n0) is a draw of the posterior. K by a
        dense factorisation of the covariance of y in float64 where there are at most 4,096 real measurements, else by
        conjugate gradients in the space of the measurement, to relative residual `tol`.
        """
        who = type(self).__name__
        operator, sigma = linear_gaussian(problem, f"{who}.posterior_draws")
        y = problem.y
        variance, streams = sigma.to(y.real.dtype) ** 2, Streams(seed, n)
        mean = torch.full((1, *self.shape), self.mean, dtype=y.real.dtype, device=y.device)  # type: ignore[arg-type]
        x0 = torch.cat([mean, self.sample(streams, y.real.dtype)])
        noise = streams.normal(0, operator.out_shape, "matheron", y.dtype, y.device) * variance.sqrt()
        misfit = y - operator(x0) - torch.cat([torch.zeros_like(noise[:1]), noise])
        if operator.measured is not None:
            misfit = misfit * operator.measured
        if not operator.out_complex and math.prod(operator.out_shape) <= DENSE:
            gram = self.gram(rows(operator, y))(math.inf)
            gram.diagonal().add_((sigma.double() ** 2).expand(operator.out_shape).flatten())
            solved = torch.cholesky_solve(misfit.double().flatten(1).mT, torch.linalg.cholesky(gram)).mT
            weights = solved.reshape(misfit.shape).to(y.dtype)
        else:
            result = cg(
                lambda v: operator(self.covariance(operator.adjoint(v))) + variance * v, misfit, max_iter=max_iter, tol=tol
            )
            if float(result.residual.max()) > 10 * tol:
                raise NumericalError(
                    f"{who}: conjugate gradients reached {float(result.residual.max()):.1e} in {max_iter} iterations"
                )
            weights = result.x
        draws = x0 + self.covariance(operator.adjoint(weights))
        return draws[0], draws[1:]


class StationaryGaussian(SpectralGaussian):
    """A stationary Gaussian random field on a periodic grid of any size, with the power spectrum

        P(k) = scale^2 / (1 + (2 pi |k * length|)^2)^decay,   k in cycles per unit of length

    normalised so that the standard deviation of a pixel is `std`; channels are independent.

    Args:
        shape: (C, *spatial).
        mean: value of the mean, in data units.
        std: standard deviation of a pixel, in data units.
        length: distance beyond which neighbours decorrelate, in the unit of `spacing`; one number, or one for each axis.
        decay: half the power of the decay; 1.5 gives photographs' 1/|k|^2 ... 1/|k|^3 in two dimensions.
        spacing: distance of neighbouring points, one number or one for each axis; 1 measures in pixels.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        mean: float = 0.0,
        std: float = 1.0,
        length: float | Sequence[float] = 8.0,
        decay: float = 1.5,
        spacing: float | Sequence[float] = 1.0,
        sigma_min: float = 1e-3,
        sigma_max: float = 100.0,
    ) -> None:
        boundary: list[Boundary] = ["periodic"] * (len(shape) - 1)
        if not (std > 0 and decay > 0):
            raise ConfigError(f"StationaryGaussian: expected std, decay > 0, got {std}, {decay}")
        squared = _squared_wave_numbers("StationaryGaussian", shape, boundary, length, spacing)
        spectrum = (1.0 + squared) ** -decay
        spectrum = std**2 * spectrum / spectrum.mean()
        super().__init__(shape, spectrum, boundary, mean=mean, sigma_min=sigma_min, sigma_max=sigma_max)


class GaussianField(SpectralGaussian):
    """A Gaussian random field with any power spectrum, on a torus, between walls, or both.

    Args:
        shape: (C, *spatial), any number of spatial dimensions.
        spectrum: P(q) >= 0 of q = 2 pi |k * length|, a function of tensors; `invdiff.priors.spectra` has some.
        mean: value of the mean, in data units.
        std: standard deviation of a point (root mean square over the grid), in data units; None where P is a spectral density
            in physical units, whose integral over the frequencies k is the variance.
        length: unit of length of the spectrum, in the unit of `spacing`; one number, or one for each axis.
        spacing: distance of neighbouring points; one number, or one for each axis.
        boundary: "periodic", "neumann", "dirichlet", or one of them for each axis.
        zero_mean: leave out the constant mode, so that the average of every draw is `mean`.

    Raises:
        ConfigError: an option is out of its range, or the spectrum is negative, not finite, or zero everywhere.
        ShapeError: as many numbers as axes were expected.
    """

    def __init__(
        self,
        shape: Sequence[int],
        spectrum: Callable[[Tensor], Tensor],
        *,
        mean: float = 0.0,
        std: float | None = 1.0,
        length: float | Sequence[float] = 1.0,
        spacing: float | Sequence[float] = 1.0,
        boundary: Boundary | Sequence[Boundary] = "periodic",
        zero_mean: bool = False,
        sigma_min: float = 1e-3,
        sigma_max: float = 100.0,
    ) -> None:
        walls = _per_axis("GaussianField", "boundary", boundary, len(shape) - 1)
        unknown = set(walls) - {"periodic", "neumann", "dirichlet"}
        if unknown or (zero_mean and "dirichlet" in walls):
            raise ConfigError(
                "GaussianField: expected boundary to be periodic, neumann or dirichlet, and no dirichlet with zero_mean (it "
                f"has no constant mode), got {', '.join(map(str, walls))}"
            )
        if std is not None and not std > 0:
            raise ConfigError(f"GaussianField: expected std > 0 or none, got {std}")
        modes = spectrum(_squared_wave_numbers("GaussianField", shape, walls, length, spacing).sqrt())
        if zero_mean:
            modes = modes.clone()
            modes[(0,) * modes.ndim] = 0.0
        cell = math.prod(_per_axis("GaussianField", "spacing", spacing, len(shape) - 1))
        modes = modes / cell if std is None else std**2 * modes / modes.mean()
        super().__init__(shape, modes, walls, mean=mean, sigma_min=sigma_min, sigma_max=sigma_max)

    @classmethod
    def laplacian(
        cls,
        shape: Sequence[int],
        *,
        scale: float,
        tau: float,
        alpha: float,
        spacing: float | Sequence[float],
        boundary: Boundary | Sequence[Boundary] = "neumann",
        zero_mean: bool = False,
        sigma_min: float = 1e-3,
        sigma_max: float = 100.0,
    ) -> GaussianField:
        """N(0, scale^2 (-Laplace + tau^2)^-alpha) with the eigenvalues of the continuous Laplacian, on any grid.

        Darcy of Li et al.: scale 1, tau 3, alpha 2, Neumann, spacing 1/n. Navier-Stokes: scale^2 = 7^1.5, tau 7, alpha 2.5,
        periodic on the unit torus.
        """
        return cls(
            shape,
            Laplacian(scale, tau, alpha),
            std=None,
            spacing=spacing,
            boundary=boundary,
            zero_mean=zero_mean,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
        )


def _per_axis(who: str, name: str, value: object, axes: int) -> list:
    """One value for each axis from one value or as many."""
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * axes
    if axes < 1 or len(values) != axes:
        raise ShapeError(f"{who}: expected one {name} for each of the {axes} spatial axes (at least 1), got {value}")
    return values


def _squared_wave_numbers(
    who: str,
    shape: Sequence[int],
    boundary: Sequence[Boundary],
    length: float | Sequence[float],
    spacing: float | Sequence[float],
) -> Tensor:
    """(2 pi |k * length|)^2 of every mode, (*spatial) float64."""
    axes = len(shape) - 1
    lengths, spacings = _per_axis(who, "length", length, axes), _per_axis(who, "spacing", spacing, axes)
    if not all(0.0 < v < math.inf for v in (*lengths, *spacings)):
        raise ConfigError(f"{who}: expected length and spacing > 0, got {length} and {spacing}")
    ks = []
    for n, h, relative, kind in zip(shape[1:], spacings, (v / lengths[0] for v in lengths), boundary, strict=True):
        if kind == "periodic":
            k = torch.fft.fftfreq(n, d=h, dtype=torch.float64)
        else:
            k = torch.arange(n, dtype=torch.float64).add(1.0 if kind == "dirichlet" else 0.0) / (2 * n * h)
        ks.append(relative * k)
    grids = torch.meshgrid(*ks, indexing="ij")
    return (2.0 * math.pi * lengths[0]) ** 2 * torch.stack([k * k for k in grids]).sum(0)
