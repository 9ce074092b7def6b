"""The contracts: operator, noise, problem, denoiser, schedule, sampler, memory, randomness."""

from .algebra import Matrix, Stack, Unmeasured, ViewAsComplex
from .build import build
from .denoiser import Denoiser
from .errors import CapabilityError, ConfigError, DataError, InvdiffError, NumericalError, ShapeError
from .linalg import cg, dot, expand, norm, operator_norm
from .memory import Memory
from .noise import Gaussian, Noise, Poisson
from .operator import LinearOperator, Operator
from .policies import Auto, Checkpoint, DriftWarning, Full, Invertible, Offload, Revolve
from .problem import Problem
from .reversible import Move, drift, reversible
from .rng import Streams
from .sampler import Sampler, State, capabilities
from .samples import Samples
from .schedule import VP, Grid, Karras, LogUniform
from .speckle import Amplitude, Intensity, LogIntensity, SingleLook, effective_looks, log_bias, log_variance
from .speckle_prox import prox_amplitude, prox_intensity, prox_log

__all__ = [
    "VP",
    "Amplitude",
    "Auto",
    "CapabilityError",
    "Checkpoint",
    "ConfigError",
    "DataError",
    "Denoiser",
    "DriftWarning",
    "Full",
    "Gaussian",
    "Grid",
    "Intensity",
    "InvdiffError",
    "Invertible",
    "Karras",
    "LinearOperator",
    "LogIntensity",
    "LogUniform",
    "Matrix",
    "Memory",
    "Move",
    "Noise",
    "NumericalError",
    "Offload",
    "Operator",
    "Poisson",
    "Problem",
    "Revolve",
    "Sampler",
    "Samples",
    "ShapeError",
    "SingleLook",
    "Stack",
    "State",
    "Streams",
    "Unmeasured",
    "ViewAsComplex",
    "build",
    "capabilities",
    "cg",
    "dot",
    "drift",
    "effective_looks",
    "expand",
    "log_bias",
    "log_variance",
    "norm",
    "operator_norm",
    "prox_amplitude",
    "prox_intensity",
    "prox_log",
    "reversible",
]
