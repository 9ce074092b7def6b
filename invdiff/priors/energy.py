"""Explicit log-densities: for Langevin samplers, proximal methods and baselines, and as denoisers where they are smoothed.

    TotalVariation   -weight sum_j h(|grad x|_j)              isotropic; or a sum over the axes of h(|d_i x|)
    Sparse           -sum_j weight_j h(|W x|_j)               W a wavelet analysis, say
    Quadratic        -weight / 2 |x - mean|^2
    h(r) = r^2 / 2 eps for r < eps,  r - eps / 2 beyond       Huber's function; eps = `smoothing` makes the gradient exist

All are unnormalised; a total variation alone does not see the mean and is no density: add a Quadratic. Energies add with +.
`proximal(x, step)` is argmin_u |u - x|^2 / 2 - step log_prob(u), the MAP estimate of denoising at sigma^2 = step. It is no
Denoiser: E[x0 | x] of these densities has no closed form, and a MAP estimate in its place samples another distribution
(Gribonval).

What has log p(x; sigma), the density of x0 + sigma n, at every sigma is a Denoiser by Tweedie's formula, `EnergyPrior`:

    D(x, sigma) = x + sigma^2 grad log p(x; sigma)

References: Rudin, Osher, Fatemi, Nonlinear total variation based noise removal algorithms, Physica D 60, 1992. Beck, Teboulle,
Fast gradient-based algorithms for constrained total variation image denoising and deblurring problems, IEEE TIP 18, 2009.
Gribonval, Should penalized least squares regression be interpreted as maximum a posteriori estimation?, IEEE TSP 59, 2011.
Efron, Tweedie's formula and selection bias, JASA 106, 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import CapabilityError, ConfigError, Denoiser, LinearOperator, NumericalError, ShapeError, expand, norm
from ..core.errors import require_positive

__all__ = ["Energy", "EnergyPrior", "Quadratic", "Sparse", "Sum", "TotalVariation"]


class Energy:
    """An unnormalised log-density with its gradient. Abstract: subclasses write `log_prob`, and `score` if shorter."""

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) up to a constant, (B, *shape) -> (B,)."""
        raise NotImplementedError(f"{type(self).__name__} does not define log_prob(x)")

    def score(self, x: Tensor) -> Tensor:
        """grad log p(x), (B, *shape) -> (B, *shape)."""
        return torch.func.grad(lambda v: self.log_prob(v).sum())(x)

    def __add__(self, other: Energy) -> Sum:
        return Sum(self, other)


@dataclass(frozen=True)
class Sum(Energy):
    """The product of two densities."""

    first: Energy
    second: Energy

    def log_prob(self, x: Tensor) -> Tensor:
        return self.first.log_prob(x) + self.second.log_prob(x)

    def score(self, x: Tensor) -> Tensor:
        return self.first.score(x) + self.second.score(x)


@dataclass(frozen=True)
class Quadratic(Energy):
    """-weight / 2 |x - mean|^2: independent Gaussians of variance 1 / weight.

    Args:
        weight: precision, in 1 / data units squared, positive.
        mean: in data units.
    """

    weight: float
    mean: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, weight=self.weight)

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * self.weight * (x - self.mean).square().flatten(1).sum(1)

    def score(self, x: Tensor) -> Tensor:
        return -self.weight * (x - self.mean)

    def proximal(self, x: Tensor, step: float) -> Tensor:
        """argmin_u |u - x|^2 / 2 - step log_prob(u)."""
        return (x + step * self.weight * self.mean) / (1.0 + step * self.weight)


