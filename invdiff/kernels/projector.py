"""Matched projectors: line integrals along rays, and their exact transpose as a sum over the rays that touch a pixel.

Joseph's projector reads an image line by line, by linear interpolation where the ray crosses the line,

    (A x)_r = length_r sum_l sum_j hat(j - X_r(l)) x_lj,      hat(d) = max(0, 1 - |d|),
    (A^T y)_lj = sum_r hat(j - X_r(l)) length_r y_r,

and in three dimensions times hat(k - Z_r(l)) for the slice k. The transpose runs over pixels: the rays of a view that touch one
are within a bound of its projection, known in closed form (beams.py); the hat makes the others zero. Both directions evaluate
the same weights from the same coefficients in the same arithmetic, nothing is scattered, and each result is summed in a fixed
order, so that the pair is matched to rounding and every call gives the same bits.

The torch form works in chunks of rays or pixels with a bounded number of weights, which serve a whole batch. Where a matrix
can be stored, a product with it is several times faster (operators/ct_joseph.py, operators/ct_beams.py).

References: Joseph, An improved algorithm for reprojecting rays through pixel images, IEEE TMI 1, 1982; De Man, Basu,
Distance-driven projection and backprojection in three dimensions, PMB 49, 2004 (why the unmatched pixel-driven pair fails).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from ..core.errors import CapabilityError, ConfigError, ShapeError
from .beams import SLACK, Beams, ConeBeam, FanBeam, Layout, ParallelBeam, Rays, half_width, trace
from .dispatch import use_triton

__all__ = [
    "ConeBeam",
    "FanBeam",
    "ParallelBeam",
    "backproject",
    "crossings",
    "gather_pixels",
    "integrate",
    "margins",
    "project",
]

# weights that are worked on together: their intermediate results stay in a CPU core's cache, and fill a GPU
_CHUNK, _CHUNK_CUDA = 2**17, 2**24


def project(image: Tensor, geometry: Beams) -> Tensor:
    """Line integrals in image units times mm; differentiable any number of times.

    Shapes: image (B, 1, H, W) -> (B, 1, views, K); for cone beams (B, 1, D, H, W) -> (B, 1, views, R, K). float32 or float64.

    Raises:
        ShapeError: the image does not fit the geometry.
        ConfigError: another precision.
        CapabilityError: the angles require a gradient.
    """
    _check("project", image, geometry.size, geometry.angles)
    layout = geometry.layout
    rays = Rays(*(t.to(image) for t in trace(layout, geometry.angles)))
    return _project(image.reshape(-1, *layout.size), *rays, *_numbers(layout)).reshape(len(image), 1, *_sinogram(geometry))


def backproject(sinogram: Tensor, geometry: Beams) -> Tensor:
    """The exact transpose of `project`; differentiable any number of times.

    Shapes: sinogram (B, 1, views, K) -> (B, 1, H, W); for cone beams (B, 1, views, R, K) -> (B, 1, D, H, W). float32 or
    float64.

    Raises:
        ShapeError: the sinogram does not fit the geometry.
        ConfigError: another precision.
        CapabilityError: the angles require a gradient.
    """
    _check("backproject", sinogram, _sinogram(geometry), geometry.angles)
    layout = geometry.layout
    rays = Rays(*(t.to(sinogram) for t in trace(layout, geometry.angles)))
    image = _backproject(sinogram.reshape(-1, len(geometry.angles), *layout.panel), *rays, *_numbers(layout))
    return image.reshape(len(sinogram), 1, *geometry.size)


def integrate(image: Tensor, rays: Rays, layout: Layout) -> Tensor:
    """`project` without its derivative, from traced rays in the image's precision: (B, D, H, W) -> (B, views, R, K)."""
    _require_precision("project", image)
    if use_triton(image, kernel="projector"):
        from .projector_triton import launch_project

        sums = launch_project(image, rays, layout)
    else:
        values = _pixels_first(pad(image, margins(layout)))
        parts = [reduce(torch.add, (_weighted_sums(values, *tap) for tap in taps)) for taps in crossings(rays, layout)]
        sums = torch.cat(parts).unflatten(0, (len(rays.lines), *layout.panel[::-1])).permute(3, 0, 2, 1).contiguous()
    return sums * rays.lengths * rays.lines[:, None, 5]


def gather_pixels(sinogram: Tensor, rays: Rays, layout: Layout) -> Tensor:
    """`backproject` without its derivative, from traced rays in its precision: (B, views, R, K) -> (B, D, H, W)."""
    _require_precision("backproject", sinogram)
    weighted = sinogram * rays.lengths * rays.lines[:, None, 5]
    if use_triton(sinogram, kernel="projector"):
        from .projector_triton import launch_backproject

        return launch_backproject(weighted, rays, layout)
    return _gather_pixels(weighted, rays, layout)


