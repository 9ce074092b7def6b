"""Data sets of elliptic equations: random coefficients and sources with their exact discrete solutions.

    Darcy     -div(a grad u) = 1,  u = 0 on the walls;  a = high where z >= 0, low elsewhere
    Source    -Laplace u - k^2 u = f,  u = 0 on the walls;  the mean of f is zero

z and f are N(0, (-Laplace + tau^2)^-alpha), of zero slope at the walls of the unit square. Sample i is a function of (seed, i)
alone, to rounding whatever the others of the batch; held-out data are another seed. The sources are drawn at the centres of n
cells and are used at the n points between the walls of `Poisson`, as in the published sets: a stretching by 1 / n.

References: Li, Kovachki, Azizzadenesheli, Liu, Bhattacharya, Stuart, Anandkumar, Fourier neural operator for parametric partial
differential equations, 2021, arXiv:2010.08895, appendix A.3. Huang, Yang, Wang, Park, DiffusionPDE, 2024, arXiv:2406.17763.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError, require_positive
from ..core.rng import Streams
from ..operators.pde import Darcy, Helmholtz, Poisson
from ..priors.field import GaussianField

__all__ = ["DarcyFlow", "SourceFields"]


@dataclass(frozen=True, kw_only=True)
class DarcyFlow:
    """Permeabilities of two values and their pressures: {"a": (N, 1, size, size), "u": likewise}.

    Args:
        seed: of the set.
        size: cells along each side.
        low, high: the two permeabilities, positive.
        tau, alpha: of the field that is cut at zero.
        faces: permeability of a face between two cells, "harmonic" or "arithmetic".
        solve: False leaves "u" out.
    """

    seed: int = 0
    size: int = 64
    low: float = 3.0
    high: float = 12.0
    tau: float = 3.0
    alpha: float = 2.0
    faces: Literal["harmonic", "arithmetic"] = "harmonic"
    solve: bool = True

    def __post_init__(self) -> None:
        _require_size(self, self.size)
        require_positive(self, low=self.low, high=self.high, tau=self.tau, alpha=self.alpha)

    def __call__(
        self, indices: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        z = _law(self.size, self.tau, self.alpha, zero_mean=False).to(device).sample(Streams(self.seed, indices), torch.float64)
        a = torch.where(z >= 0.0, self.high, self.low).to(torch.float64)
        out = {"a": a.to(dtype)}
        if self.solve:
            out["u"] = Darcy((self.size, self.size), faces=self.faces)(a.cpu()).to(device, dtype)
        return out


@dataclass(frozen=True, kw_only=True)
class SourceFields:
    """Sources and the fields they cause: {"f": (N, 1, size, size), "u": likewise}.

    The published sets have Laplace u + k^2 u = f, which is the same pair with -u.

    Args:
        seed: of the set.
        size: points along each side, without the walls.
        wavenumber: k, radians per side; 0 is Poisson's equation.
        tau, alpha: of the law of f.
        solve: False leaves "u" out.
    """

    seed: int = 0
    size: int = 64
    wavenumber: float = 0.0
    tau: float = 3.0
    alpha: float = 2.0
    solve: bool = True

    def __post_init__(self) -> None:
        _require_size(self, self.size)
        require_positive(self, tau=self.tau, alpha=self.alpha)
        if not 0.0 <= self.wavenumber < math.inf:
            raise ConfigError(f"SourceFields: expected a finite wavenumber >= 0, got {self.wavenumber}")

    def __call__(
        self, indices: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        law = _law(self.size, self.tau, self.alpha, zero_mean=True).to(device)
        f = law.sample(Streams(self.seed, indices), torch.float64)
        out = {"f": f.to(dtype)}
        if self.solve:
            shape = (1, self.size, self.size)
            operator = Helmholtz(shape, self.wavenumber) if self.wavenumber else Poisson(shape)
            out["u"] = operator.to(device)(f).to(dtype)
        return out


def _law(size: int, tau: float, alpha: float, *, zero_mean: bool) -> GaussianField:
    return GaussianField.laplacian(
        (1, size, size), scale=1.0, tau=tau, alpha=alpha, spacing=1.0 / size, boundary="neumann", zero_mean=zero_mean
    )


def _require_size(who: object, size: int) -> None:
    if size < 4:
        raise ConfigError(f"{type(who).__name__}: expected size >= 4, got {size}")