@dataclass(frozen=True)
class TotalVariation(Energy):
    """-weight sum_j h(|grad x|_j) of (B, C, *spatial), forward differences that end at the border, channels apart.

    Args:
        weight: in 1 / data units, positive.
        smoothing: jump below which h is quadratic, in data units, positive. The score changes over this distance: a step size
            of Langevin must stay below about smoothing / (2 d weight) in d dimensions.
        isotropic: the length of the gradient; otherwise the sum over the axes.
    """

    weight: float
    smoothing: float
    isotropic: bool = True

    def __post_init__(self) -> None:
        require_positive(self, weight=self.weight, smoothing=self.smoothing)

    def _lengths(self, gradient: Tensor) -> Tensor:
        # the root has no derivative where the gradient vanishes: there the square alone counts
        square = gradient.square().sum(0) if self.isotropic else gradient.square()
        return torch.where(square > 0, square, 1.0).sqrt() * (square > 0)

    def log_prob(self, x: Tensor) -> Tensor:
        values = _huber(self._lengths(_gradient(x)), self.smoothing)
        values = values if self.isotropic else values.sum(0)
        return -self.weight * values.flatten(1).sum(1)

    def score(self, x: Tensor) -> Tensor:
        gradient = _gradient(x)
        return -self.weight * _gradient_adjoint(gradient / self._lengths(gradient).clamp_min(self.smoothing))

    def proximal(self, x: Tensor, step: float, *, max_iter: int = 2000, tol: float = 1e-4) -> Tensor:
        """argmin_u |u - x|^2 / 2 - step log_prob(u), by accelerated projected gradients on the dual.

        With b = step weight the dual field p, |p| <= 1 at every point, minimises |x - b grad^T p|^2 / 2 + b eps |p|^2 / 2 and
        u = x - b grad^T p.

        Args:
            tol: the root mean square distance from the minimiser, in units of that of x, is at most this; bounded for each item
                by the duality gap.

        Raises:
            NumericalError: the gap is not reached in `max_iter` iterations.
        """
        b = step * self.weight
        require_positive(self, step=step)
        rate = 1.0 / (4.0 * b * (x.ndim - 2) + self.smoothing)
        p = ahead = torch.zeros_like(_gradient(x))
        momentum, goal = 1.0, 0.5 * (tol * norm(x)).square()
        gap = torch.full_like(goal, math.inf)
        for k in range(max_iter):
            new = ahead + rate * (_gradient(x - b * _gradient_adjoint(ahead)) - self.smoothing * ahead)
            new = new / self._lengths(new).clamp_min(1.0)
            faster = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * momentum**2))
            p, ahead, momentum = new, new + (momentum - 1.0) / faster * (new - p), faster
            if k % 10 == 9 or k == max_iter - 1:
                u = x - b * _gradient_adjoint(p)
                g = _gradient(u)
                # primal minus dual objective; at the solution each point's term is zero
                inner = (g * p).sum(0) if self.isotropic else g * p
                length = self._lengths(p)
                terms = _huber(self._lengths(g), self.smoothing) - inner + 0.5 * self.smoothing * length.square()
                gap = b * (terms.flatten(1) if self.isotropic else terms.transpose(0, 1).flatten(1)).sum(1)
                if bool((gap <= goal).all()):
                    return u
        raise NumericalError(
            f"TotalVariation.proximal: the duality gap is {float((gap / goal).max()):.1e} times the goal after {max_iter} "
            "iterations: raise max_iter or tol"
        )


