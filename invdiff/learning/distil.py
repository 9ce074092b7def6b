"""Distillation of a denoiser into a consistency model: the loop.

One step evaluates the teacher twice (once with Euler's rule) and the target once, the student forward and backward, and the
discriminator's encoder on three images. The student's gradient is put together at its images, f.backward(g), so that the
discriminator's gradient passes through its own branch without any of its weights, and the evaluation serves both optimisers:
they alternate, each with the gradient of its own loss at the weights before the step.

Everything random is a function of the seed and the step (`batches`), and the state holds student, average, target,
discriminator and both optimisers: a resumed run is the uninterrupted one, bit for bit on a CPU. Networks are in evaluation
mode: there is no dropout. One process.

References: see `distillation`.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..core.denoiser import Condition, Denoiser
from ..core.errors import ConfigError
from ..priors.consistency import ConsistencyModel
from ..priors.layers import over
from ..priors.network import EDMDenoiser
from .batches import Batches, Source, to_device
from .checkpoints import WEIGHTS
from .discriminator import Discriminator, rival_loss, student_loss
from .distillation import Distillation, consistency_loss, solver_step
from .interrupts import postponed
from .journal import Journal
from .roles import LATEST, restore_roles, store_roles

__all__ = ["distil"]

# steps of a GPU before it is asked whether its numbers are finite
_CHECK_EVERY = 20


def distil(
    teacher: Denoiser,
    source: Source,
    settings: Distillation,
    out: str | Path,
    *,
    student: ConsistencyModel | None = None,
    discriminator: nn.Module | None = None,
    progress: bool = True,
    resume: bool = True,
) -> ConsistencyModel:
    """Distil the teacher, which stays as it is; the student with the averaged weights.

    Args:
        teacher: E[x0 | x, condition]: an `EDMDenoiser`, or any denoiser where a student is given.
        source: index -> image (C, *spatial), or (image, condition), as for `fit`.
        out: folder of distillation.safetensors (the whole state), ema.safetensors (the averaged weights, for
            `load_consistency`) and log.jsonl, whose lines alternate with those of the discriminator where there is one.
        student: what a copy of is trained, within the teacher's noise levels; None starts with the teacher's weights.
        discriminator: a module (noisy, sigma, condition, *candidates) -> logits (B, positions) of each candidate, trained in
            place; None copies the student's encoder, see `Discriminator`.
        resume: continue from the state in `out` if there is one; False starts anew and overwrites it.

    Raises:
        ConfigError: the teacher is preconditioned otherwise than the student, the levels do not fit, or the state in `out` is
            of a run with other settings or another teacher.
        CapabilityError: there is no encoder to copy.
        DataError: the state is damaged, or a file can't be written.
        NumericalError: a loss or its gradient is not finite; the last checkpoint stays.
        KeyboardInterrupt: after a checkpoint of the last complete step.
    """
    student = ConsistencyModel.of(cast(EDMDenoiser, teacher)) if student is None else copy.deepcopy(student)
    if not teacher.sigma_min <= student.sigma_min < student.sigma_max <= teacher.sigma_max:
        found = [f"{v:g}" for m in (student, teacher) for v in (m.sigma_min, m.sigma_max)]
        raise ConfigError("distil: the student's levels are {} to {}, outside of the teacher's, {} to {}".format(*found))
    run = _Run(teacher, student, discriminator, source, settings, Path(out), resume)
    try:
        with (
            postponed(patient=False) as check,
            tqdm(total=settings.steps, initial=run.done, disable=not progress, unit="step", dynamic_ncols=True) as bar,
        ):
            while run.done < settings.steps:
                try:
                    check()
                    run.gradients()
                except KeyboardInterrupt:
                    # weights, averages and optimisers are those of the last complete step
                    run.interrupted()
                    raise
                run.update()
                bar.set_postfix_str(run.journal.glance(), refresh=False)
                bar.update()
    finally:
        run.journal.close()
    run.average.facts |= run.facts()
    return run.average


class _Run:
    """The state of a run between two steps."""

    def __init__(
        self,
        teacher: Denoiser,
        student: ConsistencyModel,
        discriminator: nn.Module | None,
        source: Source,
        settings: Distillation,
        out: Path,
        resume: bool,
    ) -> None:
        self.settings, self.out, self.training = settings, out, settings.training
        self.device = next(student.parameters()).device
        self.average = copy.deepcopy(student).eval().requires_grad_(False).to(memory_format=student.net.memory_format)
        student.bf16 = settings.bf16
        self.student = student.eval().requires_grad_(True).to(memory_format=student.net.memory_format)
        self.target = copy.deepcopy(self.student).requires_grad_(False)
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False).to(self.device)
        if isinstance(self.teacher, EDMDenoiser):
            self.teacher.bf16 = settings.bf16
            self.teacher.to(memory_format=self.teacher.net.memory_format)
        self.rival: nn.Module | None = None
        if settings.adversarial:
            self.rival = Discriminator(self.student, seed=settings.seed) if discriminator is None else discriminator
            self.rival.to(self.device)
        self.parameters = list(self.student.parameters())
        self.rivals = [] if self.rival is None else list(self.rival.parameters())
        self.optimizers = {"student": torch.optim.AdamW(self.parameters, settings.lr, betas=(0.9, 0.99), weight_decay=0.0)}
        if self.rivals:
            self.optimizers["rival"] = torch.optim.AdamW(self.rivals, settings.lr_rival, betas=(0.5, 0.99), weight_decay=0.0)
        # it needs a network, its sizes and nothing else of a denoiser
        self.batches = Batches(source, self.training, cast(EDMDenoiser, self.student), self.device)
        self.grid = to_device(settings.grid(self.student), self.device)
        self.roles: dict[str, nn.Module] = {"student": self.student.net, "target": self.target.net, "average": self.average.net}
        if self.rival is not None:
            self.roles["rival"] = self.rival
        self.opinions: list[Tensor] = []
        self.done, log = 0, dict[str, Any]()
        if resume:
            self.done, log = restore_roles(out, self.roles, self.optimizers, settings, self.student.header, self.teacher)
            self.opinions = [t.to(self.device) for t in log.pop("opinions", [])]
        self.saved = self.done
        self.journal = Journal(out, self.done, log, self.device, tensorboard=False)

    def gradients(self) -> None:
        """Those of the next step, of the student and of the discriminator, on the parameters."""
        settings, student = self.settings, self.student
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        indices = self.batches.indices(self.done)
        clean, noisy, _, condition, *_ = self.batches(self.done, indices, range(len(indices)))
        places = to_device(settings.places(self.done, len(indices)), self.device)
        sigma, sigma_next = self.grid[places], self.grid[places + 1]
        noisy = clean + over(sigma, clean.ndim - 1) * (noisy - clean)
        ahead = solver_step(self.teacher, noisy, sigma, sigma_next, condition, solver=settings.solver)
        with torch.no_grad():
            target = self.target(ahead, sigma_next, condition)
        images = student(noisy, sigma, condition)
        held = images.detach().requires_grad_()
        losses = consistency_loss(settings.loss, held, target, student.sigma_data, settings.c)
        if settings.weight == "inverse":
            losses = losses * (student.sigma_data / (sigma - sigma_next))
        (gradient,) = torch.autograd.grad(losses.mean(), held)
        if self.rival is not None:
            real = clean if settings.real == "data" else target
            gradient = gradient + self.opinion(noisy, sigma, condition, held, real, gradient)
        images.backward(gradient)
        self.sigma, self.losses = sigma, losses.detach()

    def opinion(
        self, noisy: Tensor, sigma: Tensor, condition: Condition | None, images: Tensor, real: Tensor, other: Tensor
    ) -> Tensor:
        """The adversarial gradient of the student's images, beside the other one; that of the discriminator on its weights."""
        settings, rival = self.settings, cast(nn.Module, self.rival)
        real = real.detach().requires_grad_(settings.penalty > 0)
        fake, true = rival(noisy, sigma, condition, images, real)
        wanted = student_loss(settings.form, fake)
        # its own branch alone: no gradient of a weight is computed
        (gradient,) = torch.autograd.grad(wanted, images, retain_graph=True)
        loss = rival_loss(settings.form, true, fake)
        if settings.penalty:
            (slope,) = torch.autograd.grad(true.mean(1).sum(), real, create_graph=True)
            size = (self.student.sigma_data * slope).square().flatten(1).sum(1).mean()
            loss = loss + 0.5 * settings.penalty * size
        loss.backward(inputs=self.rivals)
        self.latest = torch.stack([t.detach().mean() for t in (wanted, loss, true, fake)])
        if self.done < settings.adversarial_from:
            return torch.zeros_like(gradient)
        if settings.balance == "gradient":
            gradient = gradient * (other.norm() / gradient.norm().clamp_min(1e-12))
        return settings.adversarial * gradient

    def update(self) -> None:
        """Step both optimisers and the averages, and write what is due."""
        settings, done = self.settings, self.done + 1
        norm = nn.utils.clip_grad_norm_(self.parameters, settings.clip)
        if self.rivals:
            # a fault of the discriminator's counts as one of the step's
            norm = norm + 0.0 * nn.utils.clip_grad_norm_(self.rivals, settings.clip)
            self.opinions.append(self.latest)
        self.journal.add(self.losses, self.sigma, norm)
        checkpoint = self.training.due(done, settings.save_every)
        line = checkpoint or self.training.due(done, settings.log_every)
        if line or self.device.type == "cpu" or done % _CHECK_EVERY == 0:
            self.journal.check()
        rate = self.training.learning_rate(self.done)
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = rate * (1.0 if name == "student" else settings.lr_rival / settings.lr)
            optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), self.parameters, 1.0 - settings.target)
            decay = min(settings.ema, (1 + self.done) / (10 + self.done))
            torch._foreach_lerp_(list(self.average.parameters()), self.parameters, 1.0 - decay)
        self.done = done
        if line:
            self.journal.write(rate)
            if self.opinions:
                means = torch.stack(self.opinions).double().mean(0).tolist()
                self.journal.note(dict(zip(("adversarial", "rival", "logit_real", "logit_fake"), means, strict=True)))
                self.opinions = []
        if checkpoint:
            self.write()

    def facts(self) -> dict[str, Any]:
        """What the averaged weights are of."""
        return {"distillation": asdict(self.settings), "step": self.done}

    def interrupted(self) -> None:
        """Keep the last complete step."""
        self.journal.check()
        if self.done > self.saved:
            self.write()

    def write(self) -> None:
        """Averaged weights, then the whole state."""
        self.average.facts |= self.facts()
        self.average.save(self.out / WEIGHTS)
        log = self.journal.state() | {"opinions": [t.cpu() for t in self.opinions]}
        header = self.student.header
        store_roles(self.out / LATEST, self.done, self.roles, self.optimizers, self.settings, header, self.teacher, log)
        self.saved = self.done
