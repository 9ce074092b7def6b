"""Wavelet transforms of 64 images of 512 x 512 in float32, one level, forward and inverse, against ptwt.

Both are held to PyWavelets before they are timed; then they alternate, and the medians of `--repeats` rounds are compared, with
the fastest and slowest in brackets. ptwt has no periodization; the nearest is its periodic extension, with more coefficients.
Ours is some dozens of products after each of which the threads meet: on a machine whose cores are taken, compare one thread.

    python benchmarks/dwt.py [--threads 1] [--device cuda] [--repeats 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ptwt
import pywt
import torch

from invdiff.operators.dwt import DWT

BATCH, SIZE = 64, 512
PEER_MODE = {"symmetric": "symmetric", "zero": "zero", "periodization": "periodic"}


def seconds(function: Callable[[], object], device: str) -> float:
    """Seconds of a call; on CUDA until the device is done."""
    start = time.perf_counter()
    function()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def check(name: str, dwt: DWT, x: torch.Tensor, mode: str) -> None:
    """Ours and the peer's against PyWavelets, on one image; float32 has seven digits."""
    image = x[:1].cpu().double().numpy()
    expected = pywt.wavedec2(image[:, 0], name, mode, 1)
    for band, want in zip(
        dwt.split(dwt.analysis(x[:1])), (expected[0], expected[1][1], expected[1][0], expected[1][2]), strict=True
    ):
        torch.testing.assert_close(band[:, 0].cpu(), torch.from_numpy(want).float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(dwt.inverse(dwt.analysis(x[:1])), x[:1], rtol=0, atol=1e-5)
    expected = pywt.wavedec2(image[:, 0], name, PEER_MODE[mode], 1)
    found = ptwt.wavedec2(x[:1, 0], name, mode=PEER_MODE[mode], level=1)
    torch.testing.assert_close(found[0].cpu(), torch.from_numpy(expected[0]).float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(ptwt.waverec2(found, name), x[:1, 0], rtol=0, atol=1e-5)


def rows_of(name: str, mode: str, repeats: int, device: str) -> list[dict]:
    """Forward and inverse of one wavelet and mode."""
    x = torch.randn(BATCH, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    dwt = DWT((1, SIZE, SIZE), name, 1, mode).to(device)
    check(name, dwt, x, mode)
    ours, theirs = dwt.analysis(x), ptwt.wavedec2(x[:, 0], name, mode=PEER_MODE[mode], level=1)
    pairs = {
        "forward": (lambda: dwt.analysis(x), lambda: ptwt.wavedec2(x[:, 0], name, mode=PEER_MODE[mode], level=1)),
        "inverse": (lambda: dwt.inverse(ours), lambda: ptwt.waverec2(theirs, name)),
    }
    rows = []
    for what, pair in pairs.items():
        times = [[seconds(f, device) for f in pair] for _ in range(repeats + 1)][1:]
        (mine, spread), (peer, peer_spread) = (
            (sorted(column)[repeats // 2], (min(column), max(column))) for column in zip(*times, strict=True)
        )
        ratio, title = peer / mine, f"{what} {name} {mode}"
        print(
            f"{title:<32}{1e3 * mine:8.0f} ms ({1e3 * spread[0]:.0f} to {1e3 * spread[1]:.0f})   ptwt {1e3 * peer:8.0f} ms "
            f"({1e3 * peer_spread[0]:.0f} to {1e3 * peer_spread[1]:.0f})   {ratio:6.2f} x   {'ok' if ratio >= 1 else 'SLOWER'}",
            flush=True,
        )
        keys = ("name", "ours", "peer", "peer_name", "unit", "ratio", "goal", "ok")
        peer_name = f"ptwt {PEER_MODE[mode]}"
        rows.append(dict(zip(keys, (title, mine, peer, peer_name, "s", ratio, 1.0, ratio >= 1.0), strict=True)))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = [
        row
        for name in ("haar", "db4", "bior2.4")
        for mode in PEER_MODE
        for row in rows_of(name, mode, arguments.repeats, arguments.device)
    ]
    if arguments.json:
        cuda = arguments.device.startswith("cuda")
        facts = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pywt": pywt.__version__,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(arguments.device) if cuda else platform.processor() or platform.machine(),
        }
        arguments.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1), encoding="utf-8")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
