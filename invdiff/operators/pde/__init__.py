"""Forward operators of fields that obey partial differential equations, and sensors in them.

linear, exact in a fast transform    poisson: Poisson, Helmholtz, Heat
elliptic with a coefficient          darcy: Darcy
linear transport, any coefficients   transport: AdvectionDiffusion
periodic, in time                    spectral: Burgers, KdV, KuramotoSivashinsky;  vorticity: NavierStokes2D
walls, shocks and forcing (slots)    forced: BurgersWalls;  shocks: BurgersShocks
smoke, obstacles, control            smoke: Smoke, bucket_share;  smoke_grid: MACGrid, rectangles
waves                                wave: AcousticWave, line, ricker;  scattering: BornScattering, LippmannSchwinger
observation                          sensors: PointSensors, random_sensors;  lines: LineAverages;  band: FourierBand
                                     observe: Functionals, TimeSamples, TimeWindows, random_apertures, whitened
"""

from .band import FourierBand
from .darcy import Darcy
from .forced import BurgersWalls
from .green import ring
from .lines import LineAverages
from .observe import Functionals, TimeSamples, TimeWindows, random_apertures, whitened
from .poisson import Heat, Helmholtz, Poisson
from .scattering import BornScattering, LippmannSchwinger
from .sensors import PointSensors, random_sensors
from .shocks import BurgersShocks
from .smoke import Smoke, bucket_share
from .smoke_grid import MACGrid, rectangles
from .spectral import Burgers, KdV, KuramotoSivashinsky
from .transport import AdvectionDiffusion
from .vorticity import NavierStokes2D, kolmogorov
from .wave import AcousticWave, line, ricker

__all__ = [
    "AcousticWave",
    "AdvectionDiffusion",
    "BornScattering",
    "Burgers",
    "BurgersShocks",
    "BurgersWalls",
    "Darcy",
    "FourierBand",
    "Functionals",
    "Heat",
    "Helmholtz",
    "KdV",
    "KuramotoSivashinsky",
    "LineAverages",
    "LippmannSchwinger",
    "MACGrid",
    "NavierStokes2D",
    "PointSensors",
    "Poisson",
    "Smoke",
    "TimeSamples",
    "TimeWindows",
    "bucket_share",
    "kolmogorov",
    "line",
    "random_apertures",
    "random_sensors",
    "rectangles",
    "ricker",
    "ring",
    "whitened",
]
