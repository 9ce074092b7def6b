"""Every operator on fields converges at the order that it declares; the table that is kept is of the same rows."""

import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def orders():
    """The script, which finds its own parts beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import pde_orders

        yield pde_orders
    for name in ("pde_orders", "pde_evolving", "pde_rows", "pde_steady", "pde_waves"):
        del sys.modules[name]


@pytest.fixture(scope="module")
def measured(orders):
    return {table.__name__: table() for table in orders.TABLES}


def test_the_measured_order_is_the_declared_one(measured):
    rows = [row for found in measured.values() for row in found]
    assert len(rows) >= 49
    for row in rows:
        title = f"{row['operator']}, {row['scheme']}: {row['errors']}"
        if row["declared"] is None:
            assert row["errors"][-1] <= 1e-11, title
        else:
            assert abs(row["slope"] - row["declared"]) <= 0.1, f"{title}, slope {row['slope']:.3f}"


def test_a_wrong_order_is_seen(measured):
    """The errors of arithmetic faces at a jump are of first order: claims of the second, or of rounding, are not ok."""
    from pde_rows import measure

    (row,) = (r for r in measured["darcy"] if r["scheme"] == "arithmetic, jump")
    errors, one = dict(zip(row["sizes"], row["errors"], strict=True)), torch.ones(1, dtype=torch.float64)
    for declared, ok in ((1.0, True), (2.0, False), (None, False)):
        again = measure("Darcy", "again", declared, row["sizes"], lambda n: (one + errors[n], one))
        assert again["ok"] is ok


def test_the_table_that_is_kept_is_of_these_rows(measured):
    """Run benchmarks/pde_orders.py --threads 1 --json benchmarks/results/pde_orders.json where this fails."""
    kept = {
        (r["operator"], r["scheme"]): r for r in json.loads((FOLDER / "results/pde_orders.json").read_text("utf-8"))["rows"]
    }
    fresh = {(r["operator"], r["scheme"]): r for rows in measured.values() for r in rows}
    assert kept.keys() == fresh.keys()
    for title, row in fresh.items():
        if row["declared"] is not None:
            assert (kept[title]["sizes"], kept[title]["declared"]) == (row["sizes"], row["declared"])
            assert kept[title]["slope"] == pytest.approx(row["slope"], abs=0.01), title
