"""Solvers alone: shocks of Burgers' equation at the speed that the theory gives, and smoke that a control pushes about.

    python examples/shock_and_smoke.py [--size 256] [--smoke 64] [--out outputs/shock_and_smoke.png] [--tiny]

Without viscosity a step from 1 to 0 travels at the speed 1/2, and a step from 0 to 1 opens into a fan, u = x / t. Where the fan
reaches the shock, the shock slows down. The first part solves the equation by finite volumes and prints the mean distance from
that exact solution, halved (order 1, as about any shock) where the cells are. The second part is a trajectory of smoke among
obstacles, with its velocity controlled in the rim alone, as an animation beside the figure.
"""

import argparse
from pathlib import Path

import torch

from invdiff.generators import SmokeControl
from invdiff.operators.pde import BurgersShocks
from invdiff.plot_fields import animation, space_time_figure

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--size", type=int, default=256, help="cells of Burgers' equation")
parser.add_argument("--smoke", type=int, default=64, help="cells along each side of the smoke, a multiple of 32")
parser.add_argument("--frames", type=int, default=32, help="of the smoke")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--tiny", action="store_true", help="a small problem, in seconds")
parser.add_argument("--out", default="outputs/shock_and_smoke.png")
arguments = parser.parse_args()
size, cells, frames = (64, 32, 4) if arguments.tiny else (arguments.size, arguments.smoke, arguments.frames)
left, right, save = 0.15, 0.35, 64


def exact(t, x):
    """Of a box of height 1 from left to right; t (T, 1) > 0, x (N,)."""
    met = 2.0 * (right - left)
    shock = torch.where(t < met, right + 0.5 * t, left + (2.0 * (right - left) * t).sqrt())
    return torch.where((x > left) & (x < shock), ((x - left) / t).clamp(max=1.0), 0.0)


def solved(n):
    """Times, centres of cells, the solution (save, n), and that of the theory, averaged over the cells."""
    fine = (torch.arange(16 * n, dtype=torch.float64) + 0.5) / (16 * n)
    t = torch.linspace(0.0, 1.0, save + 1, dtype=torch.float64)[1:]
    start = ((fine > left) & (fine < right)).double().unflatten(0, (n, 16)).mean(-1)
    solver = BurgersShocks(n, 0.0, time=1.0, steps=save * max(1, -(-4 * n // save)), save=save)
    with torch.no_grad():
        u = solver(start[None, None])[0]
    return t, (torch.arange(n) + 0.5) / n, u, exact(t[:, None], fine).unflatten(1, (n, 16)).mean(-1)


for n in (size // 4, size // 2, size):
    t, x, u, truth = solved(n)
    distance = (u - truth).abs()
    print(f"{n:4d} cells: mean distance from the exact solution {float(distance.mean()):.5f}")

out = Path(arguments.out)
out.parent.mkdir(parents=True, exist_ok=True)
values, spread = {f"{size} cells": u, "exact": truth}, {"distance": distance}
space_time_figure(values, spread, t=t, x=x, colours="value", units="u").savefig(out, dpi=110)

smoke = SmokeControl(seed=arguments.seed, size=cells, frames=frames)
sample = smoke([0])
density, gone = sample["density"][0], sample["outlet"][0]
print(f"smoke: {100 * float(gone[-1]):.1f} % has left through the target after {frames} frames")
# what has left is collected in the cells of the outlets
density = density * ~smoke.outlets.any(0)
walls = ~smoke.operator.grid.fluid
panels, t = {"square root of the density": density.clamp(min=0.0).sqrt()}, 8.0 * torch.arange(frames + 1)
animation(panels, out.with_suffix(".gif"), limits=(0.0, 1.0), colours="spread", times=t, blocked=walls, size=384)
print(out)
