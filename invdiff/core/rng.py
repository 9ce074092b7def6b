"""Counter-based randomness: noise is a function of (seed, draw, step, purpose), not of history.

Philox4x32-10 with key = seed and counter = (block of four elements, draw, step, purpose). There is no state to save: draw k
has the same noise whatever the batch size, the chunking, the number of processes, the device, and after a resume. The
integers become normals by Box-Muller in float64, rounded once to the requested dtype.

References: Salmon, Moraes, Dror, Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ConfigError

__all__ = ["Streams", "derived", "philox"]

_M0, _M1, _W0, _W1, _MASK = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85, 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32 on int64 tensors that hold 32-bit words; the four words of the result likewise."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap around, but their 64 bits are those of the unsigned product
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def derived(seed: int, index: int) -> int:
    """A seed for part `index` of a run, which neighbouring seeds do not share; that of part 0 is the run's."""
    return seed if index == 0 else zlib.crc32(f"{seed} {index}".encode())


@dataclass(frozen=True)
class Streams:
    """The random streams of some draws of a run.

    Args:
        seed: any integer of 64 bits; 0 is a seed like any other.
        draws: indices of the draws that this batch holds, non-negative.
    """

    seed: int
    draws: tuple[int, ...] = (0,)

    def __init__(self, seed: int, draws: Sequence[int] | int = 1) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
            raise ConfigError(f"Streams: expected an integer seed of 64 bits, got {seed!r}")
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "draws", tuple(range(draws)) if isinstance(draws, int) else tuple(draws))

    def _words(self, step: int, count: int, purpose: str, device: torch.device | str | None) -> Tensor:
        """(len(draws), 4 ceil(count / 4)) words of 32 bits."""
        block = torch.arange(math.ceil(count / 4), device=device)
        draw = self._draws(device)[:, None]
        shape = (len(self.draws), len(block))
        constant = [
            torch.full((1, 1), v & _MASK, dtype=torch.int64, device=device) for v in (step, zlib.crc32(purpose.encode()))
        ]
        counter = (block.expand(shape), draw.expand(shape), constant[0].expand(shape), constant[1].expand(shape))
        words = philox(counter, (self.seed & _MASK, (self.seed >> 32) & _MASK))
        return torch.stack(words, dim=-1).flatten(1)

    def _draws(self, device: torch.device | str | None) -> Tensor:
        """Their indices, (len(draws),)."""
        first, count = (self.draws[0], len(self.draws)) if self.draws else (0, 0)
        if self.draws == tuple(range(first, first + count)):
            # made on the device: a copy from the host would wait for it
            return torch.arange(first, first + count, dtype=torch.int64, device=device)
        return torch.tensor(self.draws, dtype=torch.int64, device=device)

    def uniform(
        self,
        step: int,
        shape: Sequence[int],
        purpose: str = "step",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Uniform numbers in the open interval (0, 1), (len(draws), *shape)."""
        count = math.prod(shape)
        u = (self._words(step, count, purpose, device)[:, :count].double() + 0.5) * 2.0**-32
        # narrower dtypes round the largest numbers to one, and half precision the smallest to zero
        finest = torch.finfo(dtype)
        return u.reshape(len(self.draws), *shape).to(dtype).clamp(finest.tiny, 1.0 - finest.eps / 2.0)

    def normal(
        self,
        step: int,
        shape: Sequence[int],
        purpose: str = "step",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Standard normals, (len(draws), *shape); for a complex dtype each real component is a standard normal."""
        if dtype.is_complex:
            real = self.normal(step, (*shape, 2), purpose, torch.empty((), dtype=dtype).real.dtype, device)
            return torch.view_as_complex(real)
        count = math.prod(shape)
        words = (self._words(step, count, purpose, device).double() + 0.5) * 2.0**-32
        u = words.unflatten(1, (-1, 2))
        radius, angle = torch.sqrt(-2.0 * torch.log(u[..., 0])), 2.0 * math.pi * u[..., 1]
        z = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1).flatten(1)
        return z[:, :count].reshape(len(self.draws), *shape).to(dtype)

    def generators(self, step: int, purpose: str) -> list[torch.Generator]:
        """One CPU generator for each draw, for distributions that torch samples only that way (Poisson)."""
        words = self._words(step, 2, purpose, None)
        return [torch.Generator().manual_seed(int(w[0]) | (int(w[1] & 0x7FFFFFFF) << 32)) for w in words]
