"""Inverse problems of fields: errors, coverage and seconds of the packaged tasks, beside published numbers and exact answers.

    python benchmarks/fields.py [--items 8] [--rows poisson_law,darcy] [--threads 1] [--tiny] [--work DIR] [--json FILE]

poisson, helmholtz   the source from 500 sensors at 128 x 128, noise 1e-4 of the field: with the analytic law (against the error
                     of the exact posterior mean; coverage of 90 % intervals), and with the prior source64
darcy                the permeability from 500 and from 125 sensors of the pressure (as many, and as dense, as in the published
                     problem, which is 128 x 128), noise 1e-3: error rate
darcy_forward        the pressure from the permeability at 500 and at 125 points: relative error
vorticity            the first vorticity on 64 x 64 from every second point one unit of time later, noise 1e-3: relative error
vorticity_128_0 ...  the same on 128 x 128 without noise, as published: the flow's spectrum as law, whole tangents; an hour each
burgers              the whole solution from five sensors, noise 1e-2: relative error

Items have seeds that no training saw. A row that the JSON file already has is not measured again (--again does).
Published: Huang et al., DiffusionPDE, 2024, arXiv:2406.17763; Yao et al., FunDPS, 2025; Zheng et al., InverseBench, 2025: their
data, sizes and budgets are others, so that they say how hard a problem is thought to be, no more.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch

import invdiff
from invdiff.core import Gaussian, Problem
from invdiff.generators import BurgersFlow, DarcyFlow
from invdiff.operators.pde import Burgers, Darcy, random_sensors

SEED = 1_000_000


def source(wavenumber, prior, sampler, items, tiny, **options):
    """A row of task source_128."""
    n = 4 if tiny else 8 if prior == "source64" else 16
    task = invdiff.task("source_128", prior=prior, sampler=sampler, operator={"wavenumber": wavenumber}, **options)
    facts = task.run(seed=0, items=items, n=n).summary()
    exact, ours = facts.get("exact posterior"), facts[list(facts)[-1]]
    return {
        "error": ours["nrmse"]["mean"],
        "standard_error": ours["nrmse"]["standard_error"],
        "coverage": ours["coverage"]["mean"],
        "seconds": ours["cost"]["seconds"],
        "exact_error": None if exact is None else exact["nrmse"]["mean"],
        "exact_coverage": None if exact is None else exact["coverage"]["mean"],
    }


def task_row(name, metric, n, items, out=None, **options):
    facts = invdiff.task(name, **options).run(seed=0, items=items, n=n, out=out).summary()
    ours = facts[list(facts)[-1]]
    return {
        "error": ours[metric]["mean"],
        "standard_error": ours[metric]["standard_error"],
        "coverage": ours["coverage"]["mean"],
        "misfit": ours["misfit"]["mean"],
        "seconds": ours["cost"]["seconds"],
    }


def initial_128(index, work):
    """A row for each item, as they take long; with a folder, what was interrupted goes on from its last tangent."""
    out = None if work is None else work / f"vorticity_128_{index}"
    return task_row("navier_stokes_128", "nrmse", 32, 1, out, data={"index": index}) | {"standard_error": None}


def posterior(operator, level, truth, prior, sampler, n):
    clean = operator(truth)
    problem = Problem.simulate(operator, Gaussian(level * float(clean.square().mean().sqrt())), truth[0], seed=0)
    return sampler(problem, prior, n=n, seed=0).x


def relative(errors, seconds):
    e = torch.tensor(errors)
    return {
        "error": float(e.mean()),
        "standard_error": float(e.std() / len(e) ** 0.5) if len(e) > 1 else None,
        "seconds": seconds / len(e),
    }


@torch.no_grad()
def darcy_forward(sensors, items):
    flow, sampler, prior, errors, start = Darcy((64, 64)), invdiff.sampler("mmps"), invdiff.prior("darcy64"), [], time.time()
    for k in range(items):
        fields = DarcyFlow(seed=SEED)((k,))
        draws = posterior(random_sensors((1, 64, 64), sensors, boundary="neumann"), 1e-2, fields["a"], prior, sampler, 8)
        u = flow(draws.clamp(1.0, 30.0)).mean(0)
        errors.append(float((u - fields["u"][0]).norm() / fields["u"].norm()))
    return relative(errors, time.time() - start)


def burgers(items):
    task, sampler, prior = invdiff.task("burgers_sensors"), invdiff.sampler("mmps_tangent"), invdiff.prior("burgers_law")
    whole, errors, start = Burgers(128, 0.01, time=1.0, steps=512, save=32), [], time.time()
    for k in range(items):
        u0 = BurgersFlow(seed=SEED, solve=False)((k,))["u"]
        item = invdiff.tasks.Item(f"{k}", (1, 128), u0[0])
        draws = sampler(task.task.problem(item, seed=k), prior, n=8, seed=k).x
        with torch.no_grad():
            u, truth = whole(draws.clamp(-5.0, 5.0)).mean(0), whole(u0)[0]
        errors.append(float((u - truth).norm() / truth.norm()))
    return relative(errors, time.time() - start)


def rows(items, tiny, work):
    """name -> (measurement, goal, what was published)."""
    exact = {"sampler": "mmps_field", "prior": "source_law"}
    learned = {"sampler": "mmps_source64", "prior": "source64"}
    few = {"sampler": invdiff.sampler("mmps_tangent", steps=3)} if tiny else {}
    return {
        "poisson_law": (lambda: source(0.0, items=items, tiny=tiny, **exact), "1.15 x exact, coverage .85 to .95", "-"),
        "helmholtz_law": (lambda: source(1.0, items=items, tiny=tiny, **exact), "1.15 x exact, coverage .85 to .95", "-"),
        "poisson_learned": (lambda: source(0.0, items=items, tiny=tiny, **learned), 0.08, ".158 DDIS, .205 FunDPS"),
        "helmholtz_learned": (lambda: source(1.0, items=items, tiny=tiny, **learned), 0.08, ".151 DDIS, .172 FunDPS"),
        "darcy": (lambda: task_row("darcy_permeability", "error_rate", 4, items, **few), 0.045, ".052 FunDPS"),
        "darcy_125": (
            lambda: task_row("darcy_permeability", "error_rate", 4, items, operator={"sensors": 125}, **few),
            0.045,
            ".052 FunDPS",
        ),
        "darcy_forward": (lambda: darcy_forward(500, items), 0.02, ".025 FunDPS"),
        "darcy_forward_125": (lambda: darcy_forward(125, items), 0.02, ".025 FunDPS"),
        "vorticity": (lambda: task_row("navier_stokes_initial", "nrmse", 2, min(items, 2), **few), 0.08, ".120 EnKG"),
        **{f"vorticity_128_{k}": (lambda k=k: initial_128(k, work), 0.08, ".120 EnKG") for k in range(min(items, 3))},
        "burgers": (lambda: burgers(items), None, ".02 to .05 DiffusionPDE"),
    }


def judge(name, row, goal):
    if name.endswith("_law"):
        return row["error"] <= 1.15 * row["exact_error"] and 0.85 <= row["coverage"] <= 0.95
    return None if goal is None else row["error"] <= goal


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--rows", help="names, separated by commas; all without")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tiny", action="store_true", help="few draws: does it run?")
    parser.add_argument("--again", action="store_true", help="measure rows that the file already has")
    parser.add_argument("--work", type=Path, help="folder where a row of vorticity_128 leaves what it needs to go on")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = {}
    if options.json and options.json.exists():
        found = {row["name"]: row for row in json.loads(options.json.read_text())["rows"]}
    table = rows(options.items, options.tiny, options.work)
    for name in options.rows.split(",") if options.rows else table:
        measure, goal, published = table[name]
        if name not in found or options.again:
            row = measure()
            found[name] = {"name": name, "items": options.items, **row, "goal": goal, "published": published}
            found[name]["ok"] = judge(name, row, goal)
        row = found[name]
        exact = "" if row.get("exact_error") is None else f"  exact {row['exact_error']:.4f}"
        covered = "" if row.get("coverage") is None else f"  coverage {row['coverage']:.3f}"
        spread = "" if row["standard_error"] is None else f" +- {row['standard_error']:.4f}"
        print(
            f"{name:<18} {row['error']:.4f}{spread}{exact}{covered}  {row['seconds']:.0f} s  goal {goal}  ok {row['ok']}",
            flush=True,
        )
        if options.json:
            about = {"machine": platform.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(about | {"rows": list(found.values())}, indent=1) + "\n")


if __name__ == "__main__":
    main()
