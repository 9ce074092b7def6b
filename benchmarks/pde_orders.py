"""The order of convergence of every operator on fields, measured against known or much finer solutions, in float64.

An error is relative, in the 2-norm over the points; a slope is that of the last two, log(e_1 / e_2) / log(m_2 / m_1), with m
the number of intervals of what is refined: points of an axis, frames, or steps of time. It has to be within 0.1 of the order
that the operator declares. Rows of order `exact` have to err by rounding at the last size, by 1e-11 or less.

    python benchmarks/pde_orders.py [--threads 1] [--only NAME ...] [--json FILE] [--markdown]

The table that is kept is benchmarks/results/pde_orders.json. A further operator is a function of its rows, in
`pde_steady`, `pde_evolving` or `pde_waves`, and a name in TABLES.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from pde_evolving import (
    advection_diffusion,
    burgers,
    burgers_shocks,
    burgers_walls,
    kdv,
    kuramoto_sivashinsky,
    navier_stokes,
    smoke,
)
from pde_steady import band, darcy, heat, helmholtz, poisson, sensors, series
from pde_waves import acoustic_wave, scattering

TABLES: tuple[Callable[[], list[dict]], ...] = (
    # constant coefficients
    poisson,
    helmholtz,
    heat,
    # coefficients that vary
    darcy,
    advection_diffusion,
    # spectral in space, in time
    burgers,
    kdv,
    kuramoto_sivashinsky,
    navier_stokes,
    # between walls
    burgers_walls,
    burgers_shocks,
    smoke,
    # waves
    acoustic_wave,
    scattering,
    # observation
    sensors,
    series,
    band,
)


def show(row: dict) -> None:
    errors = " ".join(f"{n}: {e:.2e}" for n, e in zip(row["sizes"], row["errors"], strict=True))
    order, slope = ("exact", "") if row["declared"] is None else (f"{row['declared']:g}", f"{row['slope']:.3f}")
    print(
        f"{row['operator']:<20}{row['scheme']:<36}{order:>6}{slope:>8}  {'ok' if row['ok'] else 'OFF':<4}{errors}  "
        f"({row['refined']}, {row['against']}, {row['seconds']:.1f} s)",
        flush=True,
    )


def markdown(rows: list[dict]) -> str:
    """The table of docs/fields.md: the last error of each row, and the slope of the last two."""
    lines = ["| operator | scheme | refined | against | declared | slope | relative error |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        order, slope = ("exact", "") if row["declared"] is None else (f"{row['declared']:g}", f"{row['slope']:.2f}")
        names = f"`{row['operator']}` | {row['scheme']} | {row['refined']} | {row['against']}"
        lines.append(f"| {names} | {order} | {slope} | {row['errors'][-1]:.1e} at {row['sizes'][-1]} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--only", nargs="+", choices=[t.__name__ for t in TABLES], metavar="NAME")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/fields.md at the end")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = []
    with torch.no_grad():
        for table in TABLES:
            if not arguments.only or table.__name__ in arguments.only:
                found = table()
                rows += found
                for row in found:
                    show(row)
    if arguments.json:
        facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        arguments.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1), encoding="utf-8")
    if arguments.markdown:
        print(markdown(rows))
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
