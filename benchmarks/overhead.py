"""The budgets of docs/design.md: import and help times, and a sampler's own time beyond network and operator calls.

Four draws of 128 x 128 sparse-view CT with the shipped network. Clocks inside the run add up the time in the prior (forward and
vector-Jacobian products) and in the operator; own time is the rest of the run, and its budget is a share of that sum. Each
sampler runs two steps first, so that decompositions and caches are there; medians of `--repeats` runs. Other load on the
machine does not count: on a CPU seconds are the process's own, but those of the commands.

With `--presets` the own time of every packaged sampler instead, on the inpainting of 64 x 64 pixels with the shipped network of
photographs, where the operator costs nothing: of a step, from runs of 2 and of 6.

    python benchmarks/overhead.py [--presets] [--threads 1] [--device cuda] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

import invdiff
from invdiff.catalogue import names
from invdiff.operators.restoration import Mask

IMPORT, HELP, SHARE = 0.3, 0.6, 0.05
PARTS = "from invdiff import catalogue, core, guidance, io, learning, metrics, operators, priors, samplers, tasks"
STEPS = {"mmps": 10, "pigdm": 10, "dps": 20, "ddnm": 10, "diffpir": 20, "reddiff": 40}
# the twist of moments takes one product for each of the 2,000 measurements
APART = {"tds"}


class Clock:
    """Seconds spent in its blocks; on CUDA until the device is done."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.spent = device, 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        # other load on the machine leaves the processor's time alone
        return time.perf_counter() if self.device.type == "cuda" else time.process_time()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        start = self.now()
        yield
        self.spent += self.now() - start


class Timed(invdiff.Denoiser):
    """The prior, with forward and backward on the clock."""

    def __init__(self, prior: invdiff.Denoiser, clock: Clock) -> None:
        super().__init__(prior.shape, prior.sigma_min, prior.sigma_max)
        self.prior, self.clock = prior, clock

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return _Segment.apply(x, sigma, self)
        with self.clock():
            return self.prior(x, sigma)


class _Segment(torch.autograd.Function):
    """Forward and backward of the network as one node, so that its backward can be timed."""

    @staticmethod
    def forward(ctx, x: Tensor, sigma: Tensor, owner: Timed) -> Tensor:
        with owner.clock(), torch.enable_grad():
            ctx.x, ctx.owner = x.detach().requires_grad_(), owner
            ctx.out = owner.prior(ctx.x, sigma)
        return ctx.out.detach()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with ctx.owner.clock():
            (out,) = torch.autograd.grad(ctx.out, ctx.x, gradient, retain_graph=True)
        return out, None, None


class Clocked(invdiff.LinearOperator):
    """The operator, on the clock."""

    def __init__(self, operator: invdiff.LinearOperator, clock: Clock) -> None:
        super().__init__(operator.in_shape, operator.out_shape)
        self.inner, self.clock = operator, clock

    def forward(self, x: Tensor) -> Tensor:
        with self.clock():
            return self.inner(x)

    def adjoint(self, y: Tensor) -> Tensor:
        with self.clock():
            return self.inner.adjoint(y)

    def normal(self, x: Tensor) -> Tensor:
        with self.clock():
            return self.inner.normal(x)

    def solve(self, b: Tensor, rho: Tensor) -> Tensor:
        with self.clock():
            return self.inner.solve(b, rho)

    def pinv(self, y: Tensor) -> Tensor:
        with self.clock():
            return self.inner.pinv(y)


class ClockedMask(Mask):
    """A mask, on the clock; samplers look for the class, and for its singular basis."""

    def __init__(self, mask: Mask, clock: Clock) -> None:
        super().__init__(mask.measured, mask.in_shape)
        self.clock = clock

    def forward(self, x: Tensor) -> Tensor:
        with self.clock():
            return x * self.measured

    def adjoint(self, y: Tensor) -> Tensor:
        with self.clock():
            return y * self.measured


def row(name: str, ours: float, peer: float, peer_name: str, goal: float) -> dict:
    """A line of the table, printed; `goal` in the unit of `ours`."""
    ok = ours <= goal
    print(
        f"{name:<34}{ours:8.3f} s   {100 * ours / peer:7.1f} % of {peer_name}, {peer:.3f} s   "
        f"budget {goal:.3f} s   {'ok' if ok else 'OVER'}",
        flush=True,
    )
    keys = ("name", "ours", "peer", "peer_name", "unit", "ratio", "goal", "ok")
    return dict(zip(keys, (name, ours, peer, peer_name, "s", ours / peer, goal, ok), strict=True))


def imports(statement: str) -> tuple[float, float]:
    """CPU seconds of a statement after `import torch`, and of that, in fresh interpreters; the best of five."""
    code = f"from time import process_time as t; a = t(); import torch; b = t(); {statement}; print(t() - b, b - a)"
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(5)]
    first, second = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    return min(first), min(second)


