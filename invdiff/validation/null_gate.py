"""The null gate: every diagnostic accepts exact draws, and rejects planted faults or is known not to see them.

    one set of draws   of a Gaussian (`coloured`) and of a mixture whose modes lie 16 and more apart (`mixture`)
        wide           covariances times 1.3^2, about each mean
        moved          every element by half of a standard deviation of its mode
        shuffled       each element permuted over the draws: the right marginals, no dependence
        mode lost      without the heaviest
        exchanged      weights above one per cent in the reverse order
    many problems      eight unknowns with a white prior and as many measurements, truths of the prior
        wide, moved    the same
        prior          draws that ignore the measurement

A cell of the table counts alarms in independent repetitions. What it has to show is written beside it: `accept`, `reject`,
`blind` (a fault that is there and that this diagnostic does not see, so that no alarm means nothing) or `weak` (sometimes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import Denoiser, Problem, Streams
from ..priors import GaussianMixture, GaussianPrior
from .case import F64, Case
from .cases import coloured, mixture, white
from .diagnose import Draw, Reading, calibration, diagnostics, exactly

__all__ = ["BLIND", "CALIBRATION_FAULTS", "FAULTS", "WEAK", "gate", "gate_table"]


def _mixture(law: GaussianPrior | GaussianMixture) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances."""
    if isinstance(law, GaussianPrior):
        return torch.ones(1, dtype=F64), law.mean[None], law.cov[None]
    covs = torch.einsum("knm,km,kpm->knp", law.bases, law.variances, law.bases)
    return law.weights, law.means, covs.expand(len(law.weights), -1, -1)


def _wide(weights: Tensor, means: Tensor, covs: Tensor) -> GaussianMixture:
    return GaussianMixture(weights, means, 1.69 * covs)


def _moved(weights: Tensor, means: Tensor, covs: Tensor) -> GaussianMixture:
    return GaussianMixture(weights, means + 0.5 * covs.diagonal(dim1=1, dim2=2).sqrt().reshape(means.shape), covs)


def _lost(weights: Tensor, means: Tensor, covs: Tensor) -> GaussianMixture:
    return GaussianMixture(torch.where(weights < weights.max(), weights, 0.0), means, covs)


def _exchanged(weights: Tensor, means: Tensor, covs: Tensor) -> GaussianMixture:
    order = weights.argsort(descending=True)[: int((weights > 0.01).sum())]
    return GaussianMixture(weights.index_copy(0, order, weights[order.flip(0)]), means, covs)


FAULTS: dict[str, Callable[[Tensor, Tensor, Tensor], GaussianMixture] | None] = {
    "none": GaussianMixture,
    "wide": _wide,
    "moved": _moved,
    "shuffled": None,
    "mode lost": _lost,
    "exchanged": _exchanged,
}


def faulty(case: Case, fault: str, n: int, seed: int) -> Tensor:
    """Draws of a case's posterior with one of the faults, (n, *shape)."""
    weights, means, covs = _mixture(case.exact)
    make, streams = FAULTS[fault], Streams(seed, n)
    if make is not None:
        return make(weights, means, covs).sample(streams)
    x = GaussianMixture(weights, means, covs).sample(streams).flatten(1)
    order = streams.uniform(0, (x.shape[1],), "shuffled", F64).argsort(0)
    return x.gather(0, order).reshape(n, *means.shape[1:])


def informed() -> Case:
    """The operator and the noise of the many problems."""
    return white(0, 8, 8, sigma=0.2)


def _calibration_wide(problem: Problem, prior: Denoiser, n: int, seed: int) -> Tensor:
    mean = prior.posterior(problem).mean  # type: ignore[operator]
    return mean + 1.3 * (exactly(problem, prior, n, seed) - mean)


def _calibration_moved(problem: Problem, prior: Denoiser, n: int, seed: int) -> Tensor:
    return exactly(problem, prior, n, seed) + 0.5 * prior.posterior(problem).std  # type: ignore[operator]


def _prior_alone(_: Problem, prior: Denoiser, n: int, seed: int) -> Tensor:
    return prior.sample(Streams(seed, n))  # type: ignore[operator]


