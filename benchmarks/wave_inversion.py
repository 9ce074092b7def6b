"""Inverse scattering and full-waveform inversion: samplers and classical solutions on the same items, held out from the priors.

Every row is one method on one item: relative L2 error of its image, chi^2 of the measurement, coverage of the truth by the
90 % interval of its draws (of all points, and of those of the scattering object alone), seconds of processor time. The rows of
a file that is there are kept, so that an interrupted run goes on.

    python benchmarks/wave_inversion.py [--task scattering waveform] [--methods ...] [--items 4] [--size 64] [--tiny]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from invdiff.catalogue import load, override
from invdiff.core import Denoiser, Karras, Sampler, build
from invdiff.guidance import MMPS
from invdiff.metrics import coverage
from invdiff.samplers import DPS, Ancestral, Guided, REDDiff
from invdiff.samplers.least_squares import LeastSquares, Linearised
from invdiff.tasks import Task
from invdiff.tasks.waves import depth_gradient

NAMES = {"scattering": "inverse_scattering", "waveform": "full_waveform"}
PRIORS = {"scattering": "scatterers", "waveform": "velocities"}
TINY = {
    "scattering": {"data.generator.size": 12, "operator.wavelength": 0.5, "operator.receivers": 16},
    "waveform": {"data.generator.shape": [16, 16], "operator.time": 0.24, "operator.shots": 2},
}


def mmps(steps: int, newton: int, krylov: int, highest: float) -> Guided:
    grid = Karras(sigma_max=highest)
    return Guided(guidance=MMPS(cg_steps=krylov, newton=newton), integrator=Ancestral(), grid=grid, steps=steps)


def samplers(task: str) -> dict[str, tuple[Sampler, int]]:
    """Samplers and their numbers of draws."""
    red = {"init_from": "prior", "scaling": "likelihood"}
    if task == "scattering":
        return {
            "mmps, 1 tangent": (mmps(10, 1, 20, 5.0), 4),
            "mmps, 2 tangents": (mmps(10, 2, 20, 5.0), 4),
            "mmps, 3 tangents": (mmps(10, 3, 20, 5.0), 4),
            "reddiff": (REDDiff(**red, lr=0.02, lam=0.25, steps=60, grid=Karras(sigma_max=1.0)), 1),
            "dps": (DPS(zeta=0.3, steps=60, grid=Karras(sigma_max=5.0)), 1),
        }
    return {
        "mmps, 1 tangent": (mmps(6, 1, 5, 20000.0), 2),
        "reddiff": (REDDiff(**red, lr=40.0, lam=0.0025, steps=40, grid=Karras(sigma_min=20.0, sigma_max=500.0)), 1),
    }


def baselines(task: str, size: int) -> dict[str, object]:
    if task == "scattering":
        return {"Born, Tikhonov": Linearised(strength=1e-4), "least squares": LeastSquares(iterations=10, krylov=20)}
    start = depth_gradient((1, size, size), 2120.0, 3890.0)
    return {"start": start, "least squares": LeastSquares(start, iterations=6, krylov=5)}


def made(name: str, size: int, index: int, options: dict) -> tuple[Task, Denoiser]:
    """The task for one item without its baselines, and its prior, on a grid of size x size."""
    own = {"data.index": index, "baselines": []}
    own |= {"data.generator.size": size} if name == "scattering" else {"data.generator.shape": [size, size]}
    task = build(override(load("task", NAMES[name]), own | options, name))
    grid = {"prior.shape": [1, size, size], "prior.spacing": 1.0 / size}
    grid |= {"operator.shape" if name == "scattering" else "shift.shape": [1, size, size]}
    return task, build(override(load("prior", PRIORS[name]), grid, PRIORS[name]))


def recorded(name: str, size: int) -> dict:
    """Traces as long as waves take to the bottom and back."""
    return {"operator.time": 0.018 * size} if name == "waveform" else {}


def row(name: str, method: str, index: int, size: int, options: dict) -> dict:
    task, prior = made(name, size, index, options)
    (item,) = task.data.items(1, 0, prior)
    start, facts, truth = time.process_time(), {}, item.truth
    if method in samplers(name):
        sampler, n = samplers(name)[method]
        report = task.run(prior=prior, sampler=sampler, n=n, seed=0)
        estimate = report.items[0].estimates[-1]
        image, chi2, draws = estimate.image, estimate.misfit, estimate.samples
        facts = {"chi2_of_draws": estimate.facts.get("misfit_of_draws")}
        if draws is not None and draws.kind == "posterior" and len(draws) > 1:
            low, high = draws.interval(0.9)
            inside = truth > 0 if name == "scattering" else truth > -1
            facts |= {
                "coverage": float(coverage(low[None], high[None], truth[None])),
                "coverage_object": float(((truth >= low) & (truth <= high))[inside].float().mean()),
            }
    else:
        problem, baseline = task.problem(item), baselines(name, size)[method]
        x = baseline(problem)[0] if callable(baseline) else baseline.float().expand(1, *item.shape)
        image, chi2 = x[0], float(problem.chi2(x).detach())
    error = float((image - truth).norm() / truth.norm())
    seconds = time.process_time() - start
    return {
        "task": name,
        "method": method,
        "item": index,
        "size": size,
        "error": error,
        "chi2": chi2,
        **facts,
        "seconds": seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--items", type=int, default=4)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--tiny", action="store_true", help="12 and 16 points, one item: a test of this script")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = json.loads(arguments.json.read_text())["rows"] if arguments.json is not None and arguments.json.exists() else []
    known = {(r["task"], r["method"], r["item"], r["size"]) for r in rows}
    for name in arguments.task:
        size = arguments.size if not arguments.tiny else {"scattering": 12, "waveform": 16}[name]
        for index in range(1 if arguments.tiny else arguments.items):
            for method in arguments.methods or [*baselines(name, size), *samplers(name)]:
                if method not in (*baselines(name, size), *samplers(name)) or (name, method, index, size) in known:
                    continue
                rows.append(row(name, method, index, size, TINY[name] if arguments.tiny else recorded(name, size)))
                print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{v}" for k, v in rows[-1].items()), flush=True)
                if arguments.json is not None:
                    arguments.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    for name in arguments.task:
        for method, size in dict.fromkeys((r["method"], r["size"]) for r in rows if r["task"] == name):
            own = [r for r in rows if (r["task"], r["method"], r["size"]) == (name, method, size)]
            mean = {k: sum(r[k] for r in own) / len(own) for k in ("error", "chi2", "seconds")}
            covered = [r["coverage"] for r in own if "coverage" in r]
            print(
                f"{name:<11} {size:>3} {method:<18} {len(own)} items  error {mean['error']:.3f}  chi^2 {mean['chi2']:9.2f}  "
                f"coverage {sum(covered) / len(covered) if covered else float('nan'):.3f}  {mean['seconds']:7.1f} s"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
