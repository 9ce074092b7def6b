"""The unrolled sampler of invertible diffusion, for measuring memory: T range-null steps through one pruned U-Net.

A step on an image x, with the levels alpha_1 ... alpha_T learned, abar their running product:

    e = shuffle(unet(unshuffle(x))),    x0 = (x - sqrt(1 - abar_t) e) / sqrt(abar_t),    x0 <- x0 - A^T (A x0 - y),
    x' = sqrt(abar_{t-1}) x0 + sqrt(1 - abar_{t-1}) e.

The U-Net has two scales: two residual blocks and two transformers going down, three and three going up, whose residual blocks
take the skips by concatenation; no time embedding, no cross-attention. Around every transformer an injector adds to h what the
measurement says of it, with weights of its own for each step:

    h + unshuffle(W' [z, A^T A z, A^T y]),    z = W shuffle(h).

Its parts of one shape are chains of 3, 4 or 11 modules, and the steps are one more chain; each is a list of reversible moves
(p, h) <- (h, v p + (1 - v) f(h)), or of their f alone, h <- f(h). How it is evaluated is asked of an `Evaluation`; the norms
and the gated layer are the kernels of that name where they are switched on (`invdiff.kernels.using`), else torch's.

References: Chen, Zhang, Li, Zhang, Invertible diffusion models for compressed sensing, 2024, arXiv:2403.17006.
Rombach et al., High-resolution image synthesis with latent diffusion models, 2022, arXiv:2112.10752 (the U-Net).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invdiff.core.reversible import Move
from invdiff.kernels import enabled, geglu, group_norm_silu
from invdiff.priors.layers import norm_silu

BLOCK = 1024  # pixels that are measured together


def _normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """The normalisation without an activation."""
    if "group_norm" in enabled():
        return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, activation=False, eps=norm.eps)
    return norm(x)


def _gate(x: Tensor) -> Tensor:
    """a gelu(b) of x = [a, b]."""
    if "gate" in enabled():
        return geglu(x)
    a, b = x.chunk(2, dim=-1)
    return a * F.gelu(b)


@dataclass(frozen=True)
class Size:
    """Args: widths of the two scales, batch, side of the grey image, steps, whether in bfloat16, sampling ratio."""

    widths: tuple[int, int] = (32, 64)
    batch: int = 16
    image: int = 64
    steps: int = 3
    half: bool = False
    ratio: float = 0.5


@dataclass(frozen=True)
class Evaluation:
    """How a network is evaluated.

    Args:
        part: of functions that change the shape, (function, *inputs) -> its value.
        chain: of modules that keep it, (moves, h, scale, mix) -> h after them; the pair starts as (scale h, h) and ends as
            h + mix p.
        steps: of the steps on the image, with the same signature.
    """

    part: Callable[..., Tensor]
    chain: Callable[..., Tensor]
    steps: Callable[..., Tensor]


class Sensing(nn.Module):
    """A = Phi P: a permutation of the image's pixels, then an orthonormal (q, 1024) matrix on each 1024 of them."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        n = size.image**2
        self.register_buffer("order", torch.arange(n).flip(0))
        self.register_buffer("back", torch.arange(n).flip(0))
        self.register_buffer("matrix", torch.eye(BLOCK)[: round(size.ratio * BLOCK)])

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self.order].unflatten(1, (-1, BLOCK)) @ self.matrix.T

    def adjoint(self, y: Tensor) -> Tensor:
        n = round(self.order.numel() ** 0.5)
        return (y @ self.matrix).flatten(1)[:, self.back].unflatten(1, (1, n, n))


