"""Smoke among obstacles by one conditional prior of density, velocity and control: simulation, and control from the rim.

    python examples/wdno_smoke.py [--draws 8] [--out outputs/wdno_smoke.png] [--tiny]

Simulation: density and velocity given the initial smoke and the control, with their spread, beside the solver. Control: draws
of controls that are to bring the smoke to the middle outlet of the top, J = (1 - share)^2 + 0.01 mean |c|^2, each of which the
solver then values, beside the control of the data and none. The animation beside the figure shows the solver's smoke for the
control of the data and for the best of those drawn.
"""

import argparse
from pathlib import Path

import torch

import invdiff
from invdiff.generators import SmokeControl
from invdiff.plot_fields import Fields, animation, field_figure
from invdiff.tasks.smoke_setups import SmokeItems, control, simulation_score, smoke_score, solved_density

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--draws", type=int, default=8)
parser.add_argument("--item", type=int, default=0, help="which of the held-out trajectories")
parser.add_argument("--tiny", action="store_true", help="few draws and steps, in seconds")
parser.add_argument("--out", default="outputs/wdno_smoke.png")
arguments = parser.parse_args()
draws, steps = (2, 2) if arguments.tiny else (arguments.draws, 16)

made = SmokeControl(size=32, frames=16, substeps=8, waypoints=2, noise=0.02, gain=2.5)  # that of the training
prior = invdiff.prior("smoke_wdno")


def item_for(use):
    return next(SmokeItems(use=use, generator=made, index=arguments.item).items(1, 0, prior))


item = item_for("simulate")
known = prior.tell(item.told)
drawn = invdiff.sampler("unconditional", steps=steps)(invdiff.Problem.unmeasured(known.shape), known, n=draws, seed=0).x
simulated = known.basis(drawn)
one, mean, velocity = (simulation_score(item, simulated)[k] for k in ("relative_l2", "relative_l2_of_mean", "velocity_l2"))
print(f"simulation: relative error of the density {one:.3f} of a draw, {mean:.3f} of the mean; of the velocity {velocity:.3f}")

item = item_for("control")
aim, operator = prior.tell(item.told), control(item)
problem = invdiff.Problem(operator, invdiff.Gaussian(0.1), item.y[None]).through(aim.basis)
drawn = aim.basis(invdiff.sampler("mmps_control", steps=steps)(problem, aim, n=draws, seed=0).x)
found, each = smoke_score(item, drawn), [smoke_score(item, x[None])["J"] for x in drawn]
best = min(range(draws), key=each.__getitem__)
for name, about in (("share", "share of the smoke"), ("J", "J")):
    of_data, none, believed = (found[f"{name}_{kind}"] for kind in ("data", "none", "believed"))
    print(f"control: {about} by the solver {found[name]:.3f} on average, {found[name + '_best']:.3f} at best,")
    print(f"  {of_data:.3f} by the control of the data, {none:.3f} without control; believed {believed:.3f}")

out = Path(arguments.out)
out.parent.mkdir(parents=True, exist_ok=True)
rows, look = [], {"colours": "spread", "limits": (0.0, 0.6)}
densities = {"solver": item.truth[0], "mean of draws": simulated[:, 0].mean(0), "deviation": simulated[:, 0].std(0)}
for name, density in densities.items():
    frames = {f"{name}, t = {8 * k}": density[k - 1].clamp(min=0.0).sqrt() for k in (4, 8, 12, 16)}
    rows.append([Fields(fields=frames, units="square root of density", **look)])
field_figure(rows).savefig(out, dpi=110)
both = torch.stack([item.truth[3:], drawn[best, 3:]])
# what has left is collected in the cells of the outlets
air = (solved_density(item.told["density0"], both) * ~made.outlets.any(0)).clamp(min=0.0).sqrt()
panels, t = {"control of the data": air[0], "best control drawn": air[1]}, 8.0 * torch.arange(17)
animation(panels, out.with_suffix(".gif"), fps=4.0, times=t, blocked=~made.operator.grid.fluid, **look)
print(out)
