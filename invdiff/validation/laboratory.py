"""The laboratory: samplers against posteriors that are known in closed form.

Cases with a linear operator and Gaussian noise, so that the posterior of a Gaussian or a mixture prior is exact:

    white      prior N(0, I_8), four measurements, singular values U(0, 1)           (three problems)
    coloured   prior N(m, C_8) with correlated, unequal variances
    complex    the same through a complex operator, unknown = (real parts, imaginary parts)
    composed   the same for coefficients c of a synthesis x = B c
    field      prior a Gaussian field on a line, for the samplers that take no other
    mixture    25 unit Gaussians on a grid of means, d = 8, one, two and four measurements

    blind gain   the same behind a gain that is not known, which is drawn with x; by quadrature in the gain

and with speckle on single pixels, whose posterior is known by quadrature:

    speckle      an image of complex values behind gains and Gaussian noise
    despeckling  log-intensities of 1, 4 and 4.4 looks

and nothing measured:

    consistency  a Gaussian by its consistency function, for the samplers of distilled networks

and of `image_cases`:

    toy            two modes in two of sixteen dimensions, weak or strong data
    random field   a Gaussian field of 16 x 16, blurred, its truth 0.5, 1, 2, 4 standard deviations from the mean
    deconvolution, tomography   images of 8 x 8 that are one of five shapes and a smooth field

For a Gaussian posterior N(m, C) and n draws with mean u and covariance S, every row holds

    mean error          |u - m| / |m|
    observed, null      mean variance ratio in the row space of A and in its complement (white only)
    z mean, z cov       largest element-wise deviation in Monte Carlo standard errors
    z spread            (tr(C^-1 S) / d - 1) / sqrt(2 / (n d)), which sees a variance that is wrong everywhere by a little
    coverage            of fresh exact draws by the 90 % interval of the draws

of a field the same in the eigenvectors of C, with W2 = (sum_i C_ii (u_i^2 + (s_i - 1)^2))^(1/2), u and s the mean and the
standard deviation along the i-th in units of its own, the floor that exact draws have, (tr C (1/n + 1/(2n - 2)))^(1/2), and the
coverage that the intervals of the modes have exactly,

and `worst z`, the largest of the z-scores in any of the problems; otherwise the sliced Wasserstein distance to exact draws,
the floor (that between sets of exact draws), and the excess over it as a z-score. An `exact` sampler passes by z below 5,
a `biased` one when its known bias is reproduced, a `wrong` one, planted, when it is rejected by more than 20.

References: Cardoso, Janati, Le Corff, Moulines, Monte Carlo guided diffusion for Bayesian linear inverse problems, ICLR 2024,
arXiv:2308.07983 (the mixture suite).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ..core import Streams
from ..metrics import coverage, sliced_wasserstein, z_cov, z_mean
from ..priors import GaussianPrior
from .case import Case
from .contenders import Contender, contenders
from .image_cases import FIELDS, IMAGES, TOYS
from .makers import MAKERS, MIXTURES

__all__ = ["COLUMNS", "distances", "formatted", "measured", "modes", "moments", "row", "run", "table", "worst_z"]

PROBLEMS = 3
LARGE = (*TOYS, *FIELDS, *IMAGES)


def moments(draws: Tensor, case: Case) -> dict[str, float]:
    """The statistics of a row for a Gaussian posterior; draws (n, *shape)."""
    exact, n = case.exact, len(draws)
    flat, mean = draws.flatten(1), exact.mean.reshape(-1)
    size = mean.numel()
    whitened = exact._rotate(flat - mean) / exact.variances.sqrt()
    ordered = draws.sort(0).values
    low, high = ordered[round(0.05 * n)], ordered[round(0.95 * n) - 1]
    fresh = exact.sample(Streams(10**6, n))
    covered = coverage(low.expand_as(fresh), high.expand_as(fresh), fresh).mean()
    row = {
        "mean_error": float((flat.mean(0) - mean).norm() / mean.norm()),
        "z_mean": z_mean(draws, exact),
        "z_cov": z_cov(draws, exact),
        "z_spread": float(whitened.var(0).mean() - 1.0) / math.sqrt(2.0 / (n * size)),
        "coverage": float(covered),
    }
    if case.name == "white":
        vh = torch.linalg.svd(case.problem.operator.matrix).Vh
        ratio = (vh @ flat.T.cov() @ vh.T).diagonal() / (vh @ exact.cov @ vh.T).diagonal()
        m = case.problem.operator.out_shape[0]
        row |= {"observed": float(ratio[:m].mean()), "null": float(ratio[m:].mean())}
    return row


def modes(draws: Tensor, case: Case) -> dict[str, float]:
    """The statistics of a row for a Gaussian field, mode by mode of its posterior; draws (n, *shape)."""
    exact, n = case.exact, len(draws)
    flat, mean = draws.flatten(1), exact.mean.reshape(-1)
    whitened = exact._rotate(flat - mean) / exact.variances.sqrt()
    shift, spread = whitened.mean(0), whitened.var(0)
    ordered = whitened.sort(0).values
    low, high = ordered[round(0.05 * n)], ordered[round(0.95 * n) - 1]
    distance = math.sqrt(float((exact.variances * (shift.square() + (spread.sqrt() - 1.0).square())).sum()))
    floor = math.sqrt(float(exact.variances.sum()) * (1.0 / n + 0.5 / (n - 1)))
    return {
        "mean_error": float((flat.mean(0) - mean).norm() / mean.norm()),
        "z_mean": float(shift.abs().max()) * math.sqrt(n),
        "z_cov": float((spread - 1.0).abs().max()) / math.sqrt(2.0 / (n - 1)),
        "z_spread": float(spread.mean() - 1.0) / math.sqrt(2.0 / (n * mean.numel())),
        "coverage": float((torch.special.ndtr(high) - torch.special.ndtr(low)).mean()),
        "distance": distance,
        "floor": floor,
        "ratio": distance / floor,
    }


def run(
    quick: bool = False,
    progress: bool = False,
    held: Sequence[Mapping[str, Any]] = (),
    keep: Callable[[list[dict[str, Any]]], object] | None = None,
) -> list[dict[str, Any]]:
    """All rows of the table: sampler, case, claim, statistics, cost and `ok`; quick takes 1,000 draws instead of 4,000.

    Args:
        held: rows that are taken as they are, where sampler, case and claim agree.
        keep: gets the rows so far after each that was computed.
    """
    known = {tuple(r[key] for key in ("sampler", "case", "claim")): dict(r) for r in held}
    work = [(c, name) for c in contenders() for name in c.cases]
    if progress:
        from tqdm import tqdm

        work = tqdm(work, desc="validate", unit="row", leave=False)
    rows: list[dict[str, Any]] = []
    for contender, name in work:
        own = known.get((contender.name, name, contender.claim))
        rows.append(own or row(contender, name, 1000 if quick else 4000))
        if own is None and keep is not None:
            keep(rows)
    return rows


def row(contender: Contender, name: str, n: int) -> dict[str, Any]:
    """One row of the table: the mean of the statistics over the problems of a case, the worst z-score of any, and `ok`."""
    # a bias on the mixtures is many floors, and draws of many elements hold more: fewer show it
    n = n // 4 if name in LARGE or (contender.claim == "biased" and name in MIXTURES) else n
    parts = [measured(contender, MAKERS[name](seed), n) for seed in range(PROBLEMS)]
    mean = {key: sum(p[key] for p in parts) / len(parts) for key in parts[0]}
    worst = max(worst_z(part) for part in parts)
    if contender.claim == "exact":
        ok = worst < 5.0
    elif contender.claim == "wrong":
        ok = worst > 20.0
    else:
        ok = all(low <= mean[key] <= high for key, (low, high) in contender.known.items())
    return {"sampler": contender.name, "case": name, "claim": contender.claim, "draws": n, **mean, "worst_z": worst, "ok": ok}


def worst_z(statistics: Mapping[str, float]) -> float:
    """The largest of the z-scores, without its sign."""
    return max(abs(statistics[z]) for z in ("z_mean", "z_cov", "z_spread", "z_distance") if z in statistics)


def measured(contender: Contender, case: Case, n: int) -> dict[str, float]:
    """The statistics of n draws for one problem, with their cost."""
    start = time.perf_counter()
    result = contender.sampler(case.problem, case.exact if contender.exact_prior else case.prior, n, seed=1)
    seconds = time.perf_counter() - start
    judge = distances if not isinstance(case.exact, GaussianPrior) else modes if case.name in FIELDS else moments
    statistics = judge(result.x, case)
    return {**statistics, "network_calls": result.network_calls, "network_vjps": result.network_vjps, "seconds": seconds}


def distances(draws: Tensor, case: Case) -> dict[str, float]:
    """Sliced Wasserstein distance (order 1) to exact draws, its floor, and the excess over it.

    Eight sets of exact draws: the mean distance between two is the floor, and `z_distance` is the excess of the sampler's mean
    distance to the eight over it, in standard deviations of one set's mean distance to the others.
    """
    exact = [case.exact.sample(Streams(10**6 + k, len(draws))) for k in range(8)]
    pairs = torch.zeros(8, 8)
    for i, j in combinations(range(8), 2):
        pairs[i, j] = pairs[j, i] = sliced_wasserstein(exact[i], exact[j], order=1, directions=64)
    own = pairs.sum(1) / 7.0
    distance = sum(sliced_wasserstein(draws, e, order=1, directions=64) for e in exact) / 8.0
    floor = float(own.mean())
    excess = (distance - floor) / float(own.std())
    return {"distance": distance, "floor": floor, "ratio": distance / floor, "z_distance": excess}


COLUMNS = {
    "mean_error": "mean error",
    "observed": "observed",
    "null": "null",
    "coverage": "coverage",
    "worst_z": "worst z",
    "distance": "distance",
    "floor": "floor",
    "network_calls": "calls",
    "network_vjps": "vjps",
    "seconds": "seconds",
}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table that also reads as text."""
    head = ["sampler", "case", "claim", *COLUMNS.values(), "verdict"]
    lines = [
        [r["sampler"], r["case"], r["claim"], *(formatted(r.get(k), k) for k in COLUMNS), "ok" if r["ok"] else "FAILED"]
        for r in rows
    ]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    bars = ["-" * w for w in widths]
    return "\n".join(
        "| " + " | ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)) + " |" for line in [head, bars, *lines]
    )


def formatted(value: float | None, key: str) -> str:
    """A cell of a column of `COLUMNS`."""
    if value is None:
        return ""
    return (
        f"{value:.0f}"
        if key in ("network_calls", "network_vjps")
        else f"{value:.1f}"
        if key in ("worst_z", "seconds")
        else f"{value:.2f}"
    )
