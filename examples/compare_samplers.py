"""Every sampler on the same sparse-view CT problem: error of the estimate, coverage of the intervals, cost.

    python examples/compare_samplers.py [--size 64] [--views 16] [--draws 4]

Point estimates have no coverage. DDNM and Steered Diffusion are left out: they impose A^+ y, and the pseudoinverse of a
sparse-view geometry amplifies the noise a hundredfold; they are for masks, compressed sensing, MRI. The numbers are for one
phantom; `docs/validation.md` says which sampler to trust.
"""

import argparse

import invdiff
from invdiff.metrics import coverage, psnr

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--size", type=int, default=64)
parser.add_argument("--views", type=int, default=16)
parser.add_argument("--draws", type=int, default=4)
arguments = parser.parse_args()

SAMPLERS = {
    "mmps_preconditioned": {},
    "mmps_fast": {},
    "pigdm": {"steps": 30, "data_std": 0.5},
    "diffpir": {"steps": 30},
    "dps": {"steps": 100, "zeta": 0.3},
    "reddiff": {"steps": 300, "lr": 0.02, "lam": 1.0, "weight": "constant"},
}

truth = invdiff.tasks.Phantoms(seed=1_000_000, size=arguments.size)(2)
operator = invdiff.operators.ParallelBeamCT(size=arguments.size, angles=arguments.views)
sigma = 0.02 * float(operator(truth[None]).square().mean().sqrt())
problem = invdiff.Problem.simulate(operator, invdiff.Gaussian(sigma), truth, seed=0)
prior, extent = invdiff.prior("ct128"), float(truth.max() - truth.min())


def row(name, image, samples=None):
    covered = "-"
    if samples is not None and samples.kind == "posterior":
        low, high = samples.interval(0.9)
        covered = f"{float(coverage(low[None], high[None], truth[None])):.2f}"
    cost = (
        ""
        if samples is None
        else f"{samples.network_calls:5.0f} calls, {samples.network_vjps:4.0f} vjps, {samples.seconds:5.1f} s"
    )
    print(f"{name:<22} {float(psnr(image[None], truth[None], extent)):5.1f} dB   coverage {covered:<5} {cost}", flush=True)


row("fbp", operator.fbp(problem.y)[0])
row("total variation", invdiff.samplers.TotalVariation()(problem)[0][0])
for name, options in SAMPLERS.items():
    samples = invdiff.sampler(name, **options)(problem, prior, n=arguments.draws, seed=0)
    row(name, samples.mean, samples)
