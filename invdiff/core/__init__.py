"""The contracts: operator, noise, problem, denoiser, schedule, sampler, randomness."""

from .algebra import Matrix, Stack, Unmeasured, ViewAsComplex
from .build import build
from .denoiser import Denoiser
from .errors import CapabilityError, ConfigError, DataError, InvdiffError, NumericalError, ShapeError
from .linalg import cg, dot, expand, norm, operator_norm
from .noise import Gaussian, Noise, Poisson
from .operator import LinearOperator, Operator
from .problem import Problem
from .rng import Streams
from .sampler import Sampler, State, capabilities
from .samples import Samples
from .schedule import VP, Grid, Karras, LogUniform

__all__ = [
    "VP",
    "CapabilityError",
    "ConfigError",
    "DataError",
    "Denoiser",
    "Gaussian",
    "Grid",
    "InvdiffError",
    "Karras",
    "LinearOperator",
    "LogUniform",
    "Matrix",
    "Noise",
    "NumericalError",
    "Operator",
    "Poisson",
    "Problem",
    "Sampler",
    "Samples",
    "ShapeError",
    "Stack",
    "State",
    "Streams",
    "Unmeasured",
    "ViewAsComplex",
    "build",
    "capabilities",
    "cg",
    "dot",
    "expand",
    "norm",
    "operator_norm",
]
