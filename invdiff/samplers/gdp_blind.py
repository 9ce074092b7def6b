"""Degradations that are not known, with parameters of each draw that GDP fits at every level.

    GainOffset    y = f A(x) + M,    M as large as the measurement, of small total variation
    SmallKernel   y = k * A(x),      (k * c)_p = sum_q k_q c_{p + q}, zeros beyond the border

With c = A(D) at the level and all else fixed, the objectives are

    J(f) = ||f c + M - y||^2 / 2 + (sigma_y / s)^2 (f - m)^2 / 2
    J(M) = ||f c + M - y||^2 / 2 + tv sum_p sqrt(||(grad M)_p||^2 + delta^2)
    J(k) = ||k * c - y||^2 / 2 + (sigma_y / s)^2 ||k - e||^2 / 2,    e the kernel that changes nothing

and each level takes one step down their gradients. J(f) and J(k) are quadratic, and their step is a share t of the way to the
minimum f*: f <- f + t (f* - f), in closed form. A step of length l along the gradient of the paper's mean squared error over m
values is t = 2 l ||c||^2 / m: it depends on the units of c, and t does not. For M it is the share of 1 / L, L = 1 + 4 dims tv /
delta a bound of the curvature. So for fixed c the steps end at the minimum; t = 1 is there at once. The paper's gradients are
all taken before any step; here the new f enters M's, and both the guidance of x.

What is identified: f, if the prior knows how strong A(x) is. Without the term in tv, M = y - f c explains every x (the
paper's own setting, which here is refused); with a large one M is constant, and (f, M) the line of regression of y on c. Scale
and shift of k are those that the prior gives x.

References: Fei, Lyu, Pan, Zhang, Yang, Luo, Zhang, Dai, Generative diffusion prior for unified image restoration and
enhancement, CVPR 2023, arXiv:2304.01247 (blind problems, y = f x + M).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import ConfigError, Problem, ShapeError
from ..guidance import require_scalar_gaussian

__all__ = ["Degradation", "GainOffset", "SmallKernel"]


@dataclass(frozen=True)
class Degradation:
    """Base: y = Phi(A(x)), linear in A(x), with parameters phi, (B, P), of each draw."""

    def start(self, problem: Problem, count: int) -> Tensor:
        """The parameters of no degradation, (count, P).

        Raises:
            ShapeError: the measurement has no such degradation.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define start")

    def apply(self, phi: Tensor, c: Tensor) -> Tensor:
        """Phi(c), (B, *out_shape)."""
        raise NotImplementedError(f"{type(self).__name__} does not define apply")

    def transposed(self, phi: Tensor, r: Tensor) -> Tensor:
        """The transposed derivative of Phi by c, at r, (B, *out_shape)."""
        raise NotImplementedError(f"{type(self).__name__} does not define transposed")

    def update(self, problem: Problem, phi: Tensor, c: Tensor) -> Tensor:
        """phi after one step for c = A(x), (B, P)."""
        raise NotImplementedError(f"{type(self).__name__} does not define update")

    def residual(self, problem: Problem, phi: Tensor, c: Tensor) -> Tensor:
        """Phi(c) - y where it is measured, (B, *out_shape)."""
        measured = problem.operator.measured
        r = self.apply(phi, c) - problem.y
        return r if measured is None else r * measured

    def fit(self, problem: Problem, x: Tensor, steps: int = 200) -> Tensor:
        """The parameters that belong to draws, (B, *shape) -> (B, P), by so many steps."""
        with torch.no_grad():
            c, phi = problem.operator(x), self.start(problem, len(x))
            for _ in range(steps):
                phi = self.update(problem, phi, c)
        return phi


def _prior_weight(problem: Problem, std: float | None) -> float | Tensor:
    return 0.0 if std is None else (require_scalar_gaussian(problem, "GDP's prior of parameters") / std).square()


