"""Parallel, fan and cone beams as one family of straight rays.

At angle t the detector's axis is e = (cos t, sin t), x to the right and y up, and n = (sin t, -cos t) points at the source, a
distance R = 1 / kappa from the origin, the image's centre at (N - 1) / 2. The ray of the virtual detector's point (u, v), which
is the detector scaled into the plane through the origin, is

    p(tau) = u e + v z + tau d,    d = n - kappa (u e + v z),    m(p) = 1 - kappa p . n,    u(p) = p . e / m,    v(p) = p_z / m.

kappa = 0 is the parallel beam, whose rays are x cos t + y sin t = u. Along the dominant axis of the slice plane, that with the
larger of |d_x|, |d_y|, everything that a projector needs is affine in the centred index l of the line or column:

    position across = a + b l,      m = e + f l,      height = v m,      length per line = pixel |d| / max(|d_x|, |d_y|).

These coefficients are derived in float64, once for each view and detector column; they don't cancel however far the source is.

References: Joseph, An improved algorithm for reprojecting rays through pixel images, IEEE TMI 1, 1982; Feldkamp, Davis, Kress,
Practical cone-beam algorithm, JOSA A 1, 1984 (the circular orbit and flat panel).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..core.errors import ConfigError

__all__ = ["Beams", "ConeBeam", "FanBeam", "Layout", "ParallelBeam", "Rays", "trace"]

# a bin this close to the edge of a pixel's footprint is looked at, whatever the rounding of its position
SLACK = 0.125
# a source closer to the image, in parts of its distance, leaves float32 too few digits of where a footprint ends
_CLEARANCE = 0.01


class Rays(NamedTuple):
    """What the projectors read of a geometry, in the image's precision.

    Attributes:
        lines: (views, 6, K): a, b, e, f, whether the dominant axis is y (1 or 0), and 1 / max(|d_x|, |d_y|).
        lengths: (R, K): pixel |d| in mm.
        rise: (2,): v of the panel's first row, and from one row to the next, in pixels.
        axes: (views, 2): cos t, sin t.
    """

    lines: Tensor
    lengths: Tensor
    rise: Tensor
    axes: Tensor


@dataclass(frozen=True)
class Layout:
    """A geometry in pixels, without its angles.

    Args:
        size: (D, H, W) of the image.
        panel: (R, K), rows and columns of the detector.
        pixel: side of a pixel in mm.
        curvature: kappa, the inverse distance of the source, per pixel; 0 for parallel rays.
        first: (v, u) of the detector's first element, scaled to the origin.
        step: (v, u) from one element to the next.
    """

    size: tuple[int, int, int]
    panel: tuple[int, int]
    pixel: float
    curvature: float
    first: tuple[float, float]
    step: tuple[float, float]

    @property
    def flat(self) -> bool:
        """Whether all is in one plane."""
        return self.size[0] == 1 and self.panel[0] == 1 and self.first[0] == 0.0

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns of the detector whose rays may touch a pixel, at most."""
        rows = 2.0 / (self.step[0] * (1.0 - self.curvature * (self.radius + 1.0)))
        columns = 2.0 * widest(self.curvature, self.radius) / self.step[1]
        return (
            1 if self.flat else min(math.floor(rows + 2 * SLACK) + 1, self.panel[0]),
            min(math.floor(columns + 2 * SLACK) + 1, self.panel[1]),
        )

    @property
    def radius(self) -> float:
        """Half the diagonal of a slice between pixel centres."""
        return 0.5 * math.hypot(self.size[1] - 1, self.size[2] - 1)


def half_width(m: Tensor, lateral: Tensor, kappa: float) -> Tensor:
    """A bound of |u(p + delta) - u(p)| for |delta| <= 1, with m = m(p) and lateral = p . e.

    u(p + delta) - u(p) = (m delta_e + kappa lateral delta_n) / (m (m - kappa delta_n)).
    """
    return (m.square() + (kappa * lateral).square()).sqrt() / (m * (m - kappa))


def widest(kappa: float, radius: float) -> float:
    """The largest `half_width` in a disc about the origin.

    It falls as m grows, so it is on the circle, where it is f(m) = sqrt(2 m - q) / (m (m - kappa)), q = 1 - (kappa radius)^2,
    |m - 1| <= kappa radius: at the least m, or where 3 m^2 - (2 q + kappa) m + kappa q = 0 at its larger root.
    """
    least, q = 1.0 - kappa * radius, 1.0 - (kappa * radius) ** 2
    half = 1.0 / (least - kappa)
    root = (2.0 * q + kappa) ** 2 - 12.0 * q * kappa
    if root > 0.0:
        m = min(max((2.0 * q + kappa + math.sqrt(root)) / 6.0, least), 2.0 - least)
        half = max(half, math.sqrt(2.0 * m - q) / (m * (m - kappa)))
    return half


