"""Classical despeckling, the baselines that a prior of the reflectivity has to beat: problem -> (u = log R, facts).

    Lee                R = m + w (I - m),    w = max(0, 1 - Cu^2 / Ci^2),    Cu^2 = 1 / L,    Ci^2 = s^2 / m^2

m and s^2 are the mean and the variance of the intensity I of L looks in a window about the pixel: where it varies no more than
speckle does, w = 0 and the answer is the mean; at edges and targets w goes to 1.

    WaveletShrinkage   u = mean over shifts of V soft(W (z - bias), t_b) + c,     bias = psi(L) - log L,   z = log I
                       t_b = psi_1(L) / (v_b - psi_1(L))^(1/2),  v_b the mean square of band b of the details

W is an orthonormal wavelet transform, so that white log-speckle has the known variance psi_1(L) in every band (its skewness is
left in the finest), t_b the threshold of Chang, Yu, Vetterli for a band of Laplacian details, infinite where v_b <= psi_1(L).
exp is convex: what of log R has been smoothed away is missing in R. c makes the mean of the ratio I / R one over the image:
that keeps the mean of R where it is constant, and a few bright points do not decide it.

References: Lee, Digital image enhancement and noise filtering by use of local statistics, IEEE TPAMI 2, 1980. Lopes, Touzi,
Nezry, Adaptive speckle filters and scene heterogeneity, IEEE TGRS 28, 1990. Chang, Yu, Vetterli, Adaptive wavelet thresholding
for image denoising and compression, IEEE TIP 9, 2000. Coifman, Donoho, Translation-invariant de-noising, 1995. Xie, Pierce,
Ulaby, SAR speckle reduction using wavelet denoising and Markov random field modeling, IEEE TGRS 40, 2002.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import CapabilityError, ConfigError, DataError, Problem, ShapeError
from ..core.speckle import Amplitude, Intensity, LogIntensity, SingleLook, log_bias, log_variance
from ..operators.dwt import DWT
from ..operators.restoration import Identity
from ..priors.cycle import shift_grid
from .classical import Clock, Facts

__all__ = ["Lee", "WaveletShrinkage"]


@dataclass(frozen=True)
class Lee:
    """The filter of local statistics.

    Args:
        window: side of the window, odd, in pixels; at the border, the part of it that is in the image.
    """

    name = "lee"
    window: int = 7

    def __call__(self, problem: Problem) -> tuple[Tensor, Facts]:
        """u = log R, (1, 1, H, W), and facts: looks, weight (its mean over the image), chi2, seconds.

        Raises:
            CapabilityError: not an image of speckle. ConfigError: the window. DataError: a window without intensity, or a
                negative one.
        """
        if self.window < 3 or self.window % 2 == 0:
            raise ConfigError(f"Lee: expected an odd window of 3 pixels or more, got {self.window}")
        with Clock() as clock:
            intensity, looks = _observed(problem, "Lee")
            mean, weight = self.weights(intensity, looks)
            u = (mean + weight * (intensity - mean)).log()
        return u, {"looks": looks, "weight": float(weight.mean()), "chi2": _chi2(u, intensity, looks), **clock.facts}

    def weights(self, intensity: Tensor, looks: float) -> tuple[Tensor, Tensor]:
        """m and w of every pixel of (B, 1, H, W)."""

        def local(x: Tensor) -> Tensor:
            return F.avg_pool2d(x, self.window, 1, self.window // 2, count_include_pad=False)

        mean = local(intensity)
        if not bool((mean > 0).all()):
            raise DataError(f"Lee: all intensities of a window of {self.window} x {self.window} pixels are zero")
        inside = F.avg_pool2d(torch.ones_like(intensity), self.window, 1, self.window // 2, divisor_override=1)
        # in units of a typical mean: the square of an intensity may overflow
        unit = mean.mean()
        square = local((intensity / unit).square()) - (mean / unit).square()
        # of a single pixel there is none
        variance = square.clamp_min(0.0) * inside / (inside - 1.0).clamp_min(1.0)
        ratio = variance / (mean / unit).square()
        return mean, (1.0 - 1.0 / (looks * ratio.clamp_min(1.0 / looks))).clamp_min(0.0)


@dataclass(frozen=True)
class WaveletShrinkage:
    """Soft thresholds on the wavelet details of the logarithm, averaged over shifts.

    Args:
        wavelet: an orthonormal one of PyWavelets.
        levels: of the transform; sizes that 2^levels does not divide are continued by reflection.
        stride: of the shifts, below 2^levels along each axis; 1 for the whole translation-invariant mean.
    """

    name = "wavelet shrinkage"
    wavelet: str = "sym4"
    levels: int = 4
    stride: int = 4

    def __call__(self, problem: Problem) -> tuple[Tensor, Facts]:
        """u = log R, (1, 1, H, W), and facts: looks, shifts, correction (c), chi2, seconds.

        Raises:
            CapabilityError: not an image of speckle. ConfigError: the wavelet is not orthonormal, or a count is not positive.
            DataError: an intensity is not positive. ShapeError: the image is smaller than 2^levels.
        """
        if self.levels < 1:
            raise ConfigError(f"WaveletShrinkage: expected levels >= 1, got {self.levels}")
        with Clock() as clock:
            intensity, looks = _observed(problem, "WaveletShrinkage")
            if not bool((intensity > 0).all()):
                raise DataError(f"WaveletShrinkage: {int((intensity <= 0).sum())} intensities are zero, and have no logarithm")
            unit = 2**self.levels
            height, width = intensity.shape[-2:]
            if min(height, width) < unit:
                raise ShapeError(f"WaveletShrinkage: expected at least {unit} x {unit} pixels, got {height} x {width}")
            z = F.pad(intensity.log() - log_bias(looks), (0, -width % unit, 0, -height % unit), mode="reflect")
            shifts = shift_grid(self.stride, (unit, unit))
            dwt = DWT(tuple(z.shape[1:]), self.wavelet, self.levels)
            if not dwt.tight:
                raise ConfigError(f"WaveletShrinkage: expected an orthonormal wavelet, got {self.wavelet!r}")
            u = torch.zeros_like(z)
            for shift in shifts:
                back = (-shift[0], -shift[1])
                u = u + self._shrunk(dwt, z.roll(shift, (2, 3)), log_variance(looks)).roll(back, (2, 3))
            u = u[..., :height, :width] / len(shifts)
            correction = (intensity * (-u).exp()).mean().log()
            u = u + correction
        facts = {"looks": looks, "shifts": len(shifts), "correction": float(correction)}
        return u, {**facts, "chi2": _chi2(u, intensity, looks), **clock.facts}

    @staticmethod
    def _shrunk(dwt: DWT, z: Tensor, noise: float) -> Tensor:
        """Soft thresholds on the details of one transform, (1, 1, H, W)."""
        approximation, *details = dwt.split(dwt.analysis(z))
        shrunk = [approximation]
        for band in details:
            signal = float(band.square().mean()) - noise
            threshold = noise / math.sqrt(signal) if signal > 0.0 else math.inf
            shrunk.append(F.softshrink(band, threshold) if math.isfinite(threshold) else torch.zeros_like(band))
        return dwt.inverse(dwt.join(shrunk))


def _observed(problem: Problem, who: str) -> tuple[Tensor, float]:
    """The intensity, (1, 1, H, W), and its looks."""
    noise, y = problem.noise, problem.y
    image = isinstance(problem.operator, Identity) and y.ndim == 4 and y.shape[1] == 1
    if not image or not isinstance(noise, (SingleLook, Intensity, Amplitude, LogIntensity)):
        raise CapabilityError(
            f"{who}: expected the Identity on (1, H, W) with speckle, as log_problem(image, kind=...) makes it, got "
            f"{type(problem.operator).__name__} on {problem.shape} and {type(noise).__name__}"
        )
    if isinstance(noise, LogIntensity):
        return y.exp(), noise.looks
    intensity = y if isinstance(noise, Intensity) else y.abs().square()
    if bad := int((intensity < 0).sum()):
        raise DataError(f"{who}: {bad} of the {y.numel()} intensities are negative")
    return intensity, noise.looks


def _chi2(u: Tensor, intensity: Tensor, looks: float) -> float:
    """L (I / R - 1)^2, its mean over the pixels: about 1 of a right R."""
    return float(looks * (intensity * (-u).exp() - 1.0).square().mean())
