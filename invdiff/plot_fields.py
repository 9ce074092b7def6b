"""Figures and animations of fields: rows of maps, space against time, errors in time, moving pictures.

The first row of a field is at the bottom, as y grows along it. Fields of one group share their limits and a bar, so that they
can be compared: a "signed" map is symmetric about zero, a "spread" map starts there. `figure.savefig(path, dpi=150)` writes a
figure; `animation` writes a GIF of one palette, the same bytes on every run of one machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .core import ConfigError, DataError, ShapeError
from .core.files import atomic
from .plot import BLUE, EDGE, GAP, GREY, INK, ORANGE, PANEL, QUIET, STYLE

__all__ = ["Colours", "Fields", "animation", "curve_figure", "field_figure", "space_time_figure"]

Colours = Literal["signed", "value", "spread"]
MAPS = {"signed": "RdBu_r", "value": "viridis", "spread": "inferno"}
TITLE, BAR = 0.3, 0.8  # inches
DPI, GREYS, LEVELS, BLOCKED = 100, 16, 48, 11  # of an animation: dots per inch, palette, and the grey of what is blocked


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Fields that share a map, its limits and its bar.

    Args:
        fields: title -> (H, W) or (1, H, W), real and finite.
        colours: "signed", "value" or "spread".
        limits: of the map; None takes those of the fields.
        units: of the fields, beside the bar.
        points: title -> (M, 2), places (y, x) in parts of the sides, marked in the field of that title.

    Raises:
        ConfigError: there is no field, or points of an unknown title; the map is unknown or its limits are out of order.
        ShapeError: a field is not a real plane, or points are not pairs.
        DataError: a value is not finite.
    """

    fields: Mapping[str, Tensor]
    colours: Colours = "value"
    limits: tuple[float, float] | None = None
    units: str = ""
    points: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _window("Fields", self.planes(), self.colours, self.limits)
        for title, places in self.points.items():
            if title not in self.fields:
                raise ConfigError(f"Fields: expected points in {', '.join(self.fields)}, got points in {title}")
            if places.ndim != 2 or places.shape[1] != 2:
                raise ShapeError(f"Fields: expected points (M, 2) in {title}, got {tuple(places.shape)}")

    def planes(self) -> dict[str, np.ndarray]:
        """The fields as arrays (H, W)."""
        planes = {}
        for title, value in self.fields.items():
            plane = value[0] if value.ndim == 3 and len(value) == 1 else value
            planes[title] = _array(f"Fields: {title}", plane, "(H, W)")
        return planes


