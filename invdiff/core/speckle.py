"""Speckle: multiplicative noise of coherent imaging (SAR, ultrasound, holography), one Gamma law in four coordinates.

The intensity averaged over L looks at a reflectivity R is I = R G with G ~ Gamma(L, 1 / L), of mean 1 and variance 1 / L:

    p(I | R) = L^L / Gamma(L)  I^(L - 1) R^-L exp(-L I / R),      p(y | R) = p(I | R) dI / dy

    SingleLook     I = |y|^2, L = 1    p = exp(-|y|^2 / R) / (pi R)                          circular Gaussian, CN(0, R)
    Intensity      I = y               p as above                                            Gamma
    Amplitude      I = y^2             p = 2 L^L / Gamma(L) y^(2L-1) R^-L exp(-L y^2 / R)    Nakagami; Rayleigh for L = 1
    LogIntensity   I = e^y, R = e^u    p = L^L / Gamma(L) exp(L (y - u) - L exp(y - u))      Fisher-Tippett

The noise-free value `clean` is R > 0 in the first three and u in the last, where the negative log-density is convex,

    -d log p / du = L (1 - exp(y - u)),   and is not in R beyond 2 I:   -d log p / dR = L (1 / R - I / R^2).

The logarithm has a bias, E[y - u] = psi(L) - log L, and the variance psi_1(L) = psi'(L), whatever R.

L need not be an integer: products averaged over correlated pixels have an effective number of looks, which
`effective_looks` measures. The proximal maps are in `speckle_prox`.

References: Goodman, Some fundamental properties of speckle, JOSA 66, 1976; Xie, Pierce, Ulaby, Statistical properties of
logarithmically transformed speckle, IEEE TGRS 40, 2002.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .errors import CapabilityError, ConfigError, DataError, NumericalError, ShapeError, require_positive
from .noise import Gaussian, Noise
from .rng import Streams

__all__ = [
    "Amplitude",
    "Intensity",
    "LogIntensity",
    "SingleLook",
    "effective_looks",
    "log_bias",
    "log_variance",
    "looks_of_log_variance",
]


def _check_looks(owner: str, looks: float) -> None:
    if not 0.0 < looks < math.inf:
        raise ConfigError(f"{owner}: expected looks > 0, got {looks}")


def _polygamma(order: int, looks: float) -> float:
    return float(torch.special.polygamma(order, torch.tensor(looks, dtype=torch.float64)))


def log_bias(looks: float) -> float:
    """psi(L) - log L, the mean of log I - log R: -0.577 for one look.

    Raises:
        ConfigError: looks is not positive.
    """
    _check_looks("log_bias", looks)
    return _polygamma(0, looks) - math.log(looks)


def log_variance(looks: float) -> float:
    """psi_1(L), the variance of log I: pi^2 / 6 for one look.

    psi_1(L) = 1 / L^2 + psi_1(L + 1) up to 20, and 1 / L + 1 / (2 L^2) + sum of B_2k / L^(2k+1) from there, to rounding; torch
    has nine digits of it.

    Raises:
        ConfigError: looks is not positive.
    """
    _check_looks("log_variance", looks)
    value, x = 0.0, float(looks)
    while x < 20.0:
        value, x = value + 1.0 / x**2, x + 1.0
    bernoulli = (1.0 / 6.0, -1.0 / 30.0, 1.0 / 42.0, -1.0 / 30.0, 5.0 / 66.0)
    return value + 1.0 / x + 0.5 / x**2 + sum(b / x ** (2 * k + 3) for k, b in enumerate(bernoulli))


def looks_of_log_variance(variance: float) -> float:
    """The number of looks L with psi_1(L) = variance, positive."""
    looks = 0.5 + 1.0 / variance
    for _ in range(50):
        trigamma = log_variance(looks)
        # Newton on 1 / psi_1, which is nearly a straight line; it rises to the root from this start
        change = trigamma * (1.0 - trigamma / variance) / _polygamma(2, looks)
        looks += change
        if abs(change) <= 1e-12 * looks:
            break
    return looks


def effective_looks(
    intensity: Tensor, *, window: int = 16, method: Literal["moments", "log"] = "moments", width: float = 3.0
) -> float:
    """The equivalent number of looks of an intensity image, from its homogeneous blocks.

    In a block of n = window^2 independent pixels of one reflectivity, with mean m and sample variance s^2,

        moments   E[s^2 / m^2] = 1 / (L + 1 / n),   relative standard deviation (2 (1 + 1 / L) / n)^(1/2) to first order
        log       E[s^2 of log I] = psi_1(L),       relative variance (psi_3(L) / psi_1(L)^2 + 2 n / (n - 1)) / n

    Blocks with edges, texture or point targets have larger values. The estimate starts at the mode of the blocks, where the
    density of values over one standard deviation is largest, and is then the mean of those within `width` standard
    deviations of it, symmetric in the logarithm, until they stay the same. Most of the disturbed blocks are outside; a
    quarter of the image lowers the estimate by a few per cent.

    Args:
        intensity: (..., H, W) real, not logarithmic; blocks with a value that is not positive and finite are left out.
        window: side of the blocks, in pixels, so small that most blocks are homogeneous and without point targets; what does
            not fill a block at the end of an axis is left out.
        method: moments are disturbed by bright points, log by dark ones.
        width: half width of the window, in standard deviations of a homogeneous block.

    Correlated speckle spreads the values of the blocks beyond the window and lowers s^2 by the variance of m: whiten it, or
    take larger blocks.

    Raises:
        ConfigError: window < 2, width not positive, or an unknown method.
        ShapeError: the image is smaller than a block, or not real.
        DataError: no block is positive throughout, or all values of each block are equal.
    """
    if window < 2 or not width > 0.0 or method not in ("moments", "log"):
        raise ConfigError(
            "effective_looks: expected window >= 2, width > 0 and method 'moments' or 'log', "
            f"got {window}, {width} and {method!r}"
        )
    if intensity.is_complex() or intensity.ndim < 2 or min(intensity.shape[-2:]) < window:
        raise ShapeError(
            f"effective_looks: expected a real image (..., H, W) of at least {window} x {window} pixels, "
            f"got {tuple(intensity.shape)} {str(intensity.dtype)[6:]}"
        )
    blocks = intensity.double().unfold(-2, window, window).unfold(-2, window, window).flatten(-2).flatten(0, -2)
    blocks = blocks[((blocks > 0) & blocks.isfinite()).all(1)]
    n = window * window
    spread = blocks.var(1) / blocks.mean(1).square() if method == "moments" else blocks.log().var(1)
    values = spread[spread > 0].sort().values
    if len(values) == 0:
        raise DataError(
            f"effective_looks: none of the blocks of {window} x {window} pixels is positive throughout and not constant"
        )

    def deviation(value: float) -> float:
        """Of log(spread) in blocks of the L that `value` belongs to."""
        if method == "moments":
            return math.sqrt(2.0 * (1.0 + value) / n)
        return math.sqrt((_polygamma(3, looks_of_log_variance(value)) / value**2 + 2.0 * n / (n - 1)) / n)

    # the widths of some of the values stand for those of all, which change slowly
    logs, knots = values.log(), torch.linspace(0, len(values) - 1, min(len(values), 64)).round().long()
    widths = torch.tensor([deviation(float(values[k])) for k in knots], dtype=torch.float64)
    ranks = torch.arange(len(values))
    half = widths[torch.searchsorted(knots, ranks).clamp_max(len(knots) - 1)].to(logs)
    near = (torch.searchsorted(logs, logs + half, right=True) - torch.searchsorted(logs, logs - half)) / half
    # the middle of the densest values
    centre = float(values[near >= 0.98 * near.max()].median())
    for _ in range(100):
        reach = width * deviation(centre)
        new = float(values[(logs - math.log(centre)).abs() <= reach].mean())
        if abs(new - centre) <= 1e-12 * centre:
            break
        centre = new
    return 1.0 / centre - 1.0 / n if method == "moments" else looks_of_log_variance(centre)


class _Speckle(Noise):
    """The law of the gain G in the coordinate that a subclass measures."""

    def __init__(self, looks: float) -> None:
        super().__init__()
        if isinstance(looks, bool) or not isinstance(looks, int | float):
            raise ConfigError(f"{type(self).__name__}: expected looks to be a number, got {looks!r}")
        require_positive(self, looks=looks)
        self.looks = float(looks)
        self._constant = looks * math.log(looks) - math.lgamma(looks)

    def _log_gain(self, clean: Tensor, streams: Streams) -> Tensor:
        """log G for each value of `clean`, in its dtype.

        G' U^(1/L) / L with G' ~ Gamma(L + 1) and U uniform is G, and its logarithm exists where G of few looks underflows.
        """
        shape = torch.full(clean.shape[1:], self.looks + 1.0, dtype=torch.float64)
        gains = []
        for generator in streams.generators(0, "noise"):
            boosted = torch._standard_gamma(shape, generator=generator)
            uniform = 1.0 - torch.rand(shape.shape, dtype=torch.float64, generator=generator)
            gains.append(boosted.log() + uniform.log() / self.looks - math.log(self.looks))
        return torch.stack(gains).to(clean)

    def extra_repr(self) -> str:
        return f"looks={self.looks:g}"


class _Multiplicative(_Speckle):
    """The coordinates in which the noise-free value is the reflectivity."""

    def _intensity(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_measure(self, y: Tensor) -> Tensor:
        """(L - 1) log I + log dI / dy, the part of the log-density without R."""
        raise NotImplementedError

    def _reflectivity(self, clean: Tensor) -> Tensor:
        # transforms leave rounding errors below zero where nothing is measured; anything larger is an error of the user
        slack = 1e-4 * float(clean.abs().max()) if clean.numel() else 0.0
        if bool((clean < -slack).any()):
            raise NumericalError(f"{type(self).__name__}: the reflectivity A x is negative ({float(clean.min()):.3g})")
        return clean.clamp_min(0.0)

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        """log p(y | R), (B,); entries that are zero in both are not measured and count nothing, R <= 0 is impossible."""
        inside = clean > 0
        reflectivity = torch.where(inside, clean, 1.0)
        value = self._constant - self.looks * (reflectivity.log() + self._intensity(y) / reflectivity) + self._log_measure(y)
        outside = torch.where((clean == 0) & (y == 0), 0.0, -math.inf).to(value)
        possible = inside if y.is_complex() else inside & (y >= 0)
        return torch.where(possible, value, outside).flatten(1).sum(1)

    def _ratio(self, y: Tensor, clean: Tensor, missing: float) -> Tensor:
        """I / R, `missing` where both are zero."""
        intensity, reflectivity = self._intensity(y), self._reflectivity(clean)
        empty = (reflectivity == 0) & (intensity == 0)
        return torch.where(empty, missing, intensity / torch.where(empty, 1.0, reflectivity))

    def chi2(self, y: Tensor, clean: Tensor) -> Tensor:
        """Sum of L (I / R - 1)^2, the squared residuals of the intensity, in whichever coordinate it was measured; (B,)."""
        return self.looks * (self._ratio(y, clean, 1.0) - 1.0).square().flatten(1).sum(1)

    def gaussian(self, y: Tensor) -> tuple[Gaussian, Tensor]:
        """The Gaussian with the mean and the variance of the likelihood as a density of R, which is inverse Gamma(L - 1, L I):

            mean L I / (L - 2),    variance L^2 I^2 / ((L - 2)^2 (L - 3)).

        Many of them of one R combine to R, where I with the variance I^2 / L would go to (1 - 2 / L) R. A zero, which has no
        scale, gets the standard deviation of the smallest intensity that is not zero.

        Raises:
            CapabilityError: L <= 3, where the variance does not exist; the logarithm has a Gaussian for any L.
            DataError: y has no positive intensity.
        """
        if self.looks <= 3.0:
            raise CapabilityError(
                f"{type(self).__name__}: a likelihood of {self.looks:g} looks has no variance in R, which needs more than 3: "
                "use LogIntensity on log I, whose Gaussian is exact in mean and variance"
            )
        mean = self._intensity(y) * (self.looks / (self.looks - 2.0))
        if not bool((mean > 0).any()):
            raise DataError(f"{type(self).__name__}: the measurement has no positive intensity")
        scale = mean.clamp_min(float(mean[mean > 0].min()))
        return Gaussian(scale[0] / math.sqrt(self.looks - 3.0)), mean


class Intensity(_Multiplicative):
    """Multi-look intensity, y ~ Gamma(L, R / L).

    Args:
        looks: (equivalent) number of looks L, positive, not only integers.

    Raises:
        NumericalError: (sample, chi2) the reflectivity is negative.
    """

    def _intensity(self, y: Tensor) -> Tensor:
        return y

    def _log_measure(self, y: Tensor) -> Tensor:
        return torch.xlogy(self.looks - 1.0, y)

    def sample(self, clean: Tensor, streams: Streams) -> Tensor:
        return self._reflectivity(clean) * self._log_gain(clean, streams).exp()


class Amplitude(_Multiplicative):
    """Multi-look amplitude, the root of the intensity, given the reflectivity R (not its root): Nakagami.

    Args:
        looks: (equivalent) number of looks L, positive, not only integers.

    Raises:
        NumericalError: (sample, chi2) the reflectivity is negative.
    """

    def _intensity(self, y: Tensor) -> Tensor:
        return y.square()

    def _log_measure(self, y: Tensor) -> Tensor:
        return math.log(2.0) + torch.xlogy(2.0 * self.looks - 1.0, y)

    def sample(self, clean: Tensor, streams: Streams) -> Tensor:
        return self._reflectivity(clean).sqrt() * (0.5 * self._log_gain(clean, streams)).exp()


class SingleLook(_Multiplicative):
    """A single-look complex image, y ~ CN(0, R): E|y|^2 = R, each real component of variance R / 2.

    The reflectivity is real and the measurement complex. Its modulus says all about R: Intensity(1) of |y|^2 has the same
    likelihood up to a constant.

    Raises:
        NumericalError: (sample, chi2) the reflectivity is negative.
    """

    makes_complex = True

    def __init__(self) -> None:
        super().__init__(1.0)

    def _intensity(self, y: Tensor) -> Tensor:
        return y.real.square() + y.imag.square()

    def _log_measure(self, y: Tensor) -> Tensor:
        # dI is spread over an annulus of area pi dI
        return torch.full_like(y.real, -math.log(math.pi))

    def sample(self, clean: Tensor, streams: Streams) -> Tensor:
        normal = streams.normal(0, clean.shape[1:], "noise", clean.dtype.to_complex(), clean.device)
        return (0.5 * self._reflectivity(clean)).sqrt() * normal

    def chi2(self, y: Tensor, clean: Tensor) -> Tensor:
        """Sum of |y|^2 / (R / 2), the squared real components in units of their variance, (B,)."""
        return 2.0 * self._ratio(y, clean, 0.0).flatten(1).sum(1)

    def extra_repr(self) -> str:
        return ""


class LogIntensity(_Speckle):
    """The logarithm of a multi-look intensity given u = log R: Fisher-Tippett, convex in u.

    An operator that leaves zeros where nothing is measured has u = y = 0 there, where the gradient and chi2 are zero.

    Args:
        looks: (equivalent) number of looks L, positive, not only integers.
    """

    def sample(self, clean: Tensor, streams: Streams) -> Tensor:
        return clean + self._log_gain(clean, streams)

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        difference = y - clean
        return (self._constant + self.looks * (difference - difference.exp())).flatten(1).sum(1)

    def chi2(self, y: Tensor, clean: Tensor) -> Tensor:
        return self.looks * torch.expm1(y - clean).square().flatten(1).sum(1)

    def gaussian(self, y: Tensor) -> tuple[Gaussian, Tensor]:
        """N(u; y - (psi(L) - log L), psi_1(L)): the mean and the variance of the likelihood as a density of u, and of y."""
        return Gaussian(math.sqrt(log_variance(self.looks))), y - log_bias(self.looks)
