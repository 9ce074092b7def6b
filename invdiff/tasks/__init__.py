"""Tasks: named, reproducible instances of a problem, a prior and a sampler, with data and metrics."""

from .data import CTSlices, Data, Item, MRSlice, Photographs, PriorDraws
from .field_data import Fields
from .phantoms import Phantoms, phantom
from .setups import Crop, Relative
from .slices import MRSlices
from .task import Task

__all__ = [
    "CTSlices",
    "Crop",
    "Data",
    "Fields",
    "Item",
    "MRSlice",
    "MRSlices",
    "Phantoms",
    "Photographs",
    "PriorDraws",
    "Relative",
    "Task",
    "phantom",
]
