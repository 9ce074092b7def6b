"""Denoising training of a network prior.

    L = E  (sigma^2 + sigma_d^2) / (sigma sigma_d)^2  |D(x0 + sigma n, sigma) - x0|^2,    ln sigma ~ N(p_mean, p_std^2),

by AdamW with a learning rate that warms up, stays and cools down, gradient clipping, and an exponential moving average of the
weights, which is what the run returns. The sigmas of a batch are stratified: with a uniform number u that the batch shares,
their quantiles are (u + i) / B. First random crops, then whole images, as many as make about the same number of pixels.

Item k of step t is item t B + k of the source; crop and noise are functions of (seed, that index), the levels of (seed, t), so
that a resumed run is the uninterrupted one, bit for bit on a CPU.

References: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022,
arXiv:2206.00364, Table 1 (loss). Kingma, Salimans, Poole, Ho, Variational diffusion models, 2021, arXiv:2107.00630 (stratified
levels). Hu et al., MiniCPM, 2024, arXiv:2404.06395 (warm up, stay, cool down).
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..core.errors import ConfigError, DataError, NumericalError, ShapeError
from ..core.files import atomic, save
from ..core.rng import Streams
from ..priors.network import EDMDenoiser

__all__ = ["Training", "fit"]

Source = Callable[[int], Tensor]

_CHECKPOINT, _EMA, _LOG = "checkpoint.pt", "ema.safetensors", "log.jsonl"
# a resumed run may be made longer, or cool down elsewhere; everything else makes it another run
_MAY_CHANGE = {"steps", "save_every", "cooldown", "full_from"}


@dataclass(frozen=True)
class Training:
    """What a run does.

    Args:
        steps: optimiser steps in all.
        batch: images per step while cropping; full-size steps take batch * crop^2 / (H W) of them, at least one.
        crop: side of the square crops, in pixels.
        full_from: fraction of the steps after which whole images are used; 1 for never.
        lr: the constant learning rate.
        warmup: steps of linear warm-up.
        cooldown: fraction of the steps, at the end, of the linear decay to zero.
        ema: decay of the averaged weights per step; min(ema, (1 + step) / (10 + step)) while the run is young.
        p_mean, p_std: mean and standard deviation of ln sigma, sigma in data units.
        weight_decay: AdamW's.
        clip: largest norm of the gradient.
        bf16: bfloat16 autocast of the network.
        seed: of crops, noise levels and noise.
        save_every: steps between checkpoints; the last step always makes one.
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

    def __post_init__(self) -> None:
        positive = ("steps", "batch", "crop", "lr", "p_std", "clip", "save_every")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"Training: expected {name} > 0, got {getattr(self, name)}")
        for name in ("full_from", "cooldown", "ema"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"Training: expected {name} between 0 and 1, got {getattr(self, name)}")
        if self.warmup < 0 or self.weight_decay < 0:
            raise ConfigError(f"Training: expected warmup, weight_decay >= 0, got {self.warmup}, {self.weight_decay}")

    def learning_rate(self, step: int) -> float:
        """The rate of step 0, ..., steps - 1: warm-up, constant, linear to zero."""
        rise = (step + 1) / (self.warmup + 1)
        fall = (self.steps - step) / (self.cooldown * self.steps) if self.cooldown else 1.0
        return self.lr * min(1.0, rise, fall)


def fit(
    denoiser: EDMDenoiser,
    source: Source,
    training: Training,
    out: str | Path,
    *,
    progress: bool = True,
    resume: bool = True,
) -> EDMDenoiser:
    """Train the denoiser, in place, and return a copy with the averaged weights.

    Args:
        source: index -> image (C, H, W), deterministic, in the units of the denoiser; the run asks for every index once.
        out: folder of checkpoint.pt (the whole state), ema.safetensors (averaged weights, for `load_network`) and log.jsonl.
        resume: continue from the checkpoint in `out` if there is one; False starts anew and overwrites it.

    Raises:
        ConfigError: the checkpoint is of a run with other settings than `steps`, `save_every`, `cooldown`, `full_from`.
        DataError: the checkpoint is damaged, or a file can't be written.
        NumericalError: the loss or its gradient is not finite; the last checkpoint stays.
    """
    out = Path(out)
    device = next(denoiser.parameters()).device
    denoiser.train().requires_grad_(True).to(memory_format=torch.channels_last)
    average = copy.deepcopy(denoiser).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=training.lr, betas=(0.9, 0.99), weight_decay=training.weight_decay)
    evaluate_bf16, denoiser.bf16 = denoiser.bf16, training.bf16
    first = _restore(out, denoiser.net, average.net, optimizer, training) if resume else 0
    log = _read_log(out / _LOG, first) if first else []
    # the losses since the last line of the log are not in a checkpoint, so a checkpoint closes a line
    losses: list[float] = []
    begin, images = time.perf_counter(), 0
    bar = tqdm(total=training.steps, initial=first, disable=not progress, unit="step", dynamic_ncols=True)
    try:
        for step in range(first, training.steps):
            clean, noisy, sigma = batch_at(source, training, step, device)
            optimizer.param_groups[0]["lr"] = training.learning_rate(step)
            loss = edm_loss(denoiser, clean, noisy, sigma)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(denoiser.parameters(), training.clip).item()
            losses.append(loss.item())
            if not (math.isfinite(losses[-1]) and math.isfinite(norm)):
                raise NumericalError(f"fit: at step {step} the loss is {losses[-1]} and its gradient's norm {norm}")
            optimizer.step()
            _average(average.net, denoiser.net, min(training.ema, (1 + step) / (10 + step)))
            images += len(clean)
            rate = images / (time.perf_counter() - begin)
            bar.set_postfix_str(f"loss {sum(losses[-50:]) / len(losses[-50:]):.4f}, {rate:.1f} images/s", refresh=False)
            bar.update()
            done = step + 1
            if done % training.save_every == 0 or done == training.steps:
                mean = sum(losses) / len(losses)
                log.append({"step": done, "loss": mean, "gradient": norm, "images_per_s": round(rate, 2)})
                losses = []
                _save(out, done, denoiser, average, optimizer, training, log)
    finally:
        bar.close()
        denoiser.bf16 = evaluate_bf16
        denoiser.eval()
    return average