def field_figure(rows: Sequence[Sequence[Fields]], *, titles: Sequence[str] = (), marks: float = 6.0) -> Figure:
    """Rows of groups of fields; each group has its own limits and a bar at its right.

    Args:
        rows: the fields of a row have one height, in inches, whatever their shapes.
        titles: one above each row; () for none.
        marks: area of a marked point, in square points.

    Raises:
        ConfigError: a row is empty, or there are not as many titles as rows.
    """
    if not rows or not all(rows) or (titles and len(titles) != len(rows)):
        raise ConfigError(
            f"field_figure: expected rows with groups, and a title for each or none, got {[len(r) for r in rows]} and {titles}"
        )
    planes = [[group.planes() for group in row] for row in rows]
    heights = [PANEL * max(min(_aspect(p), 3.0) for group in row for p in group.values()) for row in planes]
    heading = 0.3 if titles else 0.0
    width = EDGE + max(sum(len(group) * (PANEL + GAP) + BAR for group in row) for row in planes)
    height = sum(heights) + len(rows) * (TITLE + heading) + 1.5 * EDGE
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        top = height
        for k, (row, arrays) in enumerate(zip(rows, planes, strict=True)):
            if titles:
                place = (EDGE / width, (top - heading + 0.02) / height)
                figure.text(*place, titles[k], fontsize=10, fontweight="bold", va="bottom")
            bottom, x = top - heading - TITLE - heights[k], EDGE
            for group, named in zip(row, arrays, strict=True):
                low, high = _window("field_figure", named, group.colours, group.limits)
                for title, plane in named.items():
                    ax = figure.add_axes((x / width, bottom / height, PANEL / width, heights[k] / height))
                    look = {"cmap": MAPS[group.colours], "vmin": low, "vmax": high, "origin": "lower"}
                    shown = ax.imshow(plane, extent=(0.0, 1.0, 0.0, 1.0), aspect="auto", interpolation="nearest", **look)
                    _mark(ax, group.points.get(title), marks)
                    ax.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))
                    ax.spines[:].set_visible(False)
                    ax.annotate(title, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points")
                    x += PANEL + GAP
                box = ((x - GAP + 0.08) / width, bottom / height, 0.11 / width, heights[k] / height)
                _bar(figure, shown, figure.add_axes(box), group.units)
                x += BAR
            top = bottom
        return figure


def space_time_figure(
    values: Mapping[str, Tensor],
    spreads: Mapping[str, Tensor] | None = None,
    *,
    t: Tensor,
    x: Tensor,
    colours: Colours = "signed",
    places: Tensor | None = None,
    moments: Tensor | None = None,
    units: str = "",
) -> Figure:
    """Fields of one dimension and time as images, x to the right and t upwards.

    Args:
        values: title -> (T, N), truth and estimates, which share a map.
        spreads: title -> (T, N), standard deviations and errors, which share another; None for none.
        t, x: times (T,) and points (N,), increasing and equally spaced.
        places: of sensors, (S,), in the unit of x; a line in every field.
        moments: at which the sensors are read, (R,), in the unit of t; dots on the lines.
        units: of the values.

    Raises:
        ShapeError, DataError: as `Fields`; or t or x don't fit a field.
        ConfigError: times or points are not increasing and equally spaced.
    """
    groups = [Fields(fields=values, colours=colours, units=units)]
    groups += [Fields(fields=spreads, colours="spread", units=units)] if spreads else []
    ends = [_cells("space_time_figure", name, axis) for name, axis in (("x", x), ("t", t))]
    for title, value in {**values, **(spreads or {})}.items():
        if tuple(value.shape) != (len(t), len(x)):
            raise ShapeError(
                f"space_time_figure: expected {title} to be {(len(t), len(x))} as t and x, got {tuple(value.shape)}"
            )
    with rc_context(STYLE):
        panels = sum(len(group.fields) for group in groups)
        figure = Figure(figsize=(2.5 * panels + 0.9 * len(groups), 3.0), layout="constrained")
        all_axes = figure.subplots(1, panels, sharex=True, sharey=True, squeeze=False)[0]
        axes = iter(all_axes)
        for group in groups:
            planes = group.planes()
            low, high = _window("space_time_figure", planes, group.colours, group.limits)
            here = [next(axes) for _ in planes]
            for ax, (title, plane) in zip(here, planes.items(), strict=True):
                look = {"cmap": MAPS[group.colours], "vmin": low, "vmax": high, "interpolation": "nearest"}
                shown = ax.imshow(plane, extent=(*ends[0], *ends[1]), aspect="auto", origin="lower", **look)
                ax.set_title(title, loc="left")
                ax.set(xlabel="x", xlim=ends[0], ylim=ends[1])
                light = "#ffffff" if group.colours == "spread" else INK
                for place in () if places is None else places.tolist():
                    ax.axvline(place, color=light, lw=0.5, alpha=0.6)
                    if moments is not None:
                        ax.plot([place] * len(moments), moments.tolist(), ".", ms=2.5, mew=0, color=light, clip_on=False)
            bar = figure.colorbar(shown, ax=here, pad=0.02, fraction=0.05, aspect=28)
            bar.set_label(group.units)
            bar.outline.set_visible(False)
        all_axes[0].set_ylabel("t")
        return figure


def curve_figure(
    curves: Mapping[str, Tensor], *, t: Tensor, xlabel: str = "t", ylabel: str = "error", log: bool = False
) -> Figure:
    """Errors in time: for each name the mean over the items, in a band from the least to the largest of them.

    Args:
        curves: name -> (T,) or (n, T).
        t: times, (T,).
        log: logarithmic axis of the errors, which then have to be positive.

    Raises:
        ConfigError: there is no curve, or one that is not positive with `log`.
        ShapeError, DataError: a curve has another length than t, or a value is not finite.
    """
    if not curves:
        raise ConfigError("curve_figure: expected at least one curve, got none")
    times = _array("curve_figure: t", t, "(T,)")
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        ax = figure.subplots()
        looks = ((BLUE, "-"), (ORANGE, "--"), (INK, "-."), (GREY, ":"))
        for k, (name, curve) in enumerate(curves.items()):
            items = _array(f"curve_figure: {name}", curve[None] if curve.ndim == 1 else curve, "(n, T)")
            if items.shape[1] != len(times) or not len(items):
                raise ShapeError(f"curve_figure: expected {name} at the {len(times)} times of t, got {tuple(curve.shape)}")
            if log and not (items > 0).all():
                raise ConfigError(f"curve_figure: expected {name} > 0 on a logarithmic axis, got {items.min():.3g}")
            colour, line = looks[k % len(looks)]
            if len(items) > 1:
                ax.fill_between(times, items.min(0), items.max(0), color=colour, alpha=0.18, lw=0)
            ax.plot(times, items.mean(0), line, color=colour, lw=1.4, label=name)
        ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(times[0], times[-1]), yscale="log" if log else "linear")
        if not log:
            ax.set_ylim(bottom=0.0)
        ax.legend(loc="best")
        return figure


