"""Data assimilation: a chaotic flame front from eight sensors, window by window.

Kuramoto and Sivashinsky's equation on a circle of length 22 with 64 points, 40 units of time, measured at every unit with noise
of 0.3. The prior is the Gaussian field with the spectrum of a long run (its climate). Windows of 5 units share one with
the window before. Compared with a run of the model from the first state found, and with the climate's spread.

    python examples/assimilation.py [--quick] [--out assimilation.png]
"""

import argparse

import torch

import invdiff
from invdiff.guidance import MMPS
from invdiff.operators.pde import KuramotoSivashinsky, PointSensors
from invdiff.priors import GaussianPrior
from invdiff.samplers import Guided
from invdiff.tasks.assimilation import Assimilation, errors_in_time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="9 units of time")
parser.add_argument("--out", default="assimilation.png")
options = parser.parse_args()
times, points, length = (9 if options.quick else 40), 64, 22.0

model = KuramotoSivashinsky(points, length=length, time=1.0, steps=4, memory="full")
sensors = PointSensors((1, points), [[length * (k + 0.5) / 8] for k in range(8)], length=length, boundary="periodic")

with torch.no_grad():
    # 32 runs from noise forget it within 100 units; every state and all its shifts are the climate
    u = 0.5 * invdiff.Streams(0, 32).normal(0, (1, points), dtype=torch.float64)
    u = u - u.mean(-1, keepdim=True)
    past = []
    for t in range(160):
        u = model(u)
        past += [u] if t >= 100 else []
    truth = [u[:1]]
    for _ in range(times):
        truth.append(model(truth[-1]))
    truth = torch.cat(truth)
    spectrum = torch.fft.rfft(torch.cat(past)).abs().square().mean((0, 1)) / points
    row = torch.fft.irfft(spectrum, n=points)
    cov = torch.stack([row.roll(k) for k in range(points)]) + 1e-5 * torch.eye(points)
    mean = u.new_zeros(1, points)
    y = sensors(truth) + 0.3 * invdiff.Streams(1, times + 1).normal(0, (1, 8), dtype=torch.float64)

windows = Assimilation(
    model=model,
    observe=sensors,
    noise=invdiff.Gaussian(0.3),
    window=5,
    overlap=1,
    shrink=0.2,
    inflation=1.1,
    climate=(mean, cov),
)
sampler = Guided(guidance=MMPS(cg_steps=6), steps=6)
prior = GaussianPrior(mean, cov, sigma_min=5e-3, sigma_max=20.0)
draws = windows(y, prior, sampler, 16, seed=0)

free = windows.carry(draws.mean[:1], times)[0]
climate = row[0].sqrt()
error, spread = errors_in_time(draws, truth)
away = (free - truth).flatten(1).square().mean(1).sqrt()
print("time   error   spread   free run   climate")
for t in range(0, times + 1, max(1, times // 8)):
    print(f"{t:4d}{error[t]:8.3f}{spread[t]:9.3f}{away[t]:11.3f}{climate:10.3f}")
print(f"mean{error.mean():8.3f}{spread.mean():9.3f}{away.mean():11.3f}{climate:10.3f}   {draws.seconds:.0f} s")

import matplotlib.pyplot as plt  # noqa: E402

figure, axes = plt.subplots(4, 1, figsize=(8, 8), sharex=True, layout="constrained")
titles = ("truth", "mean of the draws", "error of the mean", "error of the free run")
for ax, title, field in zip(axes, titles, (truth, draws.mean, draws.mean - truth, free - truth), strict=True):
    ax.imshow(field[:, 0].T, aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3, extent=(0, times, 0, length), origin="lower")
    ax.set(title=title, ylabel="x")
axes[-1].set(xlabel="time")
figure.savefig(options.out, dpi=120)
