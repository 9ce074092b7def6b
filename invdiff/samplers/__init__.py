"""Samplers: integrators on a guided denoiser, and methods with a step of their own, one paper per file."""

from .alternating import AlternatingGibbs
from .autofocus import minimum_entropy, phase_gradient, without_trend
from .classical import Adjoint, Tikhonov, TotalVariation
from .classical_speckle import Lee, WaveletShrinkage
from .daps import DAPS
from .ddnm import DDNM
from .ddrm import DDRM
from .dds import DDS
from .ddsmc import DDSMC
from .decoupled import Decoupled
from .despeckle import Despeckle, log_problem
from .dflow import DFlow
from .diffpir import DiffPIR
from .dps import DPS
from .enkg import EnKG
from .flowchef import FlowChef
from .fps import FPS
from .gdp import GDP, hierarchical
from .gdp_blind import Degradation, GainOffset, SmallKernel
from .gibbs_steps import DataDraw, ExactDraw, LangevinDraw
from .guided import Guided, Level, PastLevel
from .idm import IDM, shipped_idm
from .idm_network import IDMNetwork, load_idm
from .integrators import DDIM, Ancestral, Churn, Euler, Heun, Integrator, RFSolver
from .langevin import ALD, SKROCK, ULA
from .laplace import Laplace
from .least_squares import LeastSquares, Linearised
from .lgd import LGD
from .linear_multistep import PNDM, DPMSolver, UniPC
from .mcg import MCG
from .mcgdiff import MCGdiff
from .multistep import Multistep
from .particles import Particles
from .pnpdm import PnPDM
from .reddiff import REDDiff
from .reddiff_particles import REDDiffParticles
from .reflectivity_em import ReflectivityEM
from .repaint import RePaint
from .reversible import BDIA, EDICT, OBELM, Coupled, Graded, Reversible, Scheme
from .scg import SCG
from .sitcom import SITCOM
from .sparse import SBL, SparseL1
from .split_gibbs import SplitGibbs
from .steered import Energy, Steered
from .tds import TDS

__all__ = [
    "ALD",
    "BDIA",
    "DAPS",
    "DDIM",
    "DDNM",
    "DDRM",
    "DDS",
    "DDSMC",
    "DPS",
    "EDICT",
    "FPS",
    "GDP",
    "IDM",
    "LGD",
    "MCG",
    "OBELM",
    "PNDM",
    "SBL",
    "SCG",
    "SITCOM",
    "SKROCK",
    "TDS",
    "ULA",
    "Adjoint",
    "AlternatingGibbs",
    "Ancestral",
    "Churn",
    "Coupled",
    "DFlow",
    "DPMSolver",
    "DataDraw",
    "Decoupled",
    "Degradation",
    "Despeckle",
    "DiffPIR",
    "EnKG",
    "Energy",
    "Euler",
    "ExactDraw",
    "FlowChef",
    "GainOffset",
    "Graded",
    "Guided",
    "Heun",
    "IDMNetwork",
    "Integrator",
    "LangevinDraw",
    "Laplace",
    "LeastSquares",
    "Lee",
    "Level",
    "Linearised",
    "MCGdiff",
    "Multistep",
    "Particles",
    "PastLevel",
    "PnPDM",
    "REDDiff",
    "REDDiffParticles",
    "RFSolver",
    "RePaint",
    "ReflectivityEM",
    "Reversible",
    "Scheme",
    "SmallKernel",
    "SparseL1",
    "SplitGibbs",
    "Steered",
    "Tikhonov",
    "TotalVariation",
    "UniPC",
    "WaveletShrinkage",
    "hierarchical",
    "load_idm",
    "log_problem",
    "minimum_entropy",
    "phase_gradient",
    "shipped_idm",
    "without_trend",
]
