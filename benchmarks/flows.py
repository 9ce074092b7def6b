"""Speed and memory of the vorticity equation on 128 x 128 points, Re = 200, forced by -4 cos(4 y), T = 1.

    speed    forward solution to a relative error in time of 1e-3 or less (the worst item of the batch; against 8 times the
             steps in float64): `NavierStokes2D` with the fewest steps that reach it, with the 2/3 rule and with the peer's
             mask, the scheme of a published benchmark, and that scheme with its step mended (`flows_peer`; theirs against our
             reference with their mask). They alternate; medians of --repeats rounds, fastest and slowest in brackets. The
             error with space is that against 256 x 256 points, of which it is the larger part.
    memory   the gradient of |w(T)|^2 through 512 steps under the memory policies: peak of the bytes alive (weights apart,
             `invdiff.core.storage`), time of both passes, relative distance of the gradient from that of plain autograd.

The flow starts 5 units of time after a Gaussian field of unit variance (`generators.KolmogorovFlow`), on 64 x 64 points.
Times are the processor's, of all threads. Goals: 5 times faster than published; a policy with at most 1/8 of plain autograd's
memory in at most 1.5 times its time.

    python benchmarks/flows.py [--quick] [--only speed] [--threads 1] [--device cuda] [--repeats 5] [--json FILE]

Plain autograd keeps some GB at 512 steps; --quick takes 128.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flows_peer import HeunCrankNicolson
from torch import Tensor

from invdiff.core import NumericalError
from invdiff.core.storage import measure
from invdiff.generators import KolmogorovFlow
from invdiff.operators.constants import Constants
from invdiff.operators.pde import NavierStokes2D, kolmogorov
from invdiff.operators.pde.spectral import frequencies
from invdiff.operators.pde.vorticity import _operators

VISCOSITY, GOAL_ERROR, GOAL_SPEED, GOAL_MEMORY, GOAL_TIME = 1.0 / 200.0, 1e-3, 5.0, 1.0 / 8.0, 1.5
POLICIES = ("full", "checkpoint(step)", "checkpoint(step, 8)", "revolve(32)", "revolve(8)")


class Disc(NavierStokes2D):
    """Ours with the mask of the peer, which keeps more modes and lets some of their products alias."""

    def __init__(self, size: tuple[int, int], viscosity: float, **options: Any) -> None:
        super().__init__(size, viscosity, **options)
        n = size[0]
        kx, ky = (frequencies(n, 2.0 * math.pi, half=half, odd=True) for half in (True, False))
        square = frequencies(n, 2.0 * math.pi, half=False).square()[:, None] + frequencies(n, 2.0 * math.pi, half=True).square()
        keep = square <= 2.0 * (n / 3.0) ** 2
        kx, ky = kx * keep, ky[:, None] * keep
        self.fastest = float(ky.max()), float(kx.max())
        self.constants = Constants(_operators, ky, kx, square, keep, options["forcing"])


def flow(
    size: int, steps: int, duration: float, memory: str = "full", kind: type[NavierStokes2D] = NavierStokes2D
) -> NavierStokes2D:
    """Our solver."""
    return kind((size, size), VISCOSITY, forcing=kolmogorov((size, size)), time=duration, steps=steps, memory=memory)


def initial(batch: int, size: int) -> Tensor:
    """Developed flows, (batch, 1, size, size) float64, of 64 x 64 points, interpolated."""
    own = min(64, size // 2)
    v, factor, half = (
        torch.fft.rfft2(KolmogorovFlow(size=own, frames=1)(range(batch))["w"].double()),
        (size / own) ** 2,
        own // 2,
    )
    fine = v.new_zeros(batch, 1, size, size // 2 + 1)
    fine[..., :half, :half], fine[..., -half + 1 :, :half] = v[..., :half, :-1], v[..., -half + 1 :, :-1]
    return torch.fft.irfft2(factor * fine, s=(size, size))


def seconds(function: Callable[[], object], device: str) -> float:
    """Seconds of a call: of the processor, which other programs change little, or on CUDA until the device is done."""
    cuda = device.startswith("cuda")
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    function()
    if cuda:
        torch.cuda.synchronize(device)
    return clock() - start


def worst(got: Tensor, want: Tensor) -> float:
    """Relative error of the worst item."""
    d = got.cpu().double() - want
    return float((d.flatten(1).norm(dim=1) / want.flatten(1).norm(dim=1)).max())


def fewest(w: Tensor, want: Tensor, duration: float, kind: type[NavierStokes2D]) -> int:
    """The smallest number of steps, of multiples of four, that is stable and accurate enough."""
    for steps in range(4, 1024, 4):
        try:
            if worst(flow(w.shape[-1], steps, duration, kind=kind).to(w.device)(w), want) <= GOAL_ERROR:
                return steps
        except NumericalError:
            continue
    raise SystemExit("no number of steps below 1024 is accurate enough")


@torch.no_grad()
def speed(size: int, duration: float, batches: tuple[int, ...], repeats: int, device: str) -> list[dict]:
    """A row for each scheme and batch."""
    rows: list[dict] = []
    fine = initial(max(batches), 2 * size)
    states = fine[..., ::2, ::2].contiguous()
    print(f"largest vorticity {float(states.abs().max()):.1f}, speed {float(_speed(states)):.2f}", flush=True)
    finer = flow(2 * size, max(8, round(256 * duration)), duration)(fine)[..., ::2, ::2]
    for batch in batches:
        w, total = states[:batch].float().to(device), finer[:batch]
        solvers: dict[str, Callable[[Tensor], Tensor]] = {}
        steps: dict[str, int] = {}
        references: dict[str, Tensor] = {}
        for name, kind in (("ours", NavierStokes2D), ("ours, disc", Disc)):
            references[name] = flow(size, 8 * max(8, round(96 * duration)), duration, kind=kind)(states[:batch])
            steps[name] = fewest(w, references[name], duration, kind)
            solvers[name] = flow(size, steps[name], duration, kind=kind).to(device)
        peers = {
            name: HeunCrankNicolson(size, VISCOSITY, kolmogorov((size, size)), time=duration, mended=mended, like=w)
            for name, mended in (("published", False), ("mended", True))
        }
        solvers |= peers
        found = {name: solve(w) for name, solve in solvers.items()}
        times = [[seconds(partial(solve, w), device) for solve in solvers.values()] for _ in range(repeats)]
        columns = {name: sorted(column) for name, column in zip(solvers, zip(*times, strict=True), strict=True)}
        middle = {name: column[repeats // 2] for name, column in columns.items()}
        for name, column in columns.items():
            count, each = (peers[name].steps, 2) if name in peers else (steps[name], 4)
            row = {
                "what": "speed",
                "scheme": name,
                "batch": batch,
                "steps": count,
                "evaluations": each * count,
                "error_in_time": worst(found[name], references.get(name, references["ours, disc"])),
                "error": worst(found[name], total),
                "seconds": middle[name],
                "range": [column[0], column[-1]],
                "published": middle["published"] / middle[name],
            }
            row["ok"] = row["error_in_time"] <= GOAL_ERROR and (name in peers or row["published"] >= GOAL_SPEED)
            rows.append(row)
            print(
                f"batch {batch}  {name:<10}{count:5d} steps {each * count:5d} evaluations  error in time "
                f"{row['error_in_time']:.1e}, with space {row['error']:.1e}  {middle[name]:7.3f} s ({column[0]:.3f} to "
                f"{column[-1]:.3f})  {row['published']:5.2f} x as fast as published",
                flush=True,
            )
    return rows


def _speed(w: Tensor) -> Tensor:
    return flow(w.shape[-1], 64, 1.0).velocity(w).square().sum(1).sqrt().max()


def memory(size: int, steps: int, repeats: int, device: str) -> list[dict]:
    """A row for each policy; they alternate, and the time of the first is the unit."""
    w = initial(1, size).float().to(device)
    solvers = {p: flow(size, steps, 1.0, p).to(device) for p in POLICIES}

    def gradient(policy: str) -> Tensor:
        x = w.clone().requires_grad_()
        return torch.autograd.grad(solvers[policy](x).square().sum(), x)[0]

    def make(policy: str) -> Callable[[], Callable[[], Tensor]]:
        def made() -> Callable[[], Tensor]:
            x = w.clone().requires_grad_()
            return lambda: solvers[policy](x).square().sum()

        return made

    gradients = {p: gradient(p) for p in POLICIES}
    times = [[seconds(lambda p=p: gradient(p), device) for p in POLICIES] for _ in range(repeats)]
    took = [sorted(column)[repeats // 2] for column in zip(*times, strict=True)]
    rows: list[dict] = []
    for policy, t in zip(POLICIES, took, strict=True):
        peak = measure(make(policy), fake=False).peak
        plain = rows[0] if rows else {"peak": peak, "seconds": t}
        row = {
            "what": "memory",
            "policy": policy,
            "steps": steps,
            "peak": peak,
            "of_plain": peak / plain["peak"],
            "seconds": t,
            "times_plain": t / plain["seconds"],
            "gradient": worst(gradients[policy], gradients["full"].cpu().double()),
        }
        row["ok"] = row["of_plain"] <= GOAL_MEMORY and row["times_plain"] <= GOAL_TIME
        rows.append(row)
        print(
            f"{policy:<18}{steps:5d} steps  peak {peak / 2**20:8.1f} MiB  {row['of_plain']:7.4f} of plain  {t:7.2f} s  "
            f"{row['times_plain']:5.2f} x plain  gradient off by {row['gradient']:.0e}",
            flush=True,
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("speed", "memory"), help="one half")
    parser.add_argument("--tiny", action="store_true", help="seconds, for a test; its numbers mean nothing")
    parser.add_argument("--quick", action="store_true", help="gradients through 128 steps alone, batch 1")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    size, duration, repeats = (32, 0.1, 1) if options.tiny else (128, 1.0, options.repeats)
    rows = []
    if options.only != "memory":
        rows += speed(size, duration, (1,) if options.tiny or options.quick else (1, 4), repeats, options.device)
    if options.only != "speed":
        # many steps once: their ratio differs little from that of fewer
        counts = [(64, 1)] if options.tiny else [(128, min(repeats, 3))] + [(512, 1)] * (not options.quick)
        for steps, rounds in counts:
            rows += memory(size, steps, rounds, options.device)
    if options.json:
        cuda = options.device.startswith("cuda")
        facts = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(options.device) if cuda else platform.processor() or platform.machine(),
            "goals": {"speed": GOAL_SPEED, "error": GOAL_ERROR, "memory": GOAL_MEMORY, "time": GOAL_TIME},
        }
        options.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    fast = all(row["ok"] for row in rows if row.get("scheme") == "published")
    small = {row["steps"] for row in rows if row["what"] == "memory"}
    lean = all(any(row["ok"] for row in rows if row["what"] == "memory" and row["steps"] == s) for s in small)
    return 0 if options.tiny or (fast and lean) else 1


if __name__ == "__main__":
    sys.exit(main())
