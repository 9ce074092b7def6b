"""Samplers against posteriors that are known in closed form."""

from .cases import GAUSSIAN, MAKERS, MIXTURES, Case
from .laboratory import Contender, Doubled, contenders, distances, moments, row, run, table

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
