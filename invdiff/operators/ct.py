"""Parallel-beam computed tomography in two dimensions.

    p(t, s) = integral of f along the line x cos t + y sin t = s

x points right along the columns, y up against the rows, the origin is the image's centre at (N - 1) / 2; detector element k
is at s = (k - (K - 1) / 2) pitch. Line integrals are in image units times mm. Two engines, both with an exact transpose:

    joseph    linear interpolation, a sparse matrix (ct_joseph): few views, large batches, sharp edges
    fourier   the band-limited image through the projection-slice theorem (ct_fourier): many views, smooth objects
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import CapabilityError, ConfigError
from ..core.linalg import expand
from ..core.operator import LinearOperator
from ..kernels.beams import ParallelBeam, Rays, trace
from ..kernels.dispatch import use_triton
from ..kernels.projector import gather_pixels, integrate
from .constants import Constants
from .ct_dual import dual_inverse, dual_spectrum, largest_block
from .ct_fbp import filtered_backprojection
from .ct_fourier import Slices, backproject, fourier_constants, padded_row, project
from .ct_joseph import joseph_matrices

__all__ = ["ParallelBeamCT"]

_MANY_VIEWS, _LARGEST_BLOCK = 30, 2048


class ParallelBeamCT(LinearOperator):
    """Line integrals of a slice, (B, 1, H, W) -> (B, 1, views, detector).

    Args:
        size: side of the image in pixels, or (H, W).
        angles: number of views, equally spaced over [0, pi); or the views' angles in radians, (views,).
        detector: number of elements; None takes the even number that covers the image's diagonal.
        pixel: side of a pixel in mm.
        pitch: distance of detector elements in mm.
        engine: "joseph", "fourier", or "auto": joseph up to 30 views, where its matrix is small.

    The matrices are made at the first call, in the precision of the image: 0.1 s for 128 x 128 and 20 views; the joseph
    matrices take about 30 bytes per pixel and view in float32. Where the kernel "projector" is switched on, on CUDA, `forward`
    and `adjoint` of the joseph engine work the same weights out instead.

    With few rays (joseph, up to 8192 for equally spaced views and 4096 for others) `solve` and `pinv` are exact, in float64
    inside, after a decomposition at their first call (about 2 s for 128 x 128 and 20 views). With more, `solve` takes about
    4 sqrt(|A|^2 / rho) conjugate-gradient iterations, |A|^2 about views x size x pixel^3 / pitch, and there is no `pinv`.
    The pseudo-inverse of sparse views amplifies noise by up to 1e5.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 128,
        angles: int | Tensor = 20,
        detector: int | None = None,
        pixel: float = 1.0,
        pitch: float = 1.0,
        engine: Literal["auto", "joseph", "fourier"] = "auto",
    ) -> None:
        h, w = (size, size) if isinstance(size, int) else size
        if not (min(h, w) >= 2 and pixel > 0.0 and pitch > 0.0):
            raise ConfigError(f"ParallelBeamCT: expected size >= 2, pixel > 0, pitch > 0, got ({h}, {w}), {pixel}, {pitch}")
        if engine not in ("auto", "joseph", "fourier"):
            raise ConfigError(f"ParallelBeamCT: expected engine auto, joseph or fourier, got {engine!r}")
        views = (
            torch.arange(max(angles, 0), dtype=torch.float64) * (math.pi / max(angles, 1))
            if isinstance(angles, int)
            else angles
        )
        if views.ndim != 1 or len(views) < 1 or not bool(views.isfinite().all()):
            raise ConfigError(f"ParallelBeamCT: expected at least one angle in radians, got {angles}")
        elements = 2 * math.ceil(0.5 * math.hypot(h, w) * pixel / pitch) if detector is None else detector
        if elements < 1:
            raise ConfigError(f"ParallelBeamCT: expected at least one detector element, got {detector}")
        super().__init__((1, h, w), (1, len(views), elements))
        self.pixel, self.pitch = pixel, pitch
        self.engine = engine if engine != "auto" else ("joseph" if len(views) <= _MANY_VIEWS else "fourier")
        self.row = padded_row((h, w), elements, pixel, pitch)
        geometry = {"size": (h, w), "detector": elements, "pixel": pixel, "pitch": pitch}
        derive = joseph_matrices if self.engine == "joseph" else fourier_constants
        self.constants = Constants(partial(derive, **geometry), views)
        self.exact = self.engine == "joseph" and largest_block(views, elements) <= _LARGEST_BLOCK
        self.dual = Constants(partial(dual_spectrum, **geometry), views)
        # the same numbers as the joseph matrices, without storing them: where the kernel "projector" is on
        self.layout = ParallelBeam((h, w), views, elements, pixel, pitch).layout
        self.rays = Constants(partial(trace, self.layout), views)

    @property
    def angles(self) -> Tensor:
        """The views' angles in radians, (views,)."""
        return self.constants.given0

    def forward(self, x: Tensor) -> Tensor:
        if self.engine == "fourier":
            return project(x, Slices(*self.constants(x)), detector=self.out_shape[2], row=self.row)
        if use_triton(x, kernel="projector"):
            return integrate(x, Rays(*self.rays(x)), self.layout).transpose(1, 2)
        matrix, _ = self.constants(x)
        return (matrix @ x.flatten(1).mT).mT.reshape(-1, *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        if self.engine == "fourier":
            return backproject(y, Slices(*self.constants(y)), row=self.row)
        if use_triton(y, kernel="projector"):
            return gather_pixels(y.transpose(1, 2), Rays(*self.rays(y)), self.layout)
        _, transpose = self.constants(y)
        return (transpose @ y.flatten(1).mT).mT.reshape(-1, *self.in_shape)

    def solve(self, b: Tensor, rho: Tensor) -> Tensor:
        if not self.exact:
            return LinearOperator.solve(self, b, rho)
        # the difference below cancels by a factor of rho^(3/2): nothing less than float64 will do
        v, weight = b.double(), rho.double()
        matrix, transpose = self.constants(v)
        inside = transpose @ dual_inverse(matrix @ v.flatten(1).mT, weight, self.dual(v))
        return ((v - inside.mT.reshape(v.shape)) / expand(weight, v)).to(b.dtype)

    def pinv(self, y: Tensor) -> Tensor:
        if not self.exact:
            raise CapabilityError(
                "ParallelBeamCT: the pseudo-inverse of so many rays is out of reach: use fbp(y), or solve(adjoint(y), rho)"
            )
        v = y.double()
        _, transpose = self.constants(v)
        x = transpose @ dual_inverse(v.flatten(1).mT, v.new_zeros(len(v)), self.dual(v))
        return x.mT.reshape(-1, *self.in_shape).to(y.dtype)

    def fbp(self, y: Tensor, window: Literal["ram-lak", "hann", "cosine"] = "ram-lak") -> Tensor:
        """Filtered backprojection, (B, 1, views, detector) -> (B, 1, H, W), for angles equally spaced over pi."""
        self.check(y, "y")
        return filtered_backprojection(
            y, self.angles, size=self.in_shape[1:], pixel=self.pixel, pitch=self.pitch, window=window
        )

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}, pixel={self.pixel:g}, pitch={self.pitch:g}, engine={self.engine}"
