"""Denoising training of a network prior: the loop.

AdamW on the loss of `objectives`, with a learning rate that warms up, stays and cools down, gradient clipping, and an
exponential moving average of the weights, which is what the run returns. A batch is a function of the seed and the step
(`batches`), so that a resumed run is the uninterrupted one, bit for bit on a CPU; gradient accumulation and data-parallel
processes (`distributed`) cut it into pieces, whose gradients add up to that of the whole, to rounding. What of a piece is kept
for its derivative is a memory policy's choice (`core.memory`), and changes nothing else.

References: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022,
arXiv:2206.00364, Table 1. Hu et al., MiniCPM, 2024, arXiv:2404.06395 (warm up, stay, cool down).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..core import Auto, Memory
from ..core.errors import ConfigError
from ..core.rng import Streams
from ..priors.network import EDMDenoiser
from .batches import Batch, Batches, Source, pieces, to_device
from .checkpoints import LATEST, restore, start_anew, store
from .distributed import Team
from .interrupts import postponed
from .journal import Journal
from .objectives import KINDS, Model, item_losses, noise_levels
from .settings import Training
from .sheets import draw, write_sheet
from .start import Start, start_from
from .unrolled import EndToEnd

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
    start: Start | str | Path | None = None,
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
        start: weights of another network to begin with, as many as fit (see `start`), where the run does not resume.

    Raises:
        ConfigError: the checkpoint is of a run with other settings than one may change (length, pieces, what is written), or
            with another start; no tensor of the start fits.
        DataError: the checkpoint is damaged, or a file can't be written.
        NumericalError: the loss or its gradient is not finite; the last checkpoint stays.
        KeyboardInterrupt: after a checkpoint of the last complete step.
    """
    run: _Run[Trained] = _Run(denoiser, source, training, Path(out))
    run.start(resume, start if start is None or isinstance(start, Start) else Start(start))
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


class _Run(Generic[Trained]):
    """The state of a run between two steps."""

    def __init__(self, denoiser: Trained, source: Source, training: Training, out: Path) -> None:
        foreign = training.sheet_every or training.drop or (training.objective, training.levels) != ("edm", "lognormal")
        if not isinstance(denoiser, EDMDenoiser) and foreign:
            raise ConfigError(
                f"fit: {KINDS[type(denoiser)]} makes no draws, drops no condition and has no noise levels: leave sheet_every, "
                "drop, objective and levels out"
            )
        self.denoiser, self.training, self.out = denoiser, training, out
        self.device = next(denoiser.parameters()).device
        self.team = Team.here(self.device)
        denoiser.train().requires_grad_(True).to(memory_format=denoiser.net.memory_format)
        self.average: Trained = copy.deepcopy(denoiser).eval().requires_grad_(False)
        self.parameters = list(denoiser.parameters())
        self.averages: list[Tensor] = list(self.average.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=training.lr, betas=(0.9, 0.99), weight_decay=training.weight_decay
        )
        self.batches = Batches(source, training, denoiser, self.device)
        self.done = self.saved = 0
        # policies that were measured, by the shape of the piece
        self.measured: dict[torch.Size, Memory] = {}

    def start(self, resume: bool, start: Start | None) -> None:
        """Load the checkpoint, or the weights to begin with, and begin or continue the log."""
        facts, started = self.average.facts, None
        facts.pop("start", None)

        def load() -> dict[str, Any]:
            nonlocal started
            state: dict[str, Any] = {}
            if resume:
                self.done, state = restore(self.out, self.denoiser, self.average, self.optimizer, self.training)
            elif self.team.writes:
                start_anew(self.out)
            if self.done and start is not None and start.label != (before := facts.get("start", {}).get("from")):
                began = "its initial weights" if before is None else before
                raise ConfigError(
                    f"fit: the run in {self.out} began with {began}, not with {start.label}: use another folder or resume=False"
                )
            if not self.done and start is not None:
                started = start_from(self.denoiser, start)
                self.average.net.load_state_dict(self.denoiser.net.state_dict())
                facts["start"] = started.facts(start.label)
            return state

        state = self.team.together(load)
        self.saved = self.done
        if not self.team.agree(self.done):
            raise ConfigError(f"fit: the processes find different checkpoints {self.out / LATEST}: give a folder that all see")
        self.team.share([*self.parameters, *self.averages])
        out = self.out if self.team.writes else None

        def begin() -> Journal:
            journal = Journal(out, self.done, state, self.device, tensorboard=self.training.tensorboard)
            if started is not None:
                journal.note({"start": facts["start"] | {"missing": started.missing, "unused": started.unused}})
            return journal

        self.journal = self.team.together(begin)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The network as the run wants it; afterwards its options are as before, and the log is closed."""
        before, self.denoiser.bf16 = self.denoiser.bf16, self.training.bf16
        if self.training.compile:
            self.denoiser.net.compile()
        try:
            yield
        finally:
            self.denoiser.bf16 = before
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
            torch._foreach_lerp_(
                self.averages, list(self.parameters), 1.0 - min(training.ema, (1 + self.done) / (10 + self.done))
            )
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
            batch = self.batches(self.done, indices, places)
            memory = self.memory(batch)
            with _dropout(self.training.seed, indices[places[0]], self.device):
                with memory.active():
                    each = self.losses(batch, memory)
                (each.mean() * (len(places) / len(indices))).backward()
            losses[places.start : places.stop] = each.detach()
        return len(indices)

    def losses(self, batch: Batch, memory: Memory) -> Tensor:
        """Of every item of a piece, (n,)."""
        return item_losses(self.denoiser, batch, objective=self.training.objective, memory=memory)

    def memory(self, batch: Batch) -> Memory:
        """The policy for a piece; an automatic one is chosen once for each shape."""
        policy, shape = Memory.parse(self.training.memory), batch.clean.shape
        # a chain of sampling steps measures itself
        if not isinstance(policy, Auto) or isinstance(self.denoiser, EndToEnd):
            return policy
        if shape not in self.measured:

            def step(noisy: Tensor) -> tuple[Tensor]:
                return (self.losses(batch._replace(noisy=noisy), policy).mean(),)

            self.measured[shape] = policy.choose([step], (batch.noisy,))
        return self.measured[shape]

    def write(self, *, checkpoint: bool = False, sheet: bool = False) -> None:
        """What process 0 writes."""
        if checkpoint and self.team.writes:
            log, before, self.saved = self.journal.state(), self.saved, self.done
            store(self.out, self.done, self.denoiser, self.average, self.optimizer, self.training, log, before)
        if sheet and self.team.writes:
            assert isinstance(self.average, EDMDenoiser)
            # of the size, and for the conditions, of the first items of the run
            count, seed = self.training.sheet, self.training.seed
            first = self.batches(0, range(count), range(count))
            held = first.condition
            given = None if held is None else [{k: v[i] for k, v in held.items()} for i in range(count)]
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
