"""Sources of Poisson's and Helmholtz's equation from sensors in the field that they make, against the exact posterior.

    python examples/poisson_sources.py [--size 64] [--sensors 500] [--draws 16] [--out outputs/poisson_sources.png] [--tiny]

The law of the source is a Gaussian field that is known, so that kriging (Gaussian-process regression) is the exact posterior
mean, and the expected square of its error, the trace of the posterior covariance C - C A^T (A C A^T + sigma^2)^-1 A C, the
least that any estimate has. The sampler needs none of this: its mean is larger in error by the few draws alone, a factor of
sqrt(1 + 1 / draws), and its intervals hold the truth as often as they say. Errors are relative to the root mean square of the
law; one source is above or below what is expected.
"""

import argparse
import math
from pathlib import Path

import torch

import invdiff
from invdiff.generators import SourceFields
from invdiff.operators.pde import Helmholtz, PointSensors, Poisson
from invdiff.plot_fields import Fields, field_figure
from invdiff.priors.field import rows
from invdiff.tasks.closed_form import exact_posterior

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--size", type=int, default=64)
parser.add_argument("--sensors", type=int, default=500)
parser.add_argument("--draws", type=int, default=16)
parser.add_argument("--wavenumber", type=float, default=20.0, help="of Helmholtz's equation, radians per side")
parser.add_argument("--noise", type=float, default=1e-3, help="relative to the root mean square of the measured values")
parser.add_argument("--tiny", action="store_true", help="a small problem, in seconds")
parser.add_argument("--out", default="outputs/poisson_sources.png")
arguments = parser.parse_args()
size, sensors, draws = (16, 40, 4) if arguments.tiny else (arguments.size, arguments.sensors, arguments.draws)

shape = (1, size, size)
law = invdiff.priors.GaussianField.laplacian(
    shape, scale=1.0, tau=3.0, alpha=2.0, spacing=1.0 / size, zero_mean=True, sigma_min=5e-4, sigma_max=40.0
)
scale = float(law.spectrum.mean().sqrt())
truth = SourceFields(seed=1_000_000, size=size, solve=False)([0])["f"]
places = invdiff.Streams(0).uniform(0, (sensors, 2), "sensors", torch.float64)[0]
sampler = invdiff.sampler("mmps_field", steps=15 if arguments.tiny else 30)


def bayes_error(problem):
    """The expected error of the exact posterior mean, from the trace of the posterior covariance."""
    matrix = rows(problem.operator, truth.double())
    gram = law.gram(matrix)(math.inf)
    gram.diagonal().add_(float(problem.noise.sigma) ** 2)
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), law.covariance(matrix).flatten(1), upper=False)
    return math.sqrt(float(law.spectrum.sum() - half.square().sum())) / size / scale


shown = []
print("                   error   exact Bayes error   coverage   misfit")
for name, field in (("Poisson", Poisson(shape)), ("Helmholtz", Helmholtz(shape, arguments.wavenumber))):
    operator = PointSensors(shape, places) @ field
    sigma = arguments.noise * float(operator(truth).square().mean().sqrt())
    problem = invdiff.Problem.simulate(operator, invdiff.Gaussian(sigma), truth, seed=0)
    exact, samples = exact_posterior(law, problem, draws, seed=1), sampler(problem, law, n=draws, seed=0)
    expected = bayes_error(problem)
    for method, mean, own in (("kriging", exact.mean, exact.samples), ("sampler", samples.mean, samples)):
        low, high = own.interval(0.9)
        covered = float(((low <= truth[0]) & (truth[0] <= high)).double().mean())
        error, misfit = float((mean - truth[0]).square().mean().sqrt()) / scale, float(problem.chi2(mean[None]))
        print(f"{name:<9} {method:<7} {error:7.4f}   {expected:17.4f}   {covered:8.3f}   {misfit:6.2f}", flush=True)
    seen = {f"{name}: field, sensors": field(truth)[0]}
    means = {"source": truth[0], "kriging": exact.mean, f"mean of {draws} draws": samples.mean}
    spread = {"standard deviation": samples.std, "|mean - source|": (samples.mean - truth[0]).abs()}
    marked = Fields(fields=seen, colours="signed", units="u", points=dict.fromkeys(seen, places))
    shown.append(
        [marked, Fields(fields=means, colours="signed", units="f"), Fields(fields=spread, colours="spread", units="f")]
    )

Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
field_figure(shown, marks=3.0).savefig(arguments.out, dpi=100)
print(arguments.out)
