"""Invertible diffusion for compressed sensing: against zero-shot samplers with the prior it started from, and its twins.

    python benchmarks/idm.py quality --pictures FOLDER      # the shipped network; without FOLDER the pictures of PyWavelets
    python benchmarks/idm.py twins --train FOLDER --pictures FOLDER --steps 400

quality: PSNR and SSIM of the central 128 x 128 pixels of each picture, and seconds, at 10, 25 and 50 %, blocks of 33 and
permuted pixels, 1 % noise: A^T y, total variation, with natural64 DDNM (100 steps), DiffPIR (100, with zeta = 1, best for
operators with a null space), RED-Diff (reddiff_nvlabs, 1,000 steps: its other presets stay near A^T y), DPS (--dps steps) and
one draw of MMPS (mmps_fast), and IDM; they take turns on every picture, in one process.

twins: three trainings of --steps steps from natural64 on the same crops in the same order: IDM, the same without coupling
(v = 0, plain autograd), and the prior's own denoising loss at equal network evaluations (three times the steps), whose network
then takes the three steps, with the range-null-space step and without injectors, on the levels that were best for it on the
training pictures.
"""

import argparse
import json
import platform
import time
from functools import partial
from pathlib import Path

import torch

import invdiff
from invdiff.core import Gaussian, Problem, Streams
from invdiff.learning import Training, fit
from invdiff.learning.unrolled import EndToEnd
from invdiff.metrics import psnr, ssim
from invdiff.samplers import TotalVariation
from invdiff.samplers.idm_network import IDMNetwork
from invdiff.tasks.data import Photographs
from invdiff.tasks.measurements import block_cs, permuted_cs
from invdiff.tasks.pictures import Pictures

ROOT = Path(__file__).parents[1]
KINDS = {"blocks of 33": block_cs, "permuted": permuted_cs}
ZERO_SHOT = {
    "DDNM": ("ddnm", {}),
    "DiffPIR": ("diffpir", {"zeta": 1.0}),
    "RED-Diff": ("reddiff_nvlabs", {}),
    "MMPS": ("mmps_fast", {}),
}


