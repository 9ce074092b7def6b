"""Controlled smoke as tasks: simulation and control by one conditional prior of density, velocity and control.

    simulate   (rho, v) given rho(0) and c; nothing is measured, so that the draws are those of the prior that was told
    control    (rho, v, c) given rho(0), measured by J / (2 tau^2), with J of the solver's trajectory in the facts

    J = (1 - s)^2 + w mean |c|^2,      s = sum over the target's cells of rho(T) / sum of rho(0)

with fields density, vx, vy, cx, cy on (frames, y, x). What has left through the target is collected in its cells
(`operators.pde.smoke`), so that the share s is linear in rho(T), and J = |A x - y|^2 with A x = (s, c in the rim times
sqrt(w / points)) and y = (1, 0, ..., 0), measured with Gaussian pseudo-noise of standard deviation tau, as in `tasks.control`.
The published objective is linear, -s + w mean |c|^2; a quadratic one presses less, the more has left. On 32 x 32 cells the
solver keeps the smoke to some tens of per cent: s is a share of the initial smoke, those of a score of what is there at T.

References: Hu et al., Wavelet diffusion neural operator, 2024, arXiv:2412.04833.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..core import ConfigError, DataError, LinearOperator, Operator, ShapeError
from ..generators.smoke import SPEED, SmokeControl
from ..operators.pde.smoke import bucket_share
from .data import Item
from .told import ToldItems
from .trajectories import smoke_fields
from .wdno_setups import simulation

__all__ = ["Objective", "SmokeItems", "control", "simulation", "simulation_score", "smoke_score", "solved_density"]

FIELDS = ("density", "vx", "vy", "cx", "cy")


@dataclass(frozen=True, kw_only=True)
class SmokeItems(ToldItems):
    """Trajectories of smoke; see `ToldItems`.

    Args:
        use: "simulate" or "control".
        generator: `SmokeControl`.
        path: .npz or HDF5 with density0 (H, W) and, to be simulated, cx and cy (T, H, W).
        frames: T of a controlled trajectory from a file.

    Raises:
        DataError: there is no smoke in an item.
    """

    needed = MappingProxyType({"simulate": ("density0", "cx", "cy"), "control": ("density0",)})
    axes = MappingProxyType({"density0": ("H", "W"), "cx": ("T", "H", "W"), "cy": ("T", "H", "W")})

    frames: int = 16

    def fields(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return smoke_fields(raw)

    def item(self, name: str, fields: dict[str, Tensor], facts: dict[str, Any]) -> Item:
        told = {n: fields[n] for n in self.needed[self.use]}
        density = told["density0"]
        frames = fields["cx"].shape[2] if "cx" in fields else self.frames
        shape = (len(FIELDS), frames, *density.shape[2:])
        if any(tuple(v.shape[-2:]) != shape[2:] or (v.ndim == 5 and v.shape[2] != frames) for v in told.values()):
            found = ", ".join(f"{k} {tuple(v.shape[2:])}" for k, v in told.items())
            raise ShapeError(f"{name}: the fields are on different grids: {found}")
        if not float(density.sum()) > 0.0:
            raise DataError(f"{name}: density0 holds no smoke")
        truth = torch.cat([fields[n] for n in FIELDS], 1)[0] if "density" in fields else None
        y = torch.zeros(0)
        if self.use == "control":
            y = torch.eye(1, 1 + 2 * frames * int(_scene(shape[2], frames, 1).operator.control_mask.sum()))[0]
        return Item(name, shape, truth, y, facts=facts, told=told)


class Objective(LinearOperator):
    """A of J = |A x - y|^2: the share of the smoke in a mask of the last frame, and the control in the rim, scaled.

    Args:
        shape: of the fields, (C, time, *space): the density is the first of them, the control the last two.
        target, rim: booleans (*space), of a cell at least.
        total: of all smoke, > 0, in units of the density times cells.
        weight: w > 0 of the mean of |c|^2 over the rim.

    Shapes: (B, C, time, *space) -> (B, 1 + 2 time rim cells).

    Raises:
        ShapeError: a mask does not fit or has no cell.
        ConfigError: the total or the weight is not positive.
    """

    share: Tensor
    rim: Tensor

    def __init__(self, shape: Sequence[int], target: Tensor, rim: Tensor, *, total: float, weight: float) -> None:
        for mask in (target, rim):
            if tuple(mask.shape) != tuple(shape[2:]) or not bool(mask.any()):
                found = f"{tuple(mask.shape)} with {int(mask.sum())}"
                raise ShapeError(f"Objective: expected masks of shape {tuple(shape[2:])} with a cell at least, got {found}")
        if not min(total, weight) > 0.0:
            raise ConfigError(f"Objective: expected total > 0 and weight > 0, got {total} and {weight}")
        points = shape[1] * int(rim.sum())
        super().__init__(tuple(shape), (1 + 2 * points,))
        self.factor = (weight / points) ** 0.5
        self.register_buffer("share", target.double() / total)
        self.register_buffer("rim", rim.clone())

    def forward(self, x: Tensor) -> Tensor:
        share = (x[:, 0, -1] * self.share.to(x.dtype)).flatten(1).sum(1, keepdim=True)
        return torch.cat([share, self.factor * x[:, -2:, :, self.rim].flatten(1)], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *self.in_shape)
        x[:, 0, -1] = y[:, 0].reshape(-1, *[1] * self.share.ndim) * self.share.to(y.dtype)
        x[:, -2:, :, self.rim] = self.factor * y[:, 1:].reshape(len(y), 2, self.in_shape[1], -1)
        return x


def control(item: Item, *, weight: float = 0.01) -> Operator:
    """(density, vx, vy, cx, cy) -> the share of the smoke that has left through the target, and the effort in the rim.

    Args:
        weight: w > 0 of the mean of |c|^2 over the cells of the rim, time^2 / length^2.
    """
    shape, scene = tuple(item.shape), _scene(item.shape[2], item.shape[1], 1)
    total = float(item.told["density0"].double().sum())
    return Objective(shape, scene.outlets[0], scene.operator.control_mask, total=total, weight=weight)


@torch.no_grad()
def solved_density(density0: Tensor, control: Tensor, *, substeps: int = 8) -> Tensor:
    """Densities by the solver, (1 or B, 1, H, W) and (B, 2, frames, H, W) -> (B, frames + 1, H, W), float64.

    The initial velocity is that of `SmokeControl`; a control outside of the rim has no effect.
    """
    count, _, frames, size, _ = control.shape
    start = density0.double().expand(count, 1, size, size)
    given = [start, control.double().transpose(1, 2).flatten(1, 2), torch.zeros_like(start), SPEED * start]
    return _scene(size, frames, substeps).operator.trajectory(torch.cat(given, 1))[0]


def simulation_score(item: Item, images: Tensor) -> dict[str, float]:
    """Of images (n, 5, frames, H, W), against the truth; empty without one.

    Returns:
        relative_l2: error of the density of one draw, on average, relative_l2_of_mean, velocity_l2 of one draw; share: that of
        the target at T in the draws, on average, share_solver, and share_error, the mean of their absolute differences.
    """
    if item.truth is None:
        return {}
    truth, outlet = item.truth[None].to(images), _scene(item.shape[2], 1, 1).outlets[0].to(images.device)
    shares, exact = bucket_share(images[:, 0, -1], outlet), bucket_share(truth[:, 0, -1], outlet)
    found = {"relative_l2": _relative(images, truth, slice(0, 1)).mean()}
    found |= {"relative_l2_of_mean": _relative(images.mean(0, keepdim=True), truth, slice(0, 1)).mean()}
    found |= {"velocity_l2": _relative(images, truth, slice(1, 3)).mean(), "share": shares.mean()}
    found |= {"share_solver": exact.mean(), "share_error": (shares - exact).abs().mean()}
    return {name: float(v) for name, v in found.items()}


@torch.no_grad()
def smoke_score(item: Item, images: Tensor, *, weight: float = 0.01, substeps: int = 8) -> dict[str, float]:
    """J, and the share through the target, of the trajectories that the solver makes of controls, images (n, 5, frames, H, W).

    Args:
        weight: w, as in `control`.
        substeps: of the solver.

    Returns:
        share: mean over the controls, share_best: the largest, share_none: without control, share_believed: mean, with the
        prior's own density, and share_data, by the control of the data, where there is one; and J of each.
    """
    size, frames = item.shape[2], item.shape[1]
    # where the solver is
    images = images.cpu()
    scene, drawn = _scene(size, frames, substeps), images[:, 3:]
    rim, outlet = scene.operator.control_mask, scene.outlets[0]
    last = [] if item.truth is None else [item.truth[None, 3:].to(images)]
    controls = torch.cat([drawn, torch.zeros_like(drawn[:1]), *last]) * rim
    density = solved_density(item.told["density0"].to(images), controls, substeps=substeps)[:, -1]
    shares, n = bucket_share(density, outlet), len(images)
    effort = weight * controls.double().square().sum(1)[..., rim].flatten(1).mean(1)
    believed = bucket_share(images[:, 0, -1].double(), outlet)
    values, at_best = (1.0 - shares).square() + effort, (1.0 - believed).square() + effort[:n]
    found = {"share": shares[:n].mean(), "share_best": shares[:n].max(), "share_none": shares[n]}
    found |= {"share_believed": believed.mean()} | ({"share_data": shares[-1]} if last else {})
    found |= {"J": values[:n].mean(), "J_best": values[:n].min(), "J_none": values[n], "J_believed": at_best.mean()}
    return {name: float(v) for name, v in (found | ({"J_data": values[-1]} if last else {})).items()}


def _relative(images: Tensor, truth: Tensor, channels: slice) -> Tensor:
    return (images - truth)[:, channels].flatten(1).norm(dim=1) / truth[:, channels].norm()


@lru_cache(maxsize=8)
def _scene(size: int, frames: int, substeps: int) -> SmokeControl:
    return SmokeControl(size=size, frames=frames, substeps=substeps, waypoints=1)
