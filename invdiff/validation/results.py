"""The laboratory's results as files: numbers, a Markdown table, and a page of one file with its figures.

validation.json   facts of the run, rows; `sizes` and `gate` where they were run
validation.md     the tables
validation.html   the tables with their verdicts coloured, and as drawings in the page itself
                    deviation against the cost of a draw, for each family of cases
                    coverage of 90 % intervals
"""

from __future__ import annotations

import html
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..report.render import STYLE
from .drawing import DRAWING_STYLE, coverage_drawing, deviation_drawing
from .grids import sizes_table
from .laboratory import COLUMNS, formatted, table
from .null_gate import gate_table

__all__ = ["Results", "families", "page"]

Rows = Sequence[Mapping[str, Any]]
FAMILIES = {
    "Gaussian posteriors": ("white", "coloured", "complex", "composed", "field", "consistency"),
    "Mixtures": ("mixture",),
    "Toy of two modes": ("toy",),
    "Random field": ("random field",),
    "Images that are one of five shapes": ("deconvolution", "tomography"),
    "Speckle": ("speckle", "despeckling"),
}
EXPLANATION = (
    "An exact row passes by z-scores below 5, a biased one where its known bias is reproduced, a wrong one, planted, where it "
    "is rejected by more than 20. Calls are evaluations of the network for a draw, products those with its Jacobian."
)


@dataclass(frozen=True)
class Results:
    """What a run of the laboratory gave.

    Args:
        rows: of `run`. sizes: of `sizes`. gate: of `gate`; empty where it was not run.
    """

    rows: Rows = ()
    sizes: Rows = ()
    gate: Rows = ()
    facts: Mapping[str, Any] = field(default_factory=lambda: {"torch": torch.__version__, "python": platform.python_version()})

    @property
    def ok(self) -> bool:
        """Whether all is as claimed."""
        return all(row["ok"] for part in (self.rows, self.sizes, self.gate) for row in part)

    @property
    def numbers(self) -> dict[str, Any]:
        """What the JSON file holds."""
        parts = {"rows": self.rows, "sizes": self.sizes, "gate": self.gate}
        return {"facts": dict(self.facts), **{key: [dict(r) for r in part] for key, part in parts.items() if part}}

    @property
    def text(self) -> str:
        """The tables that there are, as Markdown."""
        tables = [(self.rows, table), (self.sizes, sizes_table), (self.gate, gate_table)]
        return "\n\n".join(make(part) for part, make in tables if part)

    def save(self, folder: str | Path) -> Path:
        """Write the three files into a folder, or a new one in a folder that exists."""
        folder = Path(folder)
        folder.mkdir(exist_ok=True)
        files = {"json": json.dumps(self.numbers, indent=1), "md": self.text + "\n", "html": page(self)}
        for suffix, content in files.items():
            part = folder / f"validation.{suffix}.part"
            part.write_text(content, "utf-8")
            part.replace(folder / f"validation.{suffix}")
        return folder


def families(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """The rows by family of their cases, in the order of `FAMILIES`, without empty ones."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name, members in FAMILIES.items():
        own = [r for r in rows if any(r["case"] == m or r["case"].startswith((m + ",", m + " dy")) for m in members)]
        if own:
            found[name] = own
    return found


def page(results: Results) -> str:
    """One HTML file that needs nothing else."""
    body = ["<h1>Samplers against posteriors that are known</h1>", f"<p class=quiet>{_text(_facts(results.facts))}</p>"]
    if results.rows:
        failed = sum(not r["ok"] for r in results.rows)
        verdict = "all as claimed" if not failed else f"{failed} not as claimed"
        body.append(f"<p>{len(results.rows)} rows, {verdict}. {EXPLANATION}</p>")
        for name, rows in families(results.rows).items():
            drawing = deviation_drawing(rows)
            body += [f"<h2>{_text(name)}</h2>", f"<figure>{drawing}</figure>" if drawing else "", _rows_table(rows)]
        if drawing := coverage_drawing(results.rows):
            body += ["<h2>Coverage of 90 % intervals</h2>", f"<figure>{drawing}</figure>"]
    if results.sizes:
        body += ["<h2>Two sizes, three noise levels</h2>", _markdown(sizes_table(results.sizes))]
    if results.gate:
        body += [
            "<h2>The diagnostics themselves: alarms on exact draws and on planted faults</h2>",
            _markdown(gate_table(results.gate)),
        ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Validation · invdiff</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}{DRAWING_STYLE}</style>\n</head>\n<body>\n'
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _facts(facts: Mapping[str, Any]) -> str:
    return " · ".join(f"{key} {value}" for key, value in facts.items())


def _rows_table(rows: Rows) -> str:
    used = [key for key in COLUMNS if any(r.get(key) is not None for r in rows)]
    head = "".join(f"<th>{_text(h)}</th>" for h in ("sampler", "case", "claim", *(COLUMNS[k] for k in used), "verdict"))
    lines = []
    for r in rows:
        verdict, kind = ("ok", "ok") if r["ok"] else ("FAILED", "failed")
        cells = [r["sampler"], r["case"], *(formatted(r.get(key), key) for key in used)]
        cells = [f"<td>{_text(c)}</td>" for c in cells]
        cells.insert(2, f'<td class="{_text(r["claim"])}">{_text(r["claim"])}</td>')
        lines.append(f'<tr>{"".join(cells)}<td class="{kind}">{verdict}</td></tr>')
    return f"<div class=wide><table class=lab>\n<tr>{head}</tr>\n" + "\n".join(lines) + "\n</table></div>"


def _markdown(text: str) -> str:
    """A Markdown table as one of HTML; FAILED and ok are coloured."""
    lines = [[c.strip() for c in line.strip("| ").split(" | ")] for line in text.splitlines()]
    columns = len(lines[0])
    rows = []
    for number, line in enumerate([lines[0], *lines[2:]]):
        tag, cells = "th" if number == 0 else "td", line + [""] * (columns - len(line))
        kinds = ["failed" if "FAILED" in c else "ok" if c == "ok" else "" for c in cells]
        rows.append("".join(f'<{tag} class="{k}">{_text(c)}</{tag}>' for c, k in zip(cells, kinds, strict=True)))
    return "<div class=wide><table class=lab>\n" + "\n".join(f"<tr>{r}</tr>" for r in rows) + "\n</table></div>"


def _text(value: object) -> str:
    return html.escape(str(value))
