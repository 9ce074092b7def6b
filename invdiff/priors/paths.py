"""Noise paths: what the authors of a network call alpha_t, sigma_t and t, against the one coordinate of this package.

    x_t = alpha_t x0 + sigma_t eps,      level = sigma_t / alpha_t,      u = x_t / alpha_t = x0 + level eps.

`level` is our sigma. A path knows alpha(t), sigma(t), the time of a level, the levels it covers, and the number that the
network is told for a time; all in float64, on tensors of any shape.

    path             alpha_t                  sigma_t            time of a level l                         told by default
    DiscreteVP       sqrt(abar_t)             sqrt(1 - abar_t)   table, linear in ln l (`steps.py`)        the index t
    ContinuousVP     exp(-B/2)                sqrt(1 - e^-B)     B(t) = b0 t + (b1 - b0) t^2/2 = ln(1 + l^2)    t
    VE               1                        t                  l                                         ln t
    EDM              1                        t                  l                                         ln(t) / 4
    PFGMpp           1                        t / sqrt(D)        l sqrt(D)                                 ln(l) / 4
    RectifiedFlow    1 - t                    t                  l / (1 + l) (`flows.py`)                  t
    Cosine           cos(pi t / 2)            sin(pi t / 2)      (2 / pi) arctan l                         t
    Interpolant      any                      any                by bisection                              t

**PFGM++** perturbs by the kernel (|x - x0|^2 + r^2)^(-(N+D)/2) in N dimensions. With R = |x - x0| the gradient of its
logarithm is -(N + D)(x - x0) / (R^2 + r^2), that of the Gaussian -(x - x0) / sigma^2. At the radius where both have their
mass, R^2 = N sigma^2, they are equal exactly if r^2 = D sigma^2; away from it the two logarithms differ by (R^2 - N
sigma^2)^2 / (4 (N + D) sigma^4), of second order. For finite D, D(x, sigma) is the mean of x0 under the heavy-tailed kernel
with r = sigma sqrt(D): the EDM sampler on it is PFGM++'s, but Tweedie's formulas, and the guidance that builds on them, hold
only up to a relative error of order N / (N + D).

References: Song, Sohl-Dickstein, Kingma et al., Score-based generative modeling through SDEs, 2021, arXiv:2011.13456. Karras,
Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022, arXiv:2206.00364. Xu, Liu, Tian
et al., PFGM++: Unlocking the potential of physics-inspired generative models, 2023, arXiv:2302.04265. Lipman et al., Flow
matching for generative modeling, 2023, arXiv:2210.02747. Albergo, Boffi, Vanden-Eijnden, Stochastic interpolants, 2023,
arXiv:2303.08797.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import CapabilityError, ConfigError

__all__ = ["EDM", "VE", "ContinuousVP", "PFGMpp", "Path"]


class Path:
    """x_t = alpha(t) x0 + sigma(t) eps.

    Attributes:
        sigma_min, sigma_max: the levels between which the path is used.
    """

    sigma_min: float
    sigma_max: float

    def alpha(self, t: Tensor) -> Tensor:
        """The factor of the data, positive."""
        raise NotImplementedError(f"{type(self).__name__} does not define alpha")

    def sigma(self, t: Tensor) -> Tensor:
        """The factor of the noise, positive."""
        raise NotImplementedError(f"{type(self).__name__} does not define sigma")

    def time(self, level: Tensor) -> Tensor:
        """The t whose sigma(t) / alpha(t) is `level`."""
        raise NotImplementedError(f"{type(self).__name__} does not define time")

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d alpha / dt and d sigma / dt: the velocity of the path is alpha' x0 + sigma' eps."""
        raise CapabilityError(
            f"{type(self).__name__}: its time is not continuous, so a network can't predict the velocity on it"
        )

    def told(self, t: Tensor) -> Tensor:
        """What the network is given for the time t."""
        return t

    @property
    def known(self) -> Tensor | None:
        """The levels that the network was trained at, increasing, where it is told nothing between them; None: all."""
        return None


