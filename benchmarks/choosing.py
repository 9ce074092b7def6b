"""docs/choosing.md: which sampler for which operator, claim and budget, from what was measured.

    python benchmarks/choosing.py      # seconds

Reads the rows of the laboratory (benchmarks/results/validation.json, by benchmarks/validation.py), of the tuning
(tuning_cpu.json, by benchmarks/tuning.py), and the packaged presets.
"""

import json
import math
from pathlib import Path

from invdiff.catalogue import sampler
from invdiff.configs import names, summary
from invdiff.validation import FIELDS, GAUSSIAN, MIXTURES, contenders

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BUDGETS = (50, 150, 500, math.inf)
OFFERS = {
    "values alone: a program, a NumPy function": {"forward"},
    "derivatives: any PyTorch function, an equation": {"forward", "vjp"},
    "a linear operator and its adjoint": {"forward", "vjp", "adjoint", "solve"},
    "a linear operator with a known spectrum": {"forward", "vjp", "adjoint", "solve", "spectral"},
}


def evaluations(row):
    """Calls of the network, of which a product with its Jacobian is worth two."""
    return row["network_calls"] + 2.0 * row["network_vjps"]


def exact_ones(rows):
    """What passes as exact, and at what cost."""
    needs = {c.name: c.sampler.needs for c in reversed(contenders())}
    found = {}
    for row in rows:
        if row["claim"] == "exact" and row["ok"] and not row["sampler"].startswith("exact denoiser"):
            found.setdefault(row["sampler"], []).append(row)
    lines = ["| sampler | exact on | needs | evaluations | worst z |", "|---|---|---|---|---|"]
    for name, own in sorted(found.items(), key=lambda pair: min(map(evaluations, pair[1]))):
        cases = {r["case"] for r in own}
        text = []
        for label, group in (
            ("every Gaussian prior", GAUSSIAN),
            ("mixtures of 25 modes", MIXTURES),
            ("random field", FIELDS),
        ):
            if set(group) <= cases:
                text.append(label)
                cases -= set(group)
        need = ", ".join(sorted(needs.get(name, set()))) or "-"
        cost = sorted(round(evaluations(r)) for r in own)
        span = f"{cost[0]:,}" if cost[0] == cost[-1] else f"{cost[0]:,} to {cost[-1]:,}"
        lines.append(f"| {name} | {'; '.join(text + sorted(cases))} | {need} | {span} | {max(r['worst_z'] for r in own):.1f} |")
    return lines


def biased_ones(rows):
    """How far the others are from the posterior of a white prior."""
    lines = ["| sampler | error of the mean | spread, measured directions | spread, others |", "|---|---|---|---|"]
    own = [r for r in rows if r["claim"] == "biased" and r["case"] == "white"]
    for row in sorted(own, key=lambda r: abs(r["observed"] - 1.0) + abs(r["null"] - 1.0)):
        ratios = (f"{abs(row[k]) ** 0.5:.2f}" for k in ("observed", "null"))
        lines.append(f"| {row['sampler']} | {row['mean_error']:.2f} | {' | '.join(ratios)} |")
    return lines


def presets():
    """What runs with what the operator offers."""
    made = {name: sampler(name) for name in names("sampler")}
    lines, before = [], set()
    for label, offered in OFFERS.items():
        here = [name for name, s in made.items() if s.needs <= offered and name not in before]
        before |= set(here)
        lines += [f"**{label[0].upper()}{label[1:]}**", ""]
        lines += [
            f"- `{name}`{'' if made[name].kind == 'posterior' else ' (a point)'}: {summary(f'sampler/{name}')}" for name in here
        ] + [""]
    return lines


def tuned(rows, drawn):
    """The best draws, by the CRPS, and the best estimate, by the PSNR, of each task and budget."""
    lines = []
    for task in dict.fromkeys(r["task"] for r in rows):
        own = [r for r in rows if r["task"] == task]
        # a tuning that has not ended says nothing of what it has not tried
        if len(own) < len({r["candidate"] for r in rows}):
            continue
        own = [r for r in own if "error" not in r]
        lines += [
            f"`{task}`",
            "",
            "| evaluations, at most | best draws | CRPS | coverage | PSNR | best estimate | PSNR |",
            "|" + "---|" * 7,
        ]
        for budget in BUDGETS:
            within = [r for r in own if r["evaluations"] <= budget]
            draws = min((r for r in within if r["coverage"] is not None), key=lambda r: r["crps"], default=None)
            point = max(within, key=lambda r: r["psnr"], default=None)
            left = (
                "- | | | "
                if draws is None
                else f"{draws['candidate']} | {draws['crps']:.4f} | {draws['coverage']:.2f} | {draws['psnr']:.2f}"
            )
            right = "- | " if point is None else f"{point['candidate']} | {point['psnr']:.2f}"
            lines.append(f"| {'any' if budget == math.inf else budget} | {left} | {right} |")
        lines.append("")
    return [*lines, f"PSNR is that of the mean of {drawn} draws. Coverage is that of the 90 % intervals of {drawn} draws."]


def main():
    rows = json.loads((RESULTS / "validation.json").read_text())["rows"]
    tuning = json.loads((RESULTS / "tuning_cpu.json").read_text())
    lines = [
        "# Choosing a sampler",
        "",
        "Made by `python benchmarks/choosing.py` from the rows of the [laboratory](validation.md) and of the tuning (`python",
        "benchmarks/tuning.py`). An evaluation is a call of the network; a product with its Jacobian counts as two.",
        "",
        "## Draws that are held to be the posterior's",
        "",
        "They pass against known posteriors of the kind named. No network is such a prior: reports print what misfit and",
        "coverage say of it.",
        "",
        *exact_ones(rows),
        "",
        "## What the others do to a known posterior",
        "",
        "White prior, four of eight directions measured: error of the mean over its norm, spread over the true one.",
        "",
        *biased_ones(rows),
        "",
        "## By what the operator offers",
        "",
        "Whatever is listed above a heading runs below it too; [the matrix](matrix.md) has every task.",
        "",
        *presets(),
        "## By task and budget",
        "",
        *tuned(tuning["rows"], tuning["draws"]),
    ]
    (ROOT / "docs" / "choosing.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
