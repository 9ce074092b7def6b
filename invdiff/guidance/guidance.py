"""What every guidance is: hyper-parameters that turn a prior and a problem into a denoiser of the posterior.

    D_y(x, sigma) ~ E[x0 | x, y],    x = x0 + sigma n

Any integrator runs on the result as it would on the prior itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import CapabilityError, Denoiser, Gaussian, Problem

__all__ = ["Guidance", "Jacobian", "linearize", "require_gaussian", "require_scalar_gaussian"]

Jacobian = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Guidance:
    """Base of all guidances.

    Attributes:
        kind: "posterior", or "point" where draws with it have no meaningful spread.
        needs: what the operator must offer, see `core.capabilities`.
    """

    kind: ClassVar[str] = "posterior"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, prior: Denoiser, problem: Problem) -> Denoiser:
        """The denoiser D_y; what depends on the problem alone is computed here, once."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__(prior, problem)")


def require_gaussian(problem: Problem, who: str) -> Tensor:
    """Standard deviation of the noise, () or broadcastable to the measurement, in the measurement's real dtype.

    Raises:
        CapabilityError: the noise is not Gaussian.
    """
    if not isinstance(problem.noise, Gaussian):
        raise CapabilityError(
            f"{who} needs Gaussian noise, the problem has {type(problem.noise).__name__}: problem.gaussian() gives the "
            "Gaussian approximation that its data suggest"
        )
    return problem.noise.sigma.to(problem.y.real)


def require_scalar_gaussian(problem: Problem, who: str) -> Tensor:
    """The same for methods that need one standard deviation, ().

    Raises:
        CapabilityError: the noise is not Gaussian, or not equally strong everywhere.
    """
    sigma = require_gaussian(problem, who)
    # one number is not looked at: that would wait for the device at every step
    if sigma.numel() > 1 and not bool((sigma == sigma.flatten()[0]).all()):
        raise CapabilityError(
            f"{who} needs one noise level, Gaussian has sigma of shape {tuple(sigma.shape)} between {float(sigma.min()):.3g} "
            f"and {float(sigma.max()):.3g}: MMPS takes any"
        )
    return sigma.flatten()[0]


def noise_level(problem: Problem, who: str) -> float:
    """The same as a number, read from the device once for each noise."""
    require_gaussian(problem, who)
    assert isinstance(problem.noise, Gaussian)

    def read(sigma: Tensor) -> float:
        require_scalar_gaussian(problem, who)
        # as it was given, since problems of several precisions may share the noise
        return float(sigma.flatten()[0])

    return problem.noise.held(problem.noise.sigma, read)


def linearize(prior: Denoiser, x: Tensor, sigma: Tensor) -> tuple[Tensor, Jacobian]:
    """D(x, sigma), detached, and the product v -> J^T v with J = dD/dx.

    One graph serves any number of products; it is freed with the function. Works under `torch.no_grad` too.

    Raises:
        CapabilityError: the prior's output carries no gradient.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        denoised = prior(leaf, sigma)
    if not denoised.requires_grad:
        raise CapabilityError(f"{type(prior).__name__}: the method needs dD/dx, but the denoiser's output carries no gradient")

    def transposed(v: Tensor) -> Tensor:
        return torch.autograd.grad(denoised, leaf, v, retain_graph=True)[0]

    return denoised.detach(), transposed
