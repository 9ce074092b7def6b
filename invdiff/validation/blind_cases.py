"""A blind problem whose posterior is known: one unknown gain of a linear measurement, under a Gaussian prior.

y = (1 + g) A x + n,   x ~ N(m, C),   g ~ N(0, tau^2)

p(g | y) ~ N(g; 0, tau^2) N(y; h A m, h^2 A C A^T + sigma^2 I),   h = 1 + g,        by quadrature
x | g, y   Gaussian,   x = x' + h C A^T (h^2 A C A^T + sigma^2 I)^{-1} (y - h A x' - n'),   x', n' from their priors
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Gaussian, Matrix, Problem, Streams
from ..operators.unknown import unknown_gains
from ..priors import GaussianPrior, Independent, normal_parameters
from .case import Case, Quadrature
from .cases import coloured

__all__ = ["GainPosterior", "blind_gain"]

F64 = torch.float64


class GainPosterior:
    """p(x, g / unit | y).

    Args:
        prior: of x, (d,). matrix: A, (m, d). y: (m,). sigma: of y. tau: of g. unit: of g in the unknown.
    """

    def __init__(self, prior: GaussianPrior, matrix: Tensor, y: Tensor, sigma: float, tau: float, unit: float) -> None:
        self.prior, self.matrix, self.y, self.sigma, self.unit = prior, matrix, y, sigma, unit
        self.values, self.basis = torch.linalg.eigh(matrix @ prior.cov @ matrix.T)
        g = torch.linspace(-8.0 * tau, 8.0 * tau, 40_001, dtype=F64)
        h = 1.0 + g[:, None]
        variance, r = h.square() * self.values + sigma**2, (y - h * (matrix @ prior.mean)) @ self.basis
        log = -0.5 * (r.square() / variance + variance.log()).sum(1) - 0.5 * (g / tau).square()
        self.law = Quadrature(g, log[None])

    def sample(self, streams: Streams) -> Tensor:
        """Independent draws of (x, g / unit), (n, 1, d + 1)."""
        g, x = self.law.sample(streams), self.prior.sample(streams)
        h, n = 1.0 + g, self.sigma * streams.normal(0, self.y.shape, "data", F64)
        r = (self.y - h * (x @ self.matrix.T) - n) @ self.basis / (h.square() * self.values + self.sigma**2)
        x = x + h * (r @ self.basis.T @ self.matrix @ self.prior.cov)
        return torch.cat((x, g / self.unit), 1)[:, None]


def blind_gain(seed: int = 0, d: int = 6, m: int = 4, sigma: float = 0.1, tau: float = 0.3, unit: float = 0.3) -> Case:
    """The prior and the operator of `coloured`, with a gain of standard deviation `tau` in units of `unit`."""
    inner = coloured(seed, d, m)
    law, seen = inner.prior, inner.problem.operator
    assert isinstance(law, GaussianPrior) and isinstance(seen, Matrix)  # which `coloured` is made of
    prior = Independent([law, normal_parameters(1, tau)], [1.0, unit])
    operator = unknown_gains(seen, None)
    truth = torch.cat((law.sample(Streams(seed)), tau * Streams(seed).normal(0, (1,), "gain", F64)), 1)[:, None]
    problem = Problem.simulate(operator, Gaussian(sigma), truth, seed)
    exact = GainPosterior(law, seen.matrix, problem.y[0], sigma, tau, unit)
    return Case("blind gain", problem.through(prior.synthesis(problem.shape)), prior, exact)
