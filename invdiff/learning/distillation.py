"""Adversarial consistency distillation: a denoiser of many steps becomes a consistency function of one to eight.

On the levels sigma_1 = sigma_max > ... > sigma_N = sigma_min of a rho grid, for data x0 with their condition, noise eps and n
drawn uniformly,

    x = x0 + sigma_n eps,    x' = one step of the teacher's flow from x to sigma_{n+1} (Euler or Heun),
    r = (f(x, sigma_n) - g(x', sigma_{n+1})) / sigma_d,    g: moving average of the student f, without gradient,

    l2      w mean r^2
    huber   w (sqrt(mean r^2 + c^2) - c)          the c of the literature, .00054 sqrt(dim) for sigma_d = 1/2, is .00108 here

with a mean over the elements of an item, so that the size of an image changes nothing. Both have the same minimum, because x'
is a function of x. At sigma_N g is the identity, from where the solution spreads to higher levels. To this a discriminator adds
the gradient of its opinion of (x, f(x, sigma_n)), see `discriminator`; what is real to it are the data, (x, x0), not the
student's average. `distil` is the loop.

References: Song, Dhariwal, Chen, Sutskever, Consistency models, 2023, arXiv:2303.01469, Algorithm 2. Song, Dhariwal, Improved
techniques for training consistency models, 2023, arXiv:2310.14189 (Huber). Bai, Xu, Accelerating diffusion for SAR-to-optical
image translation via adversarial consistency distillation, 2024, arXiv:2407.06095. Esser, Rombach, Ommer, Taming transformers
for high-resolution image synthesis, CVPR 2021, arXiv:2012.09841 (balance of gradients).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from ..core import Karras
from ..core.denoiser import Condition, Denoiser
from ..core.errors import ConfigError
from ..core.rng import Streams
from ..priors.layers import over
from .discriminator import FORMS
from .settings import Training

__all__ = ["Distillation", "consistency_loss", "solver_step"]

_MAY_CHANGE = {"steps", "cooldown", "full_from", "save_every", "log_every"}


@dataclass(frozen=True)
class Distillation:
    """What a distillation does.

    Args:
        steps: optimiser steps in all.
        batch, crop, full_from: of the items, see `Training`.
        lr, lr_rival: learning rates of the student and of the discriminator.
        warmup, cooldown: of both, see `Training`.
        target: decay of the average that the student is to agree with, per step; 0 for the student itself.
        ema: decay of the averaged weights that are kept; min(ema, (1 + step) / (10 + step)) while the run is young.
        levels: N. Where K divides N - 1, the K levels of `Multistep(steps=K)` are among them.
        rho: of the levels.
        solver: "heun", of two evaluations of the teacher, or "euler", of one.
        loss: "huber" or "l2".
        c: of the Huber loss, in units of sigma_data for each root of the number of elements.
        weight: w; "one", or "inverse", sigma_d / (sigma_n - sigma_{n+1}).
        adversarial: weight of the discriminator's opinion; 0 for none.
        balance: "gradient": the adversarial gradient with respect to the student's images is `adversarial` times as long as
            that of the consistency loss; "fixed": the two losses are added, in the paper with a weight of 1.
        adversarial_from: steps in which the discriminator learns and the student does not hear it.
        form: of the adversarial losses, "softplus", "hinge" or "wgan".
        penalty: of the discriminator's gradient at real images; wgan needs one.
        real: what is real to the discriminator: "data", or "target", the moving average's images, as the paper has it.
        clip: largest norm of either gradient.
        bf16: bfloat16 autocast of all networks.
        seed: of levels, noise, crops and of the discriminator's head.
        save_every, log_every: steps between checkpoints, and between lines of the log; 0 for one with every checkpoint.

    Raises:
        ConfigError: a number is out of its range, or a choice unknown.
    """

    steps: int
    batch: int = 16
    crop: int = 64
    full_from: float = 1.0
    lr: float = 1e-4
    lr_rival: float = 1e-4
    warmup: int = 100
    cooldown: float = 0.25
    target: float = 0.95
    ema: float = 0.999
    levels: int = 41
    rho: float = 7.0
    solver: Literal["heun", "euler"] = "heun"
    loss: Literal["huber", "l2"] = "huber"
    c: float = 0.00108
    weight: Literal["one", "inverse"] = "one"
    adversarial: float = 0.1
    balance: Literal["gradient", "fixed"] = "gradient"
    adversarial_from: int = 0
    form: Literal["softplus", "hinge", "wgan"] = "softplus"
    penalty: float = 0.0
    real: Literal["data", "target"] = "data"
    clip: float = 1.0
    bf16: bool = False
    seed: int = 0
    save_every: int = 500
    log_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "crop", "lr", "lr_rival", "rho", "c", "clip", "save_every"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"Distillation: expected {name} > 0, got {getattr(self, name)}")
        for name in ("warmup", "adversarial", "adversarial_from", "penalty", "log_every"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"Distillation: expected {name} >= 0, got {getattr(self, name)}")
        for name in ("full_from", "cooldown", "target", "ema"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"Distillation: expected {name} between 0 and 1, got {getattr(self, name)}")
        choices = {"solver": ("heun", "euler"), "loss": ("huber", "l2"), "weight": ("one", "inverse"), "form": FORMS}
        choices |= {"balance": ("gradient", "fixed"), "real": ("data", "target")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"Distillation: expected {name} to be {' or '.join(known)}, got {getattr(self, name)!r}")
        if self.levels < 2:
            raise ConfigError(f"Distillation: expected at least 2 levels, got {self.levels}")
        if self.form == "wgan" and self.adversarial and not self.penalty:
            raise ConfigError("Distillation: the wgan form has no minimum without a penalty > 0")

    @property
    def training(self) -> Training:
        """What `Batches` and the learning rate go by; its items have noise of level one."""
        names = ("steps", "batch", "crop", "full_from", "lr", "warmup", "cooldown", "seed", "save_every")
        return Training(**{name: getattr(self, name) for name in names}, p_mean=0.0, p_std=1e-9)

    def differs(self, other: dict[str, Any]) -> str | None:
        """How a run with other settings, as a dictionary, is another run; None if one may continue the other."""
        for field in fields(self):
            mine, found = getattr(self, field.name), other.get(field.name, field.default)
            if field.name not in _MAY_CHANGE and mine != found:
                return f"{field.name}={found}, not {mine}"
        return None

    def grid(self, model: Denoiser) -> Tensor:
        """The levels, (N,) float32, from the model's sigma_max to its sigma_min."""
        u = torch.linspace(0.0, 1.0, self.levels, dtype=torch.float64)
        grid = Karras(rho=self.rho).levels(u, model.sigma_min, model.sigma_max).float()
        # where the model is the identity, to the bit
        grid[0], grid[-1] = model.sigma_max, model.sigma_min
        return grid

    def places(self, step: int, count: int) -> Tensor:
        """The n - 1 of a step's items, (count,) int64: stratified over the grid, in an order of its own for each step."""
        streams = Streams(self.seed, (step,))
        order = streams.uniform(0, (count,), "order", torch.float64)[0].argsort()
        return ((streams.uniform(0, (), "sigma", torch.float64) + order) / count * (self.levels - 1)).long()


@torch.no_grad()
def solver_step(
    teacher: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, condition: Condition | None, *, solver: str = "heun"
) -> Tensor:
    """x (B, *shape) carried along the teacher's flow from sigma to sigma_next, (B,) each, both positive."""
    dims = x.ndim - 1
    slope = (x - teacher(x, sigma, condition)) / over(sigma, dims)
    gap = over(sigma_next - sigma, dims)
    ahead = x + gap * slope
    if solver == "euler":
        return ahead
    slope_ahead = (ahead - teacher(ahead, sigma_next, condition)) / over(sigma_next, dims)
    return x + 0.5 * gap * (slope + slope_ahead)


def consistency_loss(loss: str, student: Tensor, target: Tensor, sigma_data: float, c: float) -> Tensor:
    """The unweighted loss of each item, (B, *shape), (B, *shape) -> (B,)."""
    square = ((student - target) / sigma_data).square().flatten(1).mean(1)
    # sqrt(a + c^2) - c without its cancellation at small a
    return square if loss == "l2" else square / ((square + c * c).sqrt() + c)
