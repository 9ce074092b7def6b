"""Learning: the loop that trains priors, autoencoders and reconstruction networks, weights to begin with, model cards."""

from .card import describe, distance_table, error_table, write_card
from .comparison import compare, describe_student, write_student_card
from .distil import distil
from .distillation import Distillation
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
    "Distillation",
    "EndToEnd",
    "Start",
    "Started",
    "Training",
    "compare",
    "describe",
    "describe_autoencoder",
    "describe_end_to_end",
    "describe_regression",
    "describe_student",
    "distance_table",
    "distil",
    "error_table",
    "fit",
    "start_from",
    "write_autoencoder_card",
    "write_card",
    "write_end_to_end_card",
    "write_regression_card",
    "write_student_card",
]