@dataclass(frozen=True)
class ContinuousVP(Path):
    """The variance-preserving SDE with linear beta(t) = beta_min + t (beta_max - beta_min).

    Args:
        beta_min, beta_max: rates at t = 0 and 1.
        first: the smallest time in training; its level is sigma_min.
        factor: the network is told factor * t (999 for the continuous models of Song et al.).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    first: float = 1e-3
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not (0.0 <= self.beta_min < self.beta_max < math.inf and 0.0 < self.first < 1.0):
            raise ConfigError(f"ContinuousVP: expected 0 <= beta_min < beta_max and 0 < first < 1, got {self}")

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return math.sqrt(math.expm1(self.first * (self.beta_min + 0.5 * self.first * (self.beta_max - self.beta_min))))

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return math.sqrt(math.expm1(0.5 * (self.beta_min + self.beta_max)))

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self._integral(t))).sqrt()

    def time(self, level: Tensor) -> Tensor:
        integral = torch.log1p(level.square())
        # the root of the quadratic, in the form that does not cancel as t -> 0
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt())

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta, alpha = self.beta_min + t * (self.beta_max - self.beta_min), self.alpha(t)
        return -0.5 * beta * alpha, 0.5 * beta * alpha.square() / self.sigma(t)

    def told(self, t: Tensor) -> Tensor:
        return self.factor * t


class _Unscaled(Path):
    """alpha = 1, and the time is the level."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, level: Tensor) -> Tensor:
        return level

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)


@dataclass(frozen=True)
class VE(_Unscaled):
    """Variance exploding: x_t = x0 + t eps.

    Args:
        sigma_min, sigma_max: of the training.
        tells: "log" (ln sigma), "sigma", or "index": the position, from 0 to steps - 1, in the geometric sequence of `steps`
            levels, which is not rounded.
        steps: of "index".
        descending: "index" counts from the largest level, as in NCSN.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    tells: str = "log"
    steps: int | None = None
    descending: bool = False

    def __post_init__(self) -> None:
        _check_interval(self)
        if self.tells not in ("log", "sigma", "index") or (self.tells == "index") != (self.steps is not None):
            raise ConfigError(f'VE: expected tells "log", "sigma", or "index" with steps, got {self.tells!r}, {self.steps}')
        if self.descending and self.steps is None:
            raise ConfigError(f'VE: expected descending with tells "index" only, got {self.tells!r}')
        if self.steps is not None and self.steps < 2:
            raise ConfigError(f"VE: expected at least 2 steps, got {self.steps}")

    def told(self, t: Tensor) -> Tensor:
        if self.steps is None:
            return t.log() if self.tells == "log" else t
        top, bottom = (self.sigma_min, self.sigma_max) if self.descending else (self.sigma_max, self.sigma_min)
        return (self.steps - 1) * (t / bottom).log() / math.log(top / bottom)


@dataclass(frozen=True)
class EDM(_Unscaled):
    """x_t = x0 + t eps, and the network is told ln(t) / 4.

    Args:
        sigma_min, sigma_max: of the training.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _check_interval(self)

    def told(self, t: Tensor) -> Tensor:
        return t.log() / 4


@dataclass(frozen=True)
class PFGMpp(Path):
    """Poisson flow with D augmented dimensions: the time is r = sigma sqrt(D); see the module for what a finite D means.

    Args:
        D: augmented dimensions, positive; the diffusion model is D -> infinity.
        sigma_min, sigma_max: of the training.
        tells: "log" (ln(sigma) / 4, as EDM networks), "sigma" or "r".
    """

    D: float
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    tells: str = "log"

    def __post_init__(self) -> None:
        _check_interval(self)
        if not 0.0 < self.D < math.inf or self.tells not in ("log", "sigma", "r"):
            raise ConfigError(f'PFGMpp: expected a finite D > 0 and tells "log", "sigma" or "r", got {self.D}, {self.tells!r}')

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t / math.sqrt(self.D)

    def time(self, level: Tensor) -> Tensor:
        return level * math.sqrt(self.D)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.full_like(t, self.D**-0.5)

    def told(self, t: Tensor) -> Tensor:
        return t if self.tells == "r" else self.sigma(t) if self.tells == "sigma" else self.sigma(t).log() / 4


def _check_interval(path: VE | EDM | PFGMpp) -> None:
    if not 0.0 < path.sigma_min < path.sigma_max < math.inf:
        low, high = path.sigma_min, path.sigma_max
        raise ConfigError(f"{type(path).__name__}: expected 0 < sigma_min < sigma_max, got {low} and {high}")
