"""Figures of a report: reconstructions with their uncertainty, calibration, draws against an exact Gaussian.

Figures are made without pyplot: no backend is chosen and no state is shared. `figure.savefig(path, dpi=150)` writes one.
Grey windows are common to all images of an item; the standard deviation and the error share one scale, so that they can be
compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from torch import Tensor

if TYPE_CHECKING:
    from .report import Estimate, Item

__all__ = ["calibration_figure", "denoising_figure", "gaussian_figure", "reconstruction_figure"]

STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "figure.facecolor": "white",
}
INK, BLUE, BAND, ORANGE, GREY = "#222222", "#2166ac", "#9ecae1", "#d95f02", "#999999"
QUIET = "#666666"
PANEL, GAP, TITLE, EDGE, BAR = 2.35, 0.1, 0.48, 0.12, 0.75  # inches
COLOURS = {"value": "gray", "spread": "inferno"}


def reconstruction_figure(items: Sequence[Item], *, units: str = "", max_items: int = 4) -> Figure:
    """Two rows for each item: truth and baselines; mean, draws, standard deviation and error. Curves for 1-D unknowns.

    Args:
        items: of a report.
        units: of the unknown, for the labels.
        max_items: how many of the items are shown.
    """
    items = items[:max_items]
    with rc_context(STYLE):
        if _spatial(items[0].estimates[-1].image) == 1:
            return _curves(items, units)
        return _images(items, units)


def _images(items: Sequence[Item], units: str) -> Figure:
    """Panels at places in inches, so that all have the same width and a bar stands beside the row that it explains."""
    rows = [_image_rows(item) for item in items]
    columns = max(len(row) for pair in rows for row in pair)
    aspects = [min(max(h / w, 0.3), 3.0) for h, w, *_ in (_plane(item.estimates[-1].image).shape for item in items)]
    heading = 0.34 if len(items) > 1 else 0.0
    width = EDGE + columns * (PANEL + GAP) + BAR
    height = sum(len(pair) * (PANEL * a + TITLE) + heading for pair, a in zip(rows, aspects, strict=True)) + EDGE
    figure = Figure(figsize=(width, height))
    top = height
    for item, pair, aspect in zip(items, rows, aspects, strict=True):
        if heading:
            top -= heading
            figure.text(EDGE / width, (top - 0.06) / height, item.name, fontsize=10, fontweight="bold", va="bottom")
        window, limit = _window(item), _spread_limit(pair[-1])
        for row in pair:
            bottom, bars = top - TITLE - PANEL * aspect, {}
            for column, (kind, name, below, image) in enumerate(row):
                x = EDGE + column * (PANEL + GAP)
                ax = figure.add_axes((x / width, bottom / height, PANEL / width, PANEL * aspect / height))
                low, high = window if kind == "value" else (0.0, limit)
                plane = _plane(image)
                plane = plane if plane.ndim == 2 or kind == "value" else plane.mean(-1)
                plane = ((plane - low) / (high - low)).clip(0, 1) if plane.ndim == 3 else plane
                shown = ax.imshow(plane, cmap=COLOURS[kind], vmin=low, vmax=high, interpolation="nearest", aspect="auto")
                ax.set_axis_off()
                place = {"xycoords": "axes fraction", "textcoords": "offset points"}
                ax.annotate(name, (0, 1), (0, 16 if below else 4), **place)
                ax.annotate(below, (0, 1), (0, 4), **place, color=QUIET, fontsize=8)
                bars[kind] = (shown, x + PANEL + 0.08)
            kind = "spread" if "spread" in bars else "value"
            shown, x = bars[kind]
            bar = figure.colorbar(
                shown, cax=figure.add_axes((x / width, bottom / height, 0.11 / width, PANEL * aspect / height))
            )
            what = "std, error" if item.estimates[-1].has_spread else "error"
            bar.set_label(what + (f" [{units}]" if units else "") if kind == "spread" else units or "value")
            bar.outline.set_visible(False)
            top = bottom
    return figure


def _image_rows(item: Item) -> list[list[tuple[str, str, str, Tensor]]]:
    """(kind, title, metrics, image) of the panels: what is known and the classical, then what the sampler gives."""
    *baselines, last = item.estimates
    above = [] if item.truth is None else [("value", "truth", "", item.truth)]
    above += [("value", e.method, _metrics(item, e), e.image) for e in baselines]
    below = [("value", ("mean of " if last.has_spread else "") + last.method, _metrics(item, last), last.image)]
    if last.has_spread:
        below += [("value", f"draw {k + 1}", "", last.samples.x[k]) for k in range(2)]
        below.append(("spread", "standard deviation", "", last.samples.std))
    if item.truth is not None:
        name = "|mean - truth|" if last.has_spread else "|estimate - truth|"
        below.append(("spread", name, "", (last.image - item.truth.to(last.image)).abs()))
    return [row for row in (above, below) if row]


def _metrics(item: Item, estimate: Estimate) -> str:
    values = item.metrics(estimate)
    known = [("psnr", "{:.2f} dB"), ("ssim", "SSIM {:.3f}")]
    return "   ".join(text.format(values[key]) for key, text in known if values[key] is not None)


def _curves(items: Sequence[Item], units: str) -> Figure:
    figure = Figure(figsize=(9.0, 2.9 * len(items)), layout="constrained")
    for item, ax in zip(items, figure.subplots(len(items), 1, squeeze=False)[:, 0], strict=True):
        last = item.estimates[-1]
        k = np.arange(last.image.shape[-1])
        separate = len(k) <= 32
        for n, estimate in enumerate(item.estimates[:-1]):
            ax.plot(k, _curve(estimate.image), ("--", ":", "-.")[n % 3], color=GREY, lw=1.0, label=estimate.method)
        if last.has_spread:
            low, high = (_curve(limit) for limit in last.samples.interval(0.9))
            if separate:
                ax.vlines(k, low, high, color=BAND, lw=7, label="90 % interval")
            else:
                ax.fill_between(k, low, high, color=BAND, alpha=0.6, lw=0, label="90 % interval")
        look = {"ls": "none", "marker": "o", "ms": 5} if separate else {"lw": 1.4}
        ax.plot(k, _curve(last.image), color=BLUE, label=f"{last.method}   {_metrics(item, last)}".strip(), **look)
        if item.truth is not None:
            look = {"ls": "none", "marker": "x", "ms": 6, "mew": 1.6} if separate else {"lw": 1.0}
            ax.plot(k, _curve(item.truth), color=ORANGE if separate else INK, label="truth", **look)
        ax.set(
            xlabel="index", ylabel=f"value [{units}]" if units else "value", xlim=(k[0] - 0.02 * len(k), k[-1] + 0.02 * len(k))
        )
        ax.set_title(item.name, loc="left")
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def calibration_figure(items: Sequence[Item], *, units: str = "") -> Figure:
    """Whether the spread means what it says: coverage against the nominal level, and the error against the standard deviation.

    Args:
        items: with a truth, and with draws in their last estimate.
        units: of the unknown, for the labels.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        levels = np.linspace(0.05, 0.95, 19)
        top = 0.0
        for index, item in enumerate(items):
            samples = item.estimates[-1].samples
            truth = item.truth.to(samples.x)
            inside = []
            for level in levels:
                low, high = samples.interval(float(level))
                inside.append(float(((low <= truth) & (truth <= high)).double().mean()))
            few = len(items) <= 4
            look = {"color": BLUE if index == 0 else f"C{index}", "label": item.name if few and len(items) > 1 else None}
            left.plot(levels, inside, "o-", ms=3, lw=1.2, **look)
            std, rms = _binned(samples.std, (samples.mean - truth).abs())
            right.plot(std, rms, "o-", ms=4, lw=1.2, **look)
            top = max(top, *std, *rms)
        left.plot([0, 1], [0, 1], color=GREY, lw=1.0, zorder=0)
        left.set(
            xlabel="nominal level of the interval", ylabel="part that holds the truth", xlim=(0, 1), ylim=(0, 1), aspect="equal"
        )
        left.set_title("Coverage (below the line: too sure)", loc="left")
        right.plot([0, 1.05 * top], [0, 1.05 * top], color=GREY, lw=1.0, zorder=0)
        unit = f" [{units}]" if units else ""
        right.set(
            xlabel=f"standard deviation{unit}",
            ylabel=f"rms error{unit}",
            xlim=(0, 1.05 * top),
            ylim=(0, 1.05 * top),
            aspect="equal",
        )
        right.set_title("Error by standard deviation (above the line: too sure)", loc="left")
        if 1 < len(items) <= 4:
            left.legend(loc="upper left")
        return figure