@dataclass(frozen=True)
class Sparse(Energy):
    """-sum_j weight_j h(|W x|_j): coefficients of independent (smoothed) Laplace laws where W is orthonormal.

    Args:
        transform: the analysis W, (B, *shape) -> coefficients (B, ...) real: a LinearOperator, or any function;
            `WaveletSynthesis(shape, "db4", 3).H` for orthonormal wavelets.
        weight: in 1 / data units, a number or a tensor that broadcasts to the coefficients; zero leaves one free (the coarsest
            band, say).
        smoothing: below it h is quadratic, in units of the coefficients, positive.
    """

    transform: LinearOperator | Callable[[Tensor], Tensor]
    weight: float | Tensor
    smoothing: float

    def __post_init__(self) -> None:
        require_positive(self, smoothing=self.smoothing)
        weight = torch.as_tensor(self.weight)
        if not bool((weight >= 0).all() and weight.isfinite().all() and (weight > 0).any()):
            raise ConfigError("Sparse: expected weights >= 0 and finite, not all of them zero")

    def log_prob(self, x: Tensor) -> Tensor:
        c = self.transform(x)
        return -(self._weight(c) * _huber(c.abs(), self.smoothing)).flatten(1).sum(1)

    def _weight(self, c: Tensor) -> Tensor:
        return torch.as_tensor(self.weight, dtype=c.dtype, device=c.device)

    def proximal(self, x: Tensor, step: float) -> Tensor:
        """argmin_u |u - x|^2 / 2 - step log_prob(u) for an orthonormal W: soft thresholding.

        Raises:
            CapabilityError: W is no LinearOperator, or W^T W x is not x.
        """
        if not isinstance(self.transform, LinearOperator):
            raise CapabilityError(f"Sparse.proximal: expected a LinearOperator, got {type(self.transform).__name__}")
        c = self.transform(x)
        back = self.transform.adjoint(c)
        if c.numel() != x.numel() or bool((norm(back - x) > torch.finfo(x.dtype).eps ** 0.75 * norm(x)).any()):
            raise CapabilityError(
                f"Sparse.proximal: {type(self.transform).__name__} is not orthonormal, and there is no closed form"
            )
        # x moves back by what the shrinkage takes away: |c| <= eps + b is scaled, more is shifted by b
        b = step * self._weight(c)
        return x - self.transform.adjoint(b * c / torch.maximum(c.abs(), self.smoothing + b))


class EnergyPrior(Denoiser):
    """D(x, sigma) = x + sigma^2 grad log p(x; sigma) of a density given at every noise level; the gradient by autograd.

    Args:
        log_prob: (x, sigma) -> log p(x; sigma) of x = x0 + sigma n up to a function of sigma, (B, *shape), (B,) -> (B,); items
            of a batch independent of each other. The density of x0 alone will not do: nothing here convolves it. A `Mixture`
            needs it normalised as well.
        shape: of one unknown; None in a dimension that is free.
        sigma_min, sigma_max: the noise levels at which log_prob holds.
    """

    def __init__(
        self,
        log_prob: Callable[[Tensor, Tensor], Tensor],
        shape: tuple[int | None, ...],
        *,
        sigma_min: float,
        sigma_max: float,
    ) -> None:
        super().__init__(shape, sigma_min, sigma_max)
        self.log_prob = log_prob

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The posterior mean of x0 by Tweedie's formula."""
        score = torch.func.grad(lambda v: self.log_prob(v, sigma).sum())(x)
        return x + expand(sigma, x) ** 2 * score


def _huber(r: Tensor, eps: float) -> Tensor:
    return torch.where(r < eps, r * r / (2.0 * eps), r - 0.5 * eps)


def _gradient(x: Tensor) -> Tensor:
    """Forward differences along the spatial axes, zero at the end, (B, C, *spatial) -> (d, B, C, *spatial)."""
    if x.ndim < 3:
        raise ShapeError(f"TotalVariation: expected (B, C, *spatial), got {tuple(x.shape)}")
    parts = []
    for axis in range(2, x.ndim):
        step = x.diff(dim=axis)
        parts.append(torch.cat([step, torch.zeros_like(x.narrow(axis, 0, 1))], dim=axis))
    return torch.stack(parts)


def _gradient_adjoint(p: Tensor) -> Tensor:
    """The transpose of `_gradient`."""
    total = torch.zeros_like(p[0])
    for axis, part in enumerate(p, 2):
        inner = part.narrow(axis, 0, part.shape[axis] - 1)
        edge = torch.zeros_like(part.narrow(axis, 0, 1))
        total = total - torch.cat([inner, edge], dim=axis) + torch.cat([edge, inner], dim=axis)
    return total
