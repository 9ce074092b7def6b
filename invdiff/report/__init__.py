"""What was measured: numbers, figures and draws of a run, written to a folder in one piece.

    report.json        metrics per item and their mean with its standard error, cost, configuration, environment, notes
    report.html        the same for reading, in one file
    figure.png         the first figure
    samples.h5         truth, estimates, draws, mean, standard deviation and quantiles of each item
    config.yaml        the resolved configuration
    environment.json   versions and hardware

A metric that does not exist (no truth, a point estimate has no interval) is null in the files and "-" in tables. The misfit is
chi^2 per measured real value, 1 for a right estimate; coverage is the part of the elements whose 90 % interval holds the truth.
Network and operator calls are per draw, seconds are for all draws of an item.
"""

from .model import LEVEL, Estimate, Item
from .report import Report, environment

__all__ = ["LEVEL", "Estimate", "Item", "Report", "environment"]
