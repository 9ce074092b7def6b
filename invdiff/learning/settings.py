"""What a training run does, in numbers: the one object that a configuration describes and a checkpoint remembers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from ..core import Auto, Memory
from ..core.errors import ConfigError

__all__ = ["Training"]

# another run has other weights; what is named here changes where it ends, what it costs, or what it writes
_MAY_CHANGE = {"steps", "cooldown", "full_from", "accumulate", "compile", "memory", "save_every", "keep", "log_every"}
_MAY_CHANGE |= {"tensorboard", "sheet_every", "sheet"}
# of older checkpoints; it was of the kind that may change
_FORMER = {"checkpoint"}


@dataclass(frozen=True)
class Training:
    """What a run does.

    Args:
        steps: optimiser steps in all.
        batch: images per step while cropping; full-size steps take as many as make about as many pixels, at least one.
        crop: side of the crops, in pixels, in every spatial dimension.
        full_from: fraction of the steps after which whole images are used; 1 for never.
        lr: the constant learning rate.
        warmup: steps of linear warm-up.
        cooldown: fraction of the steps, at the end, of the linear decay to zero.
        ema: decay of the averaged weights per step; min(ema, (1 + step) / (10 + step)) while the run is young.
        p_mean, p_std: mean and standard deviation of ln sigma, sigma in data units, where `levels` is "lognormal".
        weight_decay: AdamW's.
        clip: largest norm of the gradient.
        bf16: bfloat16 autocast of the network.
        seed: of crops, noise levels, noise, dropped conditions and dropout.
        save_every: steps between checkpoints; the last step always makes one.
        objective: "edm" or "flow", the weight of the squared error at each level, see `objectives`.
        levels: "lognormal", or "uniform" in tau = sigma / (sigma + sigma_data).
        drop: probability with which an item's condition is replaced by none, for classifier-free guidance.
        accumulate: pieces that a process cuts its part of a batch into, to need less memory; without dropout the same gradient.
        compile: `torch.compile` the network while it trains; the network that was trained stays compiled.
        memory: what is kept for the backward pass, a policy as `core.memory.Memory.parse` reads it. "checkpoint(block)" and
            "checkpoint(both)" recompute each block of the network, "invertible" undoes the blocks of reversible stages
            (`UNet.coupling`) and recomputes the others, "auto(8GiB)" recomputes blocks where the derivative of a piece of a
            batch would else need more. A loss is a chain of one step, whose derivative follows at once: recomputing it as a
            whole keeps nothing less, so that checkpoint(step), revolve and offload, which are about steps, are as "full".
        keep: how many checkpoints stay: checkpoint.pt, and keep - 1 before it with their step in the name.
        log_every: steps between lines of the log; 0 for one with every checkpoint.
        tensorboard: write the log for TensorBoard too, into the folder `tensorboard`.
        sheet_every: steps between sheets of draws with the averaged weights; 0 for none.
        sheet: draws on a sheet.
    """

    steps: int
    batch: int = 16
    crop: int = 64
    full_from: float = 0.85
    lr: float = 1e-3
    warmup: int = 200
    cooldown: float = 0.25
    ema: float = 0.999
    p_mean: float = -1.2
    p_std: float = 1.6
    weight_decay: float = 0.0
    clip: float = 1.0
    bf16: bool = False
    seed: int = 0
    save_every: int = 500
    objective: Literal["edm", "flow"] = "edm"
    levels: Literal["lognormal", "uniform"] = "lognormal"
    drop: float = 0.0
    accumulate: int = 1
    compile: bool = False
    memory: str = "full"
    keep: int = 1
    log_every: int = 0
    tensorboard: bool = False
    sheet_every: int = 0
    sheet: int = 16

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "crop", "lr", "p_std", "clip", "save_every", "accumulate", "keep", "sheet"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"Training: expected {name} > 0, got {getattr(self, name)}")
        for name in ("full_from", "cooldown", "ema", "drop"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"Training: expected {name} between 0 and 1, got {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "log_every", "sheet_every"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"Training: expected {name} >= 0, got {getattr(self, name)}")
        for name, known in (("objective", ("edm", "flow")), ("levels", ("lognormal", "uniform"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"Training: expected {name} to be {' or '.join(known)}, got {getattr(self, name)!r}")
        if isinstance(Memory.parse(self.memory), Auto) and self.compile:
            raise ConfigError(
                "Training: memory auto measures a network that is not compiled: name the policy, or leave compile out"
            )

    def learning_rate(self, step: int) -> float:
        """The rate of step 0, ..., steps - 1: warm-up, constant, linear to zero."""
        rise = (step + 1) / (self.warmup + 1)
        fall = (self.steps - step) / (self.cooldown * self.steps) if self.cooldown else 1.0
        return self.lr * min(1.0, rise, fall)

    def differs(self, other: dict[str, Any]) -> str | None:
        """How a run with other settings, as a dictionary, is another run than this one; None if one may continue the other.

        A setting that is missing has its default; one that does not exist here is another run's.
        """
        for name in other.keys() - {field.name for field in fields(self)} - _FORMER:
            return f"{name}={other[name]}, which is no setting of this version"
        for field in fields(self):
            mine, found = getattr(self, field.name), other.get(field.name, field.default)
            if field.name not in _MAY_CHANGE and mine != found:
                return f"{field.name}={found}, not {mine}"
        return None

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, does so when `step` steps are done."""
        return every > 0 and (step % every == 0 or step == self.steps)