def _require(who: str, step: float, std: float | None) -> None:
    if not 0.0 < step <= 1.0 or (std is not None and not 0.0 < std < math.inf):
        raise ConfigError(f"{who}: expected a step in (0, 1] and std > 0 or None, got {step} and {std}")


@dataclass(frozen=True)
class GainOffset(Degradation):
    """y = f A(x) + M. The parameters are f, one or one for each channel, and then M, flat, if there is an offset.

    Args:
        per: "all" for one f, or "channel" for one for each index of the measurement's first dimension.
        step: t of f, in (0, 1].
        mean: m, where f starts, and the mean of its prior.
        std: s, the standard deviation of its prior; None for none.
        offset: whether there is M.
        offset_step: share of 1 / L of M, in (0, 1].
        tv: weight of the total variation of M, in the measurement's units; of each channel by itself.
        smooth: delta, of differences, in the measurement's units.

    Raises:
        ConfigError: an argument is out of its range, or an offset without tv, which would explain every measurement.
    """

    per: Literal["all", "channel"] = "all"
    step: float = 1.0
    mean: float = 1.0
    std: float | None = None
    offset: bool = False
    offset_step: float = 1.0
    tv: float = 0.0
    smooth: float = 0.01

    def __post_init__(self) -> None:
        _require("GainOffset", self.step, self.std)
        _require("GainOffset", self.offset_step, None)
        if self.per not in ("all", "channel"):
            raise ConfigError(f'GainOffset: expected per to be "all" or "channel", got {self.per!r}')
        if self.offset and not 0.0 < self.tv < math.inf:
            raise ConfigError(
                f"GainOffset: expected tv > 0 for an offset, got {self.tv}: without it y - f A(x) is an offset for every x"
            )
        if not 0.0 < self.smooth < math.inf:
            raise ConfigError(f"GainOffset: expected smooth > 0, got {self.smooth}")

    def start(self, problem: Problem, count: int) -> Tensor:
        y = problem.y
        if self.per == "channel" and y.ndim < 3:
            raise ShapeError(f"GainOffset: a gain per channel needs channels and axes, the measurement is {tuple(y.shape[1:])}")
        gain = y.new_full((1, 1 if self.per == "all" else y.shape[1]), self.mean)
        parts = (gain, torch.zeros_like(y).flatten(1)) if self.offset else (gain,)
        return torch.cat(parts, 1).repeat(count, 1)

    def _parts(self, phi: Tensor, c: Tensor) -> tuple[Tensor, Tensor | float]:
        """f, broadcastable to c and real, and M."""
        gains = 1 if self.per == "all" else c.shape[1]
        gain = phi[:, :gains].real.reshape(len(phi), gains, *[1] * (c.ndim - 2))
        return gain, phi[:, gains:].reshape(c.shape) if self.offset else 0.0

    def apply(self, phi: Tensor, c: Tensor) -> Tensor:
        gain, offset = self._parts(phi, c)
        return gain * c + offset

    def transposed(self, phi: Tensor, r: Tensor) -> Tensor:
        return self._parts(phi, r)[0] * r

    def update(self, problem: Problem, phi: Tensor, c: Tensor) -> Tensor:
        gain, _ = self._parts(phi, c)
        axes = tuple(range(1 if self.per == "all" else 2, c.ndim))
        weight = _prior_weight(problem, self.std)
        slope = (c.conj() * self.residual(problem, phi, c)).real.sum(axes, keepdim=True) + weight * (gain - self.mean)
        # nothing is learnt where nothing is seen
        curvature = (c.abs().square().sum(axes, keepdim=True) + weight).clamp_min(torch.finfo(gain.dtype).tiny)
        gain = (gain - self.step * slope / curvature).flatten(1).to(phi.dtype)
        phi = torch.cat((gain, phi[:, gain.shape[1] :]), 1)
        if not self.offset:
            return phi
        offset = phi[:, gain.shape[1] :].reshape(c.shape)
        dims = max(c.ndim - 2, 1)
        step = self.offset_step / (1.0 + 4.0 * dims * self.tv / self.smooth)
        offset = offset - step * (self.residual(problem, phi, c) + self.tv * variation_slope(offset, self.smooth))
        return torch.cat((gain, offset.flatten(1)), 1)