def edm_loss(denoiser: EDMDenoiser, clean: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """The weighted squared error, a mean over items and elements; 1 for F = 0 and white data of rms sigma_data."""
    weight = (sigma.square() + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data).square()
    error = (denoiser(noisy, sigma) - clean).square().flatten(1).mean(1)
    return (weight * error).mean()


def batch_at(source: Source, training: Training, step: int, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """Clean images, noisy images and noise levels of a step: a function of the step and the seed alone."""
    indices = range(step * training.batch, (step + 1) * training.batch)
    image = source(indices[0])
    full = step >= training.full_from * training.steps
    if full:
        pixels = image.shape[-2] * image.shape[-1]
        indices = indices[: max(1, round(training.batch * training.crop**2 / pixels))]
    images = [image, *(source(i) for i in indices[1:])]
    streams = Streams(training.seed, indices)
    if not full:
        places = streams.uniform(0, (2,), "crop").tolist()
        images = [_crop(x, training.crop, *place) for x, place in zip(images, places, strict=True)]
    clean = torch.stack(images).to(device).contiguous(memory_format=torch.channels_last)
    shared = Streams(training.seed, (step,)).uniform(0, (), "sigma", torch.float64)
    quantile = (shared + torch.arange(len(indices), dtype=torch.float64)) / len(indices)
    sigma = (training.p_mean + training.p_std * torch.special.ndtri(quantile)).exp().float().to(device)
    noise = streams.normal(0, clean.shape[1:], "noise", device=device)
    return clean, clean + sigma[:, None, None, None] * noise, sigma


def _crop(image: Tensor, side: int, u: float, v: float) -> Tensor:
    height, width = image.shape[-2:]
    if side > min(height, width):
        raise ShapeError(f"fit: the source gives images of shape {tuple(image.shape)}, smaller than the crop of {side}")
    top, left = int(u * (height - side + 1)), int(v * (width - side + 1))
    return image[..., top : top + side, left : left + side]


@torch.no_grad()
def _average(average: nn.Module, net: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1.0 - decay)


def _save(
    out: Path,
    step: int,
    denoiser: EDMDenoiser,
    average: EDMDenoiser,
    optimizer: torch.optim.Optimizer,
    training: Training,
    log: list[dict[str, float]],
) -> None:
    state = {
        "step": step,
        "training": asdict(training),
        "net": denoiser.net.state_dict(),
        "average": average.net.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    average.facts |= {"training": asdict(training), "step": step}
    average.save(out / _EMA)
    with atomic(out / _LOG) as part:
        part.write_text("".join(json.dumps(line) + "\n" for line in log))
    # last, so that the log and the averaged weights are never behind the checkpoint
    save(out / _CHECKPOINT, state)


def _restore(out: Path, net: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, training: Training) -> int:
    """Load the checkpoint, if there is one; the number of steps done."""
    path = out / _CHECKPOINT
    if not path.exists():
        return 0
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        settings, step = state["training"], state["step"]
    except Exception as error:  # torch.load raises at least five kinds for a damaged file
        raise DataError(f"fit: {path} is no checkpoint of a training ({type(error).__name__} while reading it)") from None
    for name, value in asdict(training).items():
        if name not in _MAY_CHANGE and settings.get(name) != value:
            found = f"{name}={settings.get(name)}, not {value}"
            raise ConfigError(f"fit: {path} was made with {found}: use another folder or resume=False")
    if step > training.steps:
        raise ConfigError(f"fit: {path} is already at step {step}, past steps={training.steps}")
    try:
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise ConfigError(f"fit: {path} is of another network ({str(error).splitlines()[0]})") from None
    return int(step)


def _read_log(path: Path, step: int) -> list[dict[str, float]]:
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [line for line in lines if line["step"] <= step]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"fit: can't read the log {path} of the run to resume ({error})") from None
