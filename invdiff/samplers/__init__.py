"""Samplers: integrators on a guided denoiser, and methods with a step of their own, one paper per file."""

from .autofocus import minimum_entropy, phase_gradient, without_trend
from .classical import Adjoint, Tikhonov, TotalVariation
from .classical_speckle import Lee, WaveletShrinkage
from .ddnm import DDNM
from .decoupled import Decoupled
from .despeckle import Despeckle, log_problem
from .dflow import DFlow
from .diffpir import DiffPIR
from .dps import DPS
from .guided import Guided, Level
from .idm import IDM, shipped_idm
from .idm_network import IDMNetwork, load_idm
from .integrators import DDIM, Ancestral, Churn, Euler, Heun, Integrator
from .laplace import Laplace
from .least_squares import LeastSquares, Linearised
from .multistep import Multistep
from .reddiff import REDDiff
from .reflectivity_em import ReflectivityEM
from .reversible import BDIA, EDICT, OBELM, Coupled, Graded, Reversible, Scheme
from .sparse import SBL, SparseL1
from .split_gibbs import SplitGibbs
from .steered import Energy, Steered

__all__ = [
    "BDIA",
    "DDIM",
    "DDNM",
    "DPS",
    "EDICT",
    "IDM",
    "OBELM",
    "SBL",
    "Adjoint",
    "Ancestral",
    "Churn",
    "Coupled",
    "DFlow",
    "Decoupled",
    "Despeckle",
    "DiffPIR",
    "Energy",
    "Euler",
    "Graded",
    "Guided",
    "Heun",
    "IDMNetwork",
    "Integrator",
    "Laplace",
    "LeastSquares",
    "Lee",
    "Level",
    "Linearised",
    "Multistep",
    "REDDiff",
    "ReflectivityEM",
    "Reversible",
    "Scheme",
    "SparseL1",
    "SplitGibbs",
    "Steered",
    "Tikhonov",
    "TotalVariation",
    "WaveletShrinkage",
    "load_idm",
    "log_problem",
    "minimum_entropy",
    "phase_gradient",
    "shipped_idm",
    "without_trend",
]
