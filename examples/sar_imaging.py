"""Radar images from a quarter of the pulses: back-projection, l1, sparse Bayesian learning, and split Gibbs draws.

    python examples/sar_imaging.py [GOTCHA.mat ...] [--pattern random|gap|band|all] [--noise 0.5] [--out FILE.png] [--tiny]

With files of the AFRL Gotcha set, the parking lot; without, speckled rectangles on speckled ground, over one degree. The law of
the log-reflectivity is a Gaussian field. Printed are the relative error of complex values against the image of all pulses, of
what each method makes of the pulses that it had, imaged through all of them; its entropy; and, where the scene is made up, the
error of the logarithm of the reflectivity (root mean square). --noise is a part of the root mean square of the data.
"""

import argparse
from pathlib import Path

import torch

from invdiff import Gaussian, Problem
from invdiff.core import Streams, log_bias
from invdiff.io import read_gotcha
from invdiff.metrics import entropy
from invdiff.operators import PhaseHistory, Speckled, circular_track, form_image, ground, kept_pulses
from invdiff.plot_fields import Fields, field_figure
from invdiff.priors import GaussianField, Matern, SpeckledPrior
from invdiff.samplers import SBL, SparseL1, SplitGibbs
from invdiff.samplers.split_gibbs import draw_image

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("paths", nargs="*")
parser.add_argument("--pattern", choices=("all", "random", "gap", "band"), default="random")
parser.add_argument("--noise", type=float, default=0.5)
parser.add_argument("--draws", type=int, default=4)
parser.add_argument("--sweeps", type=int, default=30)
parser.add_argument("--out", type=Path, default=Path("outputs/sar_imaging.png"))
parser.add_argument("--tiny", action="store_true")
given = parser.parse_args()
size, step = ((16, 16), (1.0, 1.0)) if given.tiny else ((256, 496) if given.paths else (64, 128), (0.6, 0.3))
draws, sweeps, few = (2, 2, 2) if given.tiny else (given.draws, given.sweeps, 15)
points, noise, u = ground(size, step), given.noise / 2**0.5, None

if given.paths:
    data = read_gotcha(*given.paths)
    q, f, r0 = (torch.from_numpy(v) for v in (data.positions, data.frequencies, data.reference))
    sign, y = data.sign, torch.from_numpy(data.signal)[None]
    y = y / y.abs().square().mean().sqrt()
else:
    q = circular_track(torch.linspace(-0.00873, 0.00873, 64, dtype=torch.float64), distance=1e4, elevation=0.8)
    f, r0, sign = 9.6e9 + 6.2e8 * torch.linspace(-0.5, 0.5, 160).double(), None, -1
    bright = (points[..., :2].abs() % 12.0 < 5.0).all(-1)
    u = torch.where(bright, 2.0, -2.0).float()[None, None]
    scene = Speckled(size)(torch.cat((u, Streams(0).normal(0, (2, *size), "speckle")), 1))
    y = PhaseHistory(q, f, points, sign=sign)(scene)[0]
    level = y.abs().square().mean().sqrt()
    u, y = u - 2.0 * level.log(), y / level + noise * Streams(1).normal(0, y.shape, dtype=y.dtype)[0]
mask = kept_pulses(*y.shape[1:], pattern=given.pattern, seed=0)
whole, part = (PhaseHistory(q, f, points, sign=sign, reference=r0, mask=m) for m in (None, mask))
problem = Problem(part, Gaussian(noise), y * mask)
back = form_image(part, problem.y)
law = GaussianField((1, *size), Matern(1.0), mean=float(back.abs().square().mean().log()) - 1.0, std=2.0, length=3.0)
speckled, sampler = problem.through(Speckled(size)), SplitGibbs(steps=sweeps, last=0.3, cg_steps=20)
samples = sampler(speckled, SpeckledPrior(law), draws, seed=0, progress=True)
# of each draw the mean of the image given its reflectivity: less noise than in the image drawn with it
means, _ = draw_image(part, problem.y, problem.noise.sigma.float(), samples.x[:, :1], None, 0, 40)
sparse = {"l1": SparseL1(iterations=few)(problem)[0], "sparse Bayesian": SBL(iterations=few, cg_steps=20)(problem)[0]}
images = {"all pulses": form_image(whole, y[None]), "back-projection": back}
for name, x in {**sparse, f"mean of {draws} draws": means.mean(0, keepdim=True)}.items():
    images[name] = form_image(whole, whole(x))
logs = {name: x.abs().square().clamp_min(1e-12).log() - log_bias(1) for name, x in sparse.items()}
logs[f"mean of {draws} draws"] = samples.mean[:1]
print(f"{'':<18} error   entropy   log-reflectivity")
for name, image in images.items():
    error = float((image - images["all pulses"]).norm() / images["all pulses"].norm())
    rms = "" if u is None or name not in logs else f"{float((logs[name] - u).square().mean().sqrt()):.2f}"
    print(f"{name:<18} {error:5.3f}   {float(entropy(image)[0]):7.2f}   {rms}")
top = 20.0 * float(images["all pulses"].abs().max().log10())
decibels = {name: 20.0 * image[0, 0].abs().clamp_min(1e-9).log10() - top for name, image in images.items()}
lower = ({} if u is None else {"log-reflectivity": u[0, 0]}) | {f"mean of {draws} draws": samples.mean[0]}
upper, spread = Fields(fields=decibels, limits=(-45.0, 0.0), units="dB"), {"standard deviation": samples.std[0]}
given.out.parent.mkdir(parents=True, exist_ok=True)
field_figure([[upper], [Fields(fields=lower, units="log"), Fields(fields=spread, colours="spread")]]).savefig(given.out, dpi=90)
print(given.out)
