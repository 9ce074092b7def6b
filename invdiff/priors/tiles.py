"""A prior of small images on images of any size: overlapping tiles, blended.

    D_x(x, sigma) = sum_t W_t R_t^T D(R_t x, sigma),    sum_t W_t R_t^T R_t = I

R_t cuts out a tile. The weights W_t are separable, zero in an outer margin of each tile, and pass from one tile to the next
over the rest of their overlap like a Hann window; together they are one at every pixel. Tiles lie inside the image, the
outermost at its borders, where their weights do not fall. So every tile sees white noise, and an edge of the image is one of
the tile. An image that is smaller than a tile is extended by reflection, and its noise with it: that is a heuristic.

What is exact: a D that looks no further than `margin` pixels at this noise level gives the same on tiles as on the whole image.
For one with weights that decay over a length l the error falls like exp(-margin / l), and only like (l / overlap)^2 without a
margin. At high noise the reach of D is the correlation length of the data: structures longer than a tile are not known to this
prior, and have to come from the measurement. Tiles have no position: a prior of aligned objects has no use on them.

Where tiles begin is shifted from one noise level to the next, so that seams fall elsewhere each time and do not add up. The
Jacobian of D_x is symmetric away from the seams only.

References: Jimenez, Mixture of diffusers for scene composition and high resolution image generation, 2023, arXiv:2302.02412;
Bar-Tal, Yariv, Lipman, Dekel, MultiDiffusion, ICML 2023, arXiv:2302.08113 (blending); Ding, Zhang, Wu, Tu, Patched denoising
diffusion models for high-resolution image synthesis, ICLR 2024, arXiv:2308.01316; Hu, Xu, Wu, Fessler et al., Learning image
priors through patch-based diffusion models for solving inverse problems, NeurIPS 2024, arXiv:2406.02462 (shifted tiles).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ConfigError
from .adapter import Adapter, by_level, chunked, quasirandom, require_image, spread

__all__ = ["Tiles"]


class Tiles(Adapter):
    """A prior on tiles (C, *size) as a prior on images (C, *any size), in one, two or three dimensions.

    Args:
        prior: on tiles.
        size: of a tile, one number or one for each dimension; None takes the prior's, where that is fixed.
        overlap: of neighbouring tiles, in pixels, less than their size. A quarter of the size or more hides most seams.
        margin: pixels at the border of a tile that are context only, at most half of the overlap.
        shift: move the tiles with the noise level, by the R_d sequence of `floor(64 ln sigma)`.
        batch: tiles in a call of the prior, which bounds the memory where no gradient is kept.

    Conditions go to all tiles; of `concat`, which is as large as the image, each tile sees its part.

    Raises:
        ConfigError: size, overlap and margin do not fit each other or the prior, batch < 1, or the unknown is a latent.
    """

    def __init__(
        self,
        prior: Denoiser,
        size: int | Sequence[int] | None = None,
        *,
        overlap: int,
        margin: int = 0,
        shift: bool = True,
        batch: int = 16,
    ) -> None:
        require_image(prior, "Tiles")
        own = prior.shape[1:]
        sizes = own if size is None else (size,) * len(own) if isinstance(size, int) else tuple(size)
        fits = len(sizes) == len(own) and all(
            s is not None and (s == n if n is not None else s % prior.divisor == 0) for s, n in zip(sizes, own, strict=True)
        )
        if not fits:
            wants = ", ".join("any" if n is None else str(n) for n in own)
            raise ConfigError(
                f"Tiles: expected a size that fits the prior's ({wants}), multiples of {prior.divisor} where free, got {size}"
            )
        tile = tuple(int(s) for s in sizes if s is not None)
        if not 0 <= 2 * margin <= overlap < min(tile) or batch < 1:
            raise ConfigError(
                f"Tiles: expected 0 <= 2 margin <= overlap < size and batch >= 1, got margin={margin}, overlap={overlap}, "
                f"size={tile}, batch={batch}"
            )
        super().__init__(prior, (prior.shape[0], *[None] * len(own)))
        self.divisor = 1
        self.size, self.overlap, self.margin, self.shift, self.batch = tile, overlap, margin, shift, batch

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """E[x0 | x], blended from the tiles."""
        if self.shift:
            return by_level(self._denoise, x, sigma, condition)
        return self._denoise(None, x, sigma, condition)

    def _denoise(self, level: int | None, x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        large, items = self._extended(x), len(x)
        starts = [None] * len(self.size) if level is None else quasirandom(level, len(self.size))
        axes = [self._axis(n, size, u) for n, size, u in zip(large.shape[2:], self.size, starts, strict=True)]
        tiles = list(itertools.product(*([(a, w.to(x)) for a, w in axis] for axis in axes)))
        out, step = torch.zeros_like(large), max(1, self.batch // items)
        for i in range(0, len(tiles), step):
            some = tiles[i : i + step]
            where: list[tuple[Any, ...]] = [(..., *(slice(a, a + len(w)) for a, w in tile)) for tile in some]

            def cut(v: Tensor, where: list[tuple[Any, ...]] = where) -> Tensor:
                v = self._extended(v)
                return torch.cat([v[w] for w in where])

            told = spread(condition, items, len(some), cut)
            parts = chunked(self.prior, cut(x), sigma.repeat(len(some)), told, self.batch).split(items)
            for tile, place, part in zip(some, where, parts, strict=True):
                for dim, (_, weight) in enumerate(tile, 2):
                    part = part * weight.reshape(-1, *[1] * (part.ndim - 1 - dim))
                out[place] += part
        for dim, n in enumerate(x.shape[2:], 2):
            out = out.narrow(dim, (large.shape[dim] - n) // 2, n)
        return out

    def _extended(self, x: Tensor) -> Tensor:
        """x, in each dimension at least as large as a tile, by reflection."""
        for dim, size in enumerate(self.size, 2):
            n = x.shape[dim]
            if n < size:
                period = max(2 * n - 2, 1)
                index = (torch.arange(size, device=x.device) - (size - n) // 2) % period
                x = x.index_select(dim, torch.minimum(index, 2 * n - 2 - index))
        return x

    def _axis(self, n: int, size: int, u: float | None) -> list[tuple[int, Tensor]]:
        """First pixels of the tiles along an axis of n pixels, and their weights, which add up to one."""
        last, stride = n - size, size - self.overlap
        if u is None:
            count = -(-last // stride)
            starts = [round(last * k / count) for k in range(count + 1)] if count else [0]
        else:
            starts = sorted({0, last, *range(int(u * stride), last, stride)})
        # each tile takes over from the one before where both have their margin
        at, rises = torch.arange(n, dtype=torch.float64), [torch.ones(n, dtype=torch.float64)]
        for before, start in itertools.pairwise(starts):
            low, high = start + self.margin, before + size - self.margin
            rises.append((0.5 * math.pi * ((at - low + 0.5) / max(high - low, 0.5)).clamp(0.0, 1.0)).sin().square())
        rises.append(torch.zeros_like(at))
        weights = [rise * (1.0 - following) for rise, following in itertools.pairwise(rises)]
        total = torch.stack(weights).sum(0)
        return [(a, (weight / total)[a : a + size]) for a, weight in zip(starts, weights, strict=True)]

    def extra_repr(self) -> str:
        return f"size={self.size}, overlap={self.overlap}, margin={self.margin}, shift={self.shift}"
