"""Monte Carlo guided diffusion (MCGdiff): the datum of a coefficient is a noisy state of the chain itself.

In the basis V of A^H A = V diag(a^2) V^H, u = V^H x, the datum ybar_i = (V^H x0)_i + b_i n, b_i = sigma_y / a_i, has the law of
u_i at the level b_i. Of the levels sigma_0 > sigma_1 > ... > 0 let tau_i be the first that is at most b_i. Then

    ybar_i = u_i(tau_i) + sqrt(b_i^2 - sigma_tau_i^2) n,        u_i(sigma) = ybar_i + sqrt(sigma^2 - b_i^2) n'  (sigma > b_i)

both hold given x0, so that the posterior is the chain's law given observations of the coefficients i at tau_i, with potentials

    g(u) = prod over i with sigma >= sigma_tau_i of N(u_i; ybar_i, v_i),    v_i = |sigma^2 - b_i^2| + kappa b_i^2

that lead the particles to them. With the chain's own transition N(m, c^2), DDIM of share eta,

    m = d + sqrt(sigma'^2 - c^2) (u - d) / sigma,    c = eta sigma' sqrt(1 - sigma'^2 / sigma^2),    d = V^H D(x, sigma)

a particle is weighted by how well its successors can be, and moves to where they are: for the i with sigma' >= sigma_tau_i

    weight      prod_i N(m_i; ybar_i, c^2 + v'_i) / prod_i N(u_i; ybar_i, v_i)
    successor   u'_i = K ybar_i + (1 - K) m_i + sqrt(v'_i K) z_i,    K = c^2 / (c^2 + v'_i)

and u'_i = m_i + c z_i for the others: those without data, and those whose observation has passed, which stays in the weights.
In the paper tau_i is the level of noise b_i itself and the chain variance preserving, and v_i there becomes 1 + sigma^2 -
(1 - kappa) (1 + b_i^2) here.

As N grows, the draws become those of the posterior of the prior that the chain makes, an ancestral one with eta = 1, seen at
tau_i: of the prior itself where the steps are short (see `ddsmc`). With N = 1 there are no weights, and the draws for a
Gaussian prior follow the linear recursion above; the law is the same where the coefficients are independent in the prior, each
then a chain through its own datum.

References: Cardoso, Janati, Le Corff, Moulines, Monte Carlo guided diffusion for Bayesian linear inverse problems, ICLR 2024,
arXiv:2308.07983.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Problem, Streams
from ..guidance import require_scalar_gaussian
from .ddrm import modes
from .integrators import fresh_noise
from .particles import Particles, Proposed, Swarm, Transition

__all__ = ["MCGdiff"]


@dataclass(frozen=True)
class MCGdiff(Particles):
    """Weighted particles of the prior's chain that are led through the data, each at the level of its noise.

    Args:
        eta: share of fresh noise of the chain, in (0, 1].
        kappa: least variance of a potential, in units of the datum's; the data are taken for noisier by that.
        particles, resample, chunk, grid, steps: see `Particles`.

    Raises:
        ConfigError: an option out of its range.
        CapabilityError: the operator has no spectrum, or the noise is not Gaussian of one level.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "spectral"})
    eta: float = 1.0
    kappa: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0.0 < self.eta <= 1.0 and 0.0 < self.kappa < 1.0):
            raise ConfigError(f"MCGdiff: expected eta in (0, 1] and kappa in (0, 1), got {self.eta} and {self.kappa}")

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        require_scalar_gaussian(problem, "MCGdiff")
        return prior

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> Swarm:
        """Pure noise of the highest level given the potentials, of equal weight."""
        first = super().init(problem, prior, streams)
        spectrum, data, b = modes(problem, "MCGdiff")
        origin = torch.as_tensor(prior.origin, dtype=data.dtype, device=data.device).expand(1, *problem.shape)
        noise = spectrum.to(first.particles.flatten(0, 1) - origin)
        centre, variance = spectrum.to(origin), self._variance(b, first.sigma)
        gain = first.sigma**2 / (first.sigma**2 + variance)
        x = spectrum.back(centre + gain * (data - centre) + (1.0 - gain).sqrt() * noise)
        particles = x.reshape(first.particles.shape)
        return replace(first, x=particles[:, 0], particles=particles)

    def look(self, problem: Problem, prior: Denoiser, x: Tensor, at: Transition) -> tuple[Tensor, tuple[Tensor, ...]]:
        spectrum, data, b = modes(problem, "MCGdiff")
        u, denoised = spectrum.to(x), spectrum.to(prior(x, x.new_full((len(x),), at.sigma)))
        fresh = fresh_noise(at.sigma, at.sigma_next, self.eta)
        mean = denoised + math.sqrt(at.sigma_next**2 - fresh**2) / at.sigma * (u - denoised)
        ahead = (mean - data).square() / (fresh**2 + self._variance(b, at.sigma_next))
        here = (u - data).square() / self._variance(b, at.sigma)
        # an observation that has passed is not taken back
        return -0.5 * torch.where(b < at.sigma, ahead - here, 0.0).flatten(1).sum(1), (mean,)

    def propose(
        self,
        problem: Problem,
        prior: Denoiser,
        x: Tensor,
        seen: tuple[Tensor, ...],
        history: Tensor,
        at: Transition,
        noise: Callable[..., Tensor],
    ) -> Proposed:
        (mean,) = seen
        spectrum, data, b = modes(problem, "MCGdiff")
        fresh = fresh_noise(at.sigma, at.sigma_next, self.eta)
        if fresh > 0.0:
            gain = torch.where(b < at.sigma, fresh**2 / (fresh**2 + self._variance(b, at.sigma_next)), 0.0)
            mean = mean + gain * (data - mean) + fresh * (1.0 - gain).sqrt() * noise(tuple(b.shape))
        return Proposed(spectrum.back(mean), x.new_zeros(len(x)), history)

    def _variance(self, b: Tensor, sigma: float) -> Tensor:
        """v."""
        return (sigma**2 - b.square()).abs() + self.kappa * b.square()