def gaussian_figure(draws: Tensor, mean: Tensor, cov: Tensor, *, truth: Tensor | None = None, units: str = "") -> Figure:
    """Draws against the Gaussian that they should come from: marginals of each element, scatter of the first pairs.

    Args:
        draws: (n, *shape) or (n, N).
        mean, cov: of the exact distribution, N values and (N, N).
        truth: N values, marked where given.
        units: of the unknown, for the labels.
    """
    x, mean, cov = (t.detach().double().cpu().numpy() for t in (draws.flatten(1), mean.reshape(-1), cov))
    known = None if truth is None else truth.detach().double().cpu().reshape(-1).numpy()
    count = min(8, len(mean))
    pairs = [(2 * i, 2 * i + 1) for i in range(count // 2)][:4]
    unit = f" [{units}]" if units else ""
    with rc_context(STYLE):
        columns = 4
        marginal_rows = math.ceil(count / columns)
        rows = marginal_rows + (1 if pairs else 0)
        heights = [1.0] * marginal_rows + [1.45] * bool(pairs)
        figure = Figure(figsize=(10.0, 1.75 * sum(heights) + 0.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, hspace=0.04, wspace=0.04)
        axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights})
        for ax in axes.flat:
            ax.set_axis_off()
        for i, ax in zip(range(count), axes.flat, strict=False):
            ax.set_axis_on()
            std = math.sqrt(cov[i, i])
            grid = np.linspace(mean[i] - 4 * std, mean[i] + 4 * std, 201)
            counts, edges = np.histogram(x[:, i], bins=40, range=(grid[0], grid[-1]))
            ax.stairs(counts / (len(x) * np.diff(edges)), edges, fill=True, color=BAND, label="draws")
            ax.plot(
                grid,
                np.exp(-0.5 * ((grid - mean[i]) / std) ** 2) / (std * math.sqrt(2 * math.pi)),
                color=BLUE,
                lw=1.4,
                label="exact",
            )
            if known is not None:
                ax.axvline(known[i], color=ORANGE, lw=1.2, label="truth")
            ax.set(yticks=[], xlabel=f"x[{i}]{unit}")
            ax.spines["left"].set_visible(False)
        for (i, j), ax in zip(pairs, axes[marginal_rows:].flat, strict=False):
            ax.set_axis_on()
            ax.plot(x[:2000, i], x[:2000, j], ".", ms=2.0, color=BAND, alpha=0.7, mew=0, rasterized=True)
            sizes, vectors = np.linalg.eigh(cov[np.ix_((i, j), (i, j))])
            angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
            for level in (0.5, 0.9, 0.99):
                reach = 2.0 * math.sqrt(-2.0 * math.log(1.0 - level))
                shape = (reach * math.sqrt(sizes[1]), reach * math.sqrt(max(sizes[0], 0.0)))
                ax.add_patch(Ellipse((mean[i], mean[j]), *shape, angle=angle, fill=False, color=BLUE, lw=1.1))
            if known is not None:
                ax.plot(known[i], known[j], "x", color=ORANGE, ms=7, mew=1.8)
            ax.set(xlabel=f"x[{i}]{unit}", ylabel=f"x[{j}]{unit}")
            ax.set_title("exact 50, 90, 99 %", color=QUIET, fontsize=8)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=3)
        return figure