def crossings(rays: Rays, layout: Layout) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Where rays read the image: pieces of (index, weight), (rays, lines) each, one for every corner of an interpolation.

    Rays are ordered by view, column and row; an index is that of a pixel of the image with a margin of zeros (`margins`), on
    which everything outside falls.
    """
    (d, h, w), rows, device = layout.size, layout.panel[0], rays.lines.device
    slab, stride = (h + 3) * (w + 3), w + 3
    a, b, e, f, upright = (t.flatten()[:, None] for t in rays.lines[:, :5].unbind(1))
    step = torch.arange(max(h, w), device=device, dtype=torch.int32)
    row = torch.arange(rows, device=device, dtype=a.dtype)[:, None]
    corners = 2 if layout.flat else 4
    for ray in _chunks(len(a), rows * len(step) * corners, device):
        up = upright[ray] > 0.0
        along, across = torch.where(up, h, w).to(torch.int32), torch.where(up, w, h).to(a)
        main, aside = torch.where(up, stride, 1).to(torch.int32), torch.where(up, 1, stride).to(torch.int32)
        line = step.to(a) - 0.5 * (along - 1).to(a)
        lower, near, far = _interpolated(a[ray] + b[ray] * line, across)
        index = (torch.minimum(step, along) + 1) * main + (lower + 1) * aside
        if layout.flat:
            yield [(index, near), (index + aside, far)]
            continue
        height = 0.5 * (d - 1) + (rays.rise[0] + row * rays.rise[1]) * (e[ray] + f[ray] * line)[:, None]
        level, below, above = _interpolated(height, torch.full_like(row, d))
        index = index[:, None] + (level + 1) * slab
        taps = [(index, near[:, None] * below), (index + slab, near[:, None] * above)]
        index = index + aside[:, None]
        taps += [(index, far[:, None] * below), (index + slab, far[:, None] * above)]
        yield [(i.flatten(0, 1), weight.flatten(0, 1)) for i, weight in taps]


def _gather_pixels(weighted: Tensor, rays: Rays, layout: Layout) -> Tensor:
    (d, h, w), (rows, columns), views, kappa = layout.size, layout.panel, len(rays.lines), layout.curvature
    (reach_rows, reach), device, like = layout.reach, weighted.device, rays.lines
    values = _pixels_first(weighted)
    table = [rays.lines[:, i].flatten() for i in ((4, 0, 1) if layout.flat else (4, 0, 1, 2, 3))]
    fan = torch.arange(reach, device=device, dtype=torch.int32)[:, None]
    rising = torch.arange(reach_rows, device=device, dtype=torch.int32)[:, None, None]
    level = torch.arange(d, device=device).to(like)
    out = weighted.new_zeros(h * w, d, len(weighted))
    together = max(1, _limit(device) // (reach * reach_rows * d * 256))
    for view in torch.arange(views, device=device, dtype=torch.int32).split(together):
        c, s = rays.axes[view].mT[..., None]
        for pixel in _chunks(h * w, len(view) * reach * reach_rows * d, device):
            i, j = pixel.div(w, rounding_mode="floor").to(like), (pixel % w).to(like)
            x, y = j - 0.5 * (w - 1), 0.5 * (h - 1) - i
            lateral, m = x * c + y * s, 1.0 - kappa * (x * s - y * c)
            nearest = lateral / m - half_width(m, lateral, kappa)
            column = _first_bin((nearest - layout.first[1]) / layout.step[1], reach, columns)[:, None] + fan
            ray = (view[:, None, None] * columns + column).flatten()
            upright, a, b, *opening = (t.index_select(0, ray).view(column.shape) for t in table)
            # whole and half numbers: exact
            line, across = x - upright * (x + y), i + upright * (j - i)
            weight = _hat(across - (a + b * line))
            if layout.flat:
                index = ray.view(1, -1, len(pixel))
                weight = weight.view(index.shape)
            else:
                shrink = (opening[0] + opening[1] * line)[..., None]
                # a ray has no point behind its source
                lowest = (level - 0.5 * (d - 1) - 1.0) / shrink.clamp_min(1e-3)
                row = _first_bin((lowest - layout.first[0]) / layout.step[0], reach_rows, rows)[:, :, None] + rising
                height = 0.5 * (d - 1) + (rays.rise[0] + row.to(like) * rays.rise[1]) * shrink[:, :, None]
                weight = (weight[:, :, None, :, None] * _hat(level - height)).flatten(0, 2).movedim(2, 0)
                index = (view[:, None, None, None, None] * rows + row) * columns + column[:, :, None, :, None]
                index = index.flatten(0, 2).movedim(2, 0)
            # (slices, rays of a pixel, pixels): the pixels, which are many, come last until here
            taps = (index.permute(2, 0, 1).flatten(0, 1), weight.permute(2, 0, 1).flatten(0, 1))
            out[pixel] += _weighted_sums(values, *taps).unflatten(0, (-1, d))
    return out.permute(2, 1, 0).reshape(-1, d, h, w).contiguous()


def _hat(distance: Tensor) -> Tensor:
    return (1.0 - distance.abs()).clamp_min(0.0)


def _interpolated(position: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The lower neighbour and the weights of both; outside [0, size) neighbours are in the margin: -1, size, size + 1."""
    position = torch.minimum(position.clamp_min(-1.0), size)
    lower = position.floor()
    return lower.to(torch.int32), 1.0 - (position - lower), 1.0 - (lower + 1.0 - position)


