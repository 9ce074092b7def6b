"""Learning: the loop that trains priors, autoencoders and reconstruction networks, weights to begin with, model cards."""

from .card import describe, distance_table, error_table, write_card
from .reconstruction import (
    describe_autoencoder,
    describe_end_to_end,
    describe_regression,
    write_autoencoder_card,
    write_end_to_end_card,
    write_regression_card,
)
from .settings import Training
from .start import Start, Started, start_from
from .train import fit
from .unrolled import EndToEnd

__all__ = [
    "EndToEnd",
    "Start",
    "Started",
    "Training",
    "describe",
    "describe_autoencoder",
    "describe_end_to_end",
    "describe_regression",
    "distance_table",
    "error_table",
    "fit",
    "start_from",
    "write_autoencoder_card",
    "write_card",
    "write_end_to_end_card",
    "write_regression_card",
]
