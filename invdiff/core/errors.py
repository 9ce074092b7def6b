"""The errors of the package: each is one clear line that says what to do.

The command line prints them without a traceback and exits with 2. All of them are `InvdiffError`s and also the built-in
error that a Python user would expect.
"""

from __future__ import annotations

import math

__all__ = ["CapabilityError", "ConfigError", "DataError", "InvdiffError", "NumericalError", "ShapeError", "require_positive"]


class InvdiffError(Exception):
    """Base of all errors that a user can mend."""


class ShapeError(InvdiffError, ValueError):
    """A tensor has another shape, dtype or number of channels than the object expects."""


class ConfigError(InvdiffError, ValueError):
    """An option is unknown, of the wrong type or out of its range."""


class CapabilityError(InvdiffError, TypeError):
    """A sampler needs something that the operator or the prior does not have."""


class DataError(InvdiffError, OSError):
    """A file is missing, truncated, foreign, or can't be written."""


class NumericalError(InvdiffError, ArithmeticError):
    """A run met a value that is not finite, or a solver did not converge."""


def require_positive(owner: object, **values: float) -> None:
    """Raise a ConfigError that names the object unless every value is positive and finite."""
    for name, value in values.items():
        if not 0.0 < value < math.inf:
            raise ConfigError(f"{type(owner).__name__}: expected {name} > 0, got {value}")
