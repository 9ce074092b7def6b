"""Samplers of deepinv 0.5.0 and ours of the same name, with one network, one measurement and as many network calls.

DDNM, which deepinv lacks, is ours alone.

Both sides get the prior natural64, the same operator, of which A x is compared first, and the same y: inpainting of half of
the pixels, a Gaussian blur of 1.5 pixels, and block means of 4 x 4, noise .05, of crops of 64 x 64 of the photographs that
PyWavelets ships.

Options of both sides are the best of small grids (`--tune`: another crop, shorter runs; the defaults are among them), by the
PSNR of single draws for DiffPIR, DDRM and DPS, by that of the mean of the draws for PiGDM and moment matching. Ours makes as
many network calls, then a third, then a sixth. All draws of a side are one batch.

PSNR: mean of that of each draw; that of the mean of the draws. Coverage: of the 90 % interval of `Samples.interval`, for
methods that promise none too. Seconds: CPU time of a draw on one thread, median over the images. Time to their PSNR: our
fastest run that reaches it, by the measure that options were chosen by, over theirs: of the same name, and of any; "-" where
none does.

    pip install invdiff[bench]
    python benchmarks/deepinv_samplers.py [--quick | --tune] [--images FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import deepinv
import torch
from deepinv_peer import NOISE, SIZE, TASKS, Case, Network, make_case, theirs
from torch import Tensor

import invdiff
from invdiff import guidance, samplers

DRAWS = 4
STEPS = {"DiffPIR": 20, "DDRM": 20, "DPS": 100, "PiGDM": 30, "MMPS": 15, "DDNM": 30}
# of the runs that options are chosen by
SHORTER = {"DPS": 30, "PiGDM": 15, "MMPS": 10}
# the claim of the method: the PSNR of a draw, or that of the mean of draws
BY_MEAN = {"PiGDM", "MMPS", "DDNM"}


def crops(folder: Path | None, tune: bool) -> list[Tensor]:
    """Four crops, (1, 1, 64, 64); two others to choose options with."""
    if folder is not None:
        source = invdiff.tasks.pictures.Pictures(folder, size=SIZE, seed=1 if tune else 0)
        return [source(i)[None] for i in range(2 if tune else 4)]
    images = [item.truth for item in invdiff.tasks.Photographs(size=2 * SIZE).items(3, 0, invdiff.prior("natural64"))]
    # picture, row and column of a quarter
    places = [(0, 1, 0), (1, 0, 0)] if tune else [(0, 0, 0), (0, 1, 1), (1, 1, 0), (2, 0, 1)]
    return [images[i][None, :, r * SIZE : (r + 1) * SIZE, c * SIZE : (c + 1) * SIZE].contiguous() for i, r, c in places]


def sampler_of(name: str, steps: int, options: dict[str, Any]) -> invdiff.Sampler:
    """Ours of the same name."""
    options = dict(options)
    top = options.pop("top", None)
    grid = {"grid": invdiff.core.Karras(sigma_max=top)} if top else {}
    if name == "DPS":
        options["zeta"] = options.pop("path") / steps
    if name in ("DDNM", "DDRM", "DPS", "DiffPIR"):
        return getattr(samplers, name)(steps=steps, **grid, **options)
    integrator = {"ancestral": samplers.Ancestral, "unipc": samplers.UniPC}[options.pop("integrator", "ancestral")]()
    guide = guidance.PiGDM(**options) if name == "PiGDM" else guidance.MMPS(**options)
    return samplers.Guided(guide, integrator, steps=steps, **grid)


def ours(name: str, network: Network, case: Case, n: int, steps: int, seed: int, options: dict[str, Any]) -> Tensor:
    """Our draws, (n, 1, H, W)."""
    return sampler_of(name, steps, options)(case.problem, network, n=n, seed=seed).x


# what is compared


def tried(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The grids of options of deepinv's sampler and of ours; the first are the defaults."""
    if name == "DiffPIR":
        # deepinv's lambda is twice ours: its noise level is in the unit of [0, 1], its diffusion's in that of [-1, 1]
        pairs = [(7.0, 0.1), *((lam, zeta) for lam in (2.0, 7.0, 25.0) for zeta in (0.1, 0.4, 1.0))]
        grid = [(1.0, 0.25), *((lam, zeta) for lam in (1.0, 3.5, 12.5) for zeta in (0.1, 0.4, 1.0))]
        return [{"lambda_": a, "zeta": b} for a, b in dict.fromkeys(pairs)], [{"lam": a, "zeta": b} for a, b in grid]
    if name == "DDRM":
        pairs = [(0.85, 1.0), (0.5, 1.0), (1.0, 1.0), (0.85, 4.0)]
        return [{"eta": e, "first": f} for e, f in pairs], [{"eta": e, "top": None if f > 1.0 else f} for e, f in pairs[::-1]]
    if name == "DPS":
        # the sum of zeta over the steps, which is what is alike for runs of other lengths
        pairs = [(100.0, None), (100.0, 10.0), (60.0, 10.0), (200.0, 10.0)]
        return [{"weight": w} for w in (1.0, 30.0, 100.0, 300.0)], [{"path": p, "top": t} for p, t in pairs]
    kinds = [{"schedule": s, "weight": w} for s, w in (("vp", 1.0), ("ve", 1.0), ("vp", 2.0), ("vp", 4.0))]
    if name == "PiGDM":
        pairs = [(s, w) for s in (0.25, 0.5, 1.0) for w in (1.0, 2.0, 4.0)]
        return kinds, [{"data_std": s, "weight": w, "top": 10.0} for s, w in pairs]
    if name == "DDNM":
        return [], [{"zeta": z, "top": t} for z in (0.7225, 1.0) for t in (None, 10.0)]
    return kinds[:3], [{"integrator": i, "top": t} for i, t in (("ancestral", None), ("ancestral", 10.0), ("unipc", 10.0))]


