"""An object from the waves it scatters: one linear step, least squares, and a posterior, on the same measurement.

    python examples/inverse_scattering.py [--size 48] [--steps 10] [--draws 4] [--out outputs/inverse_scattering.png]

Twenty transmitters and ninety receivers on a circle see a cell-like object of contrast n^2 - 1. The Born approximation takes
the field inside of it to be the incident one, which is wrong by half of the signal here. Newton's method on the exact equation
explains the measurement to the noise; what the measurement leaves open it fills with noise. Moment matching with the
same exact derivatives fills it with draws of a prior: a Gaussian field, cut off where the contrast would be negative.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import invdiff
from invdiff.generators import Scatterers
from invdiff.operators.pde import LippmannSchwinger
from invdiff.samplers.least_squares import LeastSquares, Linearised

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--size", type=int, default=48)
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--draws", type=int, default=4)
parser.add_argument("--wavelength", type=float, default=0.2, help="in sides of the square")
parser.add_argument("--out", default="outputs/inverse_scattering.png")
arguments = parser.parse_args()
size = arguments.size

truth = Scatterers(seed=1_000_000, size=size, contrast=(0.05, 0.3))([0])["f"]
operator = LippmannSchwinger(
    size, length=1.0, wavelength=arguments.wavelength, transmitters=20, receivers=90, radius=3.0, tol=1e-4
)
with torch.no_grad():
    sigma = 0.01 * float(operator(truth).abs().square().mean().div(2).sqrt())
problem = invdiff.Problem.simulate(operator, invdiff.Gaussian(sigma), truth, seed=0)

prior = invdiff.prior(
    "scatterers", **{"prior.shape": [1, size, size], "prior.spacing": 1.0 / size, "operator.shape": [1, size, size]}
)
cut = prior.synthesis((1, size, size))
sampler = invdiff.sampler("mmps_tangent_ancestral", steps=arguments.steps)
images = {"truth": truth[0, 0]}
for title, method in {"Born": Linearised(strength=1e-4), "least squares": LeastSquares(krylov=20)}.items():
    x, facts = method(problem)
    images[title] = x[0, 0]
    print(f"{title:<15} chi^2 {facts['chi2']:9.2f}   {facts['seconds']:5.1f} s")
draws = sampler(problem.through(cut), prior, arguments.draws, seed=0).map(cut)
images["posterior mean"], images["one draw"] = draws.mean[0], draws.x[0, 0]
images["standard deviation"] = draws.std[0]
with torch.no_grad():
    print(f"{'posterior mean':<15} chi^2 {float(problem.chi2(draws.mean[None])):9.2f}")

low, high = draws.interval(0.9)
inside = truth[0] > 0
share = float(((truth[0] >= low) & (truth[0] <= high))[inside].float().mean())
for title in ("Born", "least squares", "posterior mean"):
    print(f"relative error of {title:<15} {float((images[title] - truth[0, 0]).norm() / truth.norm()):.3f}")
print(f"of the object's points the 90 % interval of the draws holds {100 * share:.0f} %")

figure = Figure(figsize=(16, 3.2), layout="constrained")
top = float(truth.max())
for axis, (title, image) in zip(figure.subplots(1, len(images)), images.items(), strict=True):
    spread = title == "standard deviation"
    shown = axis.imshow(image, cmap="magma" if spread else "viridis", vmin=0.0, vmax=0.2 * top if spread else top)
    axis.set(title=title, xticks=[], yticks=[])
    figure.colorbar(shown, ax=axis, shrink=0.7)
Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
figure.savefig(arguments.out, dpi=120)
print(arguments.out)
