"""The shipped priors, looked at: sheets of draws, and how far the draws are from held-out data.

    python benchmarks/priors.py ct128 ct128_latent                         # held-out phantoms are made
    python benchmarks/priors.py natural64 --pictures FOLDER --part 378 398  # pictures that were kept apart
    python benchmarks/priors.py mr128 --volumes a.nii.gz                    # volumes of other people

For each prior a sheet of unconditional draws (50 Heun steps) in docs/images/prior_NAME.png, the curve of
its card in docs/images/error_NAME.png, and its rows in
benchmarks/results/priors.json: a kernel two-sample test of 64 draws against 64 held-out images, on their layout (block means)
and their texture (second moments of patches), beside the same test between two halves of the held-out images, which is what a
perfect prior would get; and the ratio of the power spectra, by octave of the frequency. Complex images are compared as
magnitudes.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

import invdiff
from invdiff.learning import distance_table
from invdiff.learning.sheets import draw
from invdiff.plot import denoising_figure
from invdiff.priors import LatentPrior
from invdiff.tasks.phantoms import Phantoms
from invdiff.tasks.pictures import Pictures
from invdiff.tasks.slices import MRSlices

ROOT = Path(__file__).parents[1]


def held_out(name, options):
    """index -> image, none of which the prior was trained on, and the shape of what is drawn."""
    if name.startswith("ct128"):
        return Phantoms(seed=1_000_000, size=128), (1, 128, 128)
    if name == "natural64":
        return Pictures(options.pictures, 64, seed=1, part=options.part), (1, 64, 64)
    return MRSlices(options.volumes, 128, seed=1), (2, 128, 128)


@torch.no_grad()
def draws_of(prior, shape, count, seed):
    latent = isinstance(prior, LatentPrior)
    net = prior.prior if latent else prior
    x = draw(net, prior.synthesis(shape).in_shape if latent else shape, count, seed=seed, steps=50)
    return prior.synthesis(shape)(x.to(next(net.parameters()).device)).cpu() if latent else x


def magnitude(x):
    return x.norm(dim=1, keepdim=True) if x.shape[1] == 2 else x


def octaves(spectrum):
    """Mean ratio in octaves of the frequency, in cycles per pixel."""
    f, ratio, floor = (torch.tensor(spectrum[key]) for key in ("frequency", "ratio", "floor"))
    edges = [0.5**k for k in range(6, 0, -1)]
    rows = []
    for low, high in zip([0.0, *edges], edges, strict=False):
        inside = (f > low) & (f <= high)
        if inside.any():
            means = {"draws": float(ratio[inside].mean()), "held out": float(floor[inside].mean())}
            rows.append({"up to": high} | {key: round(value, 3) for key, value in means.items()})
    return rows


def sheet(blocks, path, side=4):
    """Blocks of side x side images, each under its title."""
    figure = Figure(figsize=(3.6 * len(blocks), 3.8))
    for k, (title, images) in enumerate(blocks.items()):
        axes = figure.add_axes((k / len(blocks) + 0.01, 0.01, 1 / len(blocks) - 0.02, 0.91))
        rows = [torch.cat(list(images[side * i : side * (i + 1), 0]), dim=1) for i in range(side)]
        low, high = torch.quantile(images[: side**2].flatten()[::7], torch.tensor([0.005, 0.995])).tolist()
        axes.imshow(torch.cat(rows), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    figure.savefig(path, dpi=160)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["ct128", "ct128_latent"], help="ct128, ct128_latent, mr128, natural64")
    parser.add_argument("--pictures", help="folder of grey pictures for natural64")
    parser.add_argument("--part", type=int, nargs=2, help="[first, last) of the pictures")
    parser.add_argument("--volumes", nargs="+", help="NIfTI volumes for mr128")
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--bf16", action="store_true", help="run the networks in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default=str(ROOT / "benchmarks/results/priors.json"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    path = Path(options.json)
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in options.names:
        prior = invdiff.prior(name).to(options.device)
        net = prior.prior if isinstance(prior, LatentPrior) else prior
        denoising_figure(net.facts["denoising_error"]).savefig(ROOT / "docs/images" / f"error_{name}.png", dpi=110)
        net.bf16 = options.bf16
        source, shape = held_out(name, options)
        images = torch.stack([source(k) for k in range(2 * options.draws)])
        start = time.perf_counter()
        made = draws_of(prior, shape, options.draws, options.seed)
        seconds = time.perf_counter() - start
        table = distance_table(magnitude(made), magnitude(images), seed=options.seed)
        table["spectrum"] = octaves(table["spectrum"])
        results[name] = {
            **table,
            "seed": options.seed,
            "bf16": options.bf16,
            "seconds": round(seconds, 1),
            "versions": {"invdiff": invdiff.__version__, "torch": torch.__version__},
            "machine": torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine(),
            "date": time.strftime("%Y-%m-%d"),
        }
        print(name, json.dumps(results[name], indent=1), flush=True)
        # only what may be passed on is shown beside the draws: phantoms, which this package makes
        blocks = {"phantoms that were not trained on": images} if name.startswith("ct128") else {}
        sheet(blocks | {f"draws of {name}": magnitude(made)}, ROOT / "docs/images" / f"prior_{name}.png")
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
