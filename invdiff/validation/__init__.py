"""Samplers against posteriors that are known in closed form."""

from .cases import GAUSSIAN, MAKERS, MIXTURES, Case
from .contenders import Contender, Doubled, contenders
from .laboratory import distances, moments, row, run, table

__all__ = [
    "GAUSSIAN",
    "MAKERS",
    "MIXTURES",
    "Case",
    "Contender",
    "Doubled",
    "contenders",
    "distances",
    "moments",
    "row",
    "run",
    "table",
]
