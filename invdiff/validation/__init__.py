"""Samplers against posteriors that are known in closed form, and the diagnostics that tell them apart."""

from .case import Case
from .contenders import Contender, Doubled, contenders
from .diagnose import Reading, calibration, diagnostics
from .grids import GRIDS, grid, sizes, sizes_table
from .image_cases import FIELDS, IMAGES, TOYS
from .laboratory import distances, modes, moments, row, run, table
from .makers import GAUSSIAN, MAKERS, MIXTURES
from .null_gate import gate, gate_table
from .results import Results, page

__all__ = [
    "FIELDS",
    "GAUSSIAN",
    "GRIDS",
    "IMAGES",
    "MAKERS",
    "MIXTURES",
    "TOYS",
    "Case",
    "Contender",
    "Doubled",
    "Reading",
    "Results",
    "calibration",
    "contenders",
    "diagnostics",
    "distances",
    "gate",
    "gate_table",
    "grid",
    "modes",
    "moments",
    "page",
    "row",
    "run",
    "sizes",
    "sizes_table",
    "table",
]
