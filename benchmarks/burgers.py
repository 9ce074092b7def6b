"""Time steps to a given error on trajectories of WDNO's control set: ours against the scheme that made it.

    u_t + (u^2 / 2)_x = 0.01 u_xx + f  on (0, 1),  u = 0 at the walls,  T = 8,  f constant on each of 80 slots of time

The peer is the published scheme in plain torch: central differences, forward Euler, nu dt / h^2 = 0.48 (1920 nodes and 614400
steps as published; here at most 959 and 153600). Ours are `BurgersWalls`, given u(0) and f as sine series cut at its number of
points, at dt max|u| k_max = 2, and `BurgersShocks`, given averages over cells, at a Courant number of 0.9, both for 1.05 times
the largest speed of these draws; for the bound of all draws alike, as `BurgersControl` takes it, there is a row of its own. The
error is the relative L2 distance over all frames to a longer series with more steps, at the points or averaged over the cells;
the reference is printed against one of half its modes and half its steps. A row compares a run of the peer with our run of the
fewest steps among those whose error is no larger; a goal is set for the steps of the series at the finest run of the peer,
which --quick stops at 479 nodes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, pi
from pathlib import Path

import torch
from torch import Tensor

from invdiff.generators.burgers import FASTEST, BurgersControl
from invdiff.operators.cosine import dst, idst
from invdiff.operators.pde.forced import BurgersWalls
from invdiff.operators.pde.shocks import BurgersShocks

F64 = torch.float64
NU, TIME, SLOTS, FINE, GOAL, NUMBER = 0.01, 8.0, 80, 8192, 15.0, 2.0
CONTROL = BurgersControl(seed=0, slots=SLOTS, frames=SLOTS)
HOW = {"slots": SLOTS, "time": TIME, "save": SLOTS, "memory": "full"}


@dataclass(frozen=True)
class Run:
    """A measured point: time steps, evaluations of the right-hand side, relative L2 error, seconds."""

    scheme: str
    points: int
    steps: int
    evaluations: int
    error: float
    seconds: float


def middles(n: int) -> Tensor:
    return (torch.arange(n, dtype=F64) + 0.5) / n


def given(draws: range, x: Tensor) -> Tensor:
    return torch.cat((CONTROL.initial(draws, x), CONTROL.forcing(draws, x)), 1)


class Series:
    """The solution of `BurgersWalls` on n points, as a function of x."""

    def __init__(self, draws: range, n: int, steps: int) -> None:
        b = dst(given(draws, middles(FINE)))[..., :n] * (n / FINE) ** 0.5
        b[..., -1] = 0.0
        start = time.perf_counter()
        u = BurgersWalls(n, NU, steps=steps, **HOW)(idst(b))
        self.seconds = time.perf_counter() - start
        self.k, self.sines = pi * torch.arange(1, n, dtype=F64), dst(u)[..., :-1] * (2.0 / n) ** 0.5

    def at(self, x: Tensor, width: float = 0.0) -> Tensor:
        """Values at points, or averages over cells of a width about them, (B, SLOTS, points)."""
        return (self.sines * torch.sinc(self.k * width / (2.0 * pi))) @ (self.k[:, None] * x).sin()


def distance(u: Tensor, exact: Tensor) -> float:
    return float((u - exact).norm() / exact.norm())


def timed(make: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    return make(), time.perf_counter() - start


def steps_of(n: int, fastest: float) -> int:
    """Of the series on n points, whose waves below 2 n / 3 advect."""
    return SLOTS * ceil(TIME * fastest * pi * n * 2.0 / 3.0 / NUMBER / SLOTS)


def series(draws: range, n: int, exact: Series, fastest: float) -> Run:
    steps = steps_of(n, fastest)
    u = Series(draws, n, steps)
    return Run("BurgersWalls", n, steps, 4 * steps, distance(u.at(middles(n)), exact.at(middles(n))), u.seconds)


def volumes(draws: range, n: int, exact: Series, fastest: float) -> Run:
    steps = SLOTS * ceil(TIME * n * fastest / 0.9 / SLOTS)
    solve, x = BurgersShocks(n, NU, steps=steps, **HOW), given(draws, middles(n))
    u, seconds = timed(lambda: solve(x))
    return Run("BurgersShocks", n, steps, 3 * steps, distance(u, exact.at(middles(n), 1.0 / n)), seconds)


def published(draws: range, s: int, exact: Series) -> Run:
    """Forward Euler and central differences on s inner nodes."""
    h = 1.0 / (s + 1)
    steps = SLOTS * ceil(TIME * NU / (0.4805 * h**2) / SLOTS)
    dt, x = TIME / steps, torch.arange(1, s + 1, dtype=F64) * h
    wide = torch.zeros(len(draws), s + 2, dtype=F64)
    wide[:, 1:-1], force = CONTROL.initial(draws, x)[:, 0], dt * CONTROL.forcing(draws, x)

    def solve() -> Tensor:
        frames, half, u = [], torch.empty_like(wide), wide[:, 1:-1]
        for slot in range(SLOTS):
            for _ in range(steps // SLOTS):
                # u + dt f - dt / (2 h) ((u^2 / 2)_{i+1} - (u^2 / 2)_{i-1}) + nu dt / h^2 (u_{i+1} - 2 u_i + u_{i-1})
                torch.square(wide, out=half).mul_(-0.25 * dt / h)
                left = torch.add(wide, half, alpha=-h * h / (NU * dt))
                right = half.mul_(h * h / (NU * dt)).add_(wide)
                change = torch.add(left[:, :-2], right[:, 2:]).mul_(NU * dt / h**2).add_(force[:, slot])
                u.mul_(1.0 - 2.0 * NU * dt / h**2).add_(change)
            frames.append(u.clone())
        return torch.stack(frames, 1)

    u, seconds = timed(solve)
    return Run("forward Euler", s, steps, steps, distance(u, exact.at(x)), seconds)


def measured(quick: bool, draws: range) -> tuple[list[Run], dict]:
    """All runs, printed, and what is known of the reference."""
    modes, steps = (384, 6400) if quick else (768, 16000)
    exact, half = Series(draws, modes, steps), Series(draws, modes // 2, steps // 2)
    x = middles(500)
    own, largest = distance(half.at(x), exact.at(x)), float(exact.at(x).abs().max())
    facts = {"modes": modes, "steps": steps, "distance of half of both": own, "largest speed": largest}
    print(f"reference: {modes} modes, {steps} steps, {exact.seconds:.0f} s, max|u| {largest:.2f}; half of both: {own:.1e}")
    nodes, cells, lengths = (239, 479), (240, 480), (96, 128, 192, 256)
    if not quick:
        nodes, cells, lengths = (479, 959), (480, 960, 1440), (*lengths, 320, 384)
    runs: list[Run] = []
    for run in (
        *(partial(series, draws, n, exact, 1.05 * largest) for n in lengths),
        *(partial(volumes, draws, n, exact, 1.05 * largest) for n in cells),
        *(partial(published, draws, s, exact) for s in nodes),
    ):
        runs.append(r := run())
        print(
            f"{r.scheme:<16}{r.points:>6}{r.steps:>8} steps {r.evaluations:>8} evaluations   "
            f"error {r.error:.2e}   {r.seconds:.1f} s",
            flush=True,
        )
    return runs, facts


def row(name: str, unit: str, ours: float, peer: float, peer_name: str, goal: float | None = None) -> dict:
    ratio = peer / ours
    found = {"name": name, "ours": ours, "peer": peer, "peer_name": peer_name, "unit": unit, "ratio": ratio, "goal": goal}
    verdict = "" if goal is None else "ok" if ratio >= goal else "MISSED"
    print(f"{name:<52}against {peer_name:<46}{ratio:8.1f} x {unit:<12}{verdict}")
    return {**found, "ok": goal is None or ratio >= goal}


def rows_of(runs: list[Run]) -> list[dict]:
    rows, finest = [], max(r.points for r in runs if r.scheme == "forward Euler")
    for peer in (r for r in runs if r.scheme == "forward Euler"):
        against = f"forward Euler, {peer.points} nodes, error {peer.error:.1e}"
        for scheme in ("BurgersWalls", "BurgersShocks"):
            good = [r for r in runs if r.scheme == scheme and r.error <= peer.error]
            if not good:
                print(f"{scheme}: no run as accurate as {peer.points} nodes")
                continue
            best = min(good, key=lambda r: r.steps)
            title, walls = f"{scheme}, {best.points} points, error {best.error:.1e}", scheme == "BurgersWalls"
            rows.append(row(title, "steps", best.steps, peer.steps, against, GOAL if walls and peer.points == finest else None))
            rows.append(row(title, "evaluations", best.evaluations, peer.evaluations, against))
            rows.append(row(title, "seconds", best.seconds, peer.seconds, against))
            if walls:
                bound = steps_of(best.points, FASTEST)
                rows.append(row(f"{scheme}, {best.points} points, bound of all draws", "steps", bound, peer.steps, against))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--draws", type=int, default=1, help="trajectories")
    parser.add_argument("--quick", action="store_true", help="the peer to 479 nodes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with torch.no_grad():
        runs, reference = measured(arguments.quick, range(arguments.draws))
    rows = rows_of(runs)
    if arguments.json:
        facts = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": platform.processor() or platform.machine(),
            "draws": arguments.draws,
            "reference": reference,
            "runs": [vars(r) for r in runs],
        }
        arguments.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1), encoding="utf-8")
    return 0 if all(r["ok"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
