"""Painting tissues: signed distances, anti-aliased edges, band-limited textures.

Every shape is a signed distance d, in units of the body's radius, and covers a pixel by

    alpha = clip(1/2 - d / w, 0, 1),        image <- (1 - alpha) image + alpha v (1 + s f),

w about one pixel, v the tissue's attenuation, f a band-limited Gaussian field of unit variance and s the strength of the
texture. One smooth random warp of the coordinates bends all the shapes of a slice together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Canvas", "Region", "gaussian_fields"]

Array = NDArray[np.float32]
Window = tuple[slice, slice]

CORTEX = 1.75


class Region(NamedTuple):
    """A shape: the window of pixels that it may touch, and its signed distance there (negative inside)."""

    window: Window
    distance: Array


def gaussian_fields(rng: np.random.Generator, size: int, length: float) -> tuple[Array, Array]:
    """Two periodic Gaussian fields of unit variance; length is the correlation length in pixels."""
    k = np.fft.fftfreq(size)
    decay = np.exp(-0.5 * (2 * np.pi * k * length) ** 2).astype(np.float32)
    white = rng.standard_normal((2, size, size), dtype=np.float32)
    field = np.fft.ifft2(np.fft.fft2(white[0] + 1j * white[1]) * decay[:, None] * decay)
    return tuple((part / part.std()).astype(np.float32) for part in (field.real, field.imag))


class Canvas:
    """A slice being painted. Coordinates: the body within the unit circle, x to the right, y to the back."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size
        self.image = np.zeros((size, size), np.float32)
        self.scale = self.u(0.72, 0.94)
        reach, turn = self.u(0, 0.96 - self.scale), self.u(0, 2 * np.pi)
        self.offset = reach * np.cos(turn), reach * np.sin(turn)
        tilt = self.rng.normal(0, 0.12)
        self.cos, self.sin = np.cos(tilt), np.sin(tilt)
        self.width = np.float32(2 / size / self.scale * self.u(1.0, 1.4))
        px = size / 128
        pairs = [
            gaussian_fields(rng, size, self.u(lo, hi) * px) for lo, hi in ((0.5, 0.9), (1.0, 1.8), (2.0, 4.0), (5.0, 12.0))
        ]
        self.fields = [field for pair in pairs for field in pair]
        self.bend = self.u(0.006, 0.018)
        warp = gaussian_fields(rng, size, self.u(9, 18) * px)
        axis = ((2 * np.arange(size) - size + 1) / size).astype(np.float32)
        self.inside = axis[:, None] ** 2 + axis**2 <= 1
        x, y = (axis[None, :] - self.offset[0]) / self.scale, (axis[:, None] - self.offset[1]) / self.scale
        wx, wy = (np.float32(self.bend) * np.clip(w, -2.5, 2.5) for w in warp)
        self.x = (self.cos * x + self.sin * y + wx).astype(np.float32)
        self.y = (self.cos * y - self.sin * x + wy).astype(np.float32)

    def u(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def window(self, x: float, y: float, reach: float) -> Window:
        """The pixels within `reach` of a point, before the warp."""
        reach = (reach + 2.5 * self.bend + 2 * float(self.width)) * self.scale
        centre = (
            self.scale * (self.cos * x - self.sin * y) + self.offset[0],
            self.scale * (self.sin * x + self.cos * y) + self.offset[1],
        )
        low = [int(np.clip((c - reach + 1) * self.size / 2, 0, self.size - 1)) for c in centre]
        high = [int(np.clip((c + reach + 1) * self.size / 2 + 1, 1, self.size)) for c in centre]
        return slice(low[1], high[1]), slice(low[0], high[0])

    def blob(
        self, x: float, y: float, a: float, b: float, angle: float = 0.0, *, wobble: float = 0.06, power: float = 2.0
    ) -> Region:
        """A superellipse whose radius is modulated by a random Fourier series of relative size `wobble`."""
        window = self.window(x, y, max(a, b) * (1 + 2 * wobble) * (1.0 if power <= 2 else 1.25))
        dx, dy = self.x[window] - np.float32(x), self.y[window] - np.float32(y)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        p, q = (c * dx + s * dy) / np.float32(a), (c * dy - s * dx) / np.float32(b)
        rho = np.sqrt(p * p + q * q) + np.float32(1e-6)
        slope = np.sqrt((p / np.float32(a)) ** 2 + (q / np.float32(b)) ** 2) + np.float32(1e-6)
        length = rho / slope
        if power != 2:
            radius = (np.abs(p) ** power + np.abs(q) ** power) ** (1 / power) + np.float32(1e-6)
        else:
            radius = rho
        if wobble:
            order = np.arange(2, 7)
            draw = self.rng.normal(size=(2, len(order))) * wobble / order
            unit, series = ((p + 1j * q) / rho).astype(np.complex64), np.complex64(0)
            for coefficient in (draw[0] + 1j * draw[1])[::-1].astype(np.complex64):
                series = (series + coefficient) * unit
            radius = radius / np.clip(1 + 2 * (series * unit).real, 1 - 2 * wobble, 1 + 2 * wobble)
        return Region(window, (radius - 1) * length)

    def segment(self, start: Sequence[float], end: Sequence[float], r0: float, r1: float) -> Region:
        """A tapered straight tube."""
        x0, y0, ex, ey = start[0], start[1], end[0] - start[0], end[1] - start[1]
        norm = ex * ex + ey * ey + 1e-9
        window = self.window(x0 + ex / 2, y0 + ey / 2, 0.5 * norm**0.5 + max(r0, r1))
        dx, dy = self.x[window] - np.float32(x0), self.y[window] - np.float32(y0)
        t = np.clip((dx * np.float32(ex) + dy * np.float32(ey)) / np.float32(norm), 0, 1)
        return Region(
            window, np.hypot(dx - t * np.float32(ex), dy - t * np.float32(ey)) - np.float32(r0) - t * np.float32(r1 - r0)
        )

    def cover(self, region: Region, inset: float = 0.0) -> Array:
        """Fraction of every pixel of the window that the region covers."""
        return np.clip(0.5 - (region.distance + np.float32(inset)) / self.width, 0, 1)

    def full(self, region: Region, inset: float = 0.0) -> Array:
        """The same on the whole slice."""
        mask = np.zeros_like(self.image)
        mask[region.window] = self.cover(region, inset)
        return mask

    def texture(self, window: Window, scales: Sequence[int] = (0, 1, 2, 3)) -> Array:
        """A field of unit variance, one of the slice's own, shifted at random."""
        field = self.fields[2 * int(self.rng.choice(scales)) + int(self.rng.integers(2))]
        shift = self.rng.integers(self.size, size=2)
        return np.roll(field, shift, (0, 1))[window]

    def paint(
        self,
        region: Region,
        value: float,
        strength: float | None = None,
        *,
        inset: float = 0.0,
        within: Array | None = None,
        opacity: float = 1.0,
        scales: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        """Cover what is there by a tissue; `within` limits it to a mask of the whole slice."""
        alpha = self.cover(region, inset) * np.float32(opacity)
        if within is not None:
            alpha = alpha * within[region.window]
        strength = self.u(0.006, 0.02) if strength is None else strength
        tissue = np.float32(value) * (1 + np.float32(strength) * self.texture(region.window, scales))
        view = self.image[region.window]
        view += alpha * (tissue - view)

    def bone(self, region: Region, thickness: float, *, within: Array | None = None) -> None:
        """A cortical shell around trabecular marrow."""
        self.paint(region, CORTEX * self.u(0.85, 1.12), 0.03, within=within)
        self.paint(region, self.u(1.12, 1.4), self.u(0.04, 0.1), inset=thickness, within=within, scales=(0, 1))

    def tree(
        self, start: Sequence[float], angle: float, length: float, radius: float, value: float, within: Array, depth: int
    ) -> None:
        """Vessels that branch, each part half as strong as its parent."""
        for _ in range(2):
            bend = angle + self.rng.normal(0, 0.15)
            end = start[0] + length * np.cos(bend), start[1] + length * np.sin(bend)
            thin = max(radius * 0.75, 1e-3)
            opacity = min(1.0, 2 * radius / float(self.width))
            self.paint(self.segment(start, end, radius, thin), value, 0.01, within=within, opacity=opacity)
            if depth > 1 and self.chance(0.9):
                side = angle + self.u(0.4, 1.0) * (1 if self.chance(0.5) else -1)
                self.tree(end, side, length * self.u(0.55, 0.85), radius * self.u(0.5, 0.75), value, within, depth - 1)
            start, angle, length, radius = end, bend, length * self.u(0.6, 0.9), thin

    def compartments(self, region: Region, count: int, gap: float, value: float, within: Array) -> None:
        """Muscles side by side: cells of a Voronoi diagram with fat between them."""
        x, y = self.x[region.window], self.y[region.window]
        inside = np.argwhere(region.distance < 0)
        if len(inside) < count:
            return
        seeds = inside[self.rng.choice(len(inside), count, replace=False)]
        far = np.stack([np.hypot(x - x[i, j], y - y[i, j]) * self.u(0.7, 1.3) for i, j in seeds])
        first, second = np.partition(far, 1, axis=0)[:2]
        self.paint(region, value, self.u(0.01, 0.025), within=within)
        self.paint(Region(region.window, second - first - np.float32(gap)), self.u(0.92, 0.98), within=within)

    def lesions(self, x: float, y: float, spread: float, value: float, within: Array, count: int) -> None:
        """Small roundish spots of another attenuation."""
        for _ in range(count):
            r = self.u(0.015, 0.06)
            spot = self.blob(
                x + self.rng.normal(0, spread), y + self.rng.normal(0, spread), r, r * self.u(0.6, 1.0), self.u(0, 3.1)
            )
            self.paint(spot, value * self.u(0.97, 1.04), within=within)
