"""Every problem with a known posterior, by the name of its case: seed -> Case."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from . import image_cases
from .blind_cases import blind_gain
from .case import Case
from .cases import coloured, complex_valued, composed, consistency, despeckling, field, mixture, speckle, white

__all__ = ["GAUSSIAN", "MAKERS", "MIXTURES"]

MAKERS: dict[str, Callable[[int], Case]] = {
    "white": white,
    "coloured": coloured,
    "complex": complex_valued,
    "composed": composed,
    "field": field,
    "speckle": speckle,
    "despeckling": despeckling,
    "consistency": consistency,
    **{f"mixture dy={m}": partial(mixture, m=m) for m in (1, 2, 4)},
    "blind gain": blind_gain,
    **image_cases.MAKERS,
}
MIXTURES = tuple(name for name in MAKERS if name.startswith("mixture"))
GAUSSIAN = ("white", "coloured", "complex", "composed", "field")
