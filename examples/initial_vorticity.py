"""The past of a turbulent flow: the vorticity some time ago from a quarter of the points of the present one.

    python examples/initial_vorticity.py [--time 0.25] [--draws 2] [--steps 16] [--out outputs/initial_vorticity.gif] [--tiny]

A flow forced along x in waves of y, Re = 200, after it has forgotten its start. Every second point along each side of the
vorticity at the end is seen, with 2 % of noise. Each draw of the initial state is carried on by the solver, and the animation
shows truth, estimate and error on the way. A figure beside it has the error in time. The sampler follows tangents of the flow:
over a whole unit of time (--time 1) they led astray where this was tried, to errors above 1, and the misfit says so.
"""

import argparse
import math
from pathlib import Path

import torch

import invdiff
from invdiff.generators import KolmogorovFlow
from invdiff.operators.pde import NavierStokes2D, kolmogorov
from invdiff.operators.restoration import Mask
from invdiff.plot_fields import animation, curve_figure

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--draws", type=int, default=2)
parser.add_argument("--steps", type=int, default=16, help="of the sampler")
parser.add_argument("--cg-steps", type=int, default=4, help="products with the network's Jacobian in each step")
parser.add_argument("--time", type=float, default=0.25, help="of the measurement")
parser.add_argument("--noise", type=float, default=0.02, help="relative to the root mean square of the vorticity")
parser.add_argument("--frames", type=int, default=32)
parser.add_argument("--fps", type=float, default=10.0)
parser.add_argument("--tiny", action="store_true", help="a small problem, in seconds")
parser.add_argument("--out", default="outputs/initial_vorticity.gif")
arguments = parser.parse_args()
size, spinup, draws, steps, cg_steps, frames = (64, 6.0, arguments.draws, arguments.steps, arguments.cg_steps, arguments.frames)
if arguments.tiny:
    size, spinup, draws, steps, cg_steps, frames = 32, 0.5, 2, 2, 1, 4
solver_steps = frames * math.ceil(64 * arguments.time / frames)

prior = invdiff.prior("vorticity64")
truth = KolmogorovFlow(seed=1_000_000, size=size, spinup=spinup, frames=1)([0])["w"]
square = (size, size)
forcing = kolmogorov(square, wave=4, amplitude=-4.0)


def flow(save):
    """From the vorticity at 0 to that at `save` equally spaced times."""
    return NavierStokes2D(
        square, 1.0 / 200.0, forcing=forcing, time=arguments.time, steps=solver_steps, save=save, memory="full"
    )


seen = torch.zeros(square, dtype=torch.bool)
seen[::2, ::2] = True
operator = Mask(seen, (1, *square)) @ flow(1)
sigma = arguments.noise * float(flow(1)(truth).square().mean().sqrt())
problem = invdiff.Problem.simulate(operator, invdiff.Gaussian(sigma), truth, seed=0)
sampler = invdiff.sampler("mmps_tangent", steps=steps, cg_steps=cg_steps, newton=1)
samples = sampler(problem, prior, n=draws, seed=0)


def trajectory(start):
    """The states of (n, 1, H, W) at frames + 1 equally spaced times, (n, frames + 1, H, W)."""
    with torch.no_grad():
        return torch.cat((start, flow(frames)(start)), 1)


exact, found = trajectory(truth), trajectory(samples.x)
estimate, t = trajectory(samples.mean[None])[0], torch.linspace(0.0, arguments.time, frames + 1)
errors = (found - exact).flatten(2).norm(dim=2) / exact.flatten(2).norm(dim=2)
for k in (0, frames // 2, frames):
    print(f"t = {float(t[k]):.2f}: relative error of the draws {float(errors[:, k].mean()):.3f}")
print(f"misfit of the draws: {float(problem.chi2(samples.x).mean()):.3g}; {samples.seconds:.0f} s")

bound, out = float(exact.abs().max()), Path(arguments.out)
panels = {"truth": exact[0], "from the mean of the draws": estimate, "error": estimate - exact[0]}
animation(panels, out, fps=arguments.fps, limits=(-bound, bound), times=t, units="vorticity")
curve_figure({"error of the draws": errors}, t=t, ylabel="relative error").savefig(out.with_suffix(".png"), dpi=110)
print(out)
