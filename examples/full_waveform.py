"""The velocity of the ground from its echoes: least squares from a smooth start, and a prior that knows what ground is like.

    python examples/full_waveform.py [--size 48] [--steps 40] [--out outputs/full_waveform.png]

Five shots below the surface are recorded by a line of receivers beside them. Least squares (Gauss-Newton, no prior but its
start) explains the traces and is free where no wave has been; RED-diff minimises the same misfit with the pull of a denoiser,
here that of a Gaussian field around a gradient with depth. The traces and their derivative are those of one discrete scheme.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import invdiff
from invdiff.generators import VelocityModels
from invdiff.samplers.least_squares import LeastSquares
from invdiff.tasks import Item
from invdiff.tasks.waves import depth_gradient, full_waveform

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--size", type=int, default=48)
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--iterations", type=int, default=5, help="of least squares")
parser.add_argument("--out", default="outputs/full_waveform.png")
arguments = parser.parse_args()
shape = (1, arguments.size, arguments.size)

truth = VelocityModels(seed=1_000_000, shape=shape[1:])([0])["c"]
operator = full_waveform(Item("ground", shape), time=0.018 * arguments.size)
with torch.no_grad():
    sigma = 0.01 * float(operator(truth).square().mean().sqrt())
problem = invdiff.Problem.simulate(operator, invdiff.Gaussian(sigma), truth, seed=0)
start = depth_gradient(shape, 2120.0, 3890.0).float()

prior = invdiff.prior(
    "velocities", **{"prior.shape": list(shape), "prior.spacing": 1.0 / arguments.size, "shift.shape": list(shape)}
)
sampler = invdiff.sampler("reddiff_waveform", steps=arguments.steps)
x, facts = LeastSquares(start, iterations=arguments.iterations, krylov=5)(problem)
print("least squares, chi^2 by iteration: " + ", ".join(f"{value:.1f}" for value in facts["history"]))
images = {"truth": truth[0, 0], "start": start.expand(shape)[0], "least squares": x[0, 0]}
images["RED-diff"] = sampler(problem, prior, 1, seed=0).x[0, 0]
for title, image in images.items():
    with torch.no_grad():
        chi2 = float(problem.chi2(image[None, None]))
    print(f"{title:<14} relative error {float((image - truth[0, 0]).norm() / truth.norm()):.3f}   chi^2 {chi2:9.2f}")

figure = Figure(figsize=(16, 3.4), layout="constrained")
axes = figure.subplots(1, len(images) + 1)
for axis, (title, image) in zip(axes, images.items(), strict=False):
    shown = axis.imshow(image, vmin=1500.0, vmax=4500.0)
    axis.set(title=title, xticks=[], yticks=[])
figure.colorbar(shown, ax=axes[len(images) - 1], shrink=0.7, label="m/s")
traces = problem.y[0, len(problem.y[0]) // 2]
bound = 0.2 * float(traces.abs().max())
axes[-1].imshow(traces.T, cmap="gray", vmin=-bound, vmax=bound, aspect="auto")
axes[-1].set(title="traces of the middle shot", xlabel="receiver", ylabel="sample")
Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
figure.savefig(arguments.out, dpi=120)
print(arguments.out)
