"""Exact samplers at two sizes and three noise levels.

What a sampler claims on a case it has to hold there whatever the size of the problem and its noise. What depends on them among
its options follows: as many Krylov steps as there are measurements (MMPS) or unknowns (DAPS with Tweedie's covariance), half as
many particles as unknowns (TDS), and a lowest level of a quarter of the noise, where that is lower than its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..core import Karras, Sampler
from ..guidance import MMPS
from ..samplers import DAPS, TDS
from .case import Case
from .cases import coloured, complex_valued, composed, consistency, despeckling, field, mixture, speckle, white
from .contenders import Contender, contenders
from .image_cases import deconvolution, random_field, tomography
from .laboratory import measured, worst_z

__all__ = ["GRIDS", "fitted", "grid", "sizes", "sizes_table"]

LEVELS = (0.01, 0.1, 1.0)
_Make = Callable[[int, float], Case]


def _measured(make: Callable[..., Case]) -> _Make:
    return lambda d, level: make(0, d, d // 2, sigma=level)


def _complex(d: int, level: float) -> Case:
    return complex_valued(0, d, d // 4, sigma=level)


# by case: sizes, levels (standard deviations of the noise; looks; the noise that is left), and the problem of both
GRIDS: dict[str, tuple[tuple[int, int], tuple[float, float, float], _Make]] = {
    "white": ((8, 32), LEVELS, _measured(white)),
    "coloured": ((8, 32), LEVELS, _measured(coloured)),
    "complex": ((8, 32), LEVELS, _complex),
    "composed": ((8, 32), LEVELS, _measured(composed)),
    "field": ((8, 32), LEVELS, _measured(field)),
    "speckle": ((4, 16), (0.1, 0.3, 1.0), lambda d, level: speckle(0, d, sigma=level)),
    "despeckling": ((4, 16), (16.0, 4.4, 1.0), lambda d, level: despeckling(0, d, looks=level)),
    "consistency": ((8, 32), (0.02, 0.05, 0.2), lambda d, level: consistency(0, d, low=level)),
    "random field, shift 1": ((12, 16), LEVELS, lambda d, level: random_field(0, d, sigma=level)),
    "deconvolution": ((8, 12), (0.25, 0.5, 1.0), lambda d, level: deconvolution(0, d, sigma=level)),
    "tomography": ((8, 12), (1.0, 2.0, 4.0), lambda d, level: tomography(0, d, sigma=level)),
}


def _mixture(m: int, d: int, level: float) -> Case:
    return mixture(0, d, m, sigma=level)


GRIDS |= {f"mixture dy={m}": ((8, 32), LEVELS, partial(_mixture, m)) for m in (1, 2, 4)}


def fitted(sampler: Sampler, case: Case, level: float) -> Sampler:
    """The sampler with the options that depend on the size of a problem and on its noise."""
    options: dict[str, Any] = {}
    operator, guidance, levels = case.problem.operator, getattr(sampler, "guidance", None), getattr(sampler, "grid", None)
    if isinstance(guidance, MMPS) and guidance.reference is None:
        count = math.prod(operator.out_shape) * (2 if operator.out_complex else 1)
        options["guidance"] = replace(guidance, cg_steps=count)
    if isinstance(sampler, DAPS) and sampler.covariance == "jacobian":
        options["krylov"] = math.prod(operator.in_shape)
    if isinstance(sampler, TDS):
        options["particles"] = max(sampler.particles, math.prod(operator.in_shape) // 2)
    if isinstance(levels, Karras) and case.name != "despeckling":
        low = levels.sigma_min if levels.sigma_min is not None else case.prior.sigma_min
        options["grid"] = replace(levels, sigma_min=max(case.prior.sigma_min, min(low, 0.25 * level)))
    return replace(sampler, **options)


def grid(contender: Contender, n: int = 1000) -> list[dict[str, Any]]:
    """A row for each case that has a grid, size and level: sampler, case, size, level, draws, worst z, seconds, `ok`."""
    rows = []
    for name in contender.cases:
        if name not in GRIDS:
            continue
        extents, levels, make = GRIDS[name]
        for size in extents:
            for level in levels:
                case = make(size, level)
                part = measured(replace(contender, sampler=fitted(contender.sampler, case, level)), case, n)
                worst = worst_z(part)
                facts = {"sampler": contender.name, "case": name, "size": size, "level": level, "draws": n}
                rows.append(facts | {"worst_z": worst, "seconds": part["seconds"], "ok": worst < 5.0})
    return rows


def sizes(n: int = 1000, progress: bool = False) -> list[dict[str, Any]]:
    """The grids of every contender that claims to be exact; about an hour."""
    work = [replace(c, cases=(name,)) for c in contenders() if c.claim == "exact" for name in c.cases if name in GRIDS]
    if progress:
        from tqdm import tqdm

        work = tqdm(work, desc="sizes", unit="grid", leave=False)
    return [row for contender in work for row in grid(contender, n)]


def sizes_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The worst z-scores as Markdown: a line for each sampler and case, its sizes and levels in the order of `GRIDS`."""
    lines = [["sampler", "case", "sizes", "levels", "worst z at the smaller size", "at the larger", "verdict"]]
    for sampler, case in dict.fromkeys((r["sampler"], r["case"]) for r in rows):
        own = [r for r in rows if (r["sampler"], r["case"]) == (sampler, case)]
        extents, levels = (list(dict.fromkeys(r[key] for r in own)) for key in ("size", "level"))
        cells = [", ".join(f"{r['worst_z']:.1f}" for r in own if r["size"] == size) for size in extents]
        names = [", ".join(f"{v:g}" for v in values) for values in (extents, levels)]
        lines.append([sampler, case, *names, *cells, "ok" if all(r["ok"] for r in own) else "FAILED"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * w for w in widths])
    return "\n".join("| " + " | ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)) + " |" for line in lines)
