"""The prior of an image and of parameters of its measurement: independent parts of one unknown.

    p(x_1, x_2, ...) = p_1(x_1) p_2(x_2) ...,      u = (x_1 / s_1, x_2 / s_2, ...) as one flat vector

    D(u, sigma) = (D_1(s_1 u_1, s_1 sigma) / s_1, D_2(s_2 u_2, s_2 sigma) / s_2, ...)

Exact: white noise of u is independent white noise of the parts, of level s_i sigma in the units of part i. The posterior does
not depend on the units s_i, and the path of a sampler does: a part in a larger unit is noisier at every level, and so decided
later. A unit near (standard deviation of the part) / (that of the image) lets all be decided together.

Beside `operators.calibration` this makes a sampler blind: it draws parameters of the operator with the image, under a prior of
theirs, and needs to know nothing about it. What is exact for every operator stays exact; what is exact for linear ones only is
not, the pair being bilinear at best. Sliced Wasserstein distance of 1,000 draws of (image, gain) to exact ones over that
between exact ones, mean of three problems (`validation.blind_cases`):

    TDS, 4 particles, 100 steps     0.97        MMPS, ODE (Heun), 40 steps      1.35        GDP, 200 steps     2.4
    MMPS, SDE-DPM-Solver++, 100     1.01        DPS, 200 steps                  3.8

The tangent of MMPS is wrong at high noise, where the pair is spread widely; the ODE keeps what it did there, an integrator with
noise forgets it. For the centre of rotation of a scan (tests/exact/test_calibration.py, 32 x 32, exact posterior 1.2930 with a
standard deviation of 0.0104 detector elements) 64 draws gave

    unit, in detector elements              0.03             0.1              0.3              1.5              5
    ODE, 20 steps, 5 products          1.085  0.133     1.280  0.046     1.293  0.022     1.296  0.025     1.292  0.037
    SDE, 60 steps, 5 products          1.292  0.093     1.301  0.020     1.295  0.012

and 96 of the SDE with a unit of 1 1.297 and 0.012, of 3 1.297 and 0.015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core import ConfigError, Denoiser, Operator, ShapeError
from ..operators.calibration import Multiplied
from .adapter import require_image
from .field import SpectralGaussian
from .gaussian import GaussianPrior
from .mixture import GaussianMixture

__all__ = ["Independent", "normal_parameters"]

# exact at every level, so that their limits are no limits of the whole
_ANYWHERE = (GaussianPrior, GaussianMixture, SpectralGaussian)


class Independent(Denoiser):
    """A prior of vectors (1, N) that hold independent parts, one after the other.

    `synthesis` gives the operator from u to the parts in their own units, (1, N) too, which is what `operators.calibration`
    takes: `problem.through(prior.synthesis(problem.shape))` is the problem of u. Noise levels are those of the first part,
    narrowed by those of the others that are not known in closed form.

    Args:
        parts: their priors; the image first. One that takes a condition is told it first (`Given`).
        units: s_i, positive, in the units of each part; None for 1.
        shapes: of the parts, without the batch; needed of those that take any size.

    Raises:
        ConfigError: units are not positive, a part is of latents, or the parts have no noise level in common.
        ShapeError: a shape is missing or does not fit its part.
    """

    scale: Tensor

    def __init__(
        self,
        parts: Sequence[Denoiser],
        units: Sequence[float] | None = None,
        shapes: Sequence[Sequence[int] | None] | None = None,
    ) -> None:
        units = [1.0] * len(parts) if units is None else [float(s) for s in units]
        shapes = [None] * len(parts) if shapes is None else shapes
        if not parts or not len(parts) == len(units) == len(shapes) or not all(0.0 < s < math.inf for s in units):
            raise ConfigError(f"Independent: expected a positive unit and a shape for each of {len(parts)} parts, got {units}")
        known = [part.known / s for part, s in zip(parts, units, strict=True) if part.known is not None]
        if len(known) > 1:
            raise ConfigError(f"Independent: expected one part with levels of its own at most, got {len(known)}")
        narrow = [
            (part.sigma_min / s, part.sigma_max / s)
            for k, (part, s) in enumerate(zip(parts, units, strict=True))
            if k == 0 or not isinstance(part, _ANYWHERE)
        ]
        low, high = max(a for a, _ in narrow), min(b for _, b in narrow)
        if not low < high:
            raise ConfigError(f"Independent: the parts have no noise level in common, only {narrow} in units of u")
        sizes = [_shape(part, shape) for part, shape in zip(parts, shapes, strict=True)]
        super().__init__((1, sum(map(math.prod, sizes))), low, high)
        self.known = known[0] if known else None
        self.parts, self.units, self.shapes = nn.ModuleList(parts), tuple(units), tuple(sizes)
        scale = [torch.full((math.prod(size),), s, dtype=torch.float64) for size, s in zip(sizes, units, strict=True)]
        self.register_buffer("scale", torch.cat(scale)[None], persistent=False)

    def split(self, u: Tensor) -> tuple[Tensor, ...]:
        """The parts in their own units, (B, *shape_i) each, of u, (B, 1, N)."""
        pieces = u[:, 0].split([math.prod(size) for size in self.shapes], 1)
        return tuple(s * p.unflatten(1, size) for p, s, size in zip(pieces, self.units, self.shapes, strict=True))

    def join(self, *parts: Tensor) -> Tensor:
        """u, (B, 1, N), of the parts in their own units, (B, *shape_i)."""
        return torch.cat([part.flatten(1) / s for part, s in zip(parts, self.units, strict=True)], 1)[:, None]

    @property
    def origin(self) -> Tensor:
        full = [
            torch.as_tensor(part.origin, dtype=self.scale.dtype, device=self.scale.device).expand(1, *size)
            for part, size in zip(self.parts, self.shapes, strict=True)
        ]
        return self.join(*full)[0]

    def synthesis(self, shape: Sequence[int]) -> Operator:
        """From u to the parts in their own units."""
        return Multiplied(self.scale, self.shape)  # type: ignore[arg-type]

    def analyse(self, x: Tensor) -> Tensor:
        return x / self.scale.to(x.dtype)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[u0 | u], each part by its own prior."""
        own = [part(v, s * sigma) for part, v, s in zip(self.parts, self.split(x), self.units, strict=True)]
        return self.join(*own)

    def extra_repr(self) -> str:
        return f"{self.shapes}, units={self.units}"


def normal_parameters(count: int = 1, std: float = 1.0, mean: float = 0.0) -> GaussianPrior:
    """Independent parameters (count,) of normal law, for `Independent`."""
    if count < 1 or not 0.0 < std < math.inf:
        raise ConfigError(f"normal_parameters: expected count >= 1 and std > 0, got {count} and {std}")
    full = torch.full((count,), mean, dtype=torch.float64)
    return GaussianPrior(full, torch.full_like(full, std**2))


def _shape(part: Denoiser, shape: Sequence[int] | None) -> tuple[int, ...]:
    require_image(part, "Independent")
    wanted = part.shape if shape is None else tuple(shape)
    fits = len(wanted) == len(part.shape) and all(
        isinstance(n, int) and s in (None, n) for n, s in zip(wanted, part.shape, strict=True)
    )
    free = [n for n, s in zip(wanted[1:], part.shape[1:], strict=False) if s is None and n is not None]
    if not fits or any(n % part.divisor for n in free):
        raise ShapeError(
            f"Independent: expected a shape that fits {type(part).__name__} on {part.shape}, in multiples of {part.divisor}, "
            f"got {shape}"
        )
    return wanted  # type: ignore[return-value]