# deepinv's options, and ours, that `--tune` chose; None where a side does not take the operator
CHOSEN: dict[str, dict[str, tuple[dict[str, Any] | None, dict[str, Any] | None]]] = {
    "inpainting": {
        "DiffPIR": ({"lambda_": 2.0, "zeta": 1.0}, {"lam": 1.0, "zeta": 1.0}),
        "DDRM": ({"eta": 1.0, "first": 1.0}, {"eta": 0.85, "top": 1.0}),
        "DPS": ({"weight": 100.0}, {"path": 60.0, "top": 10.0}),
        "PiGDM": ({"schedule": "vp", "weight": 4.0}, {"data_std": 0.5, "weight": 4.0, "top": 10.0}),
        "MMPS": ({"schedule": "vp", "weight": 1.0}, {"integrator": "ancestral", "top": 10.0}),
        "DDNM": (None, {"zeta": 0.7225, "top": 10.0}),
    },
    "deblurring": {
        "DiffPIR": ({"lambda_": 2.0, "zeta": 1.0}, {"lam": 3.5, "zeta": 1.0}),
        "DDRM": ({"eta": 0.85, "first": 1.0}, {"eta": 0.85}),
        "DPS": ({"weight": 100.0}, {"path": 60.0, "top": 10.0}),
        "PiGDM": ({"schedule": "vp", "weight": 2.0}, {"data_std": 1.0, "weight": 2.0, "top": 10.0}),
        "MMPS": ({"schedule": "vp", "weight": 1.0}, {"integrator": "ancestral", "top": 10.0}),
        # its pseudoinverse amplifies noise without bound
        "DDNM": (None, None),
    },
    "superresolution": {
        "DiffPIR": ({"lambda_": 2.0, "zeta": 1.0}, {"lam": 1.0, "zeta": 1.0}),
        "DDRM": (None, {"eta": 0.85, "top": 1.0}),
        "DPS": ({"weight": 100.0}, {"path": 100.0}),
        "PiGDM": ({"schedule": "vp", "weight": 2.0}, {"data_std": 1.0, "weight": 2.0, "top": 10.0}),
        "MMPS": ({"schedule": "vp", "weight": 1.0}, {"integrator": "ancestral", "top": 10.0}),
        "DDNM": (None, {"zeta": 1.0}),
    },
}


def decibels(x: Tensor, truth: Tensor) -> float:
    return float(-10.0 * (x - truth).square().mean().log10())


def measured(
    side: Any, name: str, network: Network, case: Case, n: int, steps: int, options: dict[str, Any]
) -> dict[str, float]:
    """Draws of one side: what they are worth, and cost."""
    network.calls = network.vjps = 0
    truth, start = case.truth[0], time.process_time()
    x = side(name, network, case, n, steps, 7, options)
    seconds = time.process_time() - start
    low, high = invdiff.Samples(x).interval(0.9) if n > 1 else (x[0], x[0])
    return {
        "psnr": statistics.fmean(decibels(draw, truth) for draw in x),
        "psnr_mean": decibels(x.mean(0), truth),
        "coverage": float(((truth >= low) & (truth <= high)).float().mean()),
        "seconds": seconds / n,
        "calls": network.calls / n,
        "vjps": network.vjps / n,
    }


def tune(network: Network, images: list[Tensor], methods: list[str]) -> None:
    """Print the scores of all options of both sides for each task and method."""
    for name in methods:
        whole = STEPS[name]
        n, by = (2, "psnr_mean") if name in BY_MEAN else (1, "psnr")
        for task in TASKS:
            cases = [make_case(task, image, seed) for seed, image in enumerate(images)]
            for side, grid in zip((theirs, ours), tried(name), strict=True):
                if side is theirs and CHOSEN[task][name][0] is None:
                    continue
                steps = SHORTER.get(name, whole)
                scores = [statistics.fmean(measured(side, name, network, c, n, steps, o)[by] for c in cases) for o in grid]
                table = ", ".join(f"{tuple(o.values())} {score:.2f}" for o, score in zip(grid, scores, strict=True))
                print(f"{task} {name} {side.__name__}: {table}", flush=True)


