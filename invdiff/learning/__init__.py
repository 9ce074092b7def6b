"""Learning: the training loop of network priors, and their model cards."""

from .card import describe, distance_table, error_table, write_card
from .settings import Training
from .train import fit

__all__ = ["Training", "describe", "distance_table", "error_table", "fit", "write_card"]
