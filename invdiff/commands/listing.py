"""`invdiff list`: what there is, one line each."""

from __future__ import annotations

from typing import Any

from ..catalogue import load
from ..configs import choices, names, summary
from ..core.build import build, resolve

__all__ = ["rows", "table"]


def rows(group: str) -> list[dict[str, Any]]:
    """One dictionary for each name of a group: name, what it is, and what choosing between them needs."""
    return [{"name": name, **_facts(group, name), "about": _about(group, name)} for name in names(group)]


def table(found: list[dict[str, Any]]) -> str:
    """The rows as aligned text; needs are joined by commas, what does not exist is a dash."""
    if not found:
        return "none"
    cells = [list(found[0]), *([_text(value) for value in row.values()] for row in found)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _facts(group: str, name: str) -> dict[str, Any]:
    if group == "task":
        chosen = choices(f"task/{name}")
        return {"prior": chosen.get("prior"), "sampler": chosen.get("sampler")}
    if group in ("sampler", "guidance"):
        thing = build(load(group, name))
        return {"kind": thing.kind, "needs": sorted(thing.needs)}
    return {}


def _about(group: str, name: str) -> str:
    """The comment that opens the file, or the first line of the docstring of what it builds."""
    opening = summary(f"{group}/{name}")
    if opening:
        return opening
    doc = resolve(load(group, name)["_target_"]).__doc__ or ""
    return doc.strip().partition("\n")[0]


def _text(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, list) else value
    return str(text or "-")
