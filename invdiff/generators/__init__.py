"""Data sets that are computed: fields, flows and waves as functions of (seed, index). Index:

fields      Darcy permeabilities, sources of Poisson's and Helmholtz's equation, with their solutions
flows       forced turbulence, periodic Burgers trajectories, pairs of states of Navier-Stokes
burgers     Burgers between walls with forcing, for control
smoke       smoke among obstacles with control
velocity    velocity models of the ground
scatterers  contrasts for inverse scattering
store       any of them into an HDF5 file, resumable
sources     such sets as training sources, drawn or stored
"""

from .burgers import BurgersControl
from .fields import DarcyFlow, SourceFields
from .flows import BurgersFlow, KolmogorovFlow, NavierStokesPairs
from .land_cover import LandCover
from .scatterers import Scatterers
from .smoke import SmokeControl
from .sources import Drawn, Generator, Stored
from .store import simulate
from .velocity import VelocityModels

__all__ = [
    "BurgersControl",
    "BurgersFlow",
    "DarcyFlow",
    "Drawn",
    "Generator",
    "KolmogorovFlow",
    "LandCover",
    "NavierStokesPairs",
    "Scatterers",
    "SmokeControl",
    "SourceFields",
    "Stored",
    "VelocityModels",
    "simulate",
]
