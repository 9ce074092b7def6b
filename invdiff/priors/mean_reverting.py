"""Networks of mean-reverting diffusions as D(x, sigma): restoration from a degraded image.

    dx = theta (mu - x) dt + sqrt(2 theta) lambda dw:    x_t = alpha_t x0 + (1 - alpha_t) mu + s_t n,
    alpha_t = exp(-int_0^t theta),    s_t^2 = lambda^2 (1 - alpha_t^2),

where mu is the degraded image and the network answers (x_t, mu, t). In units of lambda about mu it is variance preserving,

    w_t = (x_t - mu) / lambda = alpha_t w_0 + sqrt(1 - alpha_t^2) n,    w_0 = (x0 - mu) / lambda,

so that in u = (x_t - (1 - alpha_t) mu) / alpha_t = x0 + sigma n, sigma = s_t / alpha_t, it is an ordinary denoiser,

    D(u, sigma) = mu + lambda D_w((u - mu) / lambda, sigma / lambda),

with its `origin` at mu, where the restoration starts: at the highest level x_t is about mu + lambda n. Nothing mean-reverting
is left to samplers. The MR Sampler's semi-analytic steps are the exponential integrators in this u: with h = log(sigma /
sigma'), u' = e^{-(1 + eta) h} u + (1 - e^{-(1 + eta) h}) D + sigma' sqrt(1 - e^{-2 eta h}) z, times
alpha' and with (1 - alpha') mu added, is for eta = 1

    x' = (s' / s) e^{-h} x + (1 - alpha' - (alpha' / alpha) (1 - alpha) e^{-2h}) mu + alpha' (1 - e^{-2h}) D
         + s' sqrt(1 - e^{-2h}) z

and for eta = 0, with the predicted noise n = (x - alpha D - (1 - alpha) mu) / s,

    x' = (alpha' / alpha) x + (1 - alpha' / alpha) mu - s' (e^h - 1) n.

`DPMSolver(1)` and `DPMSolver(0)` are its second-order ones. The prior is given mu, and with it what was measured: with the
operator of no measurement it restores; with a guidance besides, mu has to tell something else than the measurement, or its
information counts twice.

References: Luo, Gustafsson, Zhao, Sjölund, Schön, Image restoration with mean-reverting stochastic differential equations,
2023, arXiv:2301.11699 (IR-SDE). Li, Fang, Zhao, Lu, Yang, Xu, MRS: A fast sampler for mean reverting diffusion based on ODE and
SDE solvers, ICLR 2025, arXiv:2502.07856.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.denoiser import Condition
from ..core.errors import CapabilityError, ConfigError, ShapeError
from .adapter import Adapter
from .paths import Path
from .steps import cumulative_betas
from .wrapped import Wrapped

__all__ = ["MeanReverting", "reverting_betas"]

Net = Callable[[Tensor, Tensor, Tensor], Tensor]


def reverting_betas(steps: int = 100, last: float = 0.005, offset: float = 0.008) -> tuple[float, ...]:
    """A cosine schedule as of IR-SDE, for `DiscreteVP(betas, first=1)`.

    theta_t is proportional to 1 - cos^2((t / T + offset) / (1 + offset) pi / 2), its sum such that alpha is `last` at the end.
    For a network take the table of its authors' own alpha: `cumulative_betas(alpha^2)`.

    Args:
        steps: T, the number of times t = 1 ... T that the network knows.
        last: alpha_T, in (0, 1).
        offset: of the cosine, positive.
    """
    if steps < 2 or not 0.0 < last < 1.0 or not offset > 0.0:
        raise ConfigError(
            f"reverting_betas: expected steps >= 2, last in (0, 1) and offset > 0, got {steps}, {last} and {offset}"
        )
    u = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    total = torch.sin((u + offset) / (1.0 + offset) * (math.pi / 2.0)).square().cumsum(0)
    # 1 - cos^2 is sin^2
    return cumulative_betas(torch.exp(2.0 * math.log(last) * total / total[-1]))


@dataclass(frozen=True)
class _Centred:
    """The answer in terms of w, of a network called with x_t and mu."""

    predicts: str
    scale: float

    def __call__(self, net: Any, w: Tensor, time: Tensor, condition: Condition | None) -> Any:
        assert condition is not None
        mean = condition["concat"].to(w.dtype).expand_as(w)
        out = net(mean + self.scale * w, mean, time)
        if not isinstance(out, Tensor) or out.shape != w.shape:
            return out
        if self.predicts == "data":
            return (out - mean) / self.scale
        return self.scale * out if self.predicts == "score" else out


class MeanReverting(Adapter):
    """A network (x_t, mu, t) of a mean-reverting diffusion as a prior of x0, given mu.

    Args:
        net: a module or function (x_t, mu, time) -> answer, all of one batch; set to evaluation mode here.
        path: of w_t, variance preserving: `DiscreteVP(reverting_betas(), first=1)`, or `ContinuousVP`, of theta = beta / 2.
        predicts: "noise" (n), "data" (x0) or "score" (-n / s_t).
        shape: of one unknown, (C, *spatial), None where free.
        scale: lambda, the standard deviation of the noise at late times, in data units, positive.
        mean: mu, (1, *shape); None if it is told later.
        name: what mu is called where a prior is told by name.
        value_range: smallest and largest value of the training data.
        divisor: what the free dimensions must be multiples of.

    Its levels are those of the path times lambda.

    Raises:
        ConfigError: an option is unknown or out of range.
        ShapeError: mean does not fit the shape; on a call, as of `Wrapped`.
        CapabilityError: on a call, it was not told its mean.
    """

    prior: Wrapped
    mean: Tensor | None

    def __init__(
        self,
        net: Net,
        path: Path,
        predicts: str = "noise",
        *,
        shape: tuple[int | None, ...],
        scale: float = 1.0,
        mean: Tensor | None = None,
        name: str = "mean",
        value_range: tuple[float, float] | None = None,
        divisor: int = 1,
    ) -> None:
        if not 0.0 < scale < math.inf:
            raise ConfigError(f"MeanReverting: expected scale > 0, got {scale}")
        if predicts not in ("noise", "data", "score"):
            raise ConfigError(f"MeanReverting: expected predicts to be one of noise, data, score, got {predicts!r}")
        fits = mean is None or (
            mean.ndim == len(shape) + 1
            and len(mean) == 1
            and all(s in (None, n) for s, n in zip(shape, mean.shape[1:], strict=True))
        )
        if mean is not None and not fits:
            wants = ", ".join("any" if s is None else str(s) for s in (1, *shape))
            raise ShapeError(f"MeanReverting: expected a mean of shape ({wants}), got {tuple(mean.shape)}")
        centred = Wrapped(net, path, predicts, shape=shape, divisor=divisor, call=_Centred(predicts, float(scale)))
        super().__init__(centred, shape, scale=scale)
        self.scale, self.name, self.value_range = float(scale), name, value_range
        self.register_buffer("mean", mean)
        self.eval()

    @property
    def origin(self) -> float | Tensor:
        return 0.0 if self.mean is None else self.mean[0]

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x, mu]."""
        if self.mean is None:
            raise CapabilityError(
                f"MeanReverting: expected to be told {self.name}: give mean, call tell, or choose a task that does"
            )
        mean = self.mean.to(x.dtype)
        return mean + self.scale * self.prior((x - mean) / self.scale, sigma / self.scale, {"concat": mean})

    def tell(self, told: Mapping[str, Tensor]) -> MeanReverting:
        """The prior of the same network given mu, (1, *shape).

        Raises:
            ConfigError: it is missing. ShapeError: it does not fit.
        """
        if self.name not in told:
            raise ConfigError(f"MeanReverting: expected to be told {self.name}, got {', '.join(told) or 'nothing'}")
        inner = self.prior
        return MeanReverting(
            inner.net,
            inner.path,
            inner.predicts,
            shape=self.shape,
            scale=self.scale,
            mean=told[self.name],
            name=self.name,
            value_range=self.value_range,
            divisor=self.divisor,
        )

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}, mean={None if self.mean is None else tuple(self.mean.shape)}"
