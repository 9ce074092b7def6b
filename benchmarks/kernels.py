"""The fused kernels against torch's own operations: seconds, and bytes that autograd keeps.

On the CPU the torch forms run, which are the default; on a GPU the Triton forms, which are switched on here, against torch's
operations and, with `--compile`, against what torch.compile makes of them. All are held to float64 before they are timed. Ours
and the peer alternate, and the medians of `--repeats` rounds are compared. A CPU whose memory allocator returns large blocks to
the system spends as long on their page faults as on the arithmetic: one thread of an idle machine says most.

    python benchmarks/kernels.py [--threads 1] [--device cuda] [--only norm,gate] [--compile] [--repeats 15] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff import kernels
from invdiff.core import Streams
from invdiff.core.storage import LiveStorage
from invdiff.kernels.beams import Beams, FanBeam, ParallelBeam, Rays, trace
from invdiff.kernels.projector import gather_pixels, integrate
from invdiff.kernels.update import sampler_update
from invdiff.operators import FanBeamCT, ParallelBeamCT
from invdiff.operators.dwt import DWT

Row = dict[str, object]
# how many times fewer bytes and seconds than torch; on the CPU computing u or act(b) again may cost where torch has it
BYTES = {"film": 2.9, "norm": 1.9, "gate": 1.45}
SECONDS = {"film": 1.0, "norm": 0.6, "gate": 0.7}


def seconds(pair: Sequence[Callable[[], object]], device: str, repeats: int) -> list[float]:
    """Median seconds of two functions, called in turn; CPU seconds on one thread, which other load stretches less."""
    cuda = device.startswith("cuda")
    now = time.process_time if not cuda and torch.get_num_threads() == 1 else time.perf_counter
    times: list[list[float]] = [[] for _ in pair]
    for turn in range(repeats + 2):
        for column, function in zip(times, pair, strict=True):
            start = now()
            function()
            if cuda:
                torch.cuda.synchronize(device)
            if turn > 1:
                column.append(now() - start)
    return [statistics.median(column) for column in times]


def row(name: str, ours: float, peer: float, peer_name: str, unit: str, goal: float) -> Row:
    """One comparison, printed; the ratio is how many times less ours takes."""
    ratio = peer / ours
    found = {"name": name, "ours": ours, "peer": peer, "peer_name": peer_name, "unit": unit}
    scale, shown = (1e3, "ms") if unit == "s" else (2**-20, "MiB")
    sys.stdout.write(
        f"{name:<58}{scale * ours:9.2f} {shown:<3}  {peer_name} {scale * peer:9.2f} {shown:<3}  {ratio:5.2f} x   "
        f"{'ok' if ratio >= goal else 'MISSED'}\n"
    )
    sys.stdout.flush()
    return found | {"ratio": ratio, "goal": goal, "ok": ratio >= goal}


def with_gradients(function: Callable[..., Tensor], tensors: Sequence[Tensor], dy: Tensor) -> list[Tensor]:
    """The value and the gradient of every tensor."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def kept(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> int:
    """Bytes that autograd keeps, each storage once."""
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function(*(t.detach().requires_grad_() for t in tensors))
    assert y.requires_grad
    return sum(storages.values())


def compared(
    kind: str,
    label: str,
    ours: Callable[..., Tensor],
    peers: dict[str, Callable[..., Tensor]],
    tensors: Sequence[Tensor],
    options: argparse.Namespace,
) -> list[Row]:
    """Rows of a function: forward alone, forward and backward, bytes kept; all checked against the peer in float64."""
    name, goal = f"{kind} {label}", 1.0 if options.device.startswith("cuda") else SECONDS[kind]
    generator = torch.Generator().manual_seed(1)
    reference, *_ = peers.values()
    with torch.no_grad():
        y = ours(*tensors)
    dy = torch.empty_like(y).copy_(torch.randn(y.shape, generator=generator))
    small = [t[:1] if t.shape[:1] == tensors[0].shape[:1] else t for t in tensors]
    expected = with_gradients(reference, [t.double() for t in small], dy[:1].double())
    bound = 1e-5 if y.dtype == torch.float32 else 2**-6
    for found, want in zip(with_gradients(ours, small, dy[:1]), expected, strict=True):
        error = float((found.double() - want).norm() / want.norm())
        if error > bound:
            raise SystemExit(f"{name}: relative error {error:.1e}, expected at most {bound:.1e}")
    rows = []
    for peer_name, peer in peers.items():

        def forward(function: Callable[..., Tensor]) -> Callable[[], object]:
            return lambda: torch.no_grad()(function)(*tensors)

        def both(function: Callable[..., Tensor]) -> Callable[[], object]:
            return lambda: with_gradients(function, tensors, dy)

        for what, timed in (("forward", forward), ("forward and backward", both)):
            mine, theirs = seconds((timed(ours), timed(peer)), options.device, options.repeats)
            rows.append(row(f"{name}, {what}", mine, theirs, peer_name, "s", goal))
    rows.append(row(f"{name}, kept", kept(ours, tensors), kept(reference, tensors), "torch", "byte", BYTES[kind]))
    return rows