def command(*arguments: str) -> float:
    """Seconds of an interpreter from start to end; the best of five."""
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return min(taken)


def interpreter_rows() -> list[dict]:
    """Import and help times."""
    rows = [
        row(f"import {what}", *imports(statement), "import torch", IMPORT)
        for what, statement in (("invdiff", "import invdiff"), ("all parts of invdiff", PARTS))
    ]
    bare = command("-c", "pass")
    return rows + [
        row(" ".join(["invdiff", *arguments]), command("-m", "invdiff", *arguments), bare, "a bare interpreter", HELP)
        for arguments in (["--help"], ["run", "--help"])
    ]


def overhead_row(name: str, problem: invdiff.Problem, prior: invdiff.Denoiser, repeats: int) -> dict:
    """Own time of a sampler."""
    runs = []
    for repeat in range(repeats + 1):
        clock, whole = Clock(problem.y.device), Clock(problem.y.device)
        timed = invdiff.Problem(Clocked(problem.operator, clock), problem.noise, problem.y)
        sampler = invdiff.sampler(name, steps=STEPS[name] if repeat else 2)
        with whole():
            sampler(timed, Timed(prior, clock), n=4, seed=repeat)
        if repeat:
            runs.append((whole.spent - clock.spent, clock.spent))
    own, inside = sorted(runs, key=lambda run: run[0] / run[1])[len(runs) // 2]
    return row(f"own time of {name}, {STEPS[name]} steps", own, inside, "network + operator", SHARE * inside)


def overhead_rows(repeats: int, device: str) -> list[dict]:
    """Own time of each sampler."""
    operator = invdiff.operators.ParallelBeamCT(size=128, angles=20).to(device)
    truth = invdiff.tasks.phantoms.Phantoms(seed=1_000_000)(0).to(device)
    problem = invdiff.Problem.simulate(operator, invdiff.Gaussian(0.5).to(device), truth, seed=0)
    prior = invdiff.prior("ct128").to(device)
    return [overhead_row(name, problem, prior, repeats) for name in STEPS]


def preset_rows(repeats: int, device: str) -> list[dict]:
    """Own time of every packaged sampler that inpaints a photograph."""
    mask = invdiff.operators.random_inpainting(64, 64).to(device)
    truth = next(iter(invdiff.tasks.Photographs(size=64).items(1, 0, invdiff.prior("natural64")))).truth.to(device)
    problem = invdiff.Problem.simulate(mask, invdiff.Gaussian(0.05).to(device), truth, seed=0)
    prior = invdiff.prior("natural64").to(device)
    rows = []
    for name in names("sampler"):
        try:
            sampler = None if name in APART else preset(name)
            if sampler is not None:
                rows.append(preset_row(name, sampler, problem, prior, repeats))
        except (invdiff.core.CapabilityError, invdiff.core.ConfigError, invdiff.core.ShapeError) as error:
            print(f"{name:<34}does not run here: {str(error)[:90]}", flush=True)
    return rows


def preset(name: str) -> invdiff.Sampler:
    """A packaged sampler with few steps, levels and particles."""
    sampler = invdiff.sampler(name)
    options = {"steps": 6, "jump": 1, "repeats": 2, "particles": 8, "flow_steps": 4, "candidates": 8}
    known = {field.name for field in dataclasses.fields(sampler)}
    return dataclasses.replace(sampler, **{key: value for key, value in options.items() if key in known})


def preset_row(name: str, sampler: invdiff.Sampler, problem: invdiff.Problem, prior: invdiff.Denoiser, repeats: int) -> dict:
    """Own time of one sampler, four draws or, where a draw is a run of particles, one."""
    runs, n = [], 1 if hasattr(sampler, "particles") else 4
    for repeat in range(repeats + 1):
        spent = []
        for steps in (2, 6):
            clock, whole = Clock(problem.y.device), Clock(problem.y.device)
            timed = invdiff.Problem(ClockedMask(problem.operator, clock), problem.noise, problem.y)
            with whole():
                dataclasses.replace(sampler, steps=steps)(timed, Timed(prior, clock), n=n, seed=repeat)
            spent.append((whole.spent - clock.spent, clock.spent))
        runs.append(tuple((long - short) / 4 for short, long in zip(*spent, strict=True)))
    own, inside = sorted(runs[1:], key=lambda run: run[0] / run[1])[repeats // 2]
    return row(f"own time of {name}, a step", own, inside, "network + operator", SHARE * inside)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--presets", action="store_true", help="every packaged sampler, and nothing else")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.presets:
        rows = preset_rows(arguments.repeats, arguments.device)
    else:
        rows = interpreter_rows() + overhead_rows(arguments.repeats, arguments.device)
    if arguments.json:
        cuda = arguments.device.startswith("cuda")
        facts = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(arguments.device) if cuda else platform.processor() or platform.machine(),
        }
        arguments.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1), encoding="utf-8")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
