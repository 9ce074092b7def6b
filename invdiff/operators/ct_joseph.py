"""Joseph's projector as a sparse matrix and its explicit transpose.

A ray x cos t + y sin t = s is followed along the axis that it is closer to, one image line at a time, and reads each line by
linear interpolation between two pixels:

    p(t, s) = pixel / max(|cos t|, |sin t|) sum_lines lerp(f; crossing of the ray with the line).

Both matrices are stored, so that neither product scatters, and images are the last dimension of the dense side: a weight is
read once for a whole batch.

References: Joseph, An improved algorithm for reprojecting rays through pixel images, IEEE TMI 1, 1982.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from .sparse import to_torch

__all__ = ["joseph_csr", "joseph_matrices"]


def joseph_matrices(
    angles: Tensor, *, size: tuple[int, int], detector: int, pixel: float, pitch: float
) -> tuple[Tensor, Tensor]:
    """A, (views detector, H W), and its transpose, sparse CSR float64; rays by view, then by detector element."""
    matrix = joseph_csr(angles, size=size, detector=detector, pixel=pixel, pitch=pitch)
    return to_torch(matrix), to_torch(matrix.T.tocsr())


def joseph_csr(angles: Tensor, *, size: tuple[int, int], detector: int, pixel: float, pitch: float) -> Any:
    """The matrix as a scipy CSR array."""
    from scipy.sparse import csc_array

    (h, w), s = size, (np.arange(detector) - (detector - 1) / 2) * (pitch / pixel)
    rows, columns, values = [], [], []
    for view, t in enumerate(angles.double().tolist()):
        c, d = np.cos(t), np.sin(t)
        # in pixels: column j is at x = j - (w - 1) / 2, row i at y = (h - 1) / 2 - i
        along_y = abs(c) >= abs(d) - 1e-9  # views at 45 and 135 degrees are treated alike, whatever their rounding
        if along_y:
            lines, across = np.arange(h), w
            position = (s[:, None] - ((h - 1) / 2 - lines) * d) / c + (w - 1) / 2
        else:
            lines, across = np.arange(w), h
            position = (h - 1) / 2 - (s[:, None] - (lines - (w - 1) / 2) * c) / d
        lower = np.floor(position)
        weight, step = position - lower, pixel / max(abs(c), abs(d))
        for index, share in ((lower.astype(np.int64), 1.0 - weight), (lower.astype(np.int64) + 1, weight)):
            ray, line = np.nonzero((index >= 0) & (index < across) & (share > 0.0))
            crossed = index[ray, line]
            rows.append((ray + view * detector).astype(np.int32))
            columns.append((line * w + crossed if along_y else crossed * w + line).astype(np.int32))
            values.append(step * share[ray, line])
    triplets = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return csc_array(triplets, shape=(len(angles) * detector, h * w)).tocsr()
