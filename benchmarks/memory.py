"""Memory of a training step through an unrolled sampler, by plain autograd, with checkpoints, and by inversion.

The model is that of `memory_models`; its step is measured without being computed, on fake tensors, with every storage that it
makes counted until it is freed, apart from weights, their gradients and the inputs (`invdiff.core.storage`). Two sizes:

    small   widths 32 and 64, 1.2 M parameters, 16 images of 64 x 64, float32
    large   widths 320 and 640, 115 M parameters, 8 images of 256 x 256, bfloat16: the released invertible sampler's

`plain` is the network of pairs by plain autograd; the same network in one stream, which has no reason to keep pairs, is the
fairer baseline of whoever does not invert, and is given beside it. A saving depends on the number of steps and on the baseline:
read no ratio without both. Cost is (convolutions forward + 2 backward) / (3 x those of plain).

With the kernels `group_norm` and `gate`, which compute again in their backward pass what torch's operations keep, everything is
measured once more, at the first number of steps, and compared with plain and with nested checkpoints that have the kernels too.
With `--long` those that invert are measured at further numbers of steps, to see what grows with them.

Before that, on a tiny image and in earnest, the gradients of all variants are compared in float64 with those of plain autograd.

    python benchmarks/memory.py [--size small] [--steps 3 10] [--long 30 100] [--only NAME ...] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from memory_models import BLOCK, Evaluation, Size, Unrolled
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from invdiff.core.reversible import Move, reversible, run_moves
from invdiff.core.storage import Measured, measure
from invdiff.kernels import using

SIZES = {"small": Size(), "large": Size((320, 640), batch=8, image=256, half=True)}
TINY = Size(batch=1, image=32, steps=2)
TOLERANCE = 1e-9
KERNELS = ("group_norm", "gate")


def plainly(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Keep what autograd keeps."""
    return function(*inputs)