def denoising_figure(errors: Mapping[str, Sequence[float]]) -> Figure:
    """Denoising error of a prior against the noise level, beside the Wiener filter's.

    Args:
        errors: sigma, rms, spread and wiener, as `invdiff.learning.error_table` makes them.
    """
    sigma, rms, spread, wiener = (np.asarray(errors[key]) for key in ("sigma", "rms", "spread", "wiener"))
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.6), layout="constrained")
        ax = figure.subplots()
        ax.plot(sigma, sigma, color=GREY, lw=1.0, ls=":", label="the noise itself")
        ax.plot(sigma, wiener, color=ORANGE, lw=1.2, label="Wiener filter")
        # on a logarithmic axis the lower end of a wide band has to stay positive
        ax.fill_between(sigma, np.maximum(rms - spread, rms / 10), rms + spread, color=BAND, alpha=0.5, lw=0)
        ax.plot(sigma, rms, "o-", color=BLUE, ms=3, lw=1.4, label="network (band: between images)")
        ax.set(xscale="log", yscale="log", xlabel="noise level sigma", ylabel="rms error of D(x, sigma)")
        ax.set_ylim(0.5 * rms.min(), 2.0 * max(rms.max(), wiener.max()))
        ax.legend(loc="lower right")
        return figure


def _spatial(image: Tensor) -> int:
    """Number of spatial axes: a vector has one, otherwise the first axis is the channel."""
    return max(image.ndim - 1, 1)


def _plane(image: Tensor) -> np.ndarray:
    """What can be shown of (C, *spatial): the middle plane of a volume; three channels are colours, of others the first."""
    image = image.detach().float().cpu()
    while image.ndim > 3:
        image = image[:, image.shape[1] // 2]
    return (image.permute(1, 2, 0) if len(image) == 3 else image[0]).numpy()


def _curve(x: Tensor) -> np.ndarray:
    x = x.detach().float().cpu()
    return (x if x.ndim == 1 else x[0]).numpy()


def _window(item: Item) -> tuple[float, float]:
    if item.window is not None:
        return item.window
    reference = _plane(item.estimates[-1].image if item.truth is None else item.truth)
    low, high = float(reference.min()), float(reference.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _spread_limit(row: Sequence[tuple[str, str, str, Tensor]]) -> float:
    """A scale that the rare largest errors do not set."""
    limits = [float(np.quantile(_plane(image), 0.995)) for kind, _, _, image in row if kind == "spread"]
    return max([v for v in limits if math.isfinite(v)], default=0.0) or 1.0


def _binned(std: Tensor, error: Tensor, bins: int = 12) -> tuple[list[float], list[float]]:
    """rms of the standard deviation and of the error in classes of equally many elements with similar standard deviation."""
    order = std.flatten().argsort()
    pairs = zip(std.flatten()[order].tensor_split(bins), error.flatten()[order].tensor_split(bins), strict=True)
    values = [[float(v.square().mean().sqrt()) for v in pair] for pair in pairs if len(pair[0])]
    return [v[0] for v in values], [v[1] for v in values]
