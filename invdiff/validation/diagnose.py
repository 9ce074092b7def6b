"""Diagnostics of draws, each with what exact draws give and an alarm.

Of one set of draws x_1 ... x_n and the exact posterior p, `diagnostics`:

    mean            largest deviation of the mean, in standard errors
    sliced W1, W2   Wasserstein distances to sets of exact draws, sliced, and by the best assignment
    energy, CRPS    mean score of exact draws, whose excess over that of exact draws for each other is half of the energy
                    distance 2 E|X - Y| - E|X - X'| - E|Y - Y'|, and its mean over the elements
    C2ST            accuracy of a network trained to tell the draws from exact ones
    KSD             kernel Stein discrepancy from grad log p, of a kernel as wide as a mode

in coordinates in which the covariance within the modes is one on average (CRPS: each element in units of its own deviation),
so that the widest directions do not hide the others.

Of a sampler over many problems with truths drawn from the prior, `calibration`:

    SBC             ranks of the elements of the truth among those of the draws, uniform for calibrated ones
    SBC, likelihood ranks of log p(y | x)
    TARP            ranks of the distance to a point that knows the measurement
    coverage        of the truth by the interval from the smallest to the largest of n draws, (n - 1) / (n + 1)

What they do not see is in `gate`, which shows it.

References: see `invdiff.metrics`. Modrak, Moon, Kim, Buerkner, Huurre, Faltejskova, Gelman, Vehtari, Simulation-based
calibration checking for Bayesian computation: the choice of test quantities shapes sensitivity, Bayesian Analysis 20, 2025
(ranks of the likelihood).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import ConfigError, Denoiser, Problem, Streams
from ..metrics import (
    c2st,
    crps,
    distance_ranks,
    energy_score,
    kernel_stein,
    rank_histogram,
    rank_p_value,
    ranks,
    sliced_wasserstein,
    wasserstein,
    z_mean,
)
from ..priors import GaussianMixture, GaussianPrior
from .case import F64, Case

__all__ = ["NAMES", "Draw", "Reading", "calibration", "diagnostics", "exactly"]

NAMES = ("mean", "sliced W1", "W2", "energy", "CRPS", "C2ST", "KSD")
# (problem, prior, n, seed) -> draws, (n, *shape)
Draw = Callable[[Problem, Denoiser, int, int], Tensor]


class Reading(NamedTuple):
    """What a diagnostic gives, and what exact draws give on average; a z-score, or a p-value."""

    value: float
    null: float
    z: float | None = None
    p: float | None = None

    @property
    def alarm(self) -> bool:
        """Whether exact draws give this less often than about once in a thousand times."""
        return (self.z is not None and self.z > 5.0) or (self.p is not None and self.p <= 0.001)


def diagnostics(
    draws: Tensor, case: Case, *, only: Collection[str] = NAMES, most: int = 200, seed: int = 0
) -> dict[str, Reading]:
    """The diagnostics that the case has: `mean` and `KSD` where the posterior is a Gaussian or a mixture of some.

    Args:
        draws: (n, *shape), independent, n >= 20.
        only: of `NAMES`.
        most: draws that the exact W2 and the scores take, whose time grows as their cube and their square.
        seed: of the exact draws, which it takes far from those of small seeds.
    """
    if unknown := set(only) - set(NAMES):
        raise ConfigError(f"diagnostics: expected names of {', '.join(NAMES)}, got {', '.join(sorted(unknown))}")
    n = len(draws)
    if n < 20 or most < 20:
        raise ConfigError(f"diagnostics: expected 20 draws or more, and most >= 20, got {n} and {most}")
    law = case.exact
    raw = [law.sample(Streams(2 * 10**6 + 100 * seed + k, n)) for k in range(9)]
    known = isinstance(law, GaussianPrior | GaussianMixture)
    root = _root(law) if known else torch.eye(draws[0].numel(), dtype=draws.dtype)
    x, *sets = (torch.linalg.solve(root, part.flatten(1).T).T for part in (draws, *raw))
    some, scale, truths = [part[:most] for part in sets[:8]], raw[8].std(0), slice(0, 50)

    def stein() -> Reading:
        part = draws[: 2 * most]
        score = _score_of(law, part).flatten(1) @ root
        found = kernel_stein(x[: 2 * most], score, scale=1.0, seed=seed)
        return Reading(found.ksd2, 0.0, p=found.p)

    def mean() -> Reading:
        z = z_mean(draws, law)
        return Reading(z, math.sqrt(2.0 * math.log(len(root))), z=z)

    def told() -> Reading:
        found = c2st(raw[8], draws, iterations=100, seed=seed)
        return Reading(found.accuracy, 0.5, z=found.z)

    def energy(a: Tensor) -> float:
        return sum(float(energy_score(a, t)) for t in sets[8][truths]) / len(sets[8][truths])

    def ranked(a: Tensor) -> float:
        return sum(float(crps(a / scale, t).mean()) for t in raw[8][truths] / scale) / len(raw[8][truths])

    make: dict[str, Callable[[], Reading]] = {
        "mean": mean,
        "sliced W1": lambda: _distance(x, sets[:8], lambda a, b: sliced_wasserstein(a, b, order=1, directions=64)),
        "W2": lambda: _distance(x[:most], some, wasserstein),
        "energy": lambda: _score(x[:most], some, energy),
        "CRPS": lambda: _score(draws[:most], [part[:most] for part in raw[:8]], ranked),
        "C2ST": told,
        "KSD": stein,
    }
    return {name: make[name]() for name in NAMES if name in only and (known or name not in ("mean", "KSD"))}


def _root(law: GaussianPrior | GaussianMixture) -> Tensor:
    """A root of the mean covariance of the modes, (N, N)."""
    if isinstance(law, GaussianPrior):
        return torch.linalg.cholesky(law.cov)
    weights = law.weights if len(law.bases) > 1 else law.weights.new_ones(1)
    return torch.linalg.cholesky(torch.einsum("k,knm,km,kpm->np", weights, law.bases, law.variances, law.bases))


def _distance(draws: Tensor, exact: Sequence[Tensor], distance: Callable[[Tensor, Tensor], float]) -> Reading:
    """The mean distance to sets of exact draws, and its excess in standard deviations of that of one of them to the others."""
    count = len(exact)
    pairs = torch.zeros(count, count, dtype=F64)
    for i in range(count):
        for j in range(i):
            pairs[i, j] = pairs[j, i] = distance(exact[i], exact[j])
    own = pairs.sum(1) / (count - 1)
    value = sum(distance(draws, e) for e in exact) / count
    return Reading(value, float(own.mean()), z=(value - float(own.mean())) / float(own.std()))


def _score(draws: Tensor, exact: Sequence[Tensor], score: Callable[[Tensor], float]) -> Reading:
    """The score of the same truths, and its excess in standard deviations of that of sets of exact draws."""
    null = torch.tensor([score(e) for e in exact], dtype=F64)
    value = score(draws)
    return Reading(value, float(null.mean()), z=(value - float(null.mean())) / float(null.std()))


def _score_of(law: GaussianPrior | GaussianMixture, x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(law.log_prob(x).sum(), x)[0]


def exactly(problem: Problem, prior: Denoiser, n: int, seed: int) -> Tensor:
    """Draws of the exact posterior, for priors that know it."""
    return prior.posterior(problem).sample(Streams(seed, n))  # type: ignore[operator]


def calibration(case: Case, draw: Draw = exactly, *, problems: int = 200, n: int = 19, seed: int = 0) -> dict[str, Reading]:
    """SBC, TARP and coverage of a way to draw, over problems with the operator and the noise of a case.

    Args:
        case: its prior has `sample`; its own measurement is not used.
        draw: of a problem, prior, number and seed, as a Sampler's `(problem, prior, n, seed=seed).x`.
        problems: as many truths of the prior, each with its measurement.
        n: draws of each; ten divides n + 1.
    """
    if problems < 50 or (n + 1) % 10:
        raise ConfigError(f"calibration: expected problems >= 50 and ten to divide n + 1, got {problems} and {n}")
    operator, noise, prior = case.problem.operator, case.problem.noise, case.prior
    streams = Streams(3 * 10**6 + seed, problems)
    truth = prior.sample(streams)  # type: ignore[operator]
    with torch.no_grad():
        y = noise.sample(operator(truth), streams)
    around = streams.normal(0, case.problem.shape, "points", F64)
    elements, likelihood, distance, covered = [], [], [], []
    for k in range(problems):
        problem = Problem(operator, noise, y[k])
        x, t = draw(problem, prior, n, seed + k), truth[k]
        elements.append(ranks(x, t).flatten())
        likelihood.append(ranks(problem.log_likelihood(x), problem.log_likelihood(t[None])[0]))
        # a fifth of the prior's spread about a point that the measurement moves
        point = operator.adjoint(problem.y)[0] + 0.2 * truth.std(0) * around[k]  # type: ignore[operator]
        distance.append(distance_ranks(x, t, point))
        covered.append(float(((x.amin(0) <= t) & (t <= x.amax(0))).double().mean()))
    p = [rank_p_value(rank_histogram(column, n, 10)) for column in torch.stack(elements).T]
    share, level = torch.tensor(covered, dtype=F64), (n - 1) / (n + 1)
    error = max(float(share.std()), 1e-3) / math.sqrt(problems)
    return {
        "SBC": Reading(min(p), 1.0 / (len(p) + 1), p=min(1.0, len(p) * min(p))),
        "SBC, likelihood": _uniform(torch.stack(likelihood), n),
        "TARP": _uniform(torch.stack(distance), n),
        "coverage": Reading(float(share.mean()), level, z=abs(float(share.mean()) - level) / error),
    }


def _uniform(values: Tensor, n: int) -> Reading:
    p = rank_p_value(rank_histogram(values, n, 10))
    return Reading(p, 0.5, p=p)
