"""Procedural slices that look like computed tomography: a training source with no patients in it.

A slice is painted back to front on a `Canvas` (see there for edges and textures): the body's outline and fat, organs, vessels,
air, bone. Five kinds: thorax, abdomen, pelvis, head, limbs.

Values are attenuations relative to water: air 0, lung 0.2 to 0.4, fat 0.92, water 1, soft tissue 1.0 to 1.08, vessels filled
with contrast agent 1.1 to 1.4, bone 1.3 to 2, so that HU = 1000 (x - 1). Multiply by the attenuation of water (0.019 / mm
near 70 keV) and take the pixel size from the task to obtain line integrals.

The prior shipped with the package was trained on `Phantoms(seed=0)`; tasks use seeds from 1,000,000 on, which it never saw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invdiff.core.errors import ConfigError

from .canvas import CORTEX, Canvas, Region

__all__ = ["Phantoms", "phantom"]

Array = NDArray[np.float32]

SKIN, FAT, MUSCLE = 1.03, 0.92, 1.055


def _vertebra(s: Canvas, x: float, y: float, r: float, within: Array) -> None:
    """Vertebral body, arch, processes and the canal."""
    for side in (-1, 1):
        root, tip = (x + side * 0.5 * r, y + 0.9 * r), (x + side * r * s.u(1.5, 2.1), y + r * s.u(1.0, 1.6))
        s.paint(s.segment(root, tip, 0.22 * r, 0.16 * r), s.u(1.35, 1.6), 0.05, within=within)
    s.bone(s.segment((x, y + 1.5 * r), (x, y + r * s.u(2.0, 2.6)), 0.26 * r, 0.16 * r), 0.08 * r, within=within)
    s.bone(s.blob(x, y + 1.2 * r, 0.75 * r, 0.6 * r), 0.12 * r, within=within)
    s.bone(s.blob(x, y, r, 0.75 * r, wobble=0.08, power=2.4), s.u(0.06, 0.13) * r, within=within)
    canal = s.blob(x, y + 1.15 * r, 0.45 * r, 0.38 * r)
    s.paint(canal, s.u(0.98, 1.03), 0.01)
    s.paint(canal, 1.04, 0.01, inset=0.14 * r)


def _trunk(s: Canvas, fat: tuple[float, float]) -> tuple[Region, Array, float, float, float]:
    """Skin, subcutaneous fat and the muscular wall; what is inside the wall, and its geometry."""
    a, b = s.u(0.9, 0.97), s.u(0.6, 0.76)
    rim, wall = s.u(*fat), s.u(0.045, 0.08)
    body = s.blob(0, 0, a, b, wobble=0.02, power=s.u(2.0, 2.6))
    s.paint(body, SKIN)
    s.paint(body, FAT, s.u(0.005, 0.02), inset=s.u(0.012, 0.02))
    s.paint(body, MUSCLE, s.u(0.01, 0.025), inset=rim)
    depth = rim + wall
    return body, s.full(body, depth), a - depth, b - depth, depth


def _ribs(s: Canvas, a: float, b: float, count: int, angles: tuple[float, float]) -> None:
    """Oblique cuts through ribs on an ellipse."""
    for angle in np.linspace(*angles, count) + s.rng.normal(0, 0.06, count):
        if s.chance(0.85):
            x, y = a * np.cos(angle), b * np.sin(angle)
            along = np.arctan2(b * np.cos(angle), -a * np.sin(angle))
            r = s.u(0.018, 0.03)
            s.bone(s.blob(x, y, s.u(0.05, 0.13), r, along, wobble=0.05), 0.4 * r)


def _thorax(s: Canvas) -> None:
    body, cavity, a, b, depth = _trunk(s, (0.03, 0.13))
    muscle = s.full(body, depth * 0.55)
    s.paint(body, s.u(0.93, 0.99), inset=depth)
    contrast = s.u(1.1, 1.4) if s.chance(0.6) else 1.04
    high = s.chance(0.4)
    lung = s.u(0.18, 0.36)
    for side in (-1, 1):
        w, h, x = a * s.u(0.38, 0.46), b * s.u(0.75, 0.92), side * a * s.u(0.5, 0.56)
        region = s.blob(x, s.u(-0.05, 0.05), w, h, side * s.u(-0.2, 0.2), wobble=0.09, power=2.3)
        s.paint(region, lung, s.u(0.05, 0.14), within=cavity, scales=(1, 2, 3))
        mask = s.full(region, 0.01) * cavity
        for _ in range(int(s.rng.integers(2, 5))):
            start = x - side * 0.8 * w, s.u(-0.25, 0.25) * b
            s.tree(
                start, s.u(-1.1, 1.1) + (np.pi if side < 0 else 0), s.u(0.14, 0.24), s.u(0.012, 0.028), s.u(0.85, 1.05), mask, 3
            )
        for _ in range(int(s.rng.integers(6, 16))):
            r = s.u(0.004, 0.014)
            dot = s.blob(x + s.rng.normal(0, 0.5) * w, s.rng.normal(0, 0.4) * h, r, r, wobble=0)
            s.paint(dot, s.u(0.7, 1.0), 0.01, within=mask, opacity=min(1.0, 2 * r / float(s.width)))
        if s.chance(0.25):
            s.lesions(x, 0, 0.15, s.u(0.9, 1.04), mask, 1)
    if high:
        for _ in range(int(s.rng.integers(3, 6))):
            r = s.u(0.035, 0.07)
            s.paint(
                s.blob(s.rng.normal(0, 0.1), s.u(-0.6, 0.1) * b, r, r * s.u(0.7, 1)), contrast * s.u(0.94, 1.03), within=cavity
            )
        s.paint(s.segment((-0.05, -0.3 * b), (0.12, 0.25 * b), s.u(0.05, 0.08), 0.07), contrast, 0.01, within=cavity)
    else:
        x, y, tilt = s.u(0.08, 0.2), s.u(-0.3, -0.1) * b, s.u(0.3, 0.9)
        heart = s.blob(x, y, a * s.u(0.33, 0.42), b * s.u(0.36, 0.5), tilt, wobble=0.08)
        s.paint(heart, s.u(0.93, 0.98), within=cavity)
        s.paint(heart, s.u(1.04, 1.1), inset=s.u(0.01, 0.03), within=cavity)
        mask = s.full(heart, 0.05)
        for dx, dy in ((0.12, 0.06), (-0.1, 0.1), (-0.08, -0.1), (0.08, -0.12)):
            chamber = s.blob(x + dx, y + dy, s.u(0.07, 0.13), s.u(0.05, 0.1), s.u(0, 3.1), wobble=0.1)
            s.paint(chamber, contrast * s.u(0.9, 1.0), within=mask)
    r = s.u(0.05, 0.075)
    s.paint(s.blob(0.12, 0.45 * b, r, r, wobble=0.03), contrast, 0.01)
    for side in (-1, 1) if s.chance(0.5) else (0,):
        r = s.u(0.025, 0.05)
        tube = s.blob(0.09 * side + s.rng.normal(0, 0.01), 0.12 * b, r, r * s.u(0.8, 1.1), wobble=0.05)
        s.paint(tube, 1.02, inset=-0.01)
        s.paint(tube, 0.01, 0.3)
    s.paint(s.blob(0.03, 0.32 * b, 0.035, 0.025), 1.04)
    _vertebra(s, s.rng.normal(0, 0.01), 0.68 * b, s.u(0.1, 0.13), muscle)
    ring = depth * 0.3
    _ribs(s, a + ring, b + ring, int(s.rng.integers(9, 15)), (-1.3, np.pi + 1.3))
    s.bone(s.blob(s.rng.normal(0, 0.02), -b - ring * 0.5, s.u(0.08, 0.14), s.u(0.025, 0.035), wobble=0.08), 0.012)
    if high:
        for side in (-1, 1):
            centre = side * (a - 0.12), 0.62 * b
            s.bone(s.segment(centre, (centre[0] + side * 0.12, s.u(0.1, 0.35) * b), 0.012, 0.03), 0.01, within=muscle)


def _abdomen(s: Canvas) -> None:
    body, cavity, a, b, depth = _trunk(s, (0.03, 0.2))
    inner = s.blob(0, -0.03, a, b * 0.97, wobble=0.04, power=2.2)
    s.paint(inner, s.u(0.91, 0.95), within=cavity)
    spine = 0.62 * b
    r = s.u(0.1, 0.14)
    for side in (-1, 1):
        s.paint(s.blob(side * s.u(0.26, 0.32), 0.86 * b, s.u(0.19, 0.24), s.u(0.1, 0.14), -side * 0.25), s.u(1.0, 1.06), 0.03)
        s.paint(s.blob(side * s.u(0.17, 0.21), spine, s.u(0.07, 0.1), s.u(0.09, 0.13)), MUSCLE, within=cavity)
    contrast = s.u(1.1, 1.35) if s.chance(0.6) else 1.045
    upper = s.chance(0.55)
    for _ in range(int(s.rng.integers(5, 12)) if not upper else int(s.rng.integers(2, 6))):
        w = s.u(0.05, 0.12)
        loop = s.blob(s.u(-0.7, 0.7) * a, s.u(-0.75, 0.25) * b, w * s.u(1.0, 1.8), w, s.u(0, 3.1), wobble=0.12)
        s.paint(loop, s.u(1.03, 1.1), within=cavity)
        filled = s.u(1.15, 1.4) if s.chance(0.2) else s.u(0.99, 1.04)
        s.paint(loop, filled, s.u(0.01, 0.04), inset=s.u(0.01, 0.02), within=cavity)
        if s.chance(0.35):
            s.paint(
                s.blob(s.u(-0.7, 0.7) * a, s.u(-0.8, 0.0) * b, w * 0.7, w * 0.5, 0.0, wobble=0.12),
                0.01,
                0.3,
                within=s.full(inner, 0.04),
            )
    for side in (-1, 1):
        x, y = side * s.u(0.42, 0.5) * a / 0.85, s.u(0.3, 0.5) * b
        kidney = s.blob(x, y, s.u(0.09, 0.12), s.u(0.13, 0.17), side * s.u(-0.5, 0.5), wobble=0.07)
        s.paint(kidney, 1.04 if contrast < 1.1 else s.u(1.1, 1.25), within=cavity)
        s.paint(kidney, s.u(1.03, 1.12), inset=s.u(0.025, 0.04), within=cavity)
        s.paint(s.blob(x - side * 0.05, y, 0.05, 0.04, wobble=0.15), s.u(0.93, 1.0), within=cavity)
    if upper:
        liver = s.blob(-0.45 * a, -0.15 * b, a * s.u(0.45, 0.58), b * s.u(0.6, 0.75), s.u(-0.2, 0.4), wobble=0.12)
        tissue = s.u(1.04, 1.1)
        s.paint(liver, tissue, s.u(0.01, 0.025), inset=0.0, within=s.full(inner, 0.015))
        mask = s.full(liver, 0.02) * s.full(inner, 0.02)
        for _ in range(2):
            s.tree(
                (-0.1 * a, -0.1 * b),
                np.pi + s.u(-0.7, 0.7),
                s.u(0.16, 0.24),
                s.u(0.012, 0.025),
                tissue * s.u(0.97, 1.07),
                mask,
                3,
            )
        s.lesions(-0.45 * a, -0.15 * b, 0.18, tissue * s.u(0.95, 1.03), mask, int(s.rng.integers(0, 5)))
        spleen = s.blob(0.7 * a, 0.15 * b, s.u(0.12, 0.17), b * s.u(0.32, 0.48), -0.25, wobble=0.08)
        s.paint(spleen, tissue * s.u(0.99, 1.03), within=s.full(inner, 0.015))
        stomach = s.blob(0.4 * a, -0.4 * b, s.u(0.2, 0.3), b * s.u(0.24, 0.38), s.u(-0.5, 0.5), wobble=0.1)
        s.paint(stomach, 1.05, within=s.full(inner, 0.015))
        s.paint(stomach, s.u(0.98, 1.05), s.u(0.01, 0.05), inset=0.02, within=s.full(inner, 0.02))
        if s.chance(0.7):
            level = s.y[stomach.window] + np.float32(s.u(0.3, 0.55) * b)
            s.paint(Region(stomach.window, np.maximum(stomach.distance + 0.02, level)), 0.01, 0.3, within=s.full(inner, 0.03))
    for x, w in ((0.06, s.u(0.05, 0.07)), (-0.1, s.u(0.05, 0.08))):
        s.paint(s.blob(x, spine - r - 0.06, w, w * s.u(0.7, 1.0)), contrast * s.u(0.96, 1.0), 0.01, within=cavity)
    if s.chance(0.3):
        s.paint(s.blob(0.06, spine - r - 0.06, 0.06, 0.012), s.u(1.4, 1.8), within=cavity)
    _vertebra(s, s.rng.normal(0, 0.01), spine, r, s.full(body, 0.7 * depth))
    if upper:
        _ribs(s, a + depth * 0.25, b + depth * 0.25, int(s.rng.integers(6, 12)), (-0.4, np.pi + 0.4))


def _pelvis(s: Canvas) -> None:
    body, cavity, a, b, depth = _trunk(s, (0.05, 0.16))
    s.paint(body, FAT, inset=0.8 * depth)
    s.compartments(body, int(s.rng.integers(12, 24)), s.u(0.01, 0.03), s.u(1.04, 1.07), s.full(body, 0.7 * depth))
    s.paint(s.blob(0, -0.1 * b, 0.62 * a, 0.75 * b), s.u(0.91, 0.95), within=cavity)
    low = s.chance(0.5)
    for side in (-1, 1):
        for _ in range(3):
            s.paint(
                s.blob(side * s.u(0.35, 0.75) * a, s.u(0.2, 0.7) * b, 0.22, 0.12, s.u(-0.6, 0.6)),
                s.u(1.03, 1.07),
                0.025,
                within=cavity,
            )
        if low:
            x, y = side * s.u(0.56, 0.62) * a, s.u(-0.05, 0.1) * b
            s.bone(s.blob(x, y, s.u(0.13, 0.16), s.u(0.13, 0.16), wobble=0.04), 0.015)
            s.bone(s.segment((x - side * 0.17, y - 0.18), (x - side * 0.13, y + 0.2), 0.035, 0.05), 0.018)
            s.bone(s.segment((x + side * 0.1, y + 0.03), (x + side * 0.2, y + 0.12), 0.06, 0.08), 0.02)
        else:
            start, end = (side * s.u(0.62, 0.75) * a, s.u(-0.4, -0.2) * b), (side * 0.3 * a, s.u(0.5, 0.65) * b)
            s.bone(s.segment(start, end, s.u(0.03, 0.05), s.u(0.05, 0.08)), 0.016)
        r = s.u(0.03, 0.05)
        s.paint(s.blob(side * 0.38 * a, -0.55 * b, r, r), s.u(1.04, 1.3), within=cavity)
    if not low:
        s.bone(s.blob(0, 0.6 * b, 0.22, 0.13, wobble=0.12), 0.016)
    bladder = s.blob(0, -0.3 * b, s.u(0.15, 0.3), s.u(0.13, 0.22), wobble=0.08, power=2.4)
    s.paint(bladder, 1.05, within=cavity)
    s.paint(bladder, s.u(1.0, 1.02) if s.chance(0.8) else s.u(1.1, 1.5), 0.008, inset=0.02, within=cavity)
    rectum = s.blob(0, s.u(0.25, 0.4) * b, 0.09, 0.08, wobble=0.1)
    s.paint(rectum, 1.05, within=cavity)
    s.paint(rectum, 0.01 if s.chance(0.5) else s.u(0.7, 1.0), 0.05, inset=0.02, within=cavity)


def _head(s: Canvas) -> None:
    a, b = s.u(0.7, 0.82), s.u(0.9, 0.97)
    head = s.blob(0, 0, a, b, wobble=0.015, power=s.u(2.0, 2.3))
    scalp, skull = s.u(0.03, 0.07), s.u(0.05, 0.1)
    s.paint(head, SKIN)
    s.paint(head, s.u(0.93, 1.02), inset=0.015)
    thickness = scalp + skull * (1 + 0.35 * s.texture(head.window, (3,)))
    s.paint(head, s.u(1.6, 1.95), 0.03, inset=scalp)
    diploe = Region(head.window, np.abs(head.distance + 0.5 * (scalp + thickness)) - np.float32(0.18 * skull))
    s.paint(diploe, s.u(1.25, 1.5), 0.08, scales=(0, 1))
    brain = Region(head.window, (head.distance + thickness).astype(np.float32))
    s.paint(brain, s.u(1.005, 1.02), 0.008)
    grey, white, fluid = s.u(1.036, 1.045), s.u(1.022, 1.032), s.u(1.0, 1.012)
    mask = s.full(brain, s.u(0.01, 0.03))
    s.paint(brain, grey, within=mask)
    folds = np.abs(s.texture(brain.window, (3,))) - np.float32(0.25) * np.abs(s.texture(brain.window, (2,)))
    s.paint(Region(brain.window, brain.distance + np.float32(0.16) - np.float32(0.12) * folds), white, within=mask)
    sulci = Region(
        brain.window, np.maximum(0.03 * np.abs(s.texture(brain.window, (2,))) - 0.004, -brain.distance - s.u(0.1, 0.22))
    )
    s.paint(sulci, fluid, 0.005, within=mask)
    s.paint(s.segment((0, -b), (0, b), 0.006, 0.006), s.u(1.03, 1.06), within=mask)
    level = s.rng.integers(3)
    bony = s.full(head, scalp)
    if level < 2:
        opening = s.u(0.6, 1.6)
        for side in (-1, 1):
            for y, tilt in ((-0.22, 0.35), (0.24, -0.4)):
                horn = s.blob(side * 0.11, y, 0.05 * opening, s.u(0.12, 0.2), side * tilt, wobble=0.1)
                s.paint(horn, fluid, 0.005, within=mask)
            s.paint(s.blob(side * 0.16, 0.02, 0.09, 0.12, side * 0.2, wobble=0.1), grey, within=mask)
            if s.chance(0.3):
                s.paint(s.blob(side * 0.14, 0.3, 0.025, 0.025), s.u(1.1, 1.5), within=mask)
    else:
        for side in (-1, 1):
            s.bone(s.segment((side * 0.2, 0.05), (side * a * 0.85, 0.2), 0.04, 0.1), 0.025, within=bony)
            for _ in range(6):
                r = s.u(0.012, 0.035)
                s.paint(s.blob(side * s.u(0.35, 0.62), s.u(0.08, 0.26), r, r * 0.7), s.u(0.0, 0.3), 0.05)
            orbit = s.blob(side * 0.33, -0.52, 0.2, 0.24, side * 0.3)
            s.bone(orbit, 0.02, within=bony)
            s.paint(orbit, FAT, inset=0.03)
            s.paint(s.blob(side * 0.33, -0.6, 0.12, 0.12, wobble=0.03), 1.02)
            s.paint(s.segment((side * 0.3, -0.5), (side * 0.2, -0.3), 0.025, 0.02), 1.04)
        sinus = s.blob(0, -0.55, 0.12, 0.3, wobble=0.1)
        s.paint(sinus, s.u(1.3, 1.6))
        for _ in range(8):
            s.paint(
                s.blob(s.u(-0.08, 0.08), s.u(-0.78, -0.3), s.u(0.02, 0.05), s.u(0.02, 0.06)), 0.01, 0.3, within=s.full(sinus)
            )
    for _ in range(int(s.rng.integers(0, 4))):
        s.lesions(s.u(-0.4, 0.4), s.u(-0.5, 0.5), 0.05, s.u(1.0, 1.08), mask, 1)
    if s.chance(0.4):
        for turn in s.rng.uniform(0, 2 * np.pi, 6):
            start = 0.15 * np.cos(turn), 0.15 * np.sin(turn)
            s.tree(start, turn, s.u(0.08, 0.18), s.u(0.006, 0.012), s.u(1.1, 1.3), mask, 2)


def _limbs(s: Canvas) -> None:
    pair, knee = s.chance(0.75), s.chance(0.25)
    fat, marrow = s.u(0.02, 0.1), s.u(0.95, 1.2)
    r = s.u(0.36, 0.44) if pair else s.u(0.75, 0.9)
    unit = r / 0.4
    forearm = s.chance(0.35)
    for side in (-1, 1) if pair else (0,):
        x, y = side * s.u(0.45, 0.5), s.rng.normal(0, 0.03)
        limb = s.blob(x, y, r, r * s.u(0.85, 1.1), s.u(0, 3.1), wobble=0.05)
        s.paint(limb, SKIN)
        s.paint(limb, FAT, inset=0.012)
        mask = s.full(limb, fat * unit)
        s.compartments(limb, int(s.rng.integers(6, 12)), s.u(0.006, 0.016) * unit, MUSCLE, mask)
        bones = [(0.0, 0.0, s.u(0.16, 0.22) if knee else s.u(0.09, 0.12))]
        if forearm:
            bones = [(-0.08, 0.05, s.u(0.08, 0.11)), (0.14, 0.1, s.u(0.04, 0.07))]
        for dx, dy, w in bones:
            shaft = s.blob(x + (side or 1) * dx * unit, y + dy * unit, w * unit, w * unit * s.u(0.85, 1.05), wobble=0.08)
            s.paint(shaft, CORTEX * s.u(0.95, 1.14), 0.02)
            s.paint(
                shaft,
                s.u(1.15, 1.35) if knee else marrow,
                0.06,
                inset=w * unit * (s.u(0.06, 0.12) if knee else s.u(0.25, 0.45)),
                scales=(0, 1),
            )
        for _ in range(int(s.rng.integers(2, 5))):
            w, turn = s.u(0.012, 0.025) * unit, s.u(0, 6.3)
            vessel = s.blob(x + 0.5 * r * np.cos(turn), y + 0.5 * r * np.sin(turn), w, w, wobble=0.05)
            s.paint(vessel, FAT, inset=-0.015 * unit, within=mask)
            s.paint(vessel, s.u(1.03, 1.35), 0.01, within=mask)


_KINDS: tuple[Callable[[Canvas], None], ...] = (_thorax, _abdomen, _pelvis, _head, _limbs)
_SHARE = (0.28, 0.28, 0.12, 0.2, 0.12)


def _table(s: Canvas) -> None:
    """A couch below the body, a curved shell."""
    y, thick = s.u(0.8, 0.9), s.u(0.012, 0.03)
    couch = np.abs(s.y + s.u(0.1, 0.25) * s.x**2 - np.float32(y)) - np.float32(thick)
    free = (s.image == 0).astype(np.float32)
    everywhere = slice(0, s.size), slice(0, s.size)
    s.paint(Region(everywhere, couch), s.u(0.3, 0.8), 0.01, within=free)
    s.paint(Region(everywhere, couch + np.float32(0.6 * thick)), s.u(0.05, 0.15), 0.01, within=free)


def phantom(rng: np.random.Generator, size: int = 128) -> Array:
    """One random slice.

    Args:
        rng: where all randomness comes from.
        size: pixels along each side.

    Returns:
        (size, size) float32, attenuation relative to water, never negative, zero outside the inscribed circle.
    """
    if size < 16:
        raise ConfigError(f"phantom: expected a size of at least 16 pixels, got {size}")
    s = Canvas(rng, size)
    kind = int(rng.choice(len(_KINDS), p=_SHARE))
    _KINDS[kind](s)
    if kind < 3 and s.chance(0.3):
        _table(s)
    # a three-tap point spread keeps values non-negative, which a truncated Fourier one would not
    tap = np.float32(s.u(0.0, 0.1))
    for axis in (0, 1):
        s.image += tap * (np.roll(s.image, 1, axis) + np.roll(s.image, -1, axis) - 2 * s.image)
    return np.maximum(s.image, 0) * s.inside


class Phantoms:
    """An endless source of slices, a function of (seed, index) only.

    Member `index % pool` is painted once and kept (float16, 32 kB at 128 x 128); flips, quarter turns and a smooth gain of a
    few per cent are drawn anew for every index.

    Args:
        seed: a non-negative integer; other seeds give other slices. The shipped prior was trained on 0, tasks use 1,000,000
            and above.
        size: pixels along each side.
        pool: how many different slices there are.

    Returns (of a call): (1, size, size) float32 tensor, attenuation relative to water.
    """

    def __init__(self, seed: int, size: int = 128, pool: int = 3000) -> None:
        if seed < 0 or pool < 1:
            raise ConfigError(f"Phantoms: expected seed >= 0 and pool >= 1, got {seed} and {pool}")
        self.seed, self.size, self.pool = int(seed), int(size), int(pool)
        self.shape = (1, self.size, self.size)
        self._members: dict[int, NDArray[Any]] = {}

    def __call__(self, index: int) -> Tensor:
        if index < 0:
            raise ConfigError(f"Phantoms: expected an index >= 0, got {index}")
        member = index % self.pool
        if member not in self._members:
            self._members[member] = phantom(np.random.default_rng([self.seed, member, 0]), self.size).astype(np.float16)
        rng = np.random.default_rng([self.seed, index, 1])
        image = np.rot90(self._members[member].astype(np.float32), int(rng.integers(4)))
        if rng.random() < 0.5:
            image = image[:, ::-1]
        axis = np.linspace(-1, 1, self.size, dtype=np.float32)
        g = rng.uniform(-0.012, 0.012, 6).astype(np.float32)
        x, y = axis[None, :], axis[:, None]
        gain = 1 + g[0] + g[1] * x + g[2] * y + g[3] * x * x + g[4] * x * y + g[5] * y * y
        return torch.from_numpy(np.ascontiguousarray(image * gain))[None]
