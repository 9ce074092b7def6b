"""Training of priors."""

from .train import Training, fit

__all__ = ["Training", "fit"]