def pictures(folder, size, count):
    """(N, 1, size, size): the centre of each picture, in [0, 1]."""
    if folder is None:
        return torch.stack([item.truth for item in Photographs(size=size).items(3, 0, invdiff.prior("natural64"))])
    from invdiff.io.images import read_array

    images = []
    for path in sorted(Path(folder).glob("*.png"))[:count]:
        x = torch.from_numpy(read_array(path).data.astype("float32")) / 255
        x = x.mean(-1) if x.ndim == 3 else x
        top, left = ((n - size) // 2 for n in x.shape)
        images.append(x[None, top : top + size, left : left + size])
    return torch.stack(images)


def scores(estimate, truth):
    """PSNR and SSIM of one image, as the papers take them: clipped to [0, 1]."""
    estimate = estimate.clamp(0, 1)
    return float(psnr(estimate, truth, 1.0)[0]), float(ssim(estimate, truth, 1.0)[0])


def quality(options):
    images = pictures(options.pictures, options.size, options.count)
    prior = invdiff.prior("natural64", bf16=options.bf16)
    idm = invdiff.sampler("idm")
    idm.network.bf16 = options.bf16
    samplers = {name: invdiff.sampler(key, **extra) for name, (key, extra) in ZERO_SHOT.items()}
    samplers["DPS"] = invdiff.sampler("dps", steps=options.dps)
    samplers["IDM"] = idm
    rows = []
    for ratio in (0.1, 0.25, 0.5):
        for kind, make in KINDS.items():
            found = {name: [] for name in ("A^T y", "total variation", *samplers)}
            for k, truth in enumerate(images):
                operator = make(tuple(truth.shape), ratio=ratio, seed=-1 - k)
                clean = operator(truth[None])
                sigma = 0.01 * float(clean.square().mean().sqrt())
                y = clean + sigma * Streams(7, (k,)).normal(0, operator.out_shape, "measurement")
                problem = Problem(operator, Gaussian(sigma), y)
                found["A^T y"].append((*scores(operator.adjoint(y), truth[None]), 0.0))
                start = time.perf_counter()
                smooth, _ = TotalVariation()(problem)
                found["total variation"].append((*scores(smooth, truth[None]), time.perf_counter() - start))
                for name, sampler in samplers.items():
                    draws = sampler(problem, prior, n=1, seed=k)
                    found[name].append((*scores(draws.x, truth[None]), draws.seconds))
            for name, values in found.items():
                mean = torch.tensor(values).mean(0).tolist()
                seconds = torch.tensor(values)[:, 2].median().item()
                row = {"ratio": ratio, "sampling": kind, "method": name, "psnr": round(mean[0], 2), "ssim": round(mean[1], 4)}
                rows.append(row | {"seconds": round(seconds, 2), "images": len(values)})
                print(rows[-1], flush=True)
    return rows


def twins(options):
    held_out = pictures(options.pictures, options.size, options.count)
    source = partial(Pictures, options.train, 64)
    measurements = [partial(permuted_cs, ratio=options.ratio)]
    budget = {"batch": 8, "crop": 64, "full_from": 1.0, "lr": 3e-4, "warmup": 50, "cooldown": 0.3, "ema": 0.99, "bf16": True}
    prior = invdiff.prior("natural64")
    rows, out = [], Path(options.out)

    def record(name, model, seconds):
        error = model.errors(held_out, 0)[1]
        rows.append({"network": name, "psnr": round(float((-20 * error.log10()).mean()), 2), "seconds": round(seconds)})
        print(rows[-1], flush=True)

    for name, coupling in (("IDM", None), ("plain twin", 0.0)):
        start = time.perf_counter()
        model = EndToEnd(IDMNetwork(prior, coupling=coupling), measurements)
        trained = fit(model, source(2), Training(steps=options.steps, save_every=100, **budget), out / name.replace(" ", "_"))
        record(name, trained, time.perf_counter() - start)
    start = time.perf_counter()
    training = Training(steps=3 * options.steps, save_every=100, p_mean=-1.6, p_std=1.6, **budget)
    trained = fit(invdiff.prior("natural64"), source(2), training, out / "denoising")
    spent = time.perf_counter() - start
    tuning = torch.stack([source(3)(k) for k in range(8)])

    def wired(high, low):
        levels = [high * (low / high) ** (t / 2) for t in range(3)]
        return EndToEnd(IDMNetwork(trained, coupling=0.0, injectors=False, sigmas=levels), measurements)

    choices = [(high, low) for high in (0.1, 0.2, 0.4, 0.8) for low in (0.02, 0.05, 0.1, 0.2) if low < high]
    best = min(choices, key=lambda levels: float(wired(*levels).errors(tuning, 0)[1].log().mean()))
    record("denoising loss, then the same three steps", wired(*best), spent)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "twins"])
    parser.add_argument("--pictures", help="folder of test pictures (PNG)")
    parser.add_argument("--train", help="folder of training pictures, for twins")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--count", type=int, default=12, help="pictures at most")
    parser.add_argument("--ratio", type=float, default=0.25, help="for twins")
    parser.add_argument("--steps", type=int, default=400, help="for twins")
    parser.add_argument("--dps", type=int, default=300, help="steps of DPS")
    parser.add_argument(
        "--out", default="outputs/idm_twins", help="checkpoints of the twins, from which a second call continues"
    )
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = {"quality": quality, "twins": twins}[options.what](options)
    path = Path(options.json or ROOT / "benchmarks/results/idm.json")
    results = json.loads(path.read_text()) if path.exists() else {}
    versions = {"invdiff": invdiff.__version__, "torch": torch.__version__}
    asked = {k: v for k, v in vars(options).items() if k in ("size", "ratio", "steps", "dps", "bf16")}
    made = {"versions": versions, "machine": platform.machine(), "date": time.strftime("%Y-%m-%d")}
    results[options.what] = {"rows": rows, "options": asked} | made
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
