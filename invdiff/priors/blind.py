"""Denoisers that are not told the noise level.

    D(x, sigma) = x - f(x)    or    f(x),    sigma_min <= sigma <= sigma_max

f was trained on images with noise of all levels of the interval, so that it is E[x0 | x] with sigma itself unknown: it reads
the level from the image, and the sigma of the call does nothing but select the interval. In an image of many pixels whose noise
is white and of one level that is no loss (the level is known to a relative error of about 1 / sqrt(2 N)). Where the noise is
neither, as in the iterates of an approximate sampler, the level that f reads is not the one the sampler believes in: score and
Tweedie's formulas then are those of the level read. Outside the interval f is an extrapolation, and the call is refused. A
denoiser for one level has a narrow interval: no diffusion sampler, but plug-and-play methods at that level can use it.

References: Kadkhodaie, Simoncelli, Stochastic solutions for linear inverse problems using the prior implicit in a denoiser,
NeurIPS 2021, arXiv:2007.13640.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ConfigError, ShapeError
from .adapter import require_multiples
from .wrapped import weight_dtype

__all__ = ["Blind"]


def _call(net: Any, x: Tensor, condition: Condition | None) -> Tensor:
    return net(x) if condition is None else net(x, condition)


class Blind(Denoiser):
    """A network without a noise input as a prior, inside of the interval in which it was trained.

    Args:
        net: a module or function x -> noise or image, or (x, condition) if the prior is called with a condition; set to
            evaluation mode here.
        shape: of one unknown, (C, *spatial), None where free.
        sigma_min, sigma_max: noise levels of the training, in the network's data units.
        outputs: "noise", D = x - net(x), or "image", D = net(x).
        value_range: smallest and largest value of the training data, for `Denoiser.check`.
        divisor: what the free dimensions must be multiples of.
        call: (net, x, condition) -> answer, for a network that is called in another way.

    The network runs in the dtype of its weights; D is in the dtype of x.

    Raises:
        ConfigError: an option is unknown; on a call, sigma is outside of the interval (by more than the rounding of float32).
        ShapeError: on a call, a free size is no multiple of `divisor`, or the network's answer has another shape than x.
    """

    def __init__(
        self,
        net: Callable[..., Any],
        *,
        shape: tuple[int | None, ...],
        sigma_min: float,
        sigma_max: float,
        outputs: Literal["noise", "image"] = "noise",
        value_range: tuple[float, float] | None = None,
        divisor: int = 1,
        call: Callable[[Any, Tensor, Condition | None], Tensor] = _call,
    ) -> None:
        super().__init__(shape, sigma_min, sigma_max)
        if outputs not in ("noise", "image"):
            raise ConfigError(f'Blind: expected outputs "noise" or "image", got {outputs!r}')
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ConfigError(f"Blind: expected value_range (low, high) with low < high, got {value_range}")
        self.net, self.outputs, self.call = net, outputs, call
        self.value_range, self.divisor = value_range, divisor
        self.eval()

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """x - net(x) or net(x)."""
        slack = 1 + 1e-6  # a limit in float64 may round past itself in float32
        outside = ~((sigma.detach() * slack >= self.sigma_min) & (sigma.detach() <= self.sigma_max * slack))
        if bool(outside.any()):
            raise ConfigError(
                f"Blind: {type(self.net).__name__} was trained for sigma in [{self.sigma_min:g}, {self.sigma_max:g}], and is "
                f"called at {float(sigma[outside][0]):g}: keep the sampler's grid inside"
            )
        require_multiples(self, x)
        out = self.call(self.net, x.to(weight_dtype(self.net, x)), condition)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise ShapeError(f"Blind: expected {type(self.net).__name__} to return {tuple(x.shape)}, got {got}")
        return x - out.to(x.dtype) if self.outputs == "noise" else out.to(x.dtype)

    def extra_repr(self) -> str:
        return f"outputs={self.outputs}, sigma=[{self.sigma_min:g}, {self.sigma_max:g}]"
