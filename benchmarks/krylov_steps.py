"""What too few Krylov steps of MMPS cost, with and without its preconditioner, where the posterior is known in closed form.

A 16 x 16 Gaussian field (standard deviation 1, spectrum 1/|k|^3) is measured four ways. The probability-flow ODE is solved from
the same noise with the guidance and with the exact posterior's denoiser, so that what is left is the Krylov solver's alone:

    bias       |mean - exact mean| / sqrt(tr C),    less the Monte-Carlo error of that length
    variance   sum of the draws' variances / the same of the exact posterior's draws

C is the posterior's covariance: the bias is in standard deviations of the posterior. The column "closed form" holds the exact
draws themselves against m and C, which is what the number of draws and of levels leaves. Everything in float64.

    python benchmarks/krylov_steps.py [--quick] [--threads 1] [--device cuda] [--json FILE]
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
from invdiff.guidance import MMPS
from invdiff.operators import ParallelBeamCT, gaussian_blur, random_inpainting
from invdiff.priors import GaussianPrior, StationaryGaussian
from invdiff.samplers import Guided

SHAPE = (1, 16, 16)
CASES = {
    "25 % of the pixels, sigma_y = 0.05": (random_inpainting(16, 16, keep=0.25), 0.05),
    "blur of 1.5 pixels, sigma_y = 0.1": (gaussian_blur(16, 16, sigma=1.5), 0.1),
    "blur of 1.5 pixels, sigma_y = 0.01": (gaussian_blur(16, 16, sigma=1.5), 0.01),
    "tomography, 8 views, sigma_y = 0.1": (ParallelBeamCT(size=16, angles=8), 0.1),
}
STEPS, QUICK = (1, 2, 3, 5, 8, 20), (1, 3, 8)


def field() -> tuple[StationaryGaussian, GaussianPrior]:
    """The prior by its spectrum, and the same by its covariance matrix, which gives the posterior."""
    prior = StationaryGaussian(SHAPE)
    basis = torch.eye(256, dtype=torch.float64).reshape(-1, *SHAPE)
    cov = prior.covariance(basis).flatten(1)
    return prior, GaussianPrior(basis.new_zeros(SHAPE), 0.5 * (cov + cov.T))


def distance(draws: Tensor, exact: Tensor, mean: Tensor, total: Tensor) -> float:
    """Length of the mean of draws - exact about `mean`, in units of sqrt(total); 0 where Monte-Carlo error explains it."""
    difference = (draws - exact).flatten(1)
    square = (difference.mean(0) - mean.flatten()).square().sum() - difference.var(0).sum() / len(draws)
    return float((square.clamp_min(0.0) / total).sqrt())


def case_rows(name: str, *, draws: int, levels: int, steps: tuple[int, ...], device: str) -> list[dict]:
    """One row for the exact posterior's draws, and one for each number of Krylov steps and preconditioner."""
    operator, sigma_y = CASES[name]
    prior, dense = field()
    noise = invdiff.Gaussian(torch.tensor(sigma_y, dtype=torch.float64))
    problem = invdiff.Problem.simulate(operator, noise, dense.sample(invdiff.Streams(3))[0], seed=1)
    posterior = dense.posterior(problem).to(device)
    problem = invdiff.Problem(operator.to(device), noise.to(device), problem.y.to(device))
    total, zero = posterior.variances.sum(), torch.zeros_like(posterior.mean)

    def run(guidance: MMPS | None, denoiser: invdiff.Denoiser) -> Tensor:
        sampler = Guided(guidance, grid=invdiff.Karras(0.005, 80.0), steps=levels)
        return sampler(problem, denoiser, n=draws, seed=5).x

    exact = run(None, posterior)
    spread = exact.var(0).sum()
    rows = [
        {
            "name": name,
            "cg_steps": None,
            "data_std": None,
            "bias": distance(exact, torch.zeros_like(exact), posterior.mean, total),
            "variance": float(spread / total),
        }
    ]
    for data_std in (None, 1.0):
        for cg_steps in steps:
            x = run(MMPS(cg_steps=cg_steps, data_std=data_std), prior.to(device))
            bias, variance = distance(x, exact, zero, total), float(x.var(0).sum() / spread)
            rows.append({"name": name, "cg_steps": cg_steps, "data_std": data_std, "bias": bias, "variance": variance})
    return rows


def line(rows: list[dict]) -> str:
    return "  ".join(f"{row['bias']:.2f} {row['variance']:.2f}" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer draws, levels and numbers of steps")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    draws, levels, steps = (20, 15, QUICK) if arguments.quick else (100, 25, STEPS)
    begin, rows = time.perf_counter(), []
    print(f"bias, variance; {draws} draws, {levels} levels")
    print(f"{'cg_steps':<36}" + "".join(f"{k:<11}" for k in steps) + "closed form")
    for name in CASES:
        floor, *found = case_rows(name, draws=draws, levels=levels, steps=steps, device=arguments.device)
        plain, preconditioned = found[: len(steps)], found[len(steps) :]
        print(f"{name:<36}{line(plain)}  {line([floor])}")
        print(f"{'    data_std = 1':<36}{line(preconditioned)}", flush=True)
        rows += [floor, *found]
    print(f"{time.perf_counter() - begin:.0f} s")
    if arguments.json:
        facts = {"python": platform.python_version(), "torch": torch.__version__, "draws": draws, "levels": levels}
        arguments.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