def peers_of(function: Callable[..., Tensor], options: argparse.Namespace) -> dict[str, Callable[..., Tensor]]:
    """torch's operations, and compiled if asked for."""
    return {"torch": function} | ({"compiled": torch.compile(function)} if options.compile else {})


def norm_rows(options: argparse.Namespace) -> list[Row]:
    """GroupNorm, FiLM and SiLU, and without FiLM; 16 channels a group, as in the U-Net."""
    cuda, rows = options.device.startswith("cuda"), []
    shapes = ((8, 128, 256, 256), (1, 128, 1024, 1024)) if cuda else ((16, 64, 32, 32), (4, 64, 64, 64))
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            for layout in (torch.channels_last, torch.contiguous_format):
                batch, channels = shape[:2]
                x = torch.randn(shape, generator=generator).to(options.device, dtype).contiguous(memory_format=layout)
                weight, bias = torch.randn(2, channels, generator=generator).to(options.device).unbind(0)
                scale, shift = torch.randn(2, batch, channels, generator=generator).to(options.device, dtype).unbind(0)
                groups = channels // 16

                def film(x, w, b, s, h, groups=groups):
                    # CUDA's normalisation wants one dtype
                    w, b = (w.to(x.dtype), b.to(x.dtype)) if x.is_cuda else (w, b)
                    return F.silu(torch.addcmul(h[:, :, None, None], F.group_norm(x, groups, w, b), 1 + s[:, :, None, None]))

                def bare(x, w, b, groups=groups):
                    w, b = (w.to(x.dtype), b.to(x.dtype)) if x.is_cuda else (w, b)
                    return F.silu(F.group_norm(x, groups, w, b))

                def ours(x, w, b, s=None, h=None, groups=groups):
                    return kernels.group_norm_silu(x, groups, w, b, scale=s, shift=h)

                label = f"{'x'.join(map(str, shape))} {str(dtype)[6:]} {'last' if layout == torch.channels_last else 'first'}"
                rows += compared("film", label, ours, peers_of(film, options), (x, weight, bias, scale, shift), options)
                rows += compared("norm", label, ours, peers_of(bare, options), (x, weight, bias), options)
    return rows


def gate_rows(options: argparse.Namespace) -> list[Row]:
    """The gates of the feed-forward layer of a transformer."""
    shape = (8, 4096, 5120) if options.device.startswith("cuda") else (4, 256, 2048)
    generator, rows = torch.Generator().manual_seed(0), []
    acts: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu}
    for name, ours in (("silu", kernels.silu_gate), ("gelu", kernels.geglu)):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(shape, generator=generator).to(options.device, dtype)

            def plain(x: Tensor, act: Callable[[Tensor], Tensor] = acts[name]) -> Tensor:
                a, b = x.chunk(2, -1)
                return a * act(b)

            label = f"{name} {'x'.join(map(str, shape))} {str(dtype)[6:]}"
            rows += compared("gate", label, ours, peers_of(plain, options), (x,), options)
    return rows


Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
PROJECTOR_GOAL, GAP_GOAL = 5.0, 1e-6


def peak(function: Callable[[], object], device: str) -> int:
    """Bytes allocated at once, at most, beyond what there was before."""
    if not device.startswith("cuda"):
        with LiveStorage() as meter:
            function()
        return meter.peak
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before


def gap(pair: Pair, x: Tensor, y: Tensor) -> float:
    """|<A x, y> - <x, A^T y>| / (|A x| |y|), the inner products in float64."""
    ax, back = pair[0](x), pair[1](y)
    return float(((ax.double() * y).sum() - (x.double() * back).sum()).abs() / (ax.norm() * y.norm()))