class Residual(nn.Module):
    """shortcut(x) + conv(silu(norm(conv(silu(norm(x)))))), x joined with the skip if there is one."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, width_in), nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(32, width), nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else None

    def forward(self, x: Tensor, *skip: Tensor) -> Tensor:
        x = torch.cat([x, *skip], dim=1) if skip else x
        h = self.conv2(norm_silu(self.norm2, self.conv1(norm_silu(self.norm1, x))))
        return (x if self.shortcut is None else self.shortcut(x)) + h


class Transformer(nn.Module):
    """h + out(block(into(norm(h)))), the block self-attention with eight heads and a gated layer of four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.into, self.out = nn.GroupNorm(32, width), nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.merge = nn.Linear(width, width)
        self.gated, self.last = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        t = self.into(_normed(self.norm, x)).flatten(2).transpose(1, 2).contiguous()
        n = self.norm1(t)
        q, k, v = (layer(n).unflatten(-1, (8, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        t = t + self.merge(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        t = t + self.last(_gate(self.gated(self.norm2(t))))
        return x + self.out(t.transpose(1, 2).unflatten(2, x.shape[2:]).contiguous())


class Injector(nn.Module):
    """What the measurement says of features, added to them; `factor` pixels of the image along a side of one of theirs."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.factor, inner = factor, width // factor**2
        self.to_image, self.to_features = nn.Conv2d(inner, 1, 1), nn.Conv2d(3, inner, 1)

    def forward(self, h: Tensor, sensing: Sensing, back: Tensor) -> Tensor:
        z = self.to_image(F.pixel_shuffle(h, self.factor))
        told = torch.cat([z, sensing.adjoint(sensing(z)).to(z.dtype), back.to(z.dtype)], dim=1)
        return h + F.pixel_unshuffle(self.to_features(told), self.factor)


class Chain(nn.Module):
    """Modules that keep the shape: r a residual block, joined with a skip if `skip`; t injector, transformer, injector."""

    def __init__(self, kinds: str, width: int, factor: int, steps: int, skip: int = 0) -> None:
        super().__init__()
        self.kinds = kinds.replace("t", "iti")
        self.residuals = nn.ModuleList(Residual(width + skip, width) for _ in range(kinds.count("r")))
        self.transformers = nn.ModuleList(Transformer(width) for _ in range(kinds.count("t")))
        self.injectors = nn.ModuleList(
            nn.ModuleList(Injector(width, factor) for _ in range(2 * kinds.count("t"))) for _ in range(steps)
        )
        self.couplings = nn.ParameterList(nn.Parameter(torch.tensor(0.5)) for _ in self.kinds)
        self.scale, self.mix = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def moves(self, t: int, skips: Sequence[Tensor], sensing: Sensing, back: Tensor) -> list[Move]:
        """The chain at step t."""
        sources = {"r": iter(self.residuals), "t": iter(self.transformers), "i": iter(self.injectors[t])}
        given = iter(skips)
        moves = []
        for kind, v in zip(self.kinds, self.couplings, strict=True):
            module = next(sources[kind])
            body = partial(module, sensing=sensing, back=back) if kind == "i" else module
            inputs = (next(given),) if kind == "r" and skips else ()
            moves.append(Move(v, 0.0, 1 - v, body, inputs, tuple(module.parameters())))
        return moves


class UNet(nn.Module):
    """The U-Net of all steps: (B, 4, *) -> (B, 4, *)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        (fine, coarse), steps = size.widths, size.steps
        self.enter, self.exit = nn.Conv2d(4, fine, 3, padding=1), nn.Conv2d(fine, 4, 3, padding=1)
        self.norm = nn.GroupNorm(32, fine)
        self.first = nn.ModuleList(Chain("rt", fine, 2, steps) for _ in range(2))
        self.down, self.widen = nn.Conv2d(fine, fine, 3, stride=2, padding=1), Residual(fine, coarse)
        self.second = nn.ModuleList(Chain(kinds, coarse, 4, steps) for kinds in ("t", "rt"))
        self.third, self.fourth = Chain("trtrt", coarse, 4, steps, coarse), Chain("trtrt", fine, 2, steps, fine)
        # the last skip of the coarse scale has the fine scale's width
        self.third.residuals[1] = Residual(coarse + fine, coarse)
        self.meet, self.narrow = Residual(3 * coarse, coarse), Residual(coarse + fine, fine)
        self.up = nn.Conv2d(coarse, coarse, 3, padding=1)

    def forward(self, x: Tensor, t: int, sensing: Sensing, back: Tensor, run: Evaluation) -> Tensor:
        def chain(links: Chain, h: Tensor, *skips: Tensor) -> Tensor:
            return run.chain(links.moves(t, skips, sensing, back), h, links.scale, links.mix)

        skips = [self.enter(x)]
        for links in self.first:
            skips.append(chain(links, skips[-1]))
        skips.append(run.part(self.down, skips[-1]))
        skips.append(chain(self.second[0], run.part(self.widen, skips[-1])))
        skips.append(chain(self.second[1], skips[-1]))
        # twice, in the place of the deeper levels' twice as many channels
        h = torch.cat([skips[-1], skips[-1]], dim=1)
        for meet, links, end in ((self.meet, self.third, self._enlarge), (self.narrow, self.fourth, None)):
            h = chain(links, run.part(meet, h, skips.pop()), skips.pop(), skips.pop())
            h = h if end is None else run.part(end, h)
        return self.exit(norm_silu(self.norm, h))

    def _enlarge(self, h: Tensor) -> Tensor:
        return self.up(F.interpolate(h, scale_factor=2, mode="nearest"))


class Unrolled(nn.Module):
    """y (B, blocks, q) -> the image (B, 1, H, W) after all steps."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size, self.unet, self.sensing = size, UNet(size), Sensing(size)
        self.alphas = nn.Parameter(torch.full((size.steps,), 0.5))
        self.couplings = nn.ParameterList(nn.Parameter(torch.tensor(0.5)) for _ in range(size.steps))
        self.scale, self.mix = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def step(self, x: Tensor, t: int, y: Tensor, back: Tensor, run: Evaluation) -> Tensor:
        bars = torch.cat([self.alphas.new_ones(1), self.alphas.cumprod(0)])
        e = F.pixel_shuffle(self.unet(F.pixel_unshuffle(x, 2), t, self.sensing, back, run), 2)
        x0 = (x - (1 - bars[t + 1]).sqrt() * e) / bars[t + 1].sqrt()
        x0 = x0 - self.sensing.adjoint(self.sensing(x0) - y)
        return bars[t].sqrt() * x0 + (1 - bars[t]).sqrt() * e

    def forward(self, y: Tensor, run: Evaluation) -> Tensor:
        back = self.sensing.adjoint(y)
        own = (*self.unet.parameters(), self.alphas)
        moves = []
        for t, v in reversed(list(enumerate(self.couplings))):
            moves.append(Move(v, 0.0, 1 - v, partial(self.step, t=t, y=y, back=back, run=run), (), own))
        return run.steps(moves, self.alphas.prod().sqrt() * back, self.scale, self.mix)