def compare(network: Network, images: list[Tensor], steps: dict[str, int], cells: dict[str, Any], save: Any) -> None:
    """All cells of the table that are not there yet, image by image; sides and lengths take turns."""
    for k, image in enumerate(images):
        for task in TASKS:
            case = make_case(task, image, k)
            for name, whole in steps.items():
                key = f"{task}/{name}/{k}"
                if key in cells:
                    continue
                options, cell = CHOSEN[task][name], {}
                if options[1] is None:
                    continue
                if options[0] is not None:
                    cell["deepinv"] = measured(theirs, name, network, case, DRAWS, whole, options[0])
                for part in (1, 3, 6):
                    cell[f"1/{part}"] = measured(ours, name, network, case, DRAWS, max(whole // part, 2), options[1])
                cells[key] = cell
                save()
                print(key, {side: round(v["psnr"], 2) for side, v in cell.items()}, flush=True)


def merged(cells: dict[str, Any], task: str, name: str) -> dict[str, dict[str, float]]:
    """Means over the images, of the seconds medians; by side and length."""
    found = [cell for key, cell in cells.items() if key.startswith(f"{task}/{name}/")]
    return {
        side: {
            fact: (statistics.median if fact == "seconds" else statistics.fmean)([cell[side][fact] for cell in found])
            for fact in found[0][side]
        }
        for side in found[0]
    }


def fastest(rows: list[dict[str, float]], goal: float, by: str) -> float | None:
    """Seconds of the fastest row that reaches a PSNR."""
    return min((row["seconds"] for row in rows if row[by] >= goal), default=None)


def table(cells: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """Print it as Markdown; its rows."""
    made = []
    print("\n| task | method | | calls, products | PSNR of draws | of their mean | coverage | seconds | time to their PSNR |")
    print("|---|---|---|---|---|---|---|---|---|")
    for task in TASKS:
        sides = {name: merged(cells, task, name) for name in names if CHOSEN[task][name][1] is not None}
        every = [row for both in sides.values() for side, row in both.items() if side != "deepinv"]
        for name, both in sides.items():
            by = "psnr_mean" if name in BY_MEAN else "psnr"
            for side, row in both.items():
                note = ""
                if side == "deepinv":
                    same = fastest([r for other, r in both.items() if other != side], row[by], by)
                    any_ = fastest(every, row[by], by)
                    row["ratio"], row["ratio_any"] = (t and t / row["seconds"] for t in (same, any_))
                    note = ", ".join(
                        f"{what} {t:.2f}" if t else f"{what} -"
                        for what, t in (("same", row["ratio"]), ("any", row["ratio_any"]))
                    )
                made.append({"task": task, "method": name, "side": side, "by": by, **row})
                numbers = f"{row['psnr']:.2f} | {row['psnr_mean']:.2f} | {row['coverage']:.2f} | {row['seconds']:.2f}"
                label = side if side == "deepinv" else "ours" if side == "1/1" else f"ours, {side}"
                print(f"| {task} | {name} | {label} | {row['calls']:.0f}, {row['vjps']:.0f} | {numbers} | {note} |")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of pictures")
    parser.add_argument("--quick", action="store_true", help="one image, few steps")
    parser.add_argument("--tune", action="store_true", help="print the scores that the options were chosen by")
    parser.add_argument("--methods", nargs="+", default=list(STEPS), help="to tune")
    parser.add_argument("--json", type=Path, help="where the numbers go; cells that are there are not run again")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network, images = Network(invdiff.prior("natural64")), crops(arguments.images, arguments.tune)
    # the first derivative of a shape compiles
    warm = make_case("inpainting", images[0], 0)
    for side in (theirs, ours):
        side("PiGDM", network, warm, DRAWS, 3, 0, {})
    if arguments.tune:
        tune(network, images[:1], arguments.methods)
        return
    steps = {name: min(count, 6) for name, count in STEPS.items()} if arguments.quick else STEPS
    facts = {"draws": DRAWS, "steps": steps, "noise": NOISE, "options": CHOSEN, "images": str(arguments.images or "PyWavelets")}
    kept = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json and arguments.json.exists() else {}
    facts = json.loads(json.dumps(facts))
    cells: dict[str, Any] = kept["cells"] if kept.get("facts") == facts else {}

    def save(rows: list[dict[str, Any]] | None = None) -> None:
        if arguments.json:
            content = {"facts": facts, "versions": {"torch": torch.__version__, "deepinv": deepinv.__version__}, "cells": cells}
            arguments.json.write_text(json.dumps(content | ({"rows": rows} if rows else {}), indent=1), encoding="utf-8")

    compare(network, images[:1] if arguments.quick else images, steps, cells, save)
    save(table(cells, list(steps)))


if __name__ == "__main__":
    main()
