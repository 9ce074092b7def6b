"""Radar back-projection and its transpose against the dense sum and against linear interpolation.

    python benchmarks/sar.py [--threads 1] [--repeats 5] [--tiny] [--json FILE]

A spotlight collection like the Gotcha set's: 117 pulses of 424 frequencies over one degree, 9.6 GHz, from 10.2 km, 200 x 200
points of 0.25 m, complex64. Processor time, alternately, medians; errors relative to the dense sum in float64.

    kept, made    `PhaseHistory` with the tables that it keeps, and making them in each call; accuracy 1e-5
    linear        the usual back-projection: range profiles by a zero-padded FFT (8 times oversampled), linear interpolation, a
                  carrier for each pulse and point; plain PyTorch, one pulse at a time
    dense         the sum itself, one pulse at a time, by its matrix; a few pulses are timed, and scaled
"""

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path

import torch

from invdiff.operators import PhaseHistory, spotlight
from invdiff.operators.sar_cells import SPEED_OF_LIGHT


def phase(cycles):
    turn = ((cycles - cycles.round()) * (2.0 * math.pi)).float()
    return torch.polar(torch.ones_like(turn), turn)


def linear(a, y, oversampling=8):
    """Back-projection by linear interpolation of range profiles."""
    f, points = a.frequencies[0], a.points.reshape(-1, 3)
    n = oversampling * 2 ** math.ceil(math.log2(len(f)))
    image = torch.zeros(len(points), dtype=torch.complex64)
    for q, row in zip(a.positions, y, strict=True):
        profile = torch.fft.ifft(torch.cat((row, row.new_zeros(n - len(row)))), norm="forward")
        distance = (q - points).norm(dim=1) - q.norm()
        place = distance * (2.0 * (f[1] - f[0]) / SPEED_OF_LIGHT * n)
        below = place.floor()
        weight, index = (place - below).float(), below.long()
        image += (profile[index % n] * (1.0 - weight) + profile[(index + 1) % n] * weight) * phase(
            2.0 * f[0] / SPEED_OF_LIGHT * distance
        )
    return image


def matrix(a, q, dtype=torch.complex64):
    distance = (q - a.points.reshape(-1, 3)).norm(dim=1) - q.norm()
    cycles = (2.0 / SPEED_OF_LIGHT) * distance[:, None] * a.frequencies[0]
    if dtype == torch.complex64:
        return phase(cycles)
    turn = (cycles - cycles.round()) * (2.0 * math.pi)
    return torch.polar(torch.ones_like(turn), turn)


def dense(a, y):
    """The sum, in the precision of y."""
    image = torch.zeros(a.points.numel() // 3, dtype=y.dtype)
    for q, row in zip(a.positions, y, strict=True):
        image += matrix(a, q, y.dtype) @ row
    return image


def timed(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def apart(a, b):
    return float((a.flatten() - b.flatten()).norm() / b.norm())


def measure(tiny, repeats):
    size, pulses, k = ((24, 24), 8, 32) if tiny else ((200, 200), 117, 424)
    options = {"pulses": pulses, "frequencies": k, "aperture": 0.0175, "elevation": 0.7985, "distance": 10_158.0}
    options |= {"centre_frequency": 9.6e9, "bandwidth": 622.4e6}
    kept, made = (spotlight(size, 0.25, **options, memory=m) for m in (1 << 30, 0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, *size, generator=generator, dtype=torch.complex64)
    y = torch.randn(1, 1, pulses, k, generator=generator, dtype=torch.complex64)
    few = 2
    part = PhaseHistory(kept.positions[:few], kept.frequencies[0], kept.points, sign=-1)
    # warm, and wrong by how much, on the first pulses
    exact = dense(part, y[0, 0, :few].to(torch.complex128))
    errors = {
        "dense": apart(dense(part, y[0, 0, :few]), exact),
        "kept": apart(part.adjoint(y[:, :, :few]), exact),
        "linear": apart(linear(part, y[0, 0, :few]), exact),
    }
    whole = torch.stack(
        [matrix(part, q, torch.complex128).conj().mT @ x.flatten().to(torch.complex128) for q in part.positions]
    )
    errors["kept, forward"] = apart(part(x), whole)
    jobs = {
        "kept": lambda: kept.adjoint(y),
        "made": lambda: made.adjoint(y),
        "kept, forward": lambda: kept(x),
        "made, forward": lambda: made(x),
        "linear": lambda: linear(kept, y[0, 0]),
        "dense": lambda: dense(part, y[0, 0, :few]),
    }
    seconds = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(repeats):
        for name, job in jobs.items():
            seconds[name].append(timed(job) * (pulses / few if name == "dense" else 1.0))
    return {
        name: {"seconds": statistics.median(s), "error": errors.get(name.replace("made", "kept"))}
        for name, s in seconds.items()
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="seconds, for a test; its numbers mean nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = measure(options.tiny, options.repeats)
    for name, row in rows.items():
        row["times faster than linear"] = rows["linear"]["seconds"] / row["seconds"]
        row["times faster than dense"] = rows["dense"]["seconds"] / row["seconds"]
        print(
            f"{name:<14} {row['seconds']:.4f} s  error {row['error']:.1e}  {row['times faster than linear']:.2f} x linear  "
            f"{row['times faster than dense']:.0f} x dense"
        )
    if options.json:
        about = {
            "machine": platform.machine(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "tiny": options.tiny,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
