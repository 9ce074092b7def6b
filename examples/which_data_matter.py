"""Which measurements decide the value of a region? The derivative of a reconstruction, through all of its steps.

    python examples/which_data_matter.py [--steps 20] [--memory "checkpoint(both)"] [--out outputs/which_data_matter.png]

A CT slice is reconstructed by DiffPIR from 20 views, and the mean of a square of the result is differentiated with respect to
every ray: a map of influence, in a sinogram. That of the linear reconstruction (filtered back-projection) is the same for every
patient; this one also knows, through the prior, which rays the rest of the image has made redundant. The derivative is checked
by moving the data along it, and the memory that it takes is printed beside that of plain autograd.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import invdiff
from invdiff.core.storage import LiveStorage

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--size", type=int, default=128)
parser.add_argument("--memory", default="checkpoint(both)")
parser.add_argument("--out", default="outputs/which_data_matter.png")
arguments = parser.parse_args()

truth = invdiff.tasks.Phantoms(seed=1_000_000, size=arguments.size)(0)
operator = invdiff.operators.ParallelBeamCT(size=arguments.size, angles=20)
sigma = 0.02 * float(operator(truth[None]).square().mean().sqrt())
problem = invdiff.Problem.simulate(operator, invdiff.Gaussian(sigma), truth, seed=0)
prior, sampler = invdiff.prior("ct128"), invdiff.sampler("diffpir", steps=arguments.steps)
start, stop = arguments.size // 2 - 6, arguments.size // 2 + 6


def region(y, memory):
    """The mean of the square, and the reconstruction."""
    x = sampler.differentiate(replace(problem, y=y), prior, seed=0, memory=memory)
    return x[..., start:stop, start:stop].mean(), x.detach()


found = {}
for memory in ("full", arguments.memory):
    y = problem.y.clone().requires_grad_()
    with LiveStorage() as meter:
        value, x = region(y, memory)
        (influence,) = torch.autograd.grad(value, y)
    found[memory] = influence
    print(f"{memory:<20} {meter.peak / 2**20:8.1f} MiB   value {value.item():.5f}")
print(f"the two derivatives differ by {float((found[arguments.memory] - found['full']).norm() / influence.norm()):.1e}")

direction = influence / influence.norm()
with torch.no_grad():
    step = 0.5 * sigma
    moved = (region(problem.y + step * direction, "full")[0] - region(problem.y - step * direction, "full")[0]) / (2 * step)
print(f"along itself: {float(influence.norm()):.5f}, by moving the data: {float(moved):.5f}")
print(f"standard deviation of the value by the noise alone: {float(sigma * influence.norm()):.5f}")

linear = problem.y.clone().requires_grad_()
(fixed,) = torch.autograd.grad(operator.fbp(linear)[..., start:stop, start:stop].mean(), linear)
figure = Figure(figsize=(11, 3.6), layout="constrained")
axes = figure.subplots(1, 3)
axes[0].imshow(x[0, 0], cmap="gray")
axes[0].add_patch(Rectangle((start, start), 12, 12, fill=False, color="r"))
for axis, image in zip(axes[1:], (influence, fixed), strict=True):
    bound = float(image.abs().max())
    axis.imshow(image.reshape(image.shape[-2:]), cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    axis.set(xlabel="detector", ylabel="view")
for axis, title in zip(axes, ("reconstruction", "influence of the rays", "of filtered back-projection"), strict=True):
    axis.set_title(title)
Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
figure.savefig(arguments.out, dpi=120)
print(arguments.out)
