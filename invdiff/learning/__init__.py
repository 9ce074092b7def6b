"""Learning: the training loop of network priors, and their model cards."""

from .card import describe, error_table, write_card
from .train import Training, fit

__all__ = ["Training", "describe", "error_table", "fit", "write_card"]
