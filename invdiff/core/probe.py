"""What `health` compares, measured at one noise level on the same items and noise.

    u = x0 + sigma n,    |x0 - u|^2,    <D(u, c sigma) - u, x0 - u>,    |D(u, c sigma) - u|^2    for some c about 1

are means over pixels and over draws of n for every item, from which follow |D - x0|^2, the best gain, and the best c with its
own gain: min_g E|u + g (D_c - u) - x0|^2 = E|x0 - u|^2 - E<D_c - u, x0 - u>^2 / E|D_c - u|^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import ConfigError, NumericalError
from .rng import Streams

__all__ = ["Probe", "probe"]

_RATIO = math.sqrt(2.0)  # between the levels that are told


@dataclass(frozen=True)
class Probe:
    """Means over pixels and draws at one noise level: (N,) per item, or (F, N) for the factors of the told level; float64."""

    sigma: float
    factors: tuple[float, ...]
    noise: Tensor  # |x0 - u|^2
    shrunk: Tensor  # |m + k (u - m) - x0|^2
    bias: Tensor  # D - x0
    fit: Tensor  # <D - u, x0 - u>
    removed: Tensor  # |D - u|^2
    scale: float  # s

    @property
    def told(self) -> tuple[Tensor, Tensor]:
        """`fit` and `removed` at the right level."""
        one = self.factors.index(1.0)
        return self.fit[one], self.removed[one]

    @property
    def error(self) -> Tensor:
        """|D - x0|^2."""
        fit, removed = self.told
        return self.noise - 2 * fit + removed

    @property
    def gain(self) -> float:
        fit, removed = self.told
        return float(fit.mean() / removed.mean())

    def read(self, keep: Tensor | None = None) -> tuple[float, float, float]:
        """ln c at the minimum, from a parabola in ln c; what it saves, and the curve's span; shares of the error at c = 1."""
        keep = torch.ones_like(self.noise, dtype=torch.bool) if keep is None else keep
        fit, removed = self.fit[:, keep].mean(1), self.removed[:, keep].mean(1)
        explained = torch.where(removed > 0, fit.square() / removed, 0.0)  # D = u explains nothing
        curve = (self.noise[keep].mean() - explained).tolist()
        place, start = [math.log(c) for c in self.factors], curve[self.factors.index(1.0)]
        best = min(range(len(curve)), key=curve.__getitem__)
        x, low = place[best], curve[best]
        if 0 < best < len(curve) - 1:
            left, right = place[best - 1] - x, place[best + 1] - x
            a, b = (curve[best - 1] - low) / left, (curve[best + 1] - low) / right
            second, slope = (b - a) / (right - left), (a * right - b * left) / (right - left)
            if second > 0.0:
                x, low = x - slope / (2 * second), low - slope**2 / (4 * second)
        return x, 1.0 - low / start, (max(curve) - min(curve)) / start

    @cached_property
    def spread(self) -> tuple[float, float]:
        """Standard errors of ln c and of the saving, by the jackknife over items."""
        count = len(self.noise)
        left_out = ~torch.eye(count, dtype=torch.bool, device=self.noise.device)
        values = torch.tensor([self.read(keep)[:2] for keep in left_out], dtype=torch.float64)
        place, saving = ((count - 1) * values.var(0, unbiased=False)).sqrt().tolist()
        return place, saving


@torch.no_grad()
def probe(prior: Denoiser, data: Tensor, sigma: float, draws: int, seed: int, batch: int) -> Probe:
    """Compare D with the truth at one level, and at the levels about it that lie in the prior's interval.

    `draws` of the noise for each item of data (N, *shape), `batch` of them per call.
    """
    slack = 1 + 1e-6
    if not prior.sigma_min <= sigma * slack or not sigma <= prior.sigma_max * slack:
        raise ConfigError(
            f"{type(prior).__name__}: expected noise levels in [{prior.sigma_min:g}, {prior.sigma_max:g}], got {sigma:g}"
        )
    told = [sigma * _RATIO**k for k in range(-2, 3)]
    if prior.known is not None:
        known = prior.known.double().cpu()
        nearest = [float(known[(known / s).log().abs().argmin()]) for s in told]
        sigma, told = nearest[2], sorted(set(nearest))
    inside = [s for s in told if s == sigma or (prior.sigma_min <= s * slack and s <= prior.sigma_max * slack)]
    mean, scale, parts = data.double().mean(), float(data.double().std(unbiased=False)), []
    keep = scale**2 / (scale**2 + sigma**2)
    for start in range(0, draws * len(data), batch):
        numbers = range(start, min(start + batch, draws * len(data)))
        clean = data[[k % len(data) for k in numbers]]
        noisy = clean + sigma * Streams(seed, numbers).normal(0, clean.shape[1:], "health", clean.dtype, clean.device)
        x0, u = clean.double(), noisy.double()
        wanted = x0 - u
        removed = [prior(noisy, noisy.new_full((len(noisy),), s)).double() - u for s in inside]
        columns = [wanted.square(), (mean + keep * (u - mean) - x0).square(), removed[inside.index(sigma)] - wanted]
        columns += [r * wanted for r in removed] + [r.square() for r in removed]
        parts.append(torch.stack([v.flatten(1).mean(1) for v in columns]))
    table = torch.cat(parts, dim=1).unflatten(1, (draws, len(data))).mean(1)
    if not bool(table.isfinite().all()):
        raise NumericalError(f"{type(prior).__name__}: D is not finite at sigma = {sigma:g}")
    fit, removal = table[3:].unflatten(0, (2, len(inside)))
    return Probe(sigma, tuple(s / sigma for s in inside), table[0], table[1], table[2], fit, removal, scale)
