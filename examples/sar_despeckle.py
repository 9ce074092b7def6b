"""Despeckling of a radar image: Lee's filter, wavelet shrinkage, and draws of the log-reflectivity with their spread.

    python examples/sar_despeckle.py [SLC] [--dataset NAME] [--whiten] [--window R C H W] [--temper 1.0] [--draws 8]
                                     [--out FILE.png] [--tiny]

SLC is a single-look complex image (.npy, HDF5, GeoTIFF); without one, a made-up scene of one look, of which the truth is known.
Printed are mean, variance and the correlation of neighbours of the ratio image, intensity over estimate, which are 1, 1 and 0
for one look where the estimate is right, the equivalent number of looks in the most even block, and the error of the
log-reflectivity where it is known. The mean of the draws is that of their reflectivity, which has the power of the image. A
mean contains some of its data: the variance of its ratio is below that of a draw's. Neighbouring pixels of real images are
correlated: --whiten undoes the processor's window, --temper below one says that each pixel knows less than it seems. --window
cuts out first row, first column, rows and columns after whitening: what lies outside of the swath has no speckle to speak of.
"""

import argparse
from pathlib import Path

import torch

import invdiff
from invdiff import Problem
from invdiff.core import LogIntensity
from invdiff.generators import LandCover
from invdiff.io import read_complex_image
from invdiff.metrics import ratio_statistics
from invdiff.operators import Identity, whiten_spectrum
from invdiff.plot_fields import Fields, field_figure
from invdiff.samplers import Despeckle, Lee, WaveletShrinkage, log_problem

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("slc", nargs="?")
parser.add_argument("--dataset")
parser.add_argument("--whiten", action="store_true")
parser.add_argument("--window", type=int, nargs=4)
parser.add_argument("--temper", type=float, default=1.0)
parser.add_argument("--draws", type=int, default=8)
parser.add_argument("--out", type=Path, default=Path("outputs/sar_despeckle.png"))
parser.add_argument("--tiny", action="store_true")
given = parser.parse_args()
size, draws, sweeps = (32, 2, 4) if given.tiny else (128, given.draws, 40)

prior, u = invdiff.prior("terrain_level"), None
if given.slc:
    pixels = torch.from_numpy(read_complex_image(given.slc, given.dataset).pixels)
    pixels = whiten_spectrum(pixels)[0] if given.whiten else pixels
    row, column, rows, columns = given.window or (0, 0, *pixels.shape)
    pixels = pixels[row:, column:][: rows // prior.divisor * prior.divisor, : columns // prior.divisor * prior.divisor]
    problem = log_problem(pixels, kind="complex")
else:
    u = LandCover(seed=1_000_000, size=size)((1,))["reflectivity"]
    problem = Problem.simulate(Identity((1, size, size)), LogIntensity(1.0), u, 0)
samples = Despeckle(steps=sweeps, last=0.4, temper=given.temper)(problem, prior, draws, seed=0, progress=True)
estimates = {"Lee": Lee()(problem)[0], "wavelets": WaveletShrinkage()(problem)[0]}
estimates |= {f"mean of {draws}": samples.x.exp().mean(0, keepdim=True).log(), "one draw": samples.x[:1]}

block = min(16, size // 2)
print(f"{'':<12} ratio: mean  variance  rows  columns   looks   error")
for name, estimate in estimates.items():
    found = ratio_statistics(problem.y.exp(), estimate.exp())
    row, column = found.autocorrelation[0].tolist()
    tiles = estimate[0, 0].exp().unfold(0, block, block).unfold(1, block, block).flatten(2)
    looks = float((tiles.mean(-1).square() / tiles.var(-1)).max())
    error = "" if u is None else f"{float((estimate - u).square().mean().sqrt()):.3f}"
    moments = f"{float(found.mean[0]):11.3f}  {float(found.variance[0]):8.3f}"
    print(f"{name:<12} {moments}  {row:4.2f}  {column:7.2f}  {looks:6.0f}   {error}")

low, high = torch.quantile(samples.mean.flatten()[:: 1 + samples.mean.numel() // 10**6], torch.tensor([0.01, 0.99])).tolist()
shown = {"log-intensity": problem.y[0, 0]} | ({} if u is None else {"log-reflectivity": u[0, 0]})
shown |= {name: estimate[0, 0] for name, estimate in estimates.items()}
ratio = (problem.y - samples.x[:1])[0, 0].exp()
rows = [
    [Fields(fields=shown, limits=(low - 1.0, high + 1.0), units="log")],
    [
        Fields(fields={"standard deviation": samples.std[0]}, colours="spread"),
        Fields(fields={"ratio": ratio}, limits=(0.0, 4.0)),
    ],
]
given.out.parent.mkdir(parents=True, exist_ok=True)
field_figure(rows).savefig(given.out, dpi=90)
print(given.out)
