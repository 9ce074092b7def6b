"""The exact posterior of a task, where there is one, and how far draws are from it.

Gaussian priors and mixtures know their posterior under a linear operator with Gaussian noise. Draws are compared with it by

    mean_error   rms of (mean of the draws - mean) in units of the rms standard error, 1 in expectation for n independent draws
    std_ratio    rms standard deviation of the draws / of the posterior, 1 for a right spread
    z_mean, z_cov   the largest deviation of any element in standard errors (`invdiff.metrics`), where the covariance is at hand
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import CapabilityError, Denoiser, Problem, Samples, Streams
from ..metrics import z_cov, z_mean
from ..operators.restoration import Blur
from ..priors.field import SpectralGaussian, StationaryGaussian
from ..priors.linear import linear_gaussian

__all__ = ["Exact", "exact_posterior"]

_DENSE = 2048


@dataclass(frozen=True)
class Exact:
    """A posterior in closed form.

    Args:
        mean: (*shape), on the prior's grid.
        samples: independent draws of it.
        moments: an object with `mean` and `cov`; None where the covariance is too large to hold.
    """

    mean: Tensor
    samples: Samples
    moments: Any | None = None

    def compare(self, draws: Samples) -> dict[str, float]:
        """The numbers above; empty for point estimates, which have no spread."""
        if draws.kind != "posterior" or len(draws) < 2:
            return {}
        reference = self.samples.x.var(0) if self.moments is None else self.moments.cov.diagonal()
        variance, n = float(reference.mean()), len(draws)
        facts = {
            "mean_error": float((draws.mean - self.mean).square().mean().sqrt()) / (variance / n) ** 0.5,
            "std_ratio": (float(draws.x.var(0).mean()) / variance) ** 0.5,
        }
        if self.moments is not None:
            facts |= {"z_mean": z_mean(draws.x, self.moments), "z_cov": z_cov(draws.x, self.moments)}
        return facts


def exact_posterior(prior: Denoiser, problem: Problem, n: int, *, seed: int) -> Exact | None:
    """The posterior and n >= 2 draws of it; None where no closed form is known.

    Computed in float64: spectra of images span more orders of magnitude than conjugate gradients can bridge in float32.
    """
    start, n, dtype = time.perf_counter(), max(n, 2), problem.y.real.dtype
    prior = copy.deepcopy(prior).double()
    y = problem.y.to(torch.complex128 if problem.y.is_complex() else torch.float64)
    problem = Problem(problem.operator, problem.noise, y)
    try:
        if hasattr(prior, "posterior"):
            posterior = prior.posterior(problem)
            mean, x = posterior.mean, posterior.sample(Streams(seed, n))
            # its covariance is a dense matrix
            moments = posterior if mean.numel() <= _DENSE else None
        elif isinstance(prior, SpectralGaussian):
            diagonal = isinstance(problem.operator, Blur) and problem.noise.sigma.ndim == 0
            periodic = diagonal and isinstance(prior, StationaryGaussian)
            moments, draw = None, _periodic if periodic else type(prior).posterior_draws
            mean, x = draw(prior, problem, n, seed=seed)
        else:
            return None
    except CapabilityError:
        return None
    x = x.to(dtype)
    return Exact(mean.to(dtype), Samples(x=x, sampler="exact posterior", seconds=time.perf_counter() - start), moments)


def _periodic(prior: StationaryGaussian, problem: Problem, n: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """The same as `SpectralGaussian.posterior_draws` where the operator, too, is diagonal in Fourier space."""
    operator, sigma = linear_gaussian(problem, "exact_posterior")
    impulse = torch.zeros_like(problem.y)
    impulse[..., 0, 0] = 1.0
    transfer = torch.fft.fft2(operator(impulse))
    gain = prior.spectrum * transfer.conj() / (prior.spectrum * transfer.abs().square() + sigma**2)
    streams = Streams(seed, n)
    x0 = prior.sample(streams, problem.y.dtype)
    noise = sigma * streams.normal(0, operator.out_shape, "matheron", problem.y.dtype, problem.y.device)
    start = torch.cat([torch.full_like(problem.y, prior.mean), x0])
    misfit = problem.y - operator(start) - torch.cat([torch.zeros_like(problem.y), noise])
    draws = start + torch.fft.ifft2(gain * torch.fft.fft2(misfit)).real
    return draws[0], draws[1:]
