"""Computed tomography with a point source: fan beams in two dimensions, cone beams in three.

    p(t, u) = integral of f along the line from the source to the detector element u, at angle t

x points right along the columns, y up against the rows; at angle t the detector's axis is (cos t, sin t) and the source is at
source_distance (sin t, -cos t), below the image for t = 0, so that a far source gives the parallel beam of `ParallelBeamCT`.
Detectors are flat, with equidistant elements. Line integrals are in image units times mm.

Two engines of the same numbers, Joseph's projector and its exact transpose (kernels/projector.py):

    stored    a sparse matrix and its transpose: fast, about 30 bytes per pixel (voxel: 60) and view in float32
    direct    weights worked out at every call, by chunks: any size

References: Kak, Slaney, Principles of computerized tomographic imaging, 1988, chapter 3; Feldkamp, Davis, Kress, Practical
cone-beam algorithm, JOSA A 1, 1984 (the geometry).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..core.errors import ConfigError
from ..core.operator import LinearOperator
from ..kernels.beams import Beams, ConeBeam, FanBeam, Layout, Rays, trace
from ..kernels.dispatch import use_triton
from ..kernels.projector import crossings, gather_pixels, integrate, margins
from .constants import Constants
from .sparse import to_torch

__all__ = ["ConeBeamCT", "FanBeamCT"]

Engine = Literal["auto", "stored", "direct"]
_MANY_WEIGHTS = 2**24


def beam_matrices(layout: Layout, angles: Tensor) -> tuple[Tensor, Tensor]:
    """A, (views R K, D H W), and its transpose, sparse CSR float64; rays by view, row and column."""
    from scipy.sparse import csr_array

    rays = trace(layout, angles)
    (d, h, w), (rows, columns), views = layout.size, layout.panel, len(angles)
    lengths = (rays.lengths * rays.lines[:, None, 5]).mT.reshape(-1, 1)
    number = pad(torch.arange(1, d * h * w + 1, dtype=torch.int32).view(1, d, h, w), margins(layout)).flatten() - 1
    counts, pixels, values, done = [], [], [], 0
    for taps in crossings(rays, layout):
        index, weight = (torch.cat(part, dim=1) for part in zip(*taps, strict=True))
        pixel = number.index_select(0, index.flatten()).view(index.shape)
        kept = (weight > 0.0) & (pixel >= 0)
        counts.append(kept.sum(1))
        pixels.append(pixel[kept])
        values.append((weight * lengths[done : done + len(weight)])[kept])
        done += len(weight)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])
    parts = [v.numpy() for v in (torch.cat(values), torch.cat(pixels), starts.to(torch.int32))]
    matrix = csr_array(tuple(parts), shape=(done, d * h * w))
    if rows > 1:
        matrix = matrix[torch.arange(done).view(views, columns, rows).mT.flatten().numpy()]
    transpose = matrix.T.tocsr()
    # transposed twice, its columns are in order
    return to_torch(transpose.T.tocsr()), to_torch(transpose)


class _BeamCT(LinearOperator):
    """What fan and cone beams share.

    Args:
        geometry: the beams.
        engine: "stored", "direct", or "auto": stored up to 16 million weights.
    """

    def __init__(self, geometry: Beams, engine: Engine) -> None:
        name, layout = type(self).__name__, geometry.layout
        if engine not in ("auto", "stored", "direct"):
            raise ConfigError(f"{name}: expected engine auto, stored or direct, got {engine!r}")
        views, panel = len(geometry.angles), layout.panel if isinstance(geometry, ConeBeam) else layout.panel[1:]
        super().__init__((1, *geometry.size), (1, views, *panel))
        self.layout = layout
        self.pixel, self.pitch = geometry.pixel, geometry.pitch
        weights = views * math.prod(layout.size) * math.prod(layout.reach)
        self.engine = engine if engine != "auto" else ("stored" if weights <= _MANY_WEIGHTS else "direct")
        self.rays = Constants(partial(trace, layout), geometry.angles)
        self.matrices = Constants(partial(beam_matrices, layout), geometry.angles)

    @property
    def angles(self) -> Tensor:
        """The views' angles in radians, (views,)."""
        return self.rays.given0

    def forward(self, x: Tensor) -> Tensor:
        if self.engine == "stored" and not use_triton(x, kernel="projector"):
            matrix, _ = self.matrices(x)
            return (matrix @ x.flatten(1).mT).mT.reshape(-1, *self.out_shape)
        volume = x.reshape(-1, *self.layout.size)
        return integrate(volume, Rays(*self.rays(x)), self.layout).reshape(-1, *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        if self.engine == "stored" and not use_triton(y, kernel="projector"):
            _, transpose = self.matrices(y)
            return (transpose @ y.flatten(1).mT).mT.reshape(-1, *self.in_shape)
        panels = y.reshape(-1, len(self.angles), *self.layout.panel)
        return gather_pixels(panels, Rays(*self.rays(y)), self.layout).reshape(-1, *self.in_shape)

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}, pixel={self.pixel:g}, pitch={self.pitch:g}, engine={self.engine}"