def _first_bin(lowest: Tensor, reach: int, size: int) -> Tensor:
    """The first of `reach` bins that are on the detector and hold all from a position on that a pixel can be seen by."""
    return (lowest - SLACK).ceil().clamp(0, size - reach).to(torch.int32)


def _weighted_sums(values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """sum_t weight[n, t] values[index[n, t]], (N, B) -> (n, B); one pass, without the gathered values."""
    return embedding_bag(index, values, per_sample_weights=weight, mode="sum")


def _pixels_first(v: Tensor) -> Tensor:
    """(B, ...) -> (prod(...), B): a weight is read once for a whole batch."""
    return v.flatten(1).mT.contiguous()


def margins(layout: Layout) -> tuple[int, ...]:
    """One zero before and two after each axis that is interpolated, last axis first."""
    return (1, 2, 1, 2) if layout.flat else (1, 2, 1, 2, 1, 2)


def _limit(device: torch.device) -> int:
    return _CHUNK_CUDA if device.type == "cuda" else _CHUNK


def _chunks(total: int, each: int, device: torch.device) -> list[Tensor]:
    """Indices 0 ... total - 1, cut so that a piece has a bounded number of weights when an index has `each`."""
    return list(torch.arange(total, device=device).split(max(1, _limit(device) // each)))


def _sinogram(geometry: Beams) -> tuple[int, ...]:
    detector = geometry.detector if isinstance(geometry, ConeBeam) else (geometry.detector,)
    return (len(geometry.angles), *detector)


def _check(name: str, value: Tensor, shape: tuple[int, ...], angles: Tensor) -> None:
    if value.shape[1:] != (1, *shape):
        raise ShapeError(f"{name}: expected shape (B, 1, {', '.join(map(str, shape))}), got {tuple(value.shape)}")
    if angles.requires_grad and torch.is_grad_enabled():
        raise CapabilityError(f"{name}: expected angles without a gradient, got some that require one: detach them")


def _require_precision(name: str, value: Tensor) -> None:
    # with fewer digits the position on a line of 256 pixels is off by half a pixel
    if value.dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"{name}: expected float32 or float64, got {str(value.dtype)[6:]}")


# torch.library takes tensors and lists of numbers


def _numbers(layout: Layout) -> tuple[list[int], list[float]]:
    return [*layout.size, *layout.panel], [layout.pixel, layout.curvature, *layout.first, *layout.step]


def _layout(sizes: list[int], scales: list[float]) -> Layout:
    d, h, w, rows, columns = sizes
    pixel, curvature, v, u, dv, du = scales
    return Layout((d, h, w), (rows, columns), pixel, curvature, (v, u), (dv, du))


@torch.library.custom_op("invdiff::project", mutates_args=())
def _project(
    image: Tensor, lines: Tensor, lengths: Tensor, rise: Tensor, axes: Tensor, sizes: list[int], scales: list[float]
) -> Tensor:
    return integrate(image, Rays(lines, lengths, rise, axes), _layout(sizes, scales))


@torch.library.custom_op("invdiff::backproject", mutates_args=())
def _backproject(
    sinogram: Tensor, lines: Tensor, lengths: Tensor, rise: Tensor, axes: Tensor, sizes: list[int], scales: list[float]
) -> Tensor:
    return gather_pixels(sinogram, Rays(lines, lengths, rise, axes), _layout(sizes, scales))


@_project.register_fake
def _(image: Tensor, lines: Tensor, lengths: Tensor, *_: Any) -> Tensor:
    return image.new_empty(len(image), len(lines), *lengths.shape)


@_backproject.register_fake
def _(sinogram: Tensor, *geometry: Any) -> Tensor:
    return sinogram.new_empty(len(sinogram), *geometry[4][:3])


def _keep_geometry(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[1:5])
    ctx.numbers = inputs[5:]


def _backward_of_project(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _backproject(gradient, *ctx.saved_tensors, *ctx.numbers), None, None, None, None, None, None


def _backward_of_backproject(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _project(gradient, *ctx.saved_tensors, *ctx.numbers), None, None, None, None, None, None


_project.register_autograd(_backward_of_project, setup_context=_keep_geometry)
_backproject.register_autograd(_backward_of_backproject, setup_context=_keep_geometry)
