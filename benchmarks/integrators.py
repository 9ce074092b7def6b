"""What integrators make of the same number of network calls, where the exact answer is known.

    flow       root mean square of (x - exact) / standard deviation at the end of the probability-flow ODE, from the same noise:
               for MMPS on a Gaussian prior (white, coloured; exact in closed form, in standard deviations of the posterior's
               own directions) and for a mixture's own denoiser (exact: 2,000 steps of Heun's rule; the median over the draws,
               because with few steps some end in another mode)
    posterior  the worst z-score of mean, covariance and spread of draws of the posterior, over three problems: 5 is where a
               right sampler fails once in a million runs; rules with noise are only here

Levels by Karras' rule from 300 to 0.005 (mixture: 80 to 0.02); the last step returns D. Heun's and RF-Solver's rules take two
calls for each step but the last; PNDM nine for its start. Everything in float64.

    python benchmarks/integrators.py [--quick] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import invdiff
from invdiff.core import Karras
from invdiff.guidance import MMPS
from invdiff.priors import GaussianMixture
from invdiff.samplers import Ancestral, Churn, Euler, Guided, Heun, Integrator
from invdiff.samplers.integrators import RFSolver
from invdiff.samplers.linear_multistep import PNDM, DPMSolver, UniPC
from invdiff.validation import MAKERS, Case, moments

FLOWS: dict[str, Integrator] = {
    "Euler": Euler(),
    "Heun": Heun(),
    "RF-Solver": RFSolver(),
    "DPM-Solver++(2M)": DPMSolver(),
    "UniPC(2)": UniPC(2),
    "UniPC(3)": UniPC(3),
    "PLMS": PNDM("multistep"),
    "PNDM": PNDM(),
}
NOISY: dict[str, Integrator] = {"Ancestral": Ancestral(), "Churn": Churn(), "SDE-DPM-Solver++(2M)": DPMSolver(1.0)}
CALLS, QUICK = (15, 21, 31, 41, 61, 121), (21, 41)
GRID, NEAR = Karras(0.005, 300.0), Karras(0.02, 80.0)


def steps_of(rule: Integrator, calls: int) -> int | None:
    """Steps for so many calls, or None where there are none."""
    if isinstance(rule, Heun | RFSolver | Churn):
        return (calls + 1) // 2
    if isinstance(rule, PNDM) and rule.warm_up == "runge-kutta":
        return calls - 9 if calls > 13 else None
    return calls


def mixture() -> GaussianMixture:
    """Six modes of standard deviation 0.22, one unit apart in each of 16 values."""
    means = invdiff.Streams(1).normal(0, (6, 16), "means", torch.float64)[0]
    return GaussianMixture(torch.ones(6, dtype=torch.float64), means, 0.05 * torch.eye(16, dtype=torch.float64))


def flow_error(rule: Integrator, case: Case, steps: int, draws: int) -> float:
    """Of draws with MMPS, against the affine map that the exact flow is, in standard deviations of the posterior."""
    streams, exact = invdiff.Streams(3, draws), case.exact
    sampler = Guided(MMPS(cg_steps=4), rule, GRID, steps=steps)
    start = sampler.init(case.problem, case.prior, streams).x
    x = sampler(case.problem, case.prior, draws, seed=3).x
    variances, basis = torch.linalg.eigh(exact.cov)
    wanted = (start - exact.mean) @ basis * (variances / (variances + 300.0**2)).sqrt()
    return float((((x - exact.mean) @ basis - wanted) / variances.sqrt()).square().mean().sqrt())


def mixture_error(rule: Integrator, prior: GaussianMixture, steps: int, exact: Tensor) -> float:
    """Median over draws of the mixture, in standard deviations of a mode."""
    problem = invdiff.Problem.unmeasured((16,), dtype=torch.float64)
    x = Guided(None, rule, NEAR, steps=steps)(problem, prior, len(exact), seed=3).x
    return float((x - exact).square().mean(1).sqrt().median()) / 0.05**0.5


def worst_z(rule: Integrator, name: str, steps: int, draws: int) -> float:
    """The largest z-score in any of three problems."""
    found = []
    for seed in range(3):
        case = MAKERS[name](seed)
        z = moments(Guided(MMPS(cg_steps=4), rule, GRID, steps=steps)(case.problem, case.prior, draws, seed=1).x, case)
        found += [abs(z[k]) for k in ("z_mean", "z_cov", "z_spread")]
    return max(found)


def table(title: str, rows: list[dict], calls: tuple[int, ...], form: str) -> str:
    """Markdown: one row for each rule, one column for each number of calls."""
    lines = [f"| {title} | " + " | ".join(map(str, calls)) + " |", "|---" * (len(calls) + 1) + "|"]
    for rule in dict.fromkeys(r["rule"] for r in rows):
        values = {r["calls"]: r["value"] for r in rows if r["rule"] == rule}
        lines.append(f"| {rule} | " + " | ".join(format(values[c], form) if c in values else "" for c in calls) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer draws and numbers of calls")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    draws, calls = (200, QUICK) if arguments.quick else (1000, CALLS)
    begin, rows, prior = time.perf_counter(), [], mixture()
    problem = invdiff.Problem.unmeasured((16,), dtype=torch.float64)
    exact = Guided(None, Heun(), NEAR, steps=300 if arguments.quick else 2000)(problem, prior, 50, seed=3).x
    for name in ("white", "coloured", "mixture"):
        found = []
        for label, rule in FLOWS.items():
            for count in calls:
                steps = steps_of(rule, count)
                if steps is None:
                    continue
                value = (
                    mixture_error(rule, prior, steps, exact)
                    if name == "mixture"
                    else flow_error(rule, MAKERS[name](0), steps, 50)
                )
                found.append({"table": "flow", "case": name, "rule": label, "calls": count, "steps": steps, "value": value})
        print(table(f"flow, {name}: calls", found, calls, ".2g") + "\n", flush=True)
        rows += found
    for name in ("white", "coloured"):
        found = []
        for label, rule in (FLOWS | NOISY).items():
            for count in calls:
                steps = steps_of(rule, count)
                if steps is None:
                    continue
                value = worst_z(rule, name, steps, draws)
                found.append(
                    {"table": "posterior", "case": name, "rule": label, "calls": count, "steps": steps, "value": value}
                )
        print(table(f"posterior, {name}, {draws} draws: calls", found, calls, ".1f") + "\n", flush=True)
        rows += found
    print(f"{time.perf_counter() - begin:.0f} s")
    if arguments.json:
        facts = {"python": platform.python_version(), "torch": torch.__version__, "draws": draws}
        arguments.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
