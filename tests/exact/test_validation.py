"""The table of `invdiff validate`, row by row: exact samplers pass, planted faults fail, known biases are reproduced."""

import pytest

from invdiff import validation
from invdiff.samplers import EnKG, Laplace, Particles
from invdiff.validation import FIELDS, IMAGES, MIXTURES, TOYS, contenders


def is_slow(contender, case):
    """All but the first case of each; of these particles, many steps, images, and all mixtures but Heun's."""
    sampler = contender.sampler
    costly = (
        isinstance(sampler, Particles | EnKG) or sampler.steps >= 100 or (case in MIXTURES and "heun" not in contender.name)
    )
    large = case in (*TOYS, *FIELDS, *IMAGES) and not isinstance(sampler, Laplace)
    return case != contender.cases[0] or costly or large or (case in MIXTURES and contender.claim == "biased")


ROWS = [
    pytest.param(c, case, id=f"{c.name} on {case}, {c.claim}", marks=[pytest.mark.slow] if is_slow(c, case) else [])
    for c in contenders()
    for case in c.cases
]


@pytest.mark.parametrize(("contender", "case"), ROWS)
def test_a_row_is_what_it_claims(contender, case):
    row = validation.row(contender, case, 1000)
    assert row["ok"], row


def test_every_sampler_of_the_package_has_a_row():
    from invdiff.catalogue import make, names

    def kind(sampler):
        guidance = getattr(sampler, "guidance", None)
        return type(sampler).__name__ if guidance is None else type(guidance).__name__

    # IDM is trained for photographs or heads, RePaint takes masks alone: no known posterior here is theirs
    here = {kind(make("sampler", name)) for name in names("sampler")} - {"IDM", "RePaint"}
    assert here <= {kind(c.sampler) for c in contenders()}


def test_the_table_has_a_line_for_each_row():
    rows = [validation.row(contenders()[0], "white", 50)]
    assert validation.table(rows).count("\n") == 2
