"""A report for reading: the table of the terminal and the page of one file."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["page", "text_table"]

COLUMNS = {  # key -> heading, decimals
    "psnr": ("PSNR [dB]", 2),
    "ssim": ("SSIM", 3),
    "nrmse": ("NRMSE", 3),
    "error_rate": ("error rate", 4),
    "misfit": ("misfit", 2),
    "coverage": ("coverage", 3),
}
COSTS = {
    "seconds": ("seconds", 1),
    "draws": ("draws", 0),
    "network_calls": ("network calls", 0),
    "network_vjps": ("network vjps", 0),
    "operator_calls": ("operator calls", 0),
    "peak_bytes": ("peak memory", 0),
}
TERMINAL = ("seconds", "network_calls")


def text_table(summary: Mapping[str, Any]) -> str:
    """Methods as rows; metrics, seconds and network calls as columns."""
    columns = _columns(summary)
    rows = [["method", *(COLUMNS[key][0] for key in columns), *(COSTS[key][0] for key in TERMINAL)]]
    for method, values in summary.items():
        rows.append([method, *_metrics(values, columns), *(_cost(values["cost"], key) for key in TERMINAL)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def page(facts: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """One HTML file that needs nothing else: tables, notes, figures, configuration, environment.

    Args:
        facts: what report.json holds.
        images: caption -> PNG.
    """
    methods, items = facts["methods"], facts["items"]
    count = f"{len(items)} item" + "s" * (len(items) > 1)
    body = [
        f"<h1>{_text(facts['task'])}</h1>",
        f"<p class=quiet>{count} · seed {_text(facts['seed'])} · {_text(facts['device'])} · "
        f"invdiff {_text(facts['environment']['versions']['invdiff'])}</p>",
        "<h2>Quality</h2>",
        _quality(methods, items),
        f"<p class=quiet>Mean over the items{' ± standard error' if len(items) > 1 else ''}. misfit: χ² per measured value, 1 "
        f"for a right estimate. coverage: part of the elements "
        f"whose {100 * facts['interval']:g} % interval holds the truth.</p>",
    ]
    if facts["notes"]:
        body += ["<ul class=notes>", *(f"<li>{_text(note)}</li>" for note in facts["notes"]), "</ul>"]
    for caption, png in images.items():
        source = base64.b64encode(png).decode()
        body += [
            f"<h2>{_text(caption)}</h2>",
            f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{source}"></figure>',
        ]
    costs = [[m, *(_cost(v["cost"], key) for key in COSTS)] for m, v in methods.items()]
    body += ["<h2>Cost</h2>", _table(["method", *(h for h, _ in COSTS.values())], costs)]
    body += [
        "<p class=quiet>Calls per draw; seconds for all draws of an item; peak memory of the device, or of the process.</p>"
    ]
    found = [[f"{i['name']}: {m}", *pair] for i in items for m, e in i["methods"].items() for pair in _flat(e["facts"])]
    found += [[_text(k), *pair] for k, v in facts["facts"].items() for pair in _flat(v)]
    if found:
        body += ["<h2>Further facts</h2>", _table(["of", "fact", "value"], found, "facts")]
    for title, value in (("Configuration", facts["config"]), ("Environment", facts["environment"])):
        text = _text(json.dumps(value, indent=2, ensure_ascii=False))
        body.append(f"<details><summary>{title}</summary><pre>{text}</pre></details>")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(facts["task"])} · invdiff</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n</head>\n<body>\n'
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _quality(methods: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> str:
    columns = _columns(methods)
    head = [COLUMNS[key][0] for key in columns]
    table = _table(["method", *head], [[m, *_metrics(v, columns)] for m, v in methods.items()])
    if len(items) == 1:
        return table
    rows = [
        [i["name"], m, *(_number(e[key], COLUMNS[key][1]) for key in columns)] for i in items for m, e in i["methods"].items()
    ]
    return table + f"<details><summary>Each item</summary>{_table(['item', 'method', *head], rows)}</details>"


def _columns(summary: Mapping[str, Any]) -> list[str]:
    """The metrics that are shown: the error rate only where the unknown has two values."""
    return [k for k in COLUMNS if k != "error_rate" or any(v[k]["mean"] is not None for v in summary.values())]


def _metrics(values: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    cells = []
    for key in columns:
        decimals = COLUMNS[key][1]
        error = values[key]["standard_error"]
        cells.append(_number(values[key]["mean"], decimals) + ("" if error is None else f" ± {_number(error, decimals)}"))
    return cells


def _cost(cost: Mapping[str, Any], key: str) -> str:
    if key == "peak_bytes" and cost[key]:
        return f"{cost[key] / 2**20:,.0f} MiB"
    return _number(cost[key], COSTS[key][1])


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}" if abs(value) < 1e5 else f"{value:.1e}"


def _flat(value: Any, path: str = "") -> Iterator[list[str]]:
    """[path, text] of every leaf of nested dictionaries; a list is a leaf."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}, {key}" if path else str(key))
    else:
        yield [path, _value(value)]


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_value(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    cells = ["<tr>" + "".join(f"<th>{_text(h)}</th>" for h in head) + "</tr>"]
    cells += ["<tr>" + "".join(f"<td>{_text(c)}</td>" for c in row) + "</tr>" for row in rows]
    return f"<div class=wide><table class={kind}>\n" + "\n".join(cells) + "\n</table></div>"


def _text(value: object) -> str:
    return html.escape(str(value))


STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --quiet: #666b73; --line: #d9dce1; --paper: #fff; --note: #f4f5f7 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --quiet: #9aa0a8; --line: #3a3e45; --paper: #17191c; --note: #22252a }
}
body { max-width: 72rem; margin: 2.5rem auto; padding: 0 1.25rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem }
.quiet { color: var(--quiet); font-size: .9rem; margin: .3rem 0 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .35rem 1.1rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600 }
th:first-child, td:first-child, .facts th, .facts td { text-align: left }
.facts td:last-child { white-space: normal; overflow-wrap: anywhere }
figure { margin: 0; padding: .75rem; background: #fff; border: 1px solid var(--line); border-radius: 6px }
img { display: block; width: 100%; height: auto }
.notes { background: var(--note); border-radius: 6px; padding: .8rem 1rem .8rem 2.2rem; margin: 1rem 0 }
details { margin: .8rem 0 }
summary { cursor: pointer }
pre { overflow-x: auto; font-size: .85rem; background: var(--note); padding: 1rem; border-radius: 6px }
"""
