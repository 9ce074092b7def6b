"""How the tasks of fields measure their items: equations, solved exactly, and sensors in their solutions.

A setup takes an item and returns the operator on its field; its other arguments are those of the experiment.
"""

from __future__ import annotations

from typing import Literal

from ..core import ConfigError, Operator, ShapeError
from ..operators.pde import Burgers, Darcy, Helmholtz, NavierStokes2D, PointSensors, Poisson, kolmogorov, random_sensors
from ..operators.pointwise import Clip
from ..operators.regrid import Every
from .data import Item

__all__ = ["burgers_by_sensors", "darcy_by_sensors", "initial_vorticity", "source_by_sensors"]


def source_by_sensors(
    item: Item, *, sensors: int = 64, wavenumber: float = 0.0, length: float = 1.0, seed: int = 0
) -> Operator:
    """The source f of -lap u - k^2 u = f, u = 0 on the walls, seen through u at random points; k = 0 is Poisson's equation."""
    shape = _grid("source_by_sensors", item, 2)
    field = Helmholtz(shape, wavenumber, length=length) if wavenumber else Poisson(shape, length=length)
    return random_sensors(shape, sensors, seed=seed, length=length) @ field


def darcy_by_sensors(
    item: Item,
    *,
    sensors: int = 500,
    low: float = 1.0,
    high: float = 30.0,
    faces: Literal["harmonic", "arithmetic"] = "harmonic",
    seed: int = 0,
) -> Operator:
    """The permeability a of -div(a grad u) = 1, u = 0 on the walls of the unit square, seen through u at random points.

    Args:
        low, high: bounds outside of which a is cut off; a sampler may try values that no medium has.
    """
    shape = _grid("darcy_by_sensors", item, 2)
    if not 0.0 < low < high:
        raise ConfigError(f"darcy_by_sensors: expected 0 < low < high, got {low} and {high}")
    return random_sensors(shape, sensors, seed=seed) @ Darcy(shape[1:], faces=faces) @ Clip(shape, low, high)


def initial_vorticity(
    item: Item,
    *,
    every: int = 2,
    reynolds: float = 200.0,
    wave: int = 4,
    amplitude: float = 4.0,
    time: float = 1.0,
    steps: int = 64,
    memory: str = "full",
) -> Operator:
    """The first vorticity of a flow in a square of side 2 pi, forced by -amplitude cos(wave y), seen later at every n-th point.

    Args:
        time: of the measurement.
        steps: of the solver in all.
        memory: policy of the derivative; "full" lets all products of a linearisation share one run.
    """
    shape = _grid("initial_vorticity", item, 2)
    size = (shape[1], shape[2])
    flow = NavierStokes2D(
        size, 1.0 / reynolds, forcing=kolmogorov(size, wave, -amplitude), time=time, steps=steps, memory=memory
    )
    return Every(shape, every) @ flow


def burgers_by_sensors(
    item: Item,
    *,
    sensors: int = 5,
    times: int = 32,
    viscosity: float = 0.01,
    time: float = 1.0,
    steps: int = 512,
    limit: float = 5.0,
    memory: str = "full",
) -> Operator:
    """The initial state of Burgers' equation on a periodic unit interval, seen at equally spaced points and times.

    Args:
        times: how often the sensors are read, the last time at `time`; divides `steps`.
        steps: of the solver in all.
        limit: bound on the velocity, above which it is cut off; a sampler may try states that the solver's step can't follow.
        memory: policy of the derivative; "full" lets all products of a linearisation share one run.
    """
    (_, size) = _grid("burgers_by_sensors", item, 1)
    if sensors < 1:
        raise ConfigError(f"burgers_by_sensors: expected sensors >= 1, got {sensors}")
    places = [[(k + 0.5) / sensors] for k in range(sensors)]
    flow = Burgers(size, viscosity, time=time, steps=steps, save=times, memory=memory)
    return PointSensors((times, size), places, boundary="periodic") @ flow @ Clip((1, size), -limit, limit)


def _grid(who: str, item: Item, dims: int) -> tuple[int, ...]:
    if len(item.shape) != dims + 1 or item.shape[0] != 1:
        raise ShapeError(f"{who}: expected a field (1, {', '.join('NM'[:dims])}), got {item.shape}")
    return tuple(item.shape)
