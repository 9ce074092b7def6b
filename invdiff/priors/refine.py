"""Refinement of a solution to finer grids, again and again: super-resolution with the data of the problem at the target.

    u_2h = I u_h + r,      r ~ p(r | I u_h, u(0), f at the finer grid)

I interpolates: in time linearly between frames, from u(0) on, and in space linearly in each cell, with its average kept. The
network makes what the interpolation lacks, so that one that knows nothing returns I u_h. (The published one makes the
coefficients of u_2h anew, given those of u_h.) It is trained on several pairs of levels of one data set and applied beyond
them: nothing says that it must be right there, but the error against a solver does.

References: Hu et al., Wavelet diffusion neural operator, 2024, arXiv:2412.04833, section on multi-resolution.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.errors import ConfigError, ShapeError
from ..core.problem import Problem
from ..core.rng import derived
from ..core.sampler import Sampler
from .wdno import FieldCode, FieldPrior

__all__ = ["coarsen", "refine", "upsample"]


def coarsen(samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fields at half the resolution: u every second frame, f pairs of slots, all of them averages over 2^d cells.

    Args:
        samples: u, f (N, 1, time, *space) and u0, uT (N, 1, *space), those there are; even sizes.
    """
    out = {}
    for name, x in samples.items():
        grid = x.shape[2:]
        if any(n % 2 for n in grid):
            raise ShapeError(f"coarsen: expected even sizes, got {name} on {tuple(grid)}")
        if name == "u":
            x = x[:, :, 1::2]
        elif name == "f":
            x = x.unflatten(2, (-1, 2)).mean(3)
        for axis in range(2 if name in ("u0", "uT") else 3, x.ndim):
            x = x.unflatten(axis, (-1, 2)).mean(axis + 1)
        out[name] = x
    return out


def upsample(u: Tensor, u0: Tensor) -> Tensor:
    """I: frames after u0 on twice as many times and cells, (N, 1, time, *space), (N, 1, *space) -> (N, 1, 2 time, *2 space)."""
    before = torch.cat([u0.unsqueeze(2), u[:, :, :-1]], dim=2)
    x = torch.stack([0.5 * (before + u), u], dim=3).flatten(2, 3)
    for axis in range(3, u.ndim):
        x = x.movedim(axis, -1)
        rows = F.pad(x.flatten(0, -2)[:, None], (1, 1), mode="replicate")[:, 0].reshape(*x.shape[:-1], -1)
        slope = (rows[..., 2:] - rows[..., :-2]) / 8.0
        x = torch.stack([x - slope, x + slope], dim=-1).flatten(-2).movedim(-1, axis)
    return x


def refine(
    network: Denoiser,
    code: FieldCode,
    coarse: Tensor,
    u0: Tensor,
    f: Tensor,
    sampler: Sampler,
    *,
    seed: int,
    times: int = 1,
) -> list[Tensor]:
    """Solutions at 2, 4, ..., 2^times the resolution of `coarse`, one draw for each item.

    Args:
        network, code: trained for "r" with u0, f and "coarse" told (`tasks.trajectories.RefinedTrajectories`).
        coarse: frames after the initial state, (N, 1, time, *space).
        u0, f: at the target, (N, 1, *2^times space) and (N, 1, 2^times time, *2^times space).
        sampler: of the prior, a `Guided` without guidance.

    Raises:
        ConfigError: times < 1. ShapeError: u0 or f is not at the target.
    """
    if times < 1:
        raise ConfigError(f"refine: expected times >= 1, got {times}")
    target = tuple(2**times * n for n in coarse.shape[2:])
    if tuple(f.shape[2:]) != target or tuple(u0.shape[2:]) != target[1:]:
        raise ShapeError(
            f"refine: expected f on {target} and u0 on {target[1:]}, got {tuple(f.shape[2:])}, {tuple(u0.shape[2:])}"
        )
    levels = [{"u0": u0, "f": f}]
    for _ in range(times):
        levels.append(coarsen(levels[-1]))
    solutions = []
    for level in reversed(range(times)):
        base = upsample(coarse, levels[level + 1]["u0"])
        grid = tuple(base.shape[2:])
        prior = FieldPrior(network, code, grid, {"coarse": base, **levels[level]})
        problem = Problem.unmeasured(prior.basis.in_shape, base.dtype, device=base.device)
        # another level is another draw
        draws = sampler(problem, prior, len(base), seed=derived(seed, level)).x
        coarse = base + prior.basis(draws)
        solutions.append(coarse)
    return solutions
