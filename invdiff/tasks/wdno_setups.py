"""Trajectories of Burgers' equation as tasks: simulation, control and refinement by one conditional prior of fields.

    simulate   u given u(0) and f; nothing is measured, so that the draws are those of the prior that was told
    control    (u, f) given u(0) and u(T) = u*, measured by J / (2 tau^2) (`tasks.control`); J of the solver's u(T) in the facts
    refine     u on 2 T x 2 N points given u(0) and f there and u on T x N, which is also the measurement

A prior with `tell` is told what belongs to the item; the report says so of one that can't be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..core import ConfigError, Gaussian, LinearOperator, Operator, ShapeError, Unmeasured
from ..operators.pde.forced import BurgersWalls
from ..priors.refine import coarsen, upsample
from .control import control_problem, objective, solved
from .data import Item
from .told import ToldItems
from .trajectories import as_fields

__all__ = [
    "Coarsen",
    "TrajectoryItems",
    "control",
    "control_noise",
    "control_score",
    "refinement",
    "refinement_score",
    "simulation",
]


@dataclass(frozen=True, kw_only=True)
class TrajectoryItems(ToldItems):
    """Trajectories of Burgers' equation; see `ToldItems`.

    Args:
        use: "simulate", "control" or "refine".
        generator: `BurgersControl` with as many slots as frames, or one like it.
        coarser: how many times its trajectories are halved on every axis.
        path: .npz or HDF5 with u0 (N,) and, by use, f (T, N), target (N,) or coarse (T / 2, N / 2).
        frames: T of a controlled trajectory, where the file has no f.
    """

    needed = MappingProxyType({"simulate": ("u0", "f"), "control": ("u0", "target"), "refine": ("u0", "f", "coarse")})
    axes = MappingProxyType({"u0": ("N",), "target": ("N",), "f": ("T", "N"), "coarse": ("T / 2", "N / 2")})

    coarser: int = 0
    frames: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coarser < 0:
            raise ConfigError(f"TrajectoryItems: expected coarser >= 0, got {self.coarser}")

    def fields(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = as_fields(raw)
        for _ in range(self.coarser):
            fields = coarsen(fields)
        fields["target"] = fields["uT"]
        return fields | ({"coarse": coarsen(fields)["u"]} if self.use == "refine" else {})

    def item(self, name: str, fields: dict[str, Tensor], facts: dict[str, Any]) -> Item:
        u0, truth = fields["u0"], fields.get("u")
        if self.use == "simulate":
            y, told = torch.zeros(0), {"u0": u0, "f": fields["f"]}
        elif self.use == "control":
            frames = self.frames if truth is None else truth.shape[2]
            shape = (2, frames, *u0.shape[2:])
            y = control_problem(shape, fields["target"][0], weight=1.0).y[0]
            told = {"u0": u0, "uT": fields["target"]}
            truth = None if truth is None else torch.cat([truth, fields["f"]], dim=1)
            return Item(name, shape, None if truth is None else truth[0], y, facts=facts, told=told)
        else:
            y = fields["coarse"][0]
            told = {"u0": u0, "f": fields["f"], "coarse": upsample(fields["coarse"], coarsen({"u0": u0})["u0"])}
        shape = tuple(fields["f"].shape[1:])
        if any(tuple(v.shape[1:]) not in (shape, (1, *shape[2:])) for v in told.values()):
            found = ", ".join(f"{k} {tuple(v.shape[2:])}" for k, v in fields.items())
            raise ShapeError(f"{name}: the fields are on different grids: {found}")
        return Item(name, shape, None if truth is None else truth[0], y, facts=facts, told=told)


class Coarsen(LinearOperator):
    """Every second frame, averages over 2^d cells: (B, 1, 2 T, *2 space) -> (B, 1, T, *space), as `priors.refine.coarsen`.

    Raises:
        ShapeError: a size is odd.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        if any(n % 2 for n in shape[1:]):
            raise ShapeError(f"Coarsen: expected even sizes, got {tuple(shape)}")
        super().__init__(tuple(shape), (shape[0], *(n // 2 for n in shape[1:])))
        self.cells = 2 ** (len(shape) - 2)

    def forward(self, x: Tensor) -> Tensor:
        return coarsen({"u": x})["u"]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *self.in_shape)
        for axis in range(3, y.ndim):
            y = y.repeat_interleave(2, axis)
        x[:, :, 1::2] = y / self.cells
        return x

    def pinv(self, y: Tensor) -> Tensor:
        return self.cells * self.adjoint(y)


def simulation(item: Item) -> Operator:
    """Nothing is measured."""
    return Unmeasured(tuple(item.shape))


def control(item: Item) -> Operator:
    """(u, f) -> u(T) and f."""
    return control_problem(item.shape, torch.zeros(1, *item.shape[2:]), weight=1.0).operator


def control_noise(grid: Sequence[int], *, weight: float = 1e-3, temperature: float = 0.02) -> Gaussian:
    """The pseudo-noise that makes the misfit J / tau^2: see `tasks.control`.

    Args:
        grid: (T, N).
        weight: w > 0 of the control's mean square.
        temperature: tau, in units of u.
    """
    if not weight > 0.0:
        raise ConfigError(f"control_noise: expected weight > 0, got {weight}")
    found = control_problem((2, *grid), torch.zeros(1, *grid[1:]), weight=weight, temperature=temperature).noise
    assert isinstance(found, Gaussian)
    return found


def refinement(item: Item) -> Operator:
    """The solution on half as many frames and cells."""
    return Coarsen(item.shape)


@torch.no_grad()
def control_score(
    item: Item,
    images: Tensor,
    *,
    weight: float = 1e-3,
    viscosity: float = 0.01,
    time: float = 8.0,
    factor: int = 2,
    steps: int = 8192,
) -> dict[str, float]:
    """J of the trajectories that the solver makes of some controls, images (n, 2, T, N) = (u, f).

    Args:
        factor, steps: of the solver: points in a cell, and time steps, a multiple of T.

    Returns:
        J: mean over the controls, J_best: the least, J_none: of f = 0, J_believed: mean, with the prior's own u(T), and
        J_data, of the control that made the target, where there is one.
    """
    slots, cells = item.shape[1:]
    solver = BurgersWalls(factor * cells, viscosity, slots=slots, time=time, steps=steps, save=slots, memory="full")
    target, u0 = item.told["uT"].to(images), item.told["u0"].to(images)
    f, last = images[:, 1:], [images.new_zeros(1, 1, *item.shape[1:])]
    last += [] if item.truth is None else [item.truth[None, 1:].to(images)]
    forces = torch.cat([f, *last])
    final = solved(solver, u0[0].expand(len(forces), -1, -1), forces, factor=factor)[:, :, -1]
    values = objective(final, forces, target, weight=weight)
    believed = objective(images[:, :1, -1], f, target, weight=weight)
    found = {"J": values[: len(f)].mean(), "J_best": values[: len(f)].min(), "J_none": values[len(f)]}
    found |= {"J_believed": believed.mean()} | ({} if item.truth is None else {"J_data": values[-1]})
    return {name: float(v) for name, v in found.items()}


def refinement_score(item: Item, images: Tensor) -> dict[str, float]:
    """Relative L2 errors of images (n, 1, T, N): of each on average, of their mean, and of interpolation; needs a truth."""
    if item.truth is None:
        return {}
    truth = item.truth[None].to(images)
    tried = {"relative_l2": images, "relative_l2_of_mean": images.mean(0, keepdim=True)}
    tried |= {"relative_l2_of_interpolation": item.told["coarse"].to(images)}
    return {name: float(((x - truth).flatten(1).norm(dim=1) / truth.norm()).mean()) for name, x in tried.items()}