def projected(geometry: Beams, device: str, dtype: torch.dtype = torch.float32) -> Pair:
    """The projectors with their rays traced beforehand, as an operator holds them."""
    layout = geometry.layout
    rays = Rays(*(t.to(device, dtype) for t in trace(layout, geometry.angles)))
    return (
        lambda x: integrate(x, rays, layout).transpose(1, 2),
        lambda y: gather_pixels(y.transpose(1, 2), rays, layout),
    )


def projector_rows(options: argparse.Namespace) -> list[Row]:
    """Projection and backprojection of a batch, parallel and fan beams, against deepinv's Tomography with its exact adjoint."""
    if importlib.util.find_spec("deepinv") is None:
        sys.stdout.write("projector: deepinv is not installed, nothing to compare with\n")
        return []
    from deepinv.physics import Tomography

    device, batch = options.device, 8
    cuda = device.startswith("cuda")
    size, views = (256, 180) if cuda else (128, 60)
    detector, generator = math.ceil(math.sqrt(2) * size), torch.Generator().manual_seed(0)
    angles = torch.arange(views, dtype=torch.float64) * (math.pi / views)
    fan = {"source_radius": 500.0, "detector_radius": 500.0, "n_detector_pixels": detector, "detector_spacing": 2.0}
    beams: dict[str, Beams] = {
        "parallel": ParallelBeam((size, size), angles, detector),
        "fan": FanBeam((size, size), 2 * angles, detector, 500.0, 500.0, 1.0, 2.0),
    }
    x = torch.rand(batch, 1, size, size, generator=generator).to(device)
    y = torch.randn(batch, 1, views, detector, generator=generator).to(device)
    rows = []
    for name, geometry in beams.items():
        given = {"fan_beam": True, "fan_parameters": fan | {"pixel_spacing": 1.0}} if name == "fan" else {}
        degrees = geometry.angles.float() * (180.0 / math.pi)
        peer = Tomography(degrees, size, normalize=False, adjoint_via_backprop=True, device=device, **given)
        theirs, their_y = (peer.A, peer.A_adjoint), y.transpose(2, 3).contiguous()
        ours = {"direct": (projected(geometry, device), 0)}
        if not cuda:
            stored = (
                FanBeamCT(size, 2 * angles, detector, engine="stored")
                if name == "fan"
                else ParallelBeamCT(size, angles, detector, engine="joseph")
            )
            matrices = (stored.matrices if name == "fan" else stored.constants)(x)
            held = sum(t.nbytes for m in matrices for t in (m.crow_indices(), m.col_indices(), m.values()))
            ours["stored"] = ((stored, stored.adjoint), held)
        want = projected(geometry, device, torch.float64)
        for engine, (mine, held) in ours.items():
            label = f"{name} beams {engine}, {batch}x{size}x{size}, {views} views"
            for function, exact, v in zip(mine, want, (x, y), strict=True):
                error = float((function(v).double() - exact(v.double())).norm() / exact(v.double()).norm())
                if error > 1e-5:
                    raise SystemExit(f"{label}: relative error {error:.1e}, expected at most 1e-5")

            def both(pair: Pair, data: Tensor) -> Callable[[], object]:
                return lambda: (pair[0](x), pair[1](data))

            calls = both(mine, y), both(theirs, their_y)
            rows.append(row(f"{label}, pair", *seconds(calls, device, options.repeats), "deepinv", "s", PROJECTOR_GOAL))
            used = held + peak(calls[0], device)
            # a matrix is kept between calls: it counts, without a goal
            goal = 0.0 if held else PROJECTOR_GOAL
            rows.append(row(f"{label}, peak", used, peak(calls[1], device), "deepinv", "byte", goal))
            found, other = gap(mine, x, y), gap(theirs, x, their_y)
            sys.stdout.write(f"{label}, adjoint gap {found:.1e}, deepinv {other:.1e}\n")
            entry = {"name": f"{label}, adjoint gap", "ours": found, "peer": other, "peer_name": "deepinv", "unit": "1"}
            rows.append(entry | {"ratio": other / max(found, 1e-16), "goal": GAP_GOAL, "ok": found <= GAP_GOAL})
    return rows