class FanBeamCT(_BeamCT):
    """Line integrals of a slice along fan beams, (B, 1, H, W) -> (B, 1, views, detector).

    Args:
        size: side of the image in pixels, or (H, W).
        angles: number of views, equally spaced over [0, 2 pi); or the views' angles in radians, (views,).
        detector: number of elements; None takes the even number that covers the image, whatever the offset.
        source_distance: from the source to the image's centre in mm; the source has to be outside the image.
        detector_distance: from the image's centre to the detector in mm.
        pixel: side of a pixel in mm.
        pitch: distance of detector elements in mm, on the detector.
        offset: shift of the detector along its axis in mm.
        engine: "stored", "direct", or "auto": stored up to 16 million weights (256 x 256 and 60 views).

    `solve` and `pinv` are conjugate gradients on the normal equations: `solve` takes about 4 sqrt(|A|^2 / rho) of them, `pinv`
    gives the least-squares solution of smallest norm and raises a NumericalError where 2000 of them don't reach it.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 128,
        angles: int | Tensor = 60,
        detector: int | None = None,
        source_distance: float = 500.0,
        detector_distance: float = 500.0,
        pixel: float = 1.0,
        pitch: float = 2.0,
        offset: float = 0.0,
        engine: Engine = "auto",
    ) -> None:
        h, w = (size, size) if isinstance(size, int) else size
        views = _full_turn(angles)
        lengths = source_distance, detector_distance, pixel, pitch
        # one element first: the range of the arguments is checked before they are computed with
        radius = FanBeam((h, w), views, 1, *lengths, offset).layout.radius + 1.0
        needed = (_tangent(radius * pixel, source_distance, detector_distance) + abs(offset)) / pitch
        elements = 2 * math.ceil(needed) if detector is None else detector
        super().__init__(FanBeam((h, w), views, elements, *lengths, offset), engine)


class ConeBeamCT(_BeamCT):
    """Line integrals of a volume along cone beams, (B, 1, D, H, W) -> (B, 1, views, rows, columns).

    The source moves on a circle in the plane of the central slice; slices and rows of the panel count upwards.

    Args:
        size: side of the volume in voxels, or (D, H, W).
        angles: number of views, equally spaced over [0, 2 pi); or the views' angles in radians, (views,).
        detector: rows and columns of the panel; None takes the even numbers that cover the volume, whatever the offset.
        source_distance: from the source to the axis in mm; the source has to be outside the volume.
        detector_distance: from the axis to the panel in mm.
        pixel: side of a voxel in mm.
        pitch: distance of the panel's elements in mm, along rows and columns.
        offset: shift of the panel in mm, (upwards, along its columns).
        engine: "stored", "direct", or "auto": stored up to 16 million weights (32 x 32 x 32 and 56 views).

    `solve` and `pinv` are conjugate gradients on the normal equations: `solve` takes about 4 sqrt(|A|^2 / rho) of them, `pinv`
    gives the least-squares solution of smallest norm and raises a NumericalError where 2000 of them don't reach it.

    Raises:
        ConfigError: an argument is out of its range, or rays rise by more than 35 degrees.
    """

    def __init__(
        self,
        size: int | tuple[int, int, int] = 64,
        angles: int | Tensor = 60,
        detector: tuple[int, int] | None = None,
        source_distance: float = 250.0,
        detector_distance: float = 250.0,
        pixel: float = 1.0,
        pitch: float = 2.0,
        offset: tuple[float, float] = (0.0, 0.0),
        engine: Engine = "auto",
    ) -> None:
        d, h, w = (size, size, size) if isinstance(size, int) else size
        views = _full_turn(angles)
        lengths = source_distance, detector_distance, pixel, pitch
        # one element first: the range of the arguments is checked before they are computed with
        radius = (ConeBeam((d, h, w), views, (1, 1), *lengths, (offset[0], offset[1])).layout.radius + 1.0) * pixel
        # the top of the volume, with the pixel over which interpolation fades, is seen highest from where it is nearest
        rise = 0.5 * (d + 1) * pixel * (source_distance + detector_distance) / (source_distance - radius)
        columns = _tangent(radius, source_distance, detector_distance)
        needed = (rise + abs(offset[0])) / pitch, (columns + abs(offset[1])) / pitch
        covering = 2 * math.ceil(needed[0]), 2 * math.ceil(needed[1])
        panel = covering if detector is None else (detector[0], detector[1])
        super().__init__(ConeBeam((d, h, w), views, panel, *lengths, (offset[0], offset[1])), engine)


def _full_turn(angles: int | Tensor) -> Tensor:
    if isinstance(angles, int):
        return torch.arange(max(angles, 0), dtype=torch.float64) * (2.0 * math.pi / max(angles, 1))
    return angles


def _tangent(radius: float, source: float, detector: float) -> float:
    """Where the ray that touches a circle about the origin meets the detector, from its centre."""
    return radius / math.sqrt(source**2 - radius**2) * (source + detector)
