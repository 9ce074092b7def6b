"""The first vorticity of a turbulent flow from one later, coarse snapshot: animated estimate, and its error in time.

    python examples/initial_vorticity.py [--time 1] [--draws 8] [--out outputs/initial_vorticity.gif] [--tiny]

A flow forced along x in waves of y, Re = 200, after it has forgotten its start. Every second point along each side of the
vorticity at the end is seen, with 0.1 % of noise. What is known of the first vorticity is its spectrum, measured in flows of
other starts. The flow run backward from the snapshot is a first guess, from which Gauss-Newton steps with the solver's tangent
lead to the mode of the posterior; draws vary around it. Each of them is carried on by the solver, and the animation shows
truth, estimate and error on the way. A figure beside it has the error in time.
"""

import argparse
import math
from pathlib import Path

import torch

import invdiff
from invdiff.generators import KolmogorovFlow
from invdiff.operators.pde import NavierStokes2D, kolmogorov
from invdiff.operators.regrid import Every
from invdiff.plot_fields import animation, curve_figure
from invdiff.priors import GaussianField, radial_spectrum

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--draws", type=int, default=8)
parser.add_argument("--steps", type=int, default=2, help="tangents of the flow, 1,024 products with its adjoint each")
parser.add_argument("--time", type=float, default=1.0, help="of the measurement")
parser.add_argument("--noise", type=float, default=0.001, help="relative to the root mean square of the vorticity")
parser.add_argument("--frames", type=int, default=32)
parser.add_argument("--fps", type=float, default=10.0)
parser.add_argument("--tiny", action="store_true", help="a small problem, in seconds")
parser.add_argument("--out", default="outputs/initial_vorticity.gif")
arguments = parser.parse_args()
size, spinup, draws, frames, flows = 64, 5.0, arguments.draws, arguments.frames, 8
if arguments.tiny:
    size, spinup, draws, frames, flows = 16, 0.5, 2, 4, 2
solver_steps = frames * math.ceil(64 * arguments.time / frames)

truth = KolmogorovFlow(seed=1_000_000, size=size, spinup=spinup, frames=1)([0])["w"]
others = KolmogorovFlow(size=size, spinup=spinup, frames=4, interval=spinup / 2.5)(range(flows))["w"].reshape(-1, 1, size, size)
square, spacing = (size, size), 2.0 * math.pi / size
spectrum = radial_spectrum(others, spacing=spacing)
prior = GaussianField((1, *square), spectrum, std=None, spacing=spacing, boundary="periodic", zero_mean=True)
forcing = kolmogorov(square, wave=4, amplitude=-4.0)


def flow(save):
    """From the vorticity at 0 to that at `save` equally spaced times."""
    return NavierStokes2D(
        square, 1.0 / 200.0, forcing=forcing, time=arguments.time, steps=solver_steps, save=save, memory="full"
    )


operator = Every((1, *square), 2) @ flow(1)
sigma = arguments.noise * float(flow(1)(truth).square().mean().sqrt())
problem = invdiff.Problem.simulate(operator, invdiff.Gaussian(sigma), truth, seed=0)
sampler = invdiff.sampler("laplace_warm", steps=arguments.steps)
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
