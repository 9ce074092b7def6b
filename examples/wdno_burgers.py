"""One conditional prior of trajectories of Burgers' equation with forcing: simulation, control, refinement.

    python examples/wdno_burgers.py [--draws 8] [--out outputs/wdno_burgers.png] [--tiny]

Simulation: u given u(0) and f, with its spread, beside the solver and a Fourier network. Control: forcings that bring u(0) to
the state that another forcing led to, valued by J = mean |u(T) - u*|^2 + 0.001 mean |f|^2 of the solver's trajectory, beside
no forcing and gradient descent on J through the Fourier network. Refinement: from 32 x 64 points to 64 x 128, and on to 128 x
256, which the network has never seen. A second figure, beside the first, has the control.
"""

import argparse
from pathlib import Path

import torch

import invdiff
from invdiff.generators import BurgersControl
from invdiff.plot_fields import space_time_figure
from invdiff.priors import coarsen, refine, upsample
from invdiff.priors.shipped import shipped_regression
from invdiff.tasks import Item, control_problem
from invdiff.tasks.control import descent
from invdiff.tasks.trajectories import as_fields
from invdiff.tasks.wdno_setups import control_score

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--draws", type=int, default=8)
parser.add_argument("--tiny", action="store_true", help="a small problem, in seconds")
parser.add_argument("--out", default="outputs/wdno_burgers.png")
arguments = parser.parse_args()
draws, steps, adam_steps, levels = (2, 8, 2, 1) if arguments.tiny else (arguments.draws, 16, 150, 2)


def relative(x, truth):
    return float((x - truth).norm() / truth.norm())


size = 64 * 2**levels  # coarser grids see frames and averages of the finest solution, which is the truth of all
made = BurgersControl(seed=1_000_000, size=size, frames=size // 2, slots=size // 2, factor=1, steps=32 * size)
grids = [as_fields(made([0]))]
while len(grids) <= levels:
    grids.insert(0, coarsen(grids[0]))
truth, free = grids[0], invdiff.sampler("unconditional", steps=steps)
u, f, told = truth["u"], truth["f"], {"u0": truth["u0"], "f": truth["f"]}
prior = invdiff.prior("burgers_wdno")
model = shipped_regression("burgers_fno.safetensors", "032f585351a2604dd964b2988a6e2116f70aa98492bf1193126945fc62443480")

known = prior.tell(told)
found = known.basis(free(invdiff.Problem.unmeasured(known.shape), known, n=draws, seed=0).x)[:, :1]
regression, mean, std = model.predict(u.shape[2:], told), found.mean(0), found.std(0)[0]
one, several, fourier = relative(found[:1], u), relative(mean, u[0]), relative(regression, u)
print(f"simulation: relative error {one:.3f} of a draw, {several:.3f} of the mean, {fourier:.3f} of the Fourier network")

aim = prior.tell(ends := {"u0": truth["u0"], "uT": truth["uT"]})
problem = control_problem(aim.basis.out_shape, truth["uT"][0], weight=1e-3, temperature=0.02).through(aim.basis)
forces = aim.basis(invdiff.sampler("mmps_control", steps=steps)(problem, aim, n=min(draws, 4), seed=0).x)
reached, descended = descent(
    lambda force: model.predict(u.shape[2:], told | {"f": force}), 0 * f, truth["uT"], weight=1e-3, steps=adam_steps
)
item = Item("control", (2, *u.shape[2:]), torch.cat([u, f], 1)[0], told=ends)
drawn, by_descent = control_score(item, forces), control_score(item, torch.cat([reached, descended], 1))
print(f"control: J of the solver {drawn['J']:.4f} on average of the draws, {drawn['J_best']:.4f} of the best of them,")
print(f"  {by_descent['J']:.4f} of descent through the Fourier network, {drawn['J_none']:.4f} of no forcing")

network, finest, plain = invdiff.prior("burgers_wdno_sr"), grids[-1], u
finer = refine(network.prior, network.code, u, finest["u0"], finest["f"], free, seed=0, times=levels)
for coarse, exact, refined in zip(grids, grids[1:], finer, strict=False):
    plain = upsample(plain, coarse["u0"])
    both = f"{relative(refined, exact['u']):.4f}, by interpolation {relative(plain, exact['u']):.4f}"
    print(f"refinement to {tuple(exact['u'].shape[2:])}: relative error {both}")

out, t, x = Path(arguments.out), 8.0 * (torch.arange(32) + 1) / 32, (torch.arange(64) + 0.5) / 64
out.parent.mkdir(parents=True, exist_ok=True)
values = {"solver": u[0, 0], f"mean of {draws} draws": mean[0], "Fourier network": regression[0, 0]}
spreads = {"standard deviation": std, "|mean - solver|": (mean - u[0])[0].abs()}
space_time_figure(values, spreads, t=t, x=x, units="u").savefig(out, dpi=110)
controls = {"f of the data": f[0, 0], "f drawn": forces[0, 1], "f by descent": descended[0, 0]}
space_time_figure(controls, t=t, x=x, units="f").savefig(out.with_stem(out.stem + "_control"), dpi=110)
print(out)
