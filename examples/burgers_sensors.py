"""A whole solution of Burgers' equation from five sensors in its way.

    python examples/burgers_sensors.py [--size 64] [--sensors 5] [--draws 8] [--out outputs/burgers_sensors.png] [--tiny]

The initial state is drawn from a Gaussian field and unknown; five points of the solution are read 32 times each, with 1 % of
noise. The sampler draws initial states, and each is carried on by the solver, so that every draw is a solution. The readings
fix it but for the fine structure of the beginning, which viscosity takes out before it has come to a sensor: there the error
is, and the spread. A second figure, beside the first, has both in time; the error of a draw is sqrt(2) standard deviations.
"""

import argparse
from pathlib import Path

import torch

import invdiff
from invdiff.generators import BurgersFlow
from invdiff.operators import Clip
from invdiff.operators.pde import Burgers, PointSensors
from invdiff.plot_fields import curve_figure, space_time_figure

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--size", type=int, default=64)
parser.add_argument("--sensors", type=int, default=5)
parser.add_argument("--draws", type=int, default=8)
parser.add_argument("--steps", type=int, default=16, help="of the sampler")
parser.add_argument("--viscosity", type=float, default=0.02)
parser.add_argument("--tiny", action="store_true", help="a small problem, in seconds")
parser.add_argument("--out", default="outputs/burgers_sensors.png")
arguments = parser.parse_args()
size, draws, steps, cg_steps, times = (arguments.size, arguments.draws, arguments.steps, 6, 32)
if arguments.tiny:
    size, draws, steps, cg_steps, times = 16, 2, 3, 2, 4

truth = BurgersFlow(seed=1_000_000, size=size, solve=False)([0])["u"]
law = invdiff.prior("burgers_law", shape=[1, size], spacing=1.0 / size)
places = (torch.arange(arguments.sensors) + 0.5) / arguments.sensors
# a sampler may try states that the law doesn't have; up to 5, more than four standard deviations, the steps are short enough
flow = Burgers(size, arguments.viscosity, steps=4 * size, save=times, memory="full") @ Clip((1, size), -5.0, 5.0)
operator = PointSensors((times, size), places[:, None], boundary="periodic") @ flow
sigma = 0.01 * float(operator(truth).square().mean().sqrt())
problem = invdiff.Problem.simulate(operator, invdiff.Gaussian(sigma), truth, seed=0)
samples = invdiff.sampler("mmps_tangent", steps=steps, cg_steps=cg_steps)(problem, law, n=draws, seed=0)


def solution(start):
    """The solution from an initial state, which is its first row."""
    with torch.no_grad():
        return torch.cat((start, flow(start)), 1)


def relative(error):
    """Root mean square over space of (n, T, N), relative to that of the truth in all."""
    return error.square().mean(2).sqrt() / exact.square().mean().sqrt()


exact, found = solution(truth), solution(samples.x)
mean, std = found.mean(0), found.std(0)
low, high = samples.interval(0.9)
inside = float(((low <= truth[0]) & (truth[0] <= high)).double().mean())
print(f"error of the mean: {float(relative(mean - exact).square().mean().sqrt()):.3f} of the rms of the solution")
print(f"of its initial state: {float((samples.mean - truth[0]).norm() / truth.norm()):.3f}, coverage {inside:.2f} at 0.90")
print(f"misfit of the draws: {float(problem.chi2(samples.x).mean()):.2f}, of the truth: {float(problem.chi2(truth)):.2f}")

out, t, x = Path(arguments.out), torch.linspace(0.0, 1.0, times + 1), torch.arange(size) / size
out.parent.mkdir(parents=True, exist_ok=True)
values = {"truth": exact[0], f"mean of {draws} draws": mean}
spreads = {"standard deviation": std, "|mean - truth|": (mean - exact[0]).abs()}
figure = space_time_figure(values, spreads, t=t, x=x, colours="value", places=places, moments=t[1:], units="u")
figure.savefig(out, dpi=110)
curves = {"error of the draws": relative(found - exact), "standard deviation": relative(std[None])}
curve_figure(curves, t=t, ylabel="relative to the solution").savefig(out.with_stem(out.stem + "_in_time"), dpi=110)
print(out)