def in_turn(
    name: str, ours: Callable[[], Tensor], peer: Callable[[], Tensor], peer_name: str, options: argparse.Namespace
) -> Row:
    """The row of two functions whose results agree."""
    torch.testing.assert_close(ours(), peer(), rtol=0, atol=1e-5)
    return row(name, *seconds((ours, peer), options.device, options.repeats), peer_name, "s", 1.0)


def wavelet_rows(options: argparse.Namespace) -> list[Row]:
    """One level of a transform and its inverse: one launch or two against the dense tiles of `DWT`, which are all a CPU has."""
    if not options.device.startswith("cuda"):
        sys.stdout.write("wavelet: nothing to compare on a CPU, which has the tiles alone; benchmarks/dwt.py has their times\n")
        return []
    generator, rows = torch.Generator().manual_seed(0), []

    def tiles(call: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        with kernels.using():
            return call(v)

    for shape in ((64, 1, 512, 512), (1, 1, 256, 256, 128)):
        x = torch.randn(shape, generator=generator).to(options.device)
        for wavelet in ("haar", "db4", "bior4.4"):
            dwt = DWT(shape[1:], wavelet).to(options.device)
            for what, call, v in (("forward", dwt.analysis, x), ("inverse", dwt.inverse, dwt.analysis(x))):
                label = f"wavelet {wavelet} {'x'.join(map(str, shape))}, {what}"
                rows.append(in_turn(label, partial(call, v), partial(tiles, call, v), "tiles", options))
    return rows


def update_rows(options: argparse.Namespace) -> list[Row]:
    """A sampler's step as one combination against the expression of its paper; with noise on a GPU alone."""
    sigma, to, r, rows, generator = 3.0, 2.0, 0.8, [], torch.Generator().manual_seed(0)
    h, a, b, e = to - sigma, (to - sigma) / (2 * sigma), (to - sigma) / (2 * to), (to - sigma) * (1 + r) / sigma
    for shape in ((8, 1, 128, 128), (1, 1, 256, 256, 64)):
        x, d, u, v, p = (torch.randn(shape, generator=generator).to(options.device) for _ in range(5))
        streams = Streams(0, shape[0])
        noise = partial(streams.normal, 0, shape[1:], device=x.device)
        cases: dict[str, tuple[tuple[tuple[float, Tensor], ...], Callable[..., Tensor]]] = {
            "euler": (((to / sigma, x), (1 - to / sigma, d)), lambda x, d: d + (to / sigma) * (x - d)),
            "ancestral": (((0.4, x), (0.6, d)), lambda x, d, noise=noise: d + 0.4 * (x - d) + 0.3 * noise()),
            "heun": (
                ((1 + a, x), (-a, d), (b, u), (-b, v)),
                lambda x, d, u, v: x + 0.5 * h * ((x - d) / sigma + (u - v) / to),
            ),
            "o-belm": (
                ((1 - r**2 + e, x), (-e, d), (r**2, p)),
                lambda x, d, p: r**2 * p + (1 - r**2) * x + h * (1 + r) * ((x - d) / sigma),
            ),
        }
        for name, (terms, expression) in cases.items():
            if name == "ancestral" and not options.device.startswith("cuda"):
                continue  # the same noise on both sides is 98 % of it
            fresh = (0.3, streams, 0, "step") if name == "ancestral" else None
            ours, peer = partial(sampler_update, terms, noise=fresh), partial(expression, *(t for _, t in terms))
            rows.append(in_turn(f"update {name} {'x'.join(map(str, shape))}", ours, peer, "expression", options))
    return rows


KERNELS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "norm": norm_rows,
    "gate": gate_rows,
    "projector": projector_rows,
    "wavelet": wavelet_rows,
    "update": update_rows,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default=",".join(KERNELS), help=f"out of {', '.join(KERNELS)}")
    parser.add_argument("--compile", action="store_true", help="compare with torch.compile too")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = options.only.split(",")
    if not set(names) <= KERNELS.keys():
        parser.error(f"--only: expected names out of {', '.join(KERNELS)}, got {options.only}")
    if options.threads:
        torch.set_num_threads(options.threads)
    with kernels.using(*kernels.NAMES):
        rows = [row for name in names for row in KERNELS[name](options)]
    if options.json:
        cuda = options.device.startswith("cuda")
        facts = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(options.device) if cuda else platform.processor() or platform.machine(),
        }
        options.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1), encoding="utf-8")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
