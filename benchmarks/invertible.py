"""Chains that can be undone: how far their draws are from those of the exact flow, and what comes back of the noise in float32.

Two priors: a mixture of six Gaussians on 4 x 4 (closed form) and a trained network on 64 x 64. From the same noise,

    error        |x - x*| / |x*|, x* by Heun's rule with many levels, in the precision of the prior (mixture: float64)
    round trip   largest relative error of the pair of noise tensors after the chain and back, in float32

Heun's rule and DDIM are beside them for their error; they can't be undone. DDIM takes one evaluation per step, Heun two, EDICT
two, the others one. The errors of the trained network are dominated by draws that end in another detail of the image.

    python benchmarks/invertible.py [--quick] [--threads 1] [--prior natural64] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

import invdiff
from invdiff import catalogue
from invdiff.core import drift
from invdiff.core.reversible import run_moves
from invdiff.priors import GaussianMixture
from invdiff.samplers import BDIA, EDICT, OBELM, Coupled, Euler, Graded, Heun, Integrator, Scheme

METHODS: dict[str, Scheme | Integrator] = {
    "heun": Heun(),
    "ddim": Euler(),
    "o-belm": OBELM(),
    "graded 1.3": Graded(),
    "bdia": BDIA(),
    "bdia, gamma = 0.5": BDIA(0.5),
    "bdia, sigma": BDIA(1.0, "sigma"),
    "edict 0.93": EDICT(),
    "edict 0.97": EDICT(0.97),
    "coupled 0.5": Coupled(0.5),
}
STEPS, QUICK = (10, 25, 50, 100), (10, 25)
# on the network, which takes its time
TRAINED = ("heun", "ddim", "o-belm", "graded 1.3", "bdia", "bdia, gamma = 0.5", "edict 0.93")


def mixture(dtype: torch.dtype) -> GaussianMixture:
    """Six modes of standard deviation 0.22, one unit apart in each pixel; levels from 80 down to 0.002."""
    means = invdiff.Streams(1).normal(0, (6, 1, 4, 4), "means", torch.float64)[0].to(dtype)
    return GaussianMixture(torch.ones(6, dtype=dtype), means, 0.05 * torch.eye(16, dtype=dtype), sigma_min=2e-3, sigma_max=80.0)


def flow(method: Scheme | Integrator, prior: invdiff.Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    """The draw from noise x."""
    if isinstance(method, Scheme):
        return method.finish(run_moves(method.moves(prior, sigmas), method.start(x)))
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = method.step(prior, x, sigma, sigma_next, lambda x=x: torch.zeros_like(x))
    return x


@torch.no_grad()
def rows(
    name: str,
    methods: Iterable[str],
    fine: invdiff.Denoiser,
    single: invdiff.Denoiser,
    start: Tensor,
    steps: tuple[int, ...],
    reference: int,
) -> list[dict]:
    """One row for each method and number of steps; `fine` is in the precision of `start`, `single` in float32."""

    def grid(count: int) -> list[float]:
        return invdiff.Karras()(count, fine.sigma_min, fine.sigma_max).tolist()

    begin = time.perf_counter()
    exact = flow(Heun(), fine, start, grid(reference))
    found = []
    for label in methods:
        method = METHODS[label]
        for count in steps:
            x = flow(method, fine, start, grid(count))
            row = {"prior": name, "method": label, "steps": count, "error": float((x - exact).norm() / exact.norm())}
            if isinstance(method, Scheme):
                noise = start.float()
                row["round_trip"] = drift(method.moves(single, grid(count)), method.start(noise))
            found.append(row)
        shown = "".join(
            f"{r['error']:9.1e} {r['round_trip']:7.0e}" if "round_trip" in r else f"{r['error']:9.1e}        "
            for r in found[-len(steps) :]
        )
        print(f"{name:<12}{label:<20}{shown}", flush=True)
    print(f"{time.perf_counter() - begin:.0f} s")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer numbers of steps")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--prior", default="natural64", help="a packaged prior, as of `invdiff list priors`")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    steps = QUICK if arguments.quick else STEPS
    print(f"{'error, round trip':<32}" + "".join(f"{f'{n} steps':<17}" for n in steps))
    start = 80.0 * invdiff.Streams(3, 8).normal(0, (1, 4, 4), dtype=torch.float64)
    found = rows("mixture", METHODS, mixture(torch.float64), mixture(torch.float32), start, steps, 1000)
    trained = catalogue.prior(arguments.prior)
    start = trained.sigma_max * invdiff.Streams(3, 1).normal(0, (trained.shape[0], 64, 64))
    found += rows(arguments.prior, TRAINED, trained, trained, start, steps[:3], 100 if arguments.quick else 200)
    if arguments.json:
        facts = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": platform.processor() or platform.machine(),
        }
        arguments.json.write_text(json.dumps({"facts": facts, "rows": found}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
