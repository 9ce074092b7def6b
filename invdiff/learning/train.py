"""Denoising training of a network prior: the loop.

AdamW on the loss of `objectives`, with a learning rate that warms up, stays and cools down, gradient clipping, and an
exponential moving average of the weights, which is what the run returns. A batch is a function of the seed and the step
(`batches`), so that a resumed run is the uninterrupted one, bit for bit on a CPU; gradient accumulation and data-parallel
processes (`distributed`) cut it into pieces, whose gradients add up to that of the whole, to rounding.

References: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022,
arXiv:2206.00364, Table 1. Hu et al., MiniCPM, 2024, arXiv:2404.06395 (warm up, stay, cool down).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..core.errors import ConfigError
from ..core.rng import Streams
from ..priors.autoencoder import Autoencoder
from .batches import Batches, Source, pieces, to_device
from .checkpoints import LATEST, restore, start_anew, store
from .distributed import Team
from .interrupts import postponed
from .journal import Journal
from .objectives import Model, item_losses, noise_levels
from .settings import Training
from .sheets import draw, write_sheet

__all__ = ["fit"]

# steps of a GPU before it is asked whether its numbers are finite
_CHECK_EVERY = 20


Trained = TypeVar("Trained", bound=Model)


def fit(
    denoiser: Trained,
    source: Source,
    training: Training,
    out: str | Path,
    *,
    progress: bool = True,
    resume: bool = True,
) -> Trained:
    """Train the denoiser, or an autoencoder, in place, and return a copy with the averaged weights.

    In a process group of torch.distributed the processes share the work, and each of them returns the same weights.

    Args:
        source: index -> image (C, *spatial), or (image, condition) for a conditional network (see `Batches`), deterministic, in
            the units of the denoiser. The run asks for every index once; with whole images every process asks for the first
            index of a step, whoever has it, and a sheet asks for the first ones of the run.
        out: folder of checkpoint.pt (the whole state), ema.safetensors (averaged weights, for `load_network`), log.jsonl and
            sheets samples_000500.png; one that all processes see.
        resume: continue from the checkpoint in `out` if there is one; False starts anew and overwrites it.

    Raises:
        ConfigError: the checkpoint is of a run with other settings than one may change (length, pieces, what is written).
        DataError: the checkpoint is damaged, or a file can't be written.
        NumericalError: the loss or its gradient is not finite; the last checkpoint stays.
        KeyboardInterrupt: after a checkpoint of the last complete step.
    """
    run = _Run(denoiser, source, training, Path(out))
    run.start(resume)
    show = progress and run.team.writes
    with (
        run.prepared(),
        postponed(patient=run.team.size > 1) as check,
        tqdm(total=training.steps, initial=run.done, disable=not show, unit="step", dynamic_ncols=True) as bar,
    ):
        while run.done < training.steps:
            run.step(check)
            bar.set_postfix_str(run.journal.glance(), refresh=False)
            bar.update()
    return run.average


class _Run:
    """The state of a run between two steps."""

    def __init__(self, denoiser: Model, source: Source, training: Training, out: Path) -> None:
        foreign = training.sheet_every or training.drop or (training.objective, training.levels) != ("edm", "lognormal")
        if isinstance(denoiser, Autoencoder) and foreign:
            raise ConfigError(
                "fit: an autoencoder makes no draws, and has no condition and no noise levels: leave sheet_every, drop, "
                "objective and levels out"
            )
        self.denoiser, self.training, self.out = denoiser, training, out
        self.device = next(denoiser.parameters()).device
        self.team = Team.here(self.device)
        denoiser.train().requires_grad_(True).to(memory_format=denoiser.net.memory_format)
        self.average = copy.deepcopy(denoiser).eval().requires_grad_(False)
        self.parameters, self.averages = list(denoiser.parameters()), list(self.average.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=training.lr, betas=(0.9, 0.99), weight_decay=training.weight_decay
        )
        self.batches = Batches(source, training, denoiser, self.device)
        self.done = self.saved = 0

    def start(self, resume: bool) -> None:
        """Load the checkpoint, and begin or continue the log."""

        def load() -> dict[str, Any]:
            if not resume:
                if self.team.writes:
                    start_anew(self.out)
                return {}
            self.done, state = restore(self.out, self.denoiser, self.average, self.optimizer, self.training)
            return state

        state = self.team.together(load)
        self.saved = self.done
        if not self.team.agree(self.done):
            raise ConfigError(f"fit: the processes find different checkpoints {self.out / LATEST}: give a folder that all see")
        self.team.share([*self.parameters, *self.averages])
        out = self.out if self.team.writes else None
        self.journal = self.team.together(
            lambda: Journal(out, self.done, state, self.device, tensorboard=self.training.tensorboard)
        )

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The network as the run wants it; afterwards its options are as before, and the log is closed."""
        net, training = self.denoiser.net, self.training
        before = self.denoiser.bf16, net.checkpoint
        self.denoiser.bf16, net.checkpoint = training.bf16, training.checkpoint or net.checkpoint
        if training.compile:
            net.compile()
        try:
            yield
        finally:
            self.denoiser.bf16, net.checkpoint = before
            self.denoiser.eval()
            self.journal.close()

    def step(self, check: Callable[[], None]) -> None:
        """One optimiser step, and what is written after it; `check` raises a KeyboardInterrupt that has come."""
        training, count, failure = self.training, 0, None
        losses = torch.zeros(training.batch, device=self.device)
        try:
            check()
            count = self.gradient(losses)
        except BaseException as error:
            failure = error
        try:
            self.team.add(self.parameters, losses, failure)
        except KeyboardInterrupt:
            # weights, averages and optimiser are those of the last complete step
            self.journal.check()
            self.team.together(lambda: self.write(checkpoint=self.done > self.saved))
            raise
        norm = nn.utils.clip_grad_norm_(self.parameters, training.clip)
        sigma = noise_levels(training, self.denoiser, self.done, count)
        self.journal.add(losses[:count], to_device(sigma, self.device), norm)
        done = self.done + 1
        line = training.due(done, training.log_every or training.save_every)
        checkpoint = training.due(done, training.save_every)
        sheet = training.due(done, training.sheet_every)
        if line or checkpoint or sheet or self.device.type == "cpu" or done % _CHECK_EVERY == 0:
            self.journal.check()
        rate = self.optimizer.param_groups[0]["lr"] = training.learning_rate(self.done)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.parameters, 1.0 - min(training.ema, (1 + self.done) / (10 + self.done)))
        self.done = done
        if line:
            self.team.together(lambda: self.journal.write(rate))
        if checkpoint or sheet:
            self.team.together(lambda: self.write(checkpoint=checkpoint, sheet=sheet))

    def gradient(self, losses: Tensor) -> int:
        """Add this process's part of the gradient and its items' losses; how many items the whole batch has."""
        self.optimizer.zero_grad(set_to_none=True)
        indices = self.batches.indices(self.done)
        for places in pieces(len(indices), self.team.rank, self.team.size, self.training.accumulate):
            clean, noisy, sigma, condition = self.batches(self.done, indices, places)
            with _dropout(self.training.seed, indices[places[0]], self.device):
                each = item_losses(self.denoiser, clean, noisy, sigma, condition, objective=self.training.objective)
                (each.mean() * (len(places) / len(indices))).backward()
            losses[places.start : places.stop] = each.detach()
        return len(indices)

    def write(self, *, checkpoint: bool = False, sheet: bool = False) -> None:
        """What process 0 writes."""
        if checkpoint and self.team.writes:
            log, before, self.saved = self.journal.state(), self.saved, self.done
            store(self.out, self.done, self.denoiser, self.average, self.optimizer, self.training, log, before)
        if sheet and self.team.writes:
            # of the size, and for the conditions, of the first items of the run
            count, seed = self.training.sheet, self.training.seed
            first = self.batches(0, range(count), range(count))
            given = first.condition and [{k: v[i] for k, v in first.condition.items()} for i in range(count)]
            draws = draw(self.average, first.clean.shape[1:], count, given, seed=seed, steps=32)
            write_sheet(draws, self.out / f"samples_{self.done:06d}.png")


@contextmanager
def _dropout(seed: int, index: int, device: torch.device) -> Iterator[None]:
    """torch's global generator in a state that is a function of seed and index, and as it was afterwards.

    Other pieces begin with other indices: with dropout, results depend on how a batch is cut.
    """
    own = Streams(seed, (index,)).generators(0, "dropout")[0]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(own.get_state())
        if device.type == "cuda":
            torch.cuda.set_rng_state(torch.Generator(device).manual_seed(own.initial_seed()).get_state(), device)
        yield
