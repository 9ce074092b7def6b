"""Samplers on the mixture suite of MCGdiff: sliced Wasserstein distance to exact draws over that between exact draws.

python benchmarks/mixtures.py [--dims 8 80] [--measurements 1 2 4] [--problems 3] [--particles 8] [--steps 100] [--draws 1000]
                              [--threads 1] [--json FILE]

25 modes of unit covariance, up to 45 apart along each pair of axes, behind a random matrix; problem k is seed k. A ratio of one
is that of exact draws; of exact draws it varies by about a tenth. One line a problem, and the mean over the problems.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from invdiff.core import Karras
from invdiff.guidance import MMPS
from invdiff.samplers import TDS, DPMSolver, Guided
from invdiff.validation.cases import mixture
from invdiff.validation.laboratory import distances


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 80])
    parser.add_argument("--measurements", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--problems", type=int, default=3)
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    grid = Karras(sigma_max=300.0, sigma_min=0.02)
    samplers = {
        "tds": TDS(particles=given.particles, grid=grid, steps=given.steps),
        "mmps": Guided(guidance=MMPS(cg_steps=8), integrator=DPMSolver(), grid=grid, steps=given.steps),
    }
    rows = []
    print("| sampler | d | measurements | ratio of each problem | mean | seconds |\n|---|---|---|---|---|---|")
    for d in given.dims:
        for m in given.measurements:
            for name, sampler in samplers.items():
                ratios, seconds = [], 0.0
                for seed in range(given.problems):
                    case, start = mixture(seed, d, m), time.perf_counter()
                    draws = sampler(case.problem, case.prior, given.draws, seed=1, batch=250).x
                    seconds += time.perf_counter() - start
                    ratios.append(distances(draws, case)["ratio"])
                mean = sum(ratios) / len(ratios)
                rows.append({"sampler": name, "d": d, "m": m, "ratios": ratios, "mean": mean, "seconds": seconds})
                each = ", ".join(f"{r:.2f}" for r in ratios)
                print(f"| {name} | {d} | {m} | {each} | {mean:.2f} | {seconds:.0f} |", flush=True)
                if given.json:
                    facts = {"torch": torch.__version__, "python": platform.python_version(), "steps": given.steps}
                    facts |= {"particles": given.particles, "draws": given.draws}
                    given.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