CALIBRATION_FAULTS: dict[str, Draw] = {
    "none": exactly,
    "wide": _calibration_wide,
    "moved": _calibration_moved,
    "prior": _prior_alone,
}

# by diagnostic and fault: what can't be seen, whatever the number of draws ...
BLIND = {
    ("mean", "wide"),
    ("mean", "shuffled"),
    ("CRPS", "shuffled"),
    ("KSD", "mode lost"),
    ("KSD", "exchanged"),
    ("SBC", "prior"),
    ("coverage", "prior"),
}
# ... and, by case too, what these numbers of draws and problems need not show
WEAK = {
    *((name, "coloured", "wide") for name in ("energy", "CRPS", "C2ST")),
    *((name, "mixture dy=1", "wide") for name in ("sliced W1", "W2", "energy", "CRPS", "C2ST")),
    *((name, "mixture dy=1", "moved") for name in ("sliced W1", "W2", "energy")),
    ("mean", "mixture dy=1", "mode lost"),
    ("TARP", "problems", "moved"),
    ("coverage", "problems", "moved"),
}


def gate(repeats: int = 5, n: int = 400, problems: int = 400, progress: bool = False) -> list[dict[str, Any]]:
    """The table: diagnostic, case, fault, alarms, of how many, what it has to show, `ok`; some minutes.

    Args:
        repeats: independent sets of draws, or of problems.
        n: draws of a set. problems: of a calibration.
    """
    work = list(_work(repeats, n, problems))
    if progress:
        from tqdm import tqdm

        work = tqdm(work, desc="gate", unit="set", leave=False)
    alarms: dict[tuple[str, str, str], int] = {}
    for name, fault, read in work:
        for diagnostic, reading in read().items():
            key = (diagnostic, name, fault)
            alarms[key] = alarms.get(key, 0) + reading.alarm
    return [_row(key, count, repeats) for key, count in alarms.items()]


def _work(repeats: int, n: int, problems: int) -> Iterator[tuple[str, str, Callable[[], Mapping[str, Reading]]]]:
    one, several, many = coloured(), mixture(2), informed()
    for seed in range(repeats):
        for case in (one, several):
            for fault in FAULTS:
                if case is several or fault not in ("mode lost", "exchanged"):
                    yield case.name, fault, lambda c=case, f=fault, s=seed: diagnostics(faulty(c, f, n, s), c, seed=s)
        for fault, draw in CALIBRATION_FAULTS.items():
            yield "problems", fault, lambda d=draw, s=seed: calibration(many, d, problems=problems, seed=1000 * s)


def _row(key: tuple[str, str, str], alarms: int, repeats: int) -> dict[str, Any]:
    diagnostic, case, fault = key
    shows = "accept" if fault == "none" else "blind" if (diagnostic, fault) in BLIND else "weak" if key in WEAK else "reject"
    # a fifth may be otherwise
    few, most = alarms <= repeats // 5, alarms >= repeats - repeats // 5
    ok = {"accept": few, "blind": few, "weak": True, "reject": most}[shows]
    return {
        "diagnostic": diagnostic,
        "case": case,
        "fault": fault,
        "alarms": alarms,
        "of": repeats,
        "shows": shows,
        "ok": ok,
    }


def gate_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The gate as Markdown: a line for each diagnostic and case, a column for each fault."""
    faults = list(dict.fromkeys(r["fault"] for r in rows))
    lines = [["diagnostic", "case", *faults]]
    for diagnostic, case in dict.fromkeys((r["diagnostic"], r["case"]) for r in rows):
        found = {r["fault"]: r for r in rows if (r["diagnostic"], r["case"]) == (diagnostic, case)}
        lines.append([diagnostic, case, *(_cell(found.get(fault)) for fault in faults)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * w for w in widths])
    return "\n".join("| " + " | ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)) + " |" for line in lines)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    note = "" if row["shows"] in ("accept", "reject") else f" {row['shows']}"
    return f"{row['alarms']}/{row['of']}{note}{'' if row['ok'] else ' FAILED'}"
