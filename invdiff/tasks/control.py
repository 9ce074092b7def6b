"""Optimal control of a trajectory as an inverse problem, so that any sampler is a controller.

    J(u, f) = mean |u(T) - u*|^2 + w mean |f|^2,      p(u, f | u(0)) exp(-J / (2 tau^2))

The factor is the likelihood of two linear measurements with Gaussian pseudo-noise: u(T), measured as u* with standard deviation
tau sqrt(points of u*), and f, measured as 0 with tau sqrt(points of f / w). Small temperatures tau seek the optimum, of which
the prior's trajectories are the constraint; for a linear system and a Gaussian prior N(0, s^2) of f the mode is the solution of
the linear-quadratic problem with w + tau^2 (points of f) / s^2 in place of w. What a control is worth is J of the trajectory
that a solver makes of it, not of the one that the prior believes in.

References: Hu et al., Wavelet diffusion neural operator, 2024, arXiv:2412.04833. Toussaint, Robot trajectory optimization using
approximate inference, ICML 2009 (control as inference).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from ..core import ConfigError, Gaussian, LinearOperator, Operator, Problem, ShapeError, Stack

__all__ = ["Field", "LastFrame", "control_problem", "descent", "objective", "solved"]


class LastFrame(LinearOperator):
    """The last moment of one of several fields, (B, C, time, *space) -> (B, 1, *space).

    Args:
        shape: of the fields, (C, time, *space).
        channel: which of them.
    """

    def __init__(self, shape: Sequence[int], channel: int = 0) -> None:
        super().__init__(tuple(shape), (1, *shape[2:]))
        self.channel = channel

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.channel : self.channel + 1, -1]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *self.in_shape)
        x[:, self.channel : self.channel + 1, -1] = y
        return x

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)


class Field(LinearOperator):
    """One of several fields, (B, C, *grid) -> (B, 1, *grid), where a mask lets it through.

    Args:
        shape: of the fields, (C, *grid).
        channel: which of them.
        mask: (*grid) booleans; None for all.
    """

    mask: Tensor

    def __init__(self, shape: Sequence[int], channel: int, mask: Tensor | None = None) -> None:
        grid = tuple(shape[1:])
        if mask is not None and tuple(mask.shape) != grid:
            raise ShapeError(f"Field: expected a mask of shape {grid}, got {tuple(mask.shape)}")
        super().__init__(tuple(shape), (1, *grid))
        self.channel = channel
        self.register_buffer("mask", torch.ones(grid, dtype=torch.bool) if mask is None else mask.bool())
        if mask is not None:
            self.measured = self.mask[None]

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.channel : self.channel + 1] * self.mask

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *self.in_shape)
        x[:, self.channel : self.channel + 1] = y * self.mask
        return x

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)


def control_problem(
    shape: Sequence[int],
    target: Tensor,
    *,
    weight: float = 0.0,
    temperature: float = 0.01,
    state: int = 0,
    control: int = 1,
    forbidden: Tensor | None = None,
    slack: float = 1e-3,
) -> Problem:
    """The control problem on fields (C, time, *space).

    Args:
        target: u*, (1, *space).
        weight: w of the control's mean square.
        temperature: tau, in units of u.
        state, control: channels of u and f.
        forbidden: (time, *space) booleans, where f has to vanish; None for nowhere.
        slack: standard deviation of f there, in its units.

    Raises:
        ConfigError: the temperature or slack is not positive, or the weight negative. ShapeError: the target does not fit.
    """
    shape = tuple(shape)
    if not (min(temperature, slack) > 0.0 and weight >= 0.0):
        raise ConfigError(
            f"control_problem: expected temperature > 0, slack > 0 and weight >= 0, got {temperature}, {slack} and {weight}"
        )
    if tuple(target.shape) != (1, *shape[2:]):
        raise ShapeError(f"control_problem: expected a target of shape {(1, *shape[2:])}, got {tuple(target.shape)}")
    points, all_points = prod(shape[2:]), prod(shape[1:])
    parts: list[LinearOperator] = [LastFrame(shape, state)]
    values, sigmas = [target.flatten()], [torch.full((points,), temperature * points**0.5)]
    if weight:
        parts.append(Field(shape, control))
        values.append(target.new_zeros(all_points))
        sigmas.append(torch.full((all_points,), temperature * (all_points / weight) ** 0.5))
    if forbidden is not None:
        parts.append(Field(shape, control, forbidden))
        values.append(target.new_zeros(all_points))
        sigmas.append(torch.full((all_points,), slack))
    if len(parts) == 1:
        return Problem(parts[0], Gaussian(sigmas[0][0]), target)
    y, sigma = torch.cat(values), torch.cat(sigmas)
    stack = Stack(parts)
    # where the parts have one shape but for the first axis, Stack keeps the others
    return Problem(stack, Gaussian(sigma.reshape(stack.out_shape).to(y)), y.reshape(stack.out_shape))


def objective(final: Tensor, f: Tensor, target: Tensor, *, weight: float = 0.0) -> Tensor:
    """J of final states (B, 1, *space) and controls (B, 1, time, *space), (B,)."""
    return (final - target).square().flatten(1).mean(1) + weight * f.square().flatten(1).mean(1)


def descent(
    predict: Callable[[Tensor], Tensor],
    start: Tensor,
    target: Tensor,
    *,
    weight: float = 0.0,
    steps: int = 150,
    lr: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """The trajectory and the control, (B, 1, time, *space) each, that Adam finds for J through a differentiable model.

    Args:
        predict: controls -> trajectories, a regression network or a solver.
        start: controls to begin with.
    """
    f = start.detach().clone().requires_grad_()
    adam = torch.optim.Adam([f], lr=lr)
    for _ in range(steps):
        adam.zero_grad()
        objective(predict(f)[:, :, -1], f, target, weight=weight).sum().backward()
        adam.step()
    with torch.no_grad():
        return predict(f), f.detach()


@torch.no_grad()
def solved(solver: Operator, u0: Tensor, f: Tensor, *, factor: int = 1) -> Tensor:
    """The trajectory that a solver makes of controls, (1 or B, 1, space), (B, 1, slots, space) -> (B, 1, frames, space).

    Args:
        solver: on factor * space cells, (B, 1 + slots, factor space) -> (B, frames, factor space), as `BurgersShocks`; f and u0
            are taken constant in each cell.
    """
    given = torch.cat([u0.expand(len(f), -1, -1), f[:, 0]], dim=1).double().repeat_interleave(factor, -1)
    return solver(given).unflatten(-1, (-1, factor)).mean(-1)[:, None].to(f.dtype)
