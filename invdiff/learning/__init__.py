"""Learning: the training loop of network priors and autoencoders, and their model cards."""

from .card import describe, distance_table, error_table, write_card
from .reconstruction import describe_autoencoder, write_autoencoder_card
from .settings import Training
from .train import fit

__all__ = [
    "Training",
    "describe",
    "describe_autoencoder",
    "distance_table",
    "error_table",
    "fit",
    "write_autoencoder_card",
    "write_card",
]
