"""Which sampler, with which options, for the shipped imaging tasks: presets are tuned here, on validation data.

    python benchmarks/tuning.py [--tasks inpaint ct_sparse_view] [--quick] [--json FILE] [--threads 1]

Every candidate reconstructs the same validation items, which are not those of the tables in docs/results.md: four crops of the
second and third photograph that PyWavelets ships, 64 x 64; phantoms and slices of other seeds. Four draws an item. Per
candidate: evaluations of the network (a derivative counts as two), PSNR of the mean and of single draws, the mean CRPS, which
is least for draws of the posterior, coverage of the 90 % intervals. With --json a run that was stopped goes
on, and docs/choosing.md is made from the file by `benchmarks/choosing.py`.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path

import numpy as np
import pywt.data
import torch

from invdiff import catalogue
from invdiff.core import InvdiffError
from invdiff.metrics import crps, psnr

# images are of range 1: whiter noise than this costs steps, and solves with a rho that float32 does not resolve
STARTS = {"sigma_max": 20.0}
# label -> (preset, options); what is not named has the preset's own value
CANDIDATES = (
    {f"mmps, ancestral, {steps} steps": ("mmps_fast", {"steps": steps}) for steps in (10, 20, 60)}
    | {
        f"mmps, dpm-solver++(2m), {steps} steps": ("mmps_dpmsolver", {"steps": steps, "cg_steps": 3, **STARTS})
        for steps in (10, 20)
    }
    | {"mmps, unipc, 10 steps": ("mmps_unipc", {"steps": 10, "cg_steps": 3, **STARTS})}
    | {
        f"mmps preconditioned by 0.5, {steps} steps": ("mmps_preconditioned", {"steps": steps, "data_std": 0.5})
        for steps in (15, 30)
    }
    | {
        f"daps, data_std {std}, {steps} steps": ("daps", {"steps": steps, "data_std": std, **STARTS})
        for std, steps in ((0.15, 30), (0.15, 100))
    }
    | {"pigdm, 100 steps": ("pigdm", {"steps": 100, **STARTS})}
    | {f"dps, zeta {zeta}, 100 steps": ("dps", {"steps": 100, "zeta": zeta, **STARTS}) for zeta in (1.0,)}
    | {
        f"diffpir, lam {lam}, zeta {zeta}, {steps} steps": ("diffpir", {"steps": steps, "lam": lam, "zeta": zeta, **STARTS})
        for lam, zeta, steps in ((1.0, 0.3, 20), (1.0, 1.0, 20), (7.0, 1.0, 100))
    }
    | {"ddnm, 100 steps": ("ddnm", {"steps": 100, **STARTS}), "ddrm, 20 steps": ("ddrm", {"steps": 20, **STARTS})}
    | {"dds, 100 steps": ("dds", {"steps": 100, **STARTS})}
    | {"red-diff, noise-aware, 100 steps": ("reddiff_noise_aware", {"steps": 100})}
)
QUICK = ("mmps, ancestral, 10 steps", "diffpir, lam 1.0, zeta 1.0, 20 steps")
DRAWS = 4


def photographs(folder):
    """Options of the task for each of four crops, written as files."""
    crops = []
    for name in ("ascent", "aero"):
        picture = np.asarray(getattr(pywt.data, name)(), np.uint8)
        for k, (top, left) in enumerate(((64, 96), (256, 192))):
            path = folder / f"{name}{k}.npy"
            np.save(path, picture[top : top + 192, left : left + 192])
            crops.append({"task.data.path": str(path), "task.data.size": 64})
    return crops


def validation(task, folder):
    """Options of each validation item, and its seed."""
    if task in ("inpaint", "deblur", "cs_image"):
        return [(options, 900 + k) for k, options in enumerate(photographs(folder))]
    if task == "mri_cartesian":
        return [({"task.data.slice": s}, 900 + s) for s in (6, 18)]
    return [({}, 900), ({}, 901)]


def measured(task, sampler, options, items):
    """The statistics of one candidate, means over the items."""
    rows = []
    for given, seed in items:
        config = catalogue.compose(task, sampler, "natural64" if task == "deblur" else None, given)
        config["task"]["baselines"], config["task"]["exact"] = [], False
        config["sampler"] = catalogue.override(config["sampler"], options, sampler)
        (row,) = catalogue.Plan.from_config(config).run(n=DRAWS, seed=seed).items
        made, truth = row.estimates[-1].samples, row.truth
        rows.append(
            {
                "evaluations": made.network_calls + 2.0 * made.network_vjps,
                "psnr": float(psnr(made.mean[None], truth[None], row.data_range)),
                "psnr of a draw": float(psnr(made.x, truth.expand_as(made.x), row.data_range).mean()),
                "crps": float(crps(made.x, truth).mean()),
                "coverage": row.metrics(row.estimates[-1])["coverage"],
            }
        )
    return {key: None if rows[0][key] is None else sum(r[key] for r in rows) / len(rows) for key in rows[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["inpaint", "deblur", "ct_sparse_view", "mri_cartesian"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    done = json.loads(given.json.read_text())["rows"] if given.json and given.json.exists() else []
    done = [r for r in done if r["candidate"] in CANDIDATES]
    known = {(r["task"], r["candidate"]) for r in done}
    print("| task | candidate | evaluations | PSNR | of a draw | CRPS | coverage |\n" + "|---" * 7 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for task in given.tasks:
            items = validation(task, Path(folder))[: 1 if given.quick else None]
            for label, (sampler, options) in CANDIDATES.items():
                if (task, label) in known or (given.quick and label not in QUICK):
                    continue
                row = {"task": task, "candidate": label, "preset": sampler, "options": options}
                try:
                    row |= measured(task, sampler, options, items)
                    cells = (f"{row[k]:.4g}" if row[k] is not None else "-" for k in list(row)[4:])
                except InvdiffError as error:
                    row["error"] = str(error)
                    cells = (str(error),)
                print(f"| {task} | {label} | {' | '.join(cells)} |", flush=True)
                done.append(row)
                if given.json:
                    facts = {"torch": torch.__version__, "python": platform.python_version(), "threads": given.threads}
                    given.json.write_text(json.dumps({"facts": facts, "draws": DRAWS, "rows": done}, indent=1) + "\n")


if __name__ == "__main__":
    main()
