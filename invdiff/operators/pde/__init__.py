"""Forward operators of fields that obey partial differential equations, and sensors in them.

linear, exact in a fast transform    poisson: Poisson, Helmholtz, Heat
elliptic with a coefficient          darcy: Darcy
periodic, in time                    spectral: Burgers, KdV, KuramotoSivashinsky;  vorticity: NavierStokes2D
observation                          sensors: PointSensors, random_sensors
"""

from .darcy import Darcy
from .poisson import Heat, Helmholtz, Poisson
from .sensors import PointSensors, random_sensors
from .spectral import Burgers, KdV, KuramotoSivashinsky
from .vorticity import NavierStokes2D, kolmogorov

__all__ = [
    "Burgers",
    "Darcy",
    "Heat",
    "Helmholtz",
    "KdV",
    "KuramotoSivashinsky",
    "NavierStokes2D",
    "PointSensors",
    "Poisson",
    "kolmogorov",
    "random_sensors",
]