@dataclass(frozen=True, eq=False)
class ParallelBeam:
    """Parallel rays x cos t + y sin t = s, s = (k - (K - 1) / 2) pitch + offset.

    Args:
        size: (H, W) of the image in pixels.
        angles: the views' angles in radians, (views,).
        detector: number K of detector elements.
        pixel: side of a pixel in mm.
        pitch: distance of detector elements in mm.
        offset: shift of the detector along its axis in mm.

    Shapes: image (B, 1, H, W) -> sinogram (B, 1, views, K).

    Raises:
        ConfigError: an argument is out of its range.
    """

    size: tuple[int, int]
    angles: Tensor
    detector: int
    pixel: float = 1.0
    pitch: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        _require_lengths(self, pixel=self.pixel, pitch=self.pitch)
        _require_grid(self, self.size, (self.detector,), self.angles, (self.offset,))
        _require_indices(self)

    @property
    def layout(self) -> Layout:
        """The geometry in pixels."""
        step = self.pitch / self.pixel
        first = self.offset / self.pixel - 0.5 * (self.detector - 1) * step
        return Layout((1, *self.size), (1, self.detector), self.pixel, 0.0, (0.0, first), (1.0, step))


@dataclass(frozen=True, eq=False)
class FanBeam:
    """Rays from a point source to a flat detector of equidistant elements, both turning about the image's centre.

    Args:
        size: (H, W) of the image in pixels.
        angles: the views' angles in radians, (views,); at angle 0 the source is below the image.
        detector: number K of detector elements.
        source_distance: from the source to the origin in mm.
        detector_distance: from the origin to the detector in mm, >= 0.
        pixel: side of a pixel in mm.
        pitch: distance of elements in mm, on the detector.
        offset: shift of the detector along its axis in mm.

    Shapes: image (B, 1, H, W) -> sinogram (B, 1, views, K).

    Raises:
        ConfigError: an argument is out of its range, or the source is not outside the circle around the image.
    """

    size: tuple[int, int]
    angles: Tensor
    detector: int
    source_distance: float
    detector_distance: float
    pixel: float = 1.0
    pitch: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        _require_lengths(self, source_distance=self.source_distance, pixel=self.pixel, pitch=self.pitch)
        _require_grid(self, self.size, (self.detector,), self.angles, (self.offset,))
        _require_outside(self, self.layout, self.source_distance, self.detector_distance)
        _require_indices(self)

    @property
    def layout(self) -> Layout:
        """The geometry in pixels."""
        scale = _demagnified(self.source_distance, self.detector_distance, self.pixel)
        step = self.pitch * scale
        first = self.offset * scale - 0.5 * (self.detector - 1) * step
        curvature = self.pixel / self.source_distance
        return Layout((1, *self.size), (1, self.detector), self.pixel, curvature, (0.0, first), (1.0, step))


@dataclass(frozen=True, eq=False)
class ConeBeam:
    """Rays from a point source on a circle in the central slice to a flat panel, which turn about the volume's axis.

    Slices count upwards as the panel's rows do. Rays rise by at most 35 degrees (1 / sqrt(2) per unit towards the detector), so
    that none of them skips a slice.

    Args:
        size: (D, H, W) of the volume in voxels.
        angles: the views' angles in radians, (views,); at angle 0 the source is below the slices.
        detector: (R, K), rows and columns of the panel.
        source_distance: from the source to the axis in mm.
        detector_distance: from the axis to the panel in mm, >= 0.
        pixel: side of a voxel in mm.
        pitch: distance of the panel's elements in mm, along rows and columns.
        offset: shift of the panel in mm, (upwards, along its columns).

    Shapes: volume (B, 1, D, H, W) -> projections (B, 1, views, R, K).

    Raises:
        ConfigError: an argument is out of its range, the source is not outside the cylinder around the volume, or rays rise
            by more than 35 degrees.
    """

    size: tuple[int, int, int]
    angles: Tensor
    detector: tuple[int, int]
    source_distance: float
    detector_distance: float
    pixel: float = 1.0
    pitch: float = 1.0
    offset: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        _require_lengths(self, source_distance=self.source_distance, pixel=self.pixel, pitch=self.pitch)
        _require_grid(self, self.size, self.detector, self.angles, self.offset)
        layout = self.layout
        _require_outside(self, layout, self.source_distance, self.detector_distance)
        highest = max(abs(layout.first[0]), abs(layout.first[0] + (layout.panel[0] - 1) * layout.step[0]))
        if highest * layout.curvature > math.sqrt(0.5) + 1e-9:
            angle = math.degrees(math.atan(highest * layout.curvature))
            raise ConfigError(f"ConeBeam: expected rays that rise by at most 35 degrees, got {angle:.1f}: take fewer rows")
        _require_indices(self)

    @property
    def layout(self) -> Layout:
        """The geometry in pixels."""
        scale = _demagnified(self.source_distance, self.detector_distance, self.pixel)
        step, (rows, columns) = self.pitch * scale, self.detector
        first = self.offset[0] * scale - 0.5 * (rows - 1) * step, self.offset[1] * scale - 0.5 * (columns - 1) * step
        return Layout(self.size, self.detector, self.pixel, self.pixel / self.source_distance, first, (step, step))