def variation_slope(image: Tensor, smooth: float) -> Tensor:
    """The gradient of sum_p sqrt(||(grad M)_p||^2 + delta^2) by M, (B, *shape), differences along all axes but the channels."""
    if image.numel() == 0:
        return torch.zeros_like(image)
    first = min(2, image.ndim - 1)
    ahead = [image.diff(dim=d, append=image.narrow(d, image.shape[d] - 1, 1)) for d in range(first, image.ndim)]
    size = torch.stack([a.abs().square() for a in ahead]).sum(0).add(smooth**2).sqrt()
    out = torch.zeros_like(image)
    for d, a in enumerate(ahead, first):
        flux = a / size
        out = out - flux.diff(dim=d, prepend=torch.zeros_like(flux.narrow(d, 0, 1)))
    return out


@dataclass(frozen=True)
class SmallKernel(Degradation):
    """y = k * A(x), one small kernel for all channels of a real measurement (C, H, W).

    Args:
        size: of the kernel along both axes, odd.
        step: t of k, in (0, 1].
        std: s, the standard deviation of each of its values; None for no prior.

    Raises:
        ConfigError: an argument is out of its range.
    """

    size: int = 5
    step: float = 1.0
    std: float | None = None

    def __post_init__(self) -> None:
        _require("SmallKernel", self.step, self.std)
        if self.size < 1 or self.size % 2 == 0:
            raise ConfigError(f"SmallKernel: expected an odd size, got {self.size}")

    def start(self, problem: Problem, count: int) -> Tensor:
        y = problem.y
        if y.ndim != 4 or y.is_complex():
            raise ShapeError(f"SmallKernel: expected a real measurement (C, H, W), got {tuple(y.shape[1:])} {str(y.dtype)[6:]}")
        phi = y.new_zeros(count, self.size**2)
        phi[:, self.size**2 // 2] = 1.0
        return phi

    def _shifted(self, c: Tensor) -> Tensor:
        """c moved by each place of the kernel, (B, size^2, C H W)."""
        moved = F.unfold(c.flatten(0, 1)[:, None], self.size, padding=self.size // 2)
        return moved.unflatten(0, c.shape[:2]).transpose(1, 2).flatten(2)

    def apply(self, phi: Tensor, c: Tensor) -> Tensor:
        return (phi[:, None] @ self._shifted(c)).reshape(c.shape)

    def transposed(self, phi: Tensor, r: Tensor) -> Tensor:
        parts = phi[:, None, :, None] * r.flatten(2)[:, :, None]
        return F.fold(parts.flatten(0, 1), r.shape[2:], self.size, padding=self.size // 2).reshape(r.shape)

    def update(self, problem: Problem, phi: Tensor, c: Tensor) -> Tensor:
        measured = problem.operator.measured
        moved = self._shifted(c)
        if measured is not None:
            moved = moved * measured.expand(c.shape[1:]).flatten()
        weight = _prior_weight(problem, self.std)
        slope = (moved @ self.residual(problem, phi, c).flatten(1)[..., None])[..., 0]
        slope = slope + weight * (phi - self.start(problem, len(phi)))
        curvature = moved @ moved.mT
        # the rounding of the diagonal, for images that leave a direction of k open
        small = torch.finfo(c.dtype).eps * curvature.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(c.dtype).tiny)
        eye = torch.eye(self.size**2, dtype=c.dtype, device=c.device)
        return phi - self.step * torch.linalg.solve_ex(curvature + (small[:, None, None] + weight) * eye, slope).result
