"""A medium of two permeabilities from its pressure, and the pressure from some of its permeabilities.

    python examples/darcy_permeability.py [--sensors 500] [--draws 4] [--out outputs/darcy_permeability.png] [--tiny]

Backwards: the pressure of a Darcy flow at random points, 0.1 % of noise, to the medium. The operator is not linear, and the
sampler follows its tangents; nothing tells it that there are two values but the prior. Forwards: the permeability at as many
points, to the pressure everywhere, each draw of the medium solved for its own: the spread of the pressure is that of its
equation, which a network from one field to the other would have to learn.
"""

import argparse
from pathlib import Path

import torch

import invdiff
from invdiff.generators import DarcyFlow
from invdiff.operators import Clip
from invdiff.operators.pde import Darcy, PointSensors
from invdiff.plot_fields import Fields, field_figure

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--sensors", type=int, default=500)
parser.add_argument("--draws", type=int, default=4)
parser.add_argument("--steps", type=int, default=30, help="of the sampler")
parser.add_argument("--tiny", action="store_true", help="a small problem, in seconds")
parser.add_argument("--out", default="outputs/darcy_permeability.png")
arguments = parser.parse_args()
size, sensors, draws, steps, cg_steps = (64, arguments.sensors, arguments.draws, arguments.steps, 16)
if arguments.tiny:
    size, sensors, draws, steps, cg_steps = 16, 40, 2, 2, 1

prior, shape = invdiff.prior("darcy64"), (1, size, size)
fields = DarcyFlow(seed=1_000_000, size=size)([0])
truth, pressure = fields["a"], fields["u"]
places = invdiff.Streams(0).uniform(0, (sensors, 2), "sensors", torch.float64)[0]
flow = Darcy((size, size)) @ Clip(shape, 1.0, 30.0)


def draw(operator, **options):
    """Draws of the medium, and the misfit of their mean."""
    sigma = 1e-3 * float(operator(truth).square().mean().sqrt())
    problem = invdiff.Problem.simulate(operator, invdiff.Gaussian(sigma), truth, seed=0)
    samples = invdiff.sampler("mmps_tangent", steps=steps, **options)(problem, prior, n=draws, seed=0)
    return samples, float(problem.chi2(samples.x).mean())


def groups(what, truth, draws, units):
    """Truth, mean and a draw of what is asked for, and its spread and error."""
    mean = draws.mean(0)
    values = {f"{what}": truth, f"mean of {len(draws)} draws": mean, "a draw": draws[0]}
    spread = {"standard deviation": draws.std(0), f"|mean - {what}|": (mean - truth).abs()}
    return [Fields(fields=values, units=units), Fields(fields=spread, colours="spread", units=units)]


back, misfit = draw(PointSensors(shape, places) @ flow, cg_steps=cg_steps, newton=2)
wrong = ((back.mean > 7.5) != (truth[0] > 7.5)).double().mean()
print(f"medium from {sensors} pressures: {100 * float(wrong):.2f} % of the cells wrong, misfit of the draws {misfit:.3g}")
print(f"    {back.seconds:.0f} s, {back.network_vjps:.0f} products with the network's Jacobian for each draw", flush=True)

there, misfit = draw(PointSensors(shape, places, boundary="neumann"), cg_steps=cg_steps)
with torch.no_grad():
    solved = flow(there.x)
error = float((solved.mean(0) - pressure[0]).norm() / pressure[0].norm())
print(f"pressure from {sensors} permeabilities: relative error {error:.4f}, misfit of the draws {misfit:.3g}")

given = ({"pressure, sensors": pressure[0]}, "u"), ({"permeability, sensors": truth[0]}, "a")
marked = [[Fields(fields=f, units=u, points=dict.fromkeys(f, places))] for f, u in given]
rows = [marked[0] + groups("permeability", truth[0], back.x, "a"), marked[1] + groups("pressure", pressure[0], solved, "u")]
Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
figure = field_figure(rows, titles=["from the pressure to the medium", "from the medium to the pressure"], marks=3.0)
figure.savefig(arguments.out, dpi=100)
print(arguments.out)
