"""What is not known of a measurement, drawn with the image: the centre of rotation of a scan, against its exact posterior.

    python examples/blind_calibration.py [--size 32] [--views 12] [--draws 32] [--out outputs/blind_calibration.png] [--tiny]

The slice is a Gaussian field of a known law, so that the posterior of the centre has a density by quadrature: given the centre
all is Gaussian. The sampler is the one for linear problems, on the vector of slice and centre; it knows of neither.
"""

import argparse
from pathlib import Path

import torch

import invdiff
from invdiff.core.algebra import dense
from invdiff.operators import ParallelBeamCT
from invdiff.operators.calibration import Fourier, Multiplied
from invdiff.operators.unknown import unknown_shift
from invdiff.plot_fields import Fields, field_figure
from invdiff.priors.independent import Independent, normal_parameters

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--size", type=int, default=32)
parser.add_argument("--views", type=int, default=12)
parser.add_argument("--draws", type=int, default=32)
parser.add_argument("--shift", type=float, default=1.3, help="of the centre, in detector elements, of std 1.5")
parser.add_argument("--noise", type=float, default=0.02, help="relative to the root mean square of the sinogram")
parser.add_argument("--tiny", action="store_true", help="a small problem, in seconds")
parser.add_argument("--out", default="outputs/blind_calibration.png")
arguments = parser.parse_args()
size, views, draws = (12, 6, 4) if arguments.tiny else (arguments.size, arguments.views, arguments.draws)

# a field in a disc, and an odd number of detector elements, for which a shift is an orthogonal matrix
double, std = torch.float64, 1.5
field = invdiff.priors.StationaryGaussian((1, size, size), mean=0.5, std=0.2, length=size / 8, decay=2.0, sigma_max=30.0)
t = torch.arange(size, dtype=double) - (size - 1) / 2
disc = (t[:, None] ** 2 + t**2 < (0.4 * size) ** 2).to(double)[None]
scan = ParallelBeamCT((size, size), views, detector=2 * (3 * size // 4) + 1) @ Multiplied(disc, (1, size, size))
operator = unknown_shift(scan)
truth = operator.join(field.sample(invdiff.Streams(3), double), torch.full((1, 1), arguments.shift, dtype=double))
sigma = arguments.noise * float(operator(truth).square().mean().sqrt())
problem = invdiff.Problem.simulate(operator, invdiff.Gaussian(sigma), truth, seed=0)

# the exact posterior: y shifted back is Gaussian
matrix = dense(scan)
values, basis = torch.linalg.eigh(field.covariance(matrix.reshape(-1, 1, size, size)).flatten(1) @ matrix.T)
grid, transform = torch.linspace(-4.0 * std, 4.0 * std, 6001, dtype=double), Fourier(scan.out_shape, (-1,))
seen = transform(problem.y)
back = torch.cat([transform.adjoint(seen * operator.response(-s[:, None])).flatten(1) for s in grid.split(500)])
misfit = ((back - 0.5 * matrix.sum(1)) @ basis).square() / (values + sigma**2)
weight = (-0.5 * misfit.sum(1) - 0.5 * (grid / std) ** 2).softmax(0)
mean = float((weight * grid).sum())
spread = float((weight * (grid - mean) ** 2).sum().sqrt())

prior = Independent([field, normal_parameters(1, std)], units=[1.0, 0.3])
unknown = problem.through(prior.synthesis(problem.shape))
sampler = invdiff.sampler("mmps_ancestral", steps=30 if arguments.tiny else 100, cg_steps=4 if arguments.tiny else 8)
blind = prior.split(sampler(unknown, prior, n=draws, seed=0).x)
ignored = sampler(invdiff.Problem(operator.at(torch.zeros(1)), problem.noise, problem.y), field, n=draws, seed=0).x

print(f"centre of rotation, true {arguments.shift:g}, in detector elements: mean, standard deviation")
print(f"exact posterior   {mean:8.4f} {spread:8.4f}")
print(f"{draws} draws          {float(blind[1].mean()):8.4f} {float(blind[1].std()):8.4f}")
image = disc * operator.split(truth)[0][0]
means = {"unknown": disc * blind[0].mean(0), "taken for 0": disc * ignored.mean(0)}
shown = {"slice": image, **{f"mean, centre {name}": mean for name, mean in means.items()}}
errors = {f"error, centre {name}": (mean - image).abs() for name, mean in means.items()}
for name, error in errors.items():
    print(f"{name}: {float(error.square().mean().sqrt()) / 0.2:.3f} of the field's standard deviation")
Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
panels = [[Fields(fields=shown, units="attenuation")], [Fields(fields=errors, colours="spread", units="attenuation")]]
field_figure(panels).savefig(arguments.out, dpi=100)
print(arguments.out)