def animation(
    frames: Mapping[str, Tensor],
    path: str | PathLike[str],
    *,
    fps: float = 12.0,
    limits: tuple[float, float] | None = None,
    colours: Colours = "signed",
    times: Tensor | None = None,
    blocked: Tensor | None = None,
    units: str = "",
    size: int = 192,
) -> None:
    """A GIF with one panel for each name, all with one map, and the time and its bar below them.

    Args:
        frames: title -> (T, H, W), of one shape, real and finite.
        path: of the file; its folder is made if there is none.
        fps: frames in a second; a GIF counts in hundredths of a second.
        limits: of the map; None takes those of all frames together.
        times: (T,), shown as t; None shows the number of the frame.
        blocked: boolean (H, W), cells that are shown grey, as obstacles.
        units: of the values.
        size: of the longer side of a panel in pixels, as nearly as whole pixels for each cell allow.

    Raises:
        ConfigError: there is no panel, or fps or size is out of its range.
        ShapeError: panels, times or blocked cells don't fit.
        DataError: a value is not finite, or the file can't be written.
    """
    who = "animation"
    if not frames or not 0.0 < fps <= 100.0 or size < 1:
        raise ConfigError(f"{who}: expected panels, 0 < fps <= 100 and size >= 1, got {len(frames)}, {fps} and {size}")
    panels = {title: _array(f"{who}: {title}", value, "(T, H, W)") for title, value in frames.items()}
    shapes = {value.shape for value in panels.values()}
    count, h, w = next(iter(shapes))
    if len(shapes) > 1 or not count:
        raise ShapeError(f"{who}: expected panels of one shape with a frame at least, got {sorted(shapes)}")
    if times is not None and tuple(times.shape) != (count,):
        raise ShapeError(f"{who}: expected {count} times, got {tuple(times.shape)}")
    if blocked is not None and tuple(blocked.shape) != (h, w):
        raise ShapeError(f"{who}: expected blocked cells {(h, w)}, got {tuple(blocked.shape)}")
    low, high = _window(who, panels, colours, limits)
    scale = max(1, round(size / max(h, w)))
    canvas = _Canvas(list(panels), (h * scale, w * scale), (low, high), colours, units)
    hidden = None if blocked is None else blocked.cpu().numpy().astype(bool)
    pictures = []
    for k in range(count):
        label = f"frame {k + 1} of {count}" if times is None else f"t = {float(times[k]):.{_decimals(times)}f}"
        page = canvas.page(label, (k + 1) / count)
        for title, value in panels.items():
            share = np.clip((value[k] - low) / (high - low), 0.0, 1.0)
            index = (GREYS + np.rint(share * (LEVELS - 1))).astype(np.uint8)
            if hidden is not None:
                index[hidden] = BLOCKED
            top, left = canvas.places[title]
            page[top : top + h * scale, left : left + w * scale] = np.kron(index[::-1], np.ones((scale, scale), np.uint8))
        picture = Image.fromarray(page)
        picture.putpalette(canvas.palette.tobytes())
        pictures.append(picture)
    with atomic(path, parents=True) as part:
        wait = round(100.0 / fps) * 10
        pictures[0].save(
            part, "GIF", save_all=True, append_images=pictures[1:], duration=wait, loop=0, optimize=False, disposal=1
        )


