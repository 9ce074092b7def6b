"""Training throughput and memory: `invdiff.learning.fit` against a plain PyTorch loop that does the same work.

The U-Net of the shipped priors (2.6 M parameters), crops of 64 x 64, bfloat16, the EDM loss, AdamW, gradient clipping, averaged
weights, losses that are read, a checkpoint at the end. The plain loop is what one writes from the paper: torch.randn, one
item() a step, weights in torch's layout; another one has them channels-last, as `fit` has, and differs in nothing that costs
much: there the goal is parity. The loops train in turn on the same images; throughput is that of the median step of all rounds,
on one thread in CPU seconds, which other load on the machine stretches less.
Memory is the peak of the tensors on a GPU and of the process elsewhere, each in a process of its own; `fit` composes a
checkpoint (42 MB here) in memory before it writes it, which a process shows. The last row is the same batch on two processes of
one thread each, against one; it needs two idle cores.

    python benchmarks/training.py [--threads 1] [--device cuda] [--steps 8] [--batch 16] [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from invdiff.core import Streams
from invdiff.learning import Training, fit
from invdiff.learning.distributed import processes
from invdiff.priors import EDMDenoiser, UNet

SIDE, GOAL, PARITY, MEMORY, SPEED_UP = 64, 1.0, 0.97, 0.9, 1.5
IMAGES = Streams(0, 64).normal(0, (1, SIDE, SIDE))


class Clock:
    """The images, and when each step asked for its first."""

    def __init__(self, batch: int, now: Callable[[], float]) -> None:
        self.batch, self.now, self.step = batch, now, -1
        self.times: list[float] = []

    def __call__(self, index: int) -> Tensor:
        if index // self.batch != self.step:
            self.step = index // self.batch
            self.times.append(self.now())
        return IMAGES[index % len(IMAGES)]

    def intervals(self) -> list[float]:
        """Seconds of the steps, but for the first, which warms up, and the last, whose end is not seen."""
        return [b - a for a, b in itertools.pairwise(self.times[1:])]


def network(device: str) -> EDMDenoiser:
    return EDMDenoiser(UNet(1, 1, widths=(64, 96, 128), blocks=2), sigma_data=1.0, bf16=True).to(device)


def ours(device: str, steps: int, batch: int, source: Clock) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Training(steps=steps, batch=batch, crop=SIDE, full_from=1.0, cooldown=0.0, bf16=True, save_every=steps)
        fit(network(device), source, run, folder, progress=False)


def plain(device: str, steps: int, batch: int, source: Clock, channels_last: bool = False) -> None:
    """What one writes from the paper."""
    denoiser = network(device).train()
    if channels_last:
        denoiser.to(memory_format=torch.channels_last)
    average = copy.deepcopy(denoiser)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    losses = []
    for step in range(steps):
        clean = torch.stack([source(step * batch + i) for i in range(batch)]).to(device)
        sigma = torch.exp(1.6 * torch.randn(batch, device=device) - 1.2)
        noisy = clean + sigma[:, None, None, None] * torch.randn_like(clean)
        if channels_last:
            clean, noisy = (x.contiguous(memory_format=torch.channels_last) for x in (clean, noisy))
        weight = (sigma**2 + 1.0) / sigma**2
        loss = (weight * (denoiser(noisy, sigma) - clean).square().mean((1, 2, 3))).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), denoiser.parameters(), strict=True):
                slow.lerp_(fast, 1e-3)
        losses.append(loss.item())
    with tempfile.TemporaryDirectory() as folder:
        state = {"net": denoiser.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, Path(folder) / "checkpoint.pt")
        torch.save(average.state_dict(), Path(folder) / "average.pt")


LOOPS: dict[str, Callable[[str, int, int, Clock], None]] = {
    "ours": ours,
    "plain": plain,
    "last": functools.partial(plain, channels_last=True),
}


def intervals(name: str, device: str, steps: int, batch: int, now: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each step of a loop."""
    clock = Clock(batch, now)
    LOOPS[name](device, steps + 2, batch, clock)
    return clock.intervals()


def speeds(device: str, steps: int, batch: int, repeats: int) -> dict[str, float]:
    """Images per second of each loop, taken in turn."""
    taken: dict[str, list[float]] = {name: [] for name in LOOPS}
    alone = device == "cpu" and torch.get_num_threads() == 1
    for _ in range(repeats):
        for name, times in taken.items():
            times += intervals(name, device, steps, batch, time.process_time if alone else time.perf_counter)
    return {name: batch / statistics.median(times) for name, times in taken.items()}


def child(*arguments: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, __file__, "--child", *arguments]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)


def memory(name: str, device: str, batch: int) -> float:
    """Peak MiB of a loop in its own process."""
    process = child(name, device, "2", str(batch), str(torch.get_num_threads()))
    said = process.communicate()[0]
    return float(json.loads(said)["mib"])


def together(count: int, steps: int, batch: int) -> float:
    """Images per second of `fit` in so many processes of one thread each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fixed = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    started = [child("ours", "cpu", str(steps), str(batch), "1", **fixed, **place) for place in places]
    said = [json.loads(process.communicate()[0]) for process in started]
    return batch / max(one["seconds"] for one in said)


def in_child(name: str, device: str, steps: str, batch: str, threads: str) -> None:
    """One loop, alone or as one process of several: seconds of its median step, and peak memory, on standard output."""
    torch.set_num_threads(int(threads))
    with processes(device) as own:
        taken = statistics.median(intervals(name, own, int(steps), int(batch)))
    status = Path("/proc/self/status")
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated(own) / 2**20
    elif status.exists():
        # ru_maxrss of a new process starts with what its parent had
        peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 2**10
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(json.dumps({"seconds": taken, "mib": peak}))


def row(name: str, ours: float, peer: float, peer_name: str, unit: str, goal: float, more_is_better: bool = True) -> dict:
    """A line of the table, printed; the ratio is larger where ours is better."""
    ratio = ours / peer if more_is_better else peer / ours
    ok = ratio >= goal
    print(
        f"{name:<28}{ours:9.1f} {unit:<9}{peer:9.1f} {unit:<9} {peer_name:<28} ratio {ratio:.3f}   goal {goal:g}   "
        f"{'ok' if ok else 'BELOW'}",
        flush=True,
    )
    keys = ("name", "ours", "peer", "peer_name", "unit", "ratio", "goal", "ok")
    return dict(zip(keys, (name, ours, peer, peer_name, unit, ratio, goal, ok), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        in_child(*arguments.child)
        return 0
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device, steps, batch = arguments.device, arguments.steps, arguments.batch
    names = {"plain": "a plain loop", "last": "a plain channels-last loop"}
    speed = speeds(device, steps, batch, arguments.repeats)
    rows = [
        row("throughput of fit", speed["ours"], speed[key], names[key], "images/s", goal)
        for key, goal in (("plain", GOAL), ("last", PARITY))
    ]
    used = {name: memory(name, device, batch) for name in LOOPS}
    rows += [row("peak memory of fit", used["ours"], used[k], name, "MiB", MEMORY, False) for k, name in names.items()]
    if not device.startswith("cuda") and (os.cpu_count() or 1) > 1:
        found = [statistics.median(together(count, steps, batch) for _ in range(3)) for count in (2, 1)]
        rows.append(row("fit in two processes", *found, "one process", "images/s", SPEED_UP))
    if arguments.json:
        cuda = device.startswith("cuda")
        facts = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
            "batch": batch,
        }
        arguments.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1), encoding="utf-8")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
