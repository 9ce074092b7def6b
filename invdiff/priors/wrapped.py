"""Networks of any parametrisation as D(x, sigma).

With l = sigma the level, t = path.time(l) the network's time and u = x, the network sees x_t = alpha_t u and answers one of

    predicts      what the answer o stands for            D(u, l)
    "noise"       eps                                     u - l o
    "data"        x0                                      o
    "v"           alpha_t eps - sigma_t x0                u - l (sigma_t u + o) / (alpha_t + l sigma_t)
    "score"       grad log p_t(x_t) = -eps / sigma_t      u + l sigma_t o
    "velocity"    alpha_t' x0 + sigma_t' eps              u - l (o - alpha_t' u) / (sigma_t' - l alpha_t')
    "edm"         F, of u / q instead of x_t              u - (l / q)^2 u + (l s / q) o,    q^2 = l^2 + s^2,  s = sigma_data

where ' is the derivative in the time of the path, so that the velocity is eps - x0 on a rectified flow that has its data at t
= 0 and x0 - eps on one that has them at t = 1. Every row but "data" is u - l (...), which does not cancel as l -> 0; on paths
with alpha^2 + sigma^2 = 1 the row of v is the usual alpha_t x_t - sigma_t v. A network that applies EDM's preconditioning
itself, and therefore takes x and sigma, is `VE(tells="sigma")` with "data".

alpha_t, sigma_t and t are computed in float64; the network runs in the dtype of its weights (and is told t in float32 or
better); D is in the dtype of x.

References: Salimans, Ho, Progressive distillation for fast sampling of diffusion models, 2022, arXiv:2202.00512 (v). Karras,
Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022, arXiv:2206.00364 (F). Dhariwal,
Nichol, Diffusion models beat GANs on image synthesis, 2021, arXiv:2105.05233 (learned variance).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ConfigError, ShapeError
from ..core.linalg import expand
from .adapter import require_multiples
from .paths import Path

__all__ = ["Call", "Wrapped", "weight_dtype"]

# how a network is called: (net, x_t, time, condition) -> its answer, a tensor
Call = Callable[[Any, Tensor, Tensor, Condition | None], Tensor]

_PREDICTS = ("noise", "data", "v", "score", "velocity", "edm")


def _call(net: Any, x: Tensor, time: Tensor, condition: Condition | None) -> Tensor:
    return net(x, time) if condition is None else net(x, time, condition)


def weight_dtype(net: Any, x: Tensor) -> torch.dtype:
    """The dtype that a network runs in: that of its weights; of x where it has none."""
    weights = net.parameters() if isinstance(net, nn.Module) else ()
    return next((w.dtype for w in weights if w.is_floating_point()), x.dtype)


class Wrapped(Denoiser):
    """Someone else's network as a prior, in the units in which it was trained.

    For other units put `Affine` around it: a network of [-1, 1] used on data in [0, 1] is Affine(Wrapped(...), scale=0.5,
    shift=0.5).

    Args:
        net: a module or function (x_t, time) -> answer, or (x_t, time, condition) if the prior is called with a condition;
            set to evaluation mode here.
        path: the noise path of its training, `paths`, `flows` or `steps`.
        predicts: "noise", "data", "v", "score", "velocity" or "edm"; see the table of the module.
        shape: of one unknown, (C, *spatial), None where free.
        sigma_min, sigma_max: limits in the network's data units, inside those of the path; None takes the path's.
        sigma_data: of "edm".
        learned_variance: the network returns 2 C channels, of which the second half is a variance and is ignored (ADM).
        value_range: smallest and largest value of the training data, for `Denoiser.check`.
        divisor: what the free dimensions must be multiples of.
        call: (net, x_t, time, condition) -> answer, for a network that does not return a tensor or is called in another way,
            such as `lambda net, x, t, condition: net(x, t).sample` for those of diffusers.

    Raises:
        ConfigError: an option is unknown or contradicts another.
        ShapeError: on a call, a free size is no multiple of `divisor`, or the network's answer is not a tensor of the right
            shape, twice the channels without `learned_variance` included.
    """

    def __init__(
        self,
        net: Callable[..., Any],
        path: Path,
        predicts: str,
        *,
        shape: tuple[int | None, ...],
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_data: float | None = None,
        learned_variance: bool = False,
        value_range: tuple[float, float] | None = None,
        divisor: int = 1,
        call: Call = _call,
    ) -> None:
        low, high = path.sigma_min, path.sigma_max
        super().__init__(shape, low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max)
        slack = 1 + 1e-6
        if self.sigma_min * slack < low or self.sigma_max > high * slack:
            raise ConfigError(
                f"Wrapped: expected sigma_min and sigma_max inside the path's [{low:g}, {high:g}], got "
                f"[{self.sigma_min:g}, {self.sigma_max:g}]"
            )
        if predicts not in _PREDICTS:
            raise ConfigError(f"Wrapped: expected predicts to be one of {', '.join(_PREDICTS)}, got {predicts!r}")
        if (sigma_data is not None) != (predicts == "edm") or (sigma_data is not None and not sigma_data > 0):
            raise ConfigError(f'Wrapped: expected sigma_data > 0 with predicts="edm" and only there, got {sigma_data}')
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ConfigError(f"Wrapped: expected value_range (low, high) with low < high, got {value_range}")
        if predicts == "velocity":
            path.rates(path.time(torch.tensor([self.sigma_min], dtype=torch.float64)))  # raises where there is none
        self.net, self.path, self.predicts, self.call = net, path, predicts, call
        self.sigma_data, self.learned_variance = sigma_data, learned_variance
        self.value_range, self.divisor, self.known = value_range, divisor, path.known
        self.eval()

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """D(x, sigma), or D(x, sigma, condition) for a network that takes one."""
        require_multiples(self, x)
        level = sigma.double()
        time = self.path.time(level)
        scale, kept, gain = self._coefficients(level, time)
        told, dtype = self.path.told(time), weight_dtype(self.net, x)
        # bfloat16 would merge neighbouring steps
        told = told.to(torch.promote_types(dtype, torch.float32)) if told.is_floating_point() else told
        out = self.call(self.net, (expand(scale, x).to(x.dtype) * x).to(dtype), told, condition)
        out = self._checked(out, x).to(x.dtype)
        return out if self.predicts == "data" else x + expand(kept, x).to(x.dtype) * x + expand(gain, x).to(x.dtype) * out

    def extra_repr(self) -> str:
        return f"{self.predicts}, {self.path}, sigma=[{self.sigma_min:g}, {self.sigma_max:g}], sigma_data={self.sigma_data}"

    def _coefficients(self, l: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: E741
        """The factor of the input, and a and b of D = u + a u + b o."""
        alpha, sigma, zero = self.path.alpha(t), self.path.sigma(t), torch.zeros_like(l)
        if self.sigma_data is not None:
            total = torch.hypot(l, torch.full_like(l, self.sigma_data))
            return 1 / total, -((l / total) ** 2), l / total * self.sigma_data
        if self.predicts == "velocity":
            alpha_rate, sigma_rate = self.path.rates(t)
            across = sigma_rate - l * alpha_rate
            return alpha, l * alpha_rate / across, -l / across
        if self.predicts == "v":
            across = alpha + l * sigma
            return alpha, -l * sigma / across, -l / across
        return alpha, zero, l * sigma if self.predicts == "score" else -l

    def _checked(self, out: Any, x: Tensor) -> Tensor:
        """The answer without its variance."""
        if not isinstance(out, Tensor):
            raise ShapeError(
                f"Wrapped: {type(self.net).__name__} returned a {type(out).__name__}, not a tensor: take the tensor "
                "out of it with call=lambda net, x, t, condition: ..."
            )
        channels = x.shape[1] * (2 if self.learned_variance else 1)
        expected = (x.shape[0], channels, *x.shape[2:])
        if tuple(out.shape) != expected:
            twice = out.shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:])
            hint = ": if the second half is a learned variance, say learned_variance=True" if twice else ""
            raise ShapeError(f"Wrapped: expected {type(self.net).__name__} to return {expected}, got {tuple(out.shape)}{hint}")
        return out[:, : x.shape[1]]
