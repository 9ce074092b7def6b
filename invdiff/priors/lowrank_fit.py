"""A mixture of low-rank Gaussians fitted to data without training a network: EM for probabilistic principal components.

    E   rho_ik = w_k N(x_i; m_k, C_k) / sum_j w_j N(x_i; m_j, C_j)
    M   w_k = mean_i rho_ik,   m_k = weighted mean,   U_k one orthogonal iteration with the weighted covariance S_k,
        l_k + tau_k^2 = Ritz values of S_k on U_k,    tau_k^2 = the mean variance off U_k, at least floor^2

An orthogonal iteration lowers no Ritz value, and the likelihood grows with each that is above tau_k^2: a generalised EM, whose
log-likelihood never falls and whose fixed points are those of the full eigen-decomposition. S_k is never formed: an iteration
costs O(M N K r) operations and O(M N) memory.

This is subspace clustering with soft assignments. It is also what a diffusion model of this form learns: on data from such a
mixture of subspaces its denoising loss has the subspace-clustering objective as its limit of small noise (Wang et al.).

The start is the best of several: K local models, one after the other at a point that the models so far leave far away
(k-means++ with the distance to an affine subspace), each from the nearest neighbours of its point, and a few EM steps.

References: Tipping, Bishop, Mixtures of probabilistic principal component analyzers, Neural Computation 11, 1999. Arthur,
Vassilvitskii, k-means++, SODA 2007. Wang, Zhang, Zhang, Chen, Ma, Qu, Diffusion models learn low-dimensional distributions via
subspace clustering, 2024, arXiv:2409.02426.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core import ConfigError, NumericalError, ShapeError, Streams
from .lowrank import LowRankMixture

__all__ = ["LowRankFit", "fit_lowrank"]


class LowRankFit(NamedTuple):
    """The prior, and the mean log-likelihood of an item at the start and after each iteration, those of the start included."""

    prior: LowRankMixture
    log_likelihood: Tensor


def fit_lowrank(
    data: Tensor,
    components: int,
    rank: int,
    *,
    seed: int,
    iterations: int = 200,
    tol: float = 1e-6,
    floor: float,
    restarts: int = 4,
    sigma_min: float = 1e-3,
    sigma_max: float = 1000.0,
) -> LowRankFit:
    """The mixture of `components` Gaussians of rank `rank` that EM finds for data.

    Args:
        data: (M, *shape), float32 or float64.
        components, rank: K >= 1 and 1 <= r < N.
        seed: of the starts.
        iterations: at most so many after the start's.
        tol: stop when the mean log-likelihood per element of the unknown grows by less.
        floor: smallest tau, in data units: what counts as no variance; data on exact subspaces have an unbounded likelihood
            without it.
        restarts: starts to choose from.

    Raises:
        ShapeError, ConfigError: there are fewer than K (r + 2) items, or an option is out of its range.
        NumericalError: every start lost a component.
    """
    x = data.detach().flatten(1)
    count, size = x.shape
    if not (components >= 1 and 1 <= rank < size and floor > 0 and iterations >= 1 and restarts >= 1 and tol >= 0):
        raise ConfigError(
            f"fit_lowrank: expected components, iterations, restarts >= 1, 1 <= rank < {size}, floor > 0, tol >= 0, got "
            f"{components}, {iterations}, {restarts}, {rank}, {floor}, {tol}"
        )
    if count < components * (rank + 2) or not bool(x.isfinite().all()):
        raise ShapeError(f"fit_lowrank: expected {components * (rank + 2)} finite items or more, got {count}")
    best: LowRankFit | None = None
    for start in range(restarts):
        found = _run(x, _start(x, components, rank, floor, Streams(seed, [start])), 5, 0.0, floor)
        if found is not None and (best is None or found.log_likelihood[-1] > best.log_likelihood[-1]):
            best = found
    final = None if best is None else _run(x, best.prior, iterations, tol, floor)
    if best is None or final is None:
        raise NumericalError(f"fit_lowrank: a component lost its data: use fewer than {components}, or another seed")
    flat = final.prior
    means = flat.means.reshape(-1, *data.shape[1:])
    prior = LowRankMixture(flat.weights, means, flat.bases, flat.spreads, flat.taus, sigma_min=sigma_min, sigma_max=sigma_max)
    return LowRankFit(prior, torch.cat([best.log_likelihood[:-1], final.log_likelihood]))


def _run(x: Tensor, model: LowRankMixture, iterations: int, tol: float, floor: float) -> LowRankFit | None:
    """EM from a model; None when less than one item is left to a component."""
    history: list[float] = []
    while True:
        log, _ = model._components(x, x.new_zeros(len(x)))
        total = log.logsumexp(1)
        history.append(float(total.double().mean()))
        if len(history) > iterations or (len(history) > 1 and history[-1] - history[-2] < tol * x.shape[1]):
            return LowRankFit(model, torch.tensor(history, dtype=torch.float64))
        rho = (log - total[:, None]).exp()
        if not float(rho.sum(0).min()) >= 1.0:
            return None
        parts = [_maximise(x, r / r.sum(), basis, floor) for r, basis in zip(rho.T, model.bases, strict=True)]
        model = LowRankMixture(rho.mean(0), *(torch.stack(p) for p in zip(*parts, strict=True)))


def _maximise(x: Tensor, rho: Tensor, basis: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, basis, spreads and tau of one component from the weights of the items, (M,) with sum 1."""
    # assignments are nearly hard: what has underflowed to zero adds nothing and costs as much
    used = rho > 0
    x, rho = x[used], rho[used]
    m = rho @ x
    d = x - m
    basis = torch.linalg.qr(d.T @ (rho[:, None] * (d @ basis))).Q
    z = d @ basis
    ritz, turn = torch.linalg.eigh(z.T @ (rho[:, None] * z))
    off = rho @ (d - z @ basis.T).square().sum(1)
    tau2 = (off / (x.shape[1] - basis.shape[1])).clamp_min(floor**2)
    return m, basis @ turn, ritz.clamp_min(floor**2) - tau2, tau2.sqrt()


def _start(x: Tensor, components: int, rank: int, floor: float, streams: Streams) -> LowRankMixture:
    """Local models at points that are far from the models before them, with one tau for all."""
    count, size = x.shape
    near = min(4 * (rank + 2), count // components)
    left, parts = torch.ones(count, dtype=torch.float64, device=x.device), []
    for u in streams.uniform(0, (components,), "fit_lowrank", torch.float64, x.device)[0]:
        index = int(torch.searchsorted(left.cumsum(0), u * left.sum()).clamp_max(count - 1))
        local = x[(x - x[index]).square().sum(1).topk(near, largest=False).indices]
        m = local.mean(0)
        _, values, rows = torch.linalg.svd(local - m, full_matrices=False)
        basis, d = rows[:rank].T, x - m
        distance = (d - (d @ basis) @ basis.T).square().sum(1).double()
        left = distance if not parts else torch.minimum(left, distance)
        parts.append((m, basis, values[:rank].square() / near))
    means, bases, variances = (torch.stack(p) for p in zip(*parts, strict=True))
    tau2 = (left.mean() / (size - rank)).clamp_min(floor**2).to(x.dtype)
    weights = torch.full_like(means[:, 0], 1.0 / components)
    return LowRankMixture(weights, means, bases, variances.clamp_min(floor**2), tau2.sqrt())
