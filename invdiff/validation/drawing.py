"""Drawings of the laboratory's page, as SVG that stands in the page itself."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["DRAWING_STYLE", "coverage_drawing", "deviation_drawing"]

Rows = Sequence[Mapping[str, Any]]
WIDTH, HEIGHT, LEFT, RIGHT, BELOW, ABOVE = 960, 420, 64, 30, 44, 14

DRAWING_STYLE = """
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; fill: #333 }
svg .axis { stroke: #888; stroke-width: 1 } svg .grid { stroke: #e6e6e6; stroke-width: 1 }
svg .limit { stroke: #555; stroke-width: 1; stroke-dasharray: 4 3 }
svg .exact { fill: #2166ac } svg .biased { fill: #d95f02 } svg .wrong { fill: #777 }
svg .failed { stroke: #c00; stroke-width: 2.5 } svg .name { fill: #555; font-size: 10px }
td.exact { color: #2166ac } td.biased { color: #d95f02 } td.ok { color: #1a7f37 } td.failed { color: #fff; background: #c00 }
.lab td:nth-child(2), .lab th:nth-child(2), .lab td:nth-child(3), .lab th:nth-child(3) { text-align: left }
"""


def deviation_drawing(rows: Rows) -> str:
    """Deviation against evaluations and products of a draw, both logarithmic; empty where no row has one.

    The ratio of the distance to its floor where every row has one, else the worst z-score.
    """
    ratio = all(r.get("ratio") is not None for r in rows)
    key, what, limit = ("ratio", "distance over that of exact draws", 1.0) if ratio else ("worst_z", "worst z-score", 5.0)
    points = [(max(1.0, r["network_calls"] + r["network_vjps"]), max(r[key], 0.3), r) for r in rows if key in r]
    if not points:
        return ""
    x0, x1 = _decades([x for x, _, _ in points])
    y0, y1 = _decades([limit, *(y for _, y, _ in points)])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, HEIGHT - BELOW - (math.log10(y) - y0) / (y1 - y0) * (HEIGHT - BELOW - ABOVE)

    parts = []
    for k in range(x0, x1 + 1):
        x = place(10.0**k, 10.0**y0)[0]
        parts += [f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{ABOVE}" y2="{HEIGHT - BELOW}"/>']
        parts += [_label(x, HEIGHT - BELOW + 16, f"{10**k:,}", "middle")]
    for k in range(y0, y1 + 1):
        y = place(10.0**x0, 10.0**k)[1]
        parts += [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>']
        parts += [_label(LEFT - 6, y + 4, f"{10.0**k:g}", "end")]
    y = place(10.0**x0, limit)[1]
    parts.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    taken: list[tuple[float, float, float]] = []
    # the largest deviations have their names first
    for a, b, r in sorted(points, key=lambda p: -p[1]):
        x, y = place(a, b)
        kind = r["claim"] + ("" if r["ok"] else " failed")
        words = f"{r['sampler']} on {r['case']}: {b:.3g}, {a:.0f} calls and products, claimed {r['claim']}"
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{html.escape(words)}</title></circle>')
        size = 5.4 * len(r["sampler"])
        free = all(abs(v - y) > 11 or x + 7 > end or x + 7 + size < start for start, end, v in taken)
        if free and x + 7 + size < WIDTH:
            taken.append((x + 7, x + 7 + size, y))
            parts.append(_label(x + 7, y + 3.5, r["sampler"], "start", "name"))
    across = _label((LEFT + WIDTH) / 2, HEIGHT - 8, "network evaluations and products with the Jacobian, for a draw", "middle")
    up = f'<text transform="translate(14 {HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{what}</text>'
    return _svg(HEIGHT, [*parts, across, up], f"{what} against network calls")


def coverage_drawing(rows: Rows) -> str:
    """Coverage by the 90 % intervals of each sampler, the mean over its cases, and 0.9; empty where no row has one."""
    found: dict[tuple[str, str], list[float]] = {}
    for r in rows:
        if r.get("coverage") is not None:
            found.setdefault((r["sampler"], r["claim"]), []).append(r["coverage"])
    if not found:
        return ""
    left, step = 230, 15
    height = ABOVE + step * len(found) + BELOW

    def across(value: float) -> float:
        return left + value * (WIDTH - left - RIGHT)

    parts = []
    for k in range(0, 11, 2):
        x = across(k / 10.0)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{ABOVE}" y2="{height - BELOW}"/>')
        parts.append(_label(x, height - BELOW + 16, f"{k / 10.0:g}", "middle"))
    x = across(0.9)
    parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{ABOVE}" y2="{height - BELOW}"/>')
    means = {key: sum(values) / len(values) for key, values in found.items()}
    for number, (sampler, claim) in enumerate(sorted(means, key=lambda key: -means[key])):
        y, mean = ABOVE + step * (number + 0.5), means[sampler, claim]
        words = f"{sampler}: {mean:.3f}"
        parts.append(_label(left - 8, y + 4, sampler, "end"))
        parts.append(
            f'<circle class="{claim}" cx="{across(mean):.1f}" cy="{y:.1f}" r="4"><title>{html.escape(words)}</title></circle>'
        )
    parts.append(_label((left + WIDTH) / 2, height - 8, "part of exact draws inside; blue: exact, orange: biased", "middle"))
    return _svg(height, parts, "coverage of 90 % intervals")


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _label(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" xmlns="http://www.w3.org/2000/svg"><title>{html.escape(title)}'
        "</title>\n" + "\n".join(parts) + "\n</svg>"
    )