Beams: TypeAlias = ParallelBeam | FanBeam | ConeBeam


def trace(layout: Layout, angles: Tensor) -> Rays:
    """The coefficients of all rays in float64, on the device of the angles."""
    _, h, w = layout.size
    kappa, t = layout.curvature, angles.double()
    v, u = (
        first + step * torch.arange(n, dtype=torch.float64, device=t.device)
        for n, first, step in zip(layout.panel, layout.first, layout.step, strict=True)
    )
    c, s = t.cos()[:, None], t.sin()[:, None]
    dx, dy = s - kappa * u * c, -c - kappa * u * s
    # rays at 45 and 135 degrees are treated alike, whatever their rounding
    upright = dy.abs() >= dx.abs() - 1e-9
    main, across = torch.where(upright, dy, dx), torch.where(upright, dx, dy)
    # y falls with the line's index; x rises with the column's
    sign = torch.where(upright, -1.0, 1.0).to(t)
    along, aside = torch.where(upright, u * s, u * c), torch.where(upright, u * c, u * s)
    centre = torch.where(upright, 0.5 * (w - 1), 0.5 * (h - 1)).to(t)
    lines = (
        centre - sign * (aside - along * across / main),
        -across / main,
        1.0 + kappa * along / main,
        -kappa * sign / main,
        upright.to(t),
        main.abs().reciprocal(),
    )
    lengths = layout.pixel * (1.0 + (kappa * u).square() + (kappa * v[:, None]).square()).sqrt()
    rise = torch.tensor([layout.first[0], layout.step[0]], dtype=torch.float64, device=t.device)
    return Rays(torch.stack(lines, dim=1), lengths, rise, torch.cat((c, s), dim=1))


def _demagnified(source: float, detector: float, pixel: float) -> float:
    """Pixels at the origin per mm on the detector."""
    return source / ((source + detector) * pixel)


def _require_lengths(owner: Beams, **lengths: float) -> None:
    if not all(0.0 < value < math.inf for value in lengths.values()):
        raise ConfigError(f"{type(owner).__name__}: expected {' > 0, '.join(lengths)} > 0, got {list(lengths.values())}")


def _require_grid(
    owner: Beams, size: tuple[int, ...], detector: tuple[int, ...], angles: Tensor, offset: tuple[float, ...]
) -> None:
    name, rank = type(owner).__name__, 3 if isinstance(owner, ConeBeam) else 2
    if len(size) != rank or min(size) < 1:
        raise ConfigError(f"{name}: expected a size of {rank} numbers of pixels, got {size}")
    if len(detector) != rank - 1 or min(detector) < 1:
        raise ConfigError(f"{name}: expected at least one detector element, got {detector}")
    if angles.ndim != 1 or len(angles) < 1 or not bool(angles.isfinite().all()):
        raise ConfigError(f"{name}: expected at least one angle in radians, (views,), got {angles}")
    if len(offset) != rank - 1 or not all(map(math.isfinite, offset)):
        raise ConfigError(f"{name}: expected an offset in mm along each axis of the detector, got {offset}")


def _require_indices(owner: Beams) -> None:
    """Pixels, with the margins that the projectors add, and rays are numbered by 32 bits."""
    layout = owner.layout
    pixels = math.prod(n + 3 for n in layout.size)
    # six coefficients a column
    rays = len(owner.angles) * layout.panel[1] * max(layout.panel[0], 6)
    if max(pixels, rays) >= 2**31:
        raise ConfigError(f"{type(owner).__name__}: expected fewer than 2^31 pixels and rays, got {pixels} and {rays}")


def _require_outside(owner: Beams, layout: Layout, source: float, detector: float) -> None:
    least = (1.0 + _CLEARANCE) * (layout.radius + 1.0) * layout.pixel
    if not (source >= least and 0.0 <= detector < math.inf):
        raise ConfigError(
            f"{type(owner).__name__}: expected source_distance >= {least:g}, which is outside the image, and "
            f"detector_distance >= 0, got {source}, {detector}"
        )