class _Canvas:
    """What stands around the panels of an animation: titles, bar and time, as indices of a palette.

    The greys come first, for lines and letters, then the levels of the map.
    """

    def __init__(
        self, titles: Sequence[str], panel: tuple[int, int], window: tuple[float, float], colours: Colours, units: str
    ) -> None:
        (h, w), gap, head, foot, side = panel, 8, 24, 34, 84
        self.shape = (head + h + foot, gap + len(titles) * (w + gap) + side)
        self.places = {title: (head, gap + k * (w + gap)) for k, title in enumerate(titles)}
        table = colormaps[MAPS[colours]](np.linspace(0.0, 1.0, LEVELS))
        grey = np.repeat(np.linspace(0, 255, GREYS)[:, None], 3, 1)
        self.palette = np.rint(np.concatenate([grey, 255.0 * table[:, :3]])).astype(np.uint8)
        height, width = self.shape
        with rc_context(STYLE):
            self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
            self.drawn = FigureCanvasAgg(self.figure)
            for title, (top, left) in self.places.items():
                self.figure.text(left / width, 1 - (top - 7) / height, title, fontsize=8)
            left = self.shape[1] - side + 4
            ax = self.figure.add_axes((left / width, foot / height, 11 / width, h / height))
            # drawn grey by grey like everything here; the colours are laid over it as indices
            bar = self.figure.colorbar(ScalarMappable(Normalize(*window), ListedColormap(["#ffffff"])), cax=ax)
            bar.set_label(units, fontsize=8)
            bar.ax.tick_params(labelsize=7, length=2)
            bar.outline.set_visible(False)
            self.drawn.draw()
            # the time alone is drawn anew in each frame
            self.still = self.drawn.copy_from_bbox(self.figure.bbox)
            self.text = self.figure.text(gap / width, (foot - 19) / height, "", fontsize=8, color=QUIET)
        self.bar, self.track = (head, left, h), (self.shape[0] - 7, gap, len(titles) * (w + gap) - gap)

    def page(self, label: str, part: float) -> np.ndarray:
        """Indices (height, width) uint8 around empty panels."""
        self.drawn.restore_region(self.still)
        self.text.set_text(label)
        self.figure.draw_artist(self.text)
        dots = np.asarray(self.drawn.buffer_rgba())[: self.shape[0], : self.shape[1], :3].astype(np.float64)
        page = np.rint(dots.mean(-1) / 255.0 * (GREYS - 1)).astype(np.uint8)
        top, left, height = self.bar
        ramp = GREYS + np.rint(np.linspace(LEVELS - 1, 0, height)).astype(np.uint8)
        page[top : top + height, left : left + 11] = ramp[:, None]
        top, left, width = self.track
        page[top : top + 2, left : left + width] = GREYS - 4
        page[top : top + 2, left : left + max(1, round(part * width))] = GREYS // 3
        return page


def _array(what: str, value: Tensor, shape: str) -> np.ndarray:
    """float64 of as many axes as `shape` names, none of them empty; finite."""
    axes = len([name for name in shape.strip("()").split(",") if name.strip()])
    if value.ndim != axes or not value.numel() or value.is_complex():
        raise ShapeError(f"{what}: expected a real {shape}, got {tuple(value.shape)} {str(value.dtype)[6:]}")
    array = value.detach().double().cpu().numpy()
    if not np.isfinite(array).all():
        raise DataError(f"{what}: {int((~np.isfinite(array)).sum())} of the {array.size} values are not finite")
    return array


def _window(
    who: str, planes: Mapping[str, np.ndarray], colours: str, limits: tuple[float, float] | None
) -> tuple[float, float]:
    if not planes or colours not in MAPS:
        raise ConfigError(f"{who}: expected fields and colours of {', '.join(MAPS)}, got {len(planes)} and {colours!r}")
    if limits is not None:
        if not limits[0] < limits[1]:
            raise ConfigError(f"{who}: expected limits that increase, got {limits}")
        return limits
    low, high = min(p.min() for p in planes.values()), max(p.max() for p in planes.values())
    if colours != "value":
        high = max(abs(low), abs(high)) or 1.0
        return (-high if colours == "signed" else 0.0), high
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _aspect(plane: np.ndarray) -> float:
    return max(plane.shape[0] / plane.shape[1], 0.3)


def _decimals(times: Tensor) -> int:
    """Digits after the point that tell neighbouring times apart."""
    steps = [abs(b - a) for a, b in zip(times.tolist()[:-1], times.tolist()[1:], strict=True)]
    return int(np.clip(np.ceil(-np.log10(min((s for s in steps if s > 0), default=1.0))), 0, 6))


def _cells(who: str, name: str, axis: Tensor) -> tuple[float, float]:
    """The ends of an axis of cells about its points."""
    points = _array(f"{who}: {name}", axis, "(N,)")
    steps = np.diff(points)
    if len(points) < 2 or not (steps > 0).all() or np.ptp(steps) > 1e-3 * steps.mean():
        raise ConfigError(f"{who}: expected {name} to increase by equal steps, got {len(points)} points")
    return points[0] - 0.5 * steps[0], points[-1] + 0.5 * steps[0]


def _mark(ax: Axes, points: Tensor | None, area: float) -> None:
    if points is not None:
        y, x = points.detach().double().cpu().unbind(1)
        ax.scatter(x, y, s=area, c=INK, edgecolors="white", linewidths=0.3)


def _bar(figure: Figure, shown: Any, ax: Axes, units: str) -> None:
    bar = figure.colorbar(shown, cax=ax)
    bar.set_label(units)
    bar.outline.set_visible(False)