def again(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Keep the inputs, and evaluate again in the backward pass."""
    return checkpoint(function, *inputs, use_reentrant=False)


def paired(moves: Sequence[Move], h: Tensor, scale: Tensor, mix: Tensor) -> Tensor:
    """A pair of streams by plain autograd, in float32 as the couplings' numbers are."""
    p, h = run_moves(moves, _pair(h, scale))
    return h + mix * p


def in_turn(moves: Sequence[Move], h: Tensor, scale: Tensor, mix: Tensor) -> Tensor:  # noqa: ARG001
    """One stream by plain autograd: the moves' functions one after the other."""
    for move in moves:
        h = move.body(h, *move.inputs)
    return h


def paired_again(moves: Sequence[Move], h: Tensor, scale: Tensor, mix: Tensor) -> Tensor:
    """A pair of streams, every move evaluated again. Skips are arguments: in a closure they would live for all steps."""
    p, h = _pair(h, scale)
    for move in moves:
        alone = dataclasses.replace(move, inputs=())

        def run(p: Tensor, h: Tensor, *inputs: Tensor, alone: Move = alone) -> tuple[Tensor, Tensor]:
            return dataclasses.replace(alone, inputs=inputs)(p, h)

        p, h = checkpoint(run, p, h, *move.inputs, use_reentrant=False)
    return h + mix * p


def in_turn_again(moves: Sequence[Move], h: Tensor, scale: Tensor, mix: Tensor) -> Tensor:  # noqa: ARG001
    """One stream, every function evaluated again."""
    for move in moves:
        h = again(move.body, h, *move.inputs)
    return h


def inverted(moves: Sequence[Move], h: Tensor, scale: Tensor, mix: Tensor) -> Tensor:
    """A pair of streams, every move undone in the backward pass."""
    p, h = reversible(moves, _pair(h, scale))
    return h + mix * p


def _pair(h: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    h = h.float() if h.dtype == torch.bfloat16 else h
    return scale * h, h


# parts, chains, steps; a variant's gradient is compared with the baseline of its network
PLAIN, NESTED = "plain", "checkpoint steps, blocks"
VARIANTS = {
    PLAIN: Evaluation(plainly, paired, paired),
    "plain, one stream": Evaluation(plainly, in_turn, in_turn),
    "checkpoint steps": Evaluation(plainly, paired, paired_again),
    NESTED: Evaluation(again, paired_again, paired_again),
    "checkpoint both, one stream": Evaluation(again, in_turn_again, in_turn_again),
    "checkpoint steps, invert blocks": Evaluation(again, inverted, paired_again),
    "invert steps, blocks": Evaluation(again, inverted, inverted),
}
INVERTED = ("checkpoint steps, invert blocks", "invert steps, blocks")


def of_variant(name: str, size: Size) -> Measured:
    """A training step: |x - image| averaged, forward and backward."""

    def make() -> Callable[[], Tensor]:
        net = Unrolled(size)
        y = torch.zeros(size.batch, size.image**2 // BLOCK, len(net.sensing.matrix))
        image = torch.zeros(size.batch, 1, size.image, size.image)

        def step() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16) if size.half else nullcontext():
                return (net(y, VARIANTS[name]) - image).abs().mean()

        return step

    return measure(make)


def gradient(net: Unrolled, y: Tensor, image: Tensor, run: Evaluation) -> Tensor:
    """Of |x - image|, with respect to all weights that take part."""
    own = list(net.parameters())
    gradients = torch.autograd.grad((net(y, run) - image).square().mean(), own, allow_unused=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(own, gradients, strict=True)])


def check(names: Sequence[str]) -> None:
    """Every variant's gradient is that of plain autograd through the same network, or this stops."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = Unrolled(TINY).double()
        x = torch.rand(TINY.batch, 1, TINY.image, TINY.image, dtype=torch.float64)
    with torch.no_grad():
        # away from the mixture that hides the second stream
        for name, parameter in net.named_parameters():
            if name.endswith("mix"):
                parameter.fill_(0.3)
    y = net.sensing(x)
    for baseline in (PLAIN, "plain, one stream"):
        kind = [n for n in names if n.endswith("one stream") == baseline.endswith("one stream")]
        with using():
            wanted = gradient(net, y, x, VARIANTS[baseline])
        for name, kernels in ((n, k) for n in kind for k in ((), KERNELS) if k or n != baseline):
            with using(*kernels):
                error = float((gradient(net, y, x, VARIANTS[name]) - wanted).norm() / wanted.norm())
            shown = f"{name}{', kernels' if kernels else ''}"
            print(f"gradient of {shown:<42}{error:10.1e} from {baseline}", flush=True)
            if not error <= TOLERANCE:
                sys.exit(f"{shown}: the gradient differs from plain autograd's by {error:.1e}, more than {TOLERANCE}")


def rows_of(size: Size, names: Sequence[str], kernels: Sequence[str] = ()) -> Iterator[dict]:
    """The variants at one size and number of steps, printed as they come; ratios are None where their baseline is not named."""
    print(f"\n{size} {' '.join(kernels)}")
    print(f"{'':<34}{'held':>10}{'peak MiB':>12}{'of plain':>10}{'of nested':>10}{'conv':>7}{'back':>6}{'cost':>6}")
    found: dict[str, Measured] = {}
    for name in names:
        with using(*kernels):
            m = found[name] = of_variant(name, size)
        plain, nested = found.get(PLAIN), found.get(NESTED)
        ours = [m.calls[c] for c in ("convolution", "convolution_backward")]
        row = {
            "variant": name,
            "T": size.steps,
            "kernels": list(kernels),
            "held": m.held,
            "peak": m.peak,
            "ratio": m.peak / plain.peak if plain else None,
            "ratio_nested": m.peak / nested.peak if nested else None,
            "conv_forward": ours[0],
            "conv_backward": ours[1],
            "cost": (ours[0] + 2 * ours[1]) / (3 * plain.calls["convolution"]) if plain else None,
            "seconds_to_trace": m.seconds,
        }
        ratios = "".join(f"{row[k]:10.3f}" if row[k] is not None else " " * 10 for k in ("ratio", "ratio_nested"))
        cost = f"{row['cost']:6.2f}" if plain else ""
        print(f"{name:<34}{m.held / 2**20:10.1f}{m.peak / 2**20:12.1f}{ratios}{ours[0]:7d}{ours[1]:6d}{cost}", flush=True)
        yield row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--long", type=int, nargs="+", default=[], help="further numbers of steps, for what inverts")
    parser.add_argument("--batch", type=int, help="another batch than the size's")
    parser.add_argument("--float32", action="store_true", help="large without bfloat16")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="beside the baselines")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    check(arguments.only)
    size = SIZES[arguments.size]
    size = dataclasses.replace(size, batch=arguments.batch or size.batch, half=size.half and not arguments.float32)
    names = list(dict.fromkeys([PLAIN, NESTED, *arguments.only]))
    runs = [(steps, names, ()) for steps in arguments.steps]
    runs.append((arguments.steps[0], names, KERNELS))
    runs += [(steps, [n for n in names if n in INVERTED], ()) for steps in arguments.long]
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "invdiff": importlib.metadata.version("invdiff"),
        "size": {k: v for k, v in dataclasses.asdict(size).items() if k != "steps"},
        "unit": "bytes",
        "without": "weights, their gradients, inputs, workspaces of operators",
    }
    rows = []
    for steps, wanted, kernels in runs:
        rows += rows_of(dataclasses.replace(size, steps=steps), wanted, kernels)
        if arguments.json:
            arguments.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
