"""Tasks: named, reproducible instances of a problem, a prior and a sampler, with data and metrics."""

from .assimilation import Assimilation, errors_in_time
from .control import control_problem, descent, objective
from .data import CTSlices, Data, Item, MRSlice, Photographs, PriorDraws
from .field_data import Fields
from .joint import Pairs, Residual, joint_problem
from .phantoms import Phantoms, phantom
from .setups import Crop, Relative
from .slices import MRSlices
from .task import Task
from .trajectories import Trajectories

__all__ = [
    "Assimilation",
    "CTSlices",
    "Crop",
    "Data",
    "Fields",
    "Item",
    "MRSlice",
    "MRSlices",
    "Pairs",
    "Phantoms",
    "Photographs",
    "PriorDraws",
    "Relative",
    "Residual",
    "Task",
    "Trajectories",
    "control_problem",
    "descent",
    "errors_in_time",
    "joint_problem",
    "objective",
    "phantom",
]
