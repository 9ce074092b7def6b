"""The one loop that every sampler runs in.

A sampler is a frozen dataclass of hyper-parameters with three methods: `condition` turns the prior into the denoiser that it
steps with (a guided one, where there is guidance), `init` makes the first State, `step` the next. The loop adds chunks of
draws, progress, callbacks, counters, the check for values that are not finite, and resuming. `differentiate` runs the same
steps with their graph, under a memory policy.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .chain import require_differentiable, started, unrolled
from .counting import Counted, Counter, counting
from .denoiser import Denoiser
from .errors import CapabilityError, ConfigError, DataError, ShapeError
from .memory import Memory
from .operator import LinearOperator, Operator
from .problem import Problem
from .resume import Progress, fingerprint
from .rng import Streams
from .samples import Samples
from .watch import Watch, numbers

__all__ = ["Sampler", "State", "capabilities"]

Callback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class State:
    """Where a run stands: everything that the next step depends on. Subclasses add tensors.

    Attributes:
        step: number of steps done.
        x: the iterate, (B, *shape); after the last step the draws.
    """

    step: int
    x: Tensor


def capabilities(operator: Operator) -> frozenset[str]:
    """What an operator offers to samplers, of {"forward", "vjp", "adjoint", "solve", "spectral"}.

    "spectral" is a `spectrum`: A^H A = V diag(a^2) V^H with a fast unitary V, which not every linear operator has.
    """
    if not all(part.differentiable for part in operator.modules() if isinstance(part, Operator)):
        return frozenset({"forward"})
    if not isinstance(operator, LinearOperator):
        return frozenset({"forward", "vjp"})
    return frozenset({"forward", "vjp", "adjoint", "solve"} | ({"spectral"} if operator.spectral else set()))


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Base of all samplers.

    Args:
        steps: number of steps of the outer loop.

    Attributes:
        kind: "posterior", or "point" for methods that return a point estimate.
        needs: what the operator must offer, see `capabilities`.
        deterministic: whether all draws are the same; one is computed then, and repeated.
        differentiable: whether its steps pass gradients on.
        takes_consistency: whether it takes a consistency function, which is no posterior mean.
        state_class: the State that `init` returns.
    """

    kind: ClassVar[str] = "posterior"
    needs: ClassVar[frozenset[str]] = frozenset()
    deterministic: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    takes_consistency: ClassVar[bool] = False
    state_class: ClassVar[type[State]] = State
    steps: int = 100

    @property
    def name(self) -> str:
        """What results call it."""
        return type(self).__name__

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader of its results has to know; reports print it."""
        return ()

    def condition(self, problem: Problem, prior: Denoiser) -> Denoiser:
        """The denoiser that `init` and `step` receive."""
        return prior

    def init(self, problem: Problem, prior: Denoiser, streams: Streams) -> State:
        """The state before the first step."""
        raise NotImplementedError(f"{self.name} does not define init")

    def step(self, problem: Problem, prior: Denoiser, state: State, streams: Streams) -> State:
        """The next state."""
        raise NotImplementedError(f"{self.name} does not define step")

    def describe(self, state: State) -> dict[str, Any]:
        """What is recorded of a step: numbers, or tensors of one number, which are read when the host waits anyway."""
        return {}

    def __call__(
        self,
        problem: Problem,
        prior: Denoiser,
        n: int = 1,
        *,
        seed: int,
        batch: int | str | None = None,
        progress: bool = False,
        callback: Callback | None = None,
        resume: str | Path | None = None,
        memory: str | Memory = "full",
    ) -> Samples:
        """Draw n samples.

        Args:
            problem: operator, noise and one measurement; its dtype and device are those of the run.
            prior: a denoiser on unknowns of the problem's shape.
            n: number of draws.
            seed: of the random streams; draw k is the same whatever n and batch are.
            batch: draws computed at once, or a memory budget like "8GiB" that they have to fit into; None computes all.
            progress: show a bar.
            callback: called after each step with a dictionary: step, draws, x, and what the sampler records.
            resume: a file that an interrupted run leaves and a later call with the same arguments continues from.
            memory: a policy, or its text, that networks follow where a guidance or a step differentiates them; the draws are
                the same. "checkpoint(block)" lowers the peak of one evaluation.

        Raises:
            CapabilityError, ShapeError, ConfigError: the three do not fit together; found before the run.
            CapabilityError: one draw does not fit into the budget.
            NumericalError: a value that is not finite, with the step at which it appeared; on CUDA raised some steps later if
                there is neither a callback nor a file.
        """
        self._check(problem, prior, n, None if isinstance(batch, str) else batch)
        copies, n = (n, 1) if self.deterministic else (1, n)
        if isinstance(batch, str):
            # loads fake tensors
            from .budget import draws_within

            with Memory.parse(memory).active():
                batch = draws_within(batch, self, problem, prior, n)
        chunks = [range(i, min(i + (batch or n), n)) for i in range(0, n, batch or n)]
        # reads all of the prior's weights, which is worth it for a file alone
        run = Progress.load(resume, {} if resume is None else fingerprint(self, problem, prior, n, batch, seed))
        start, meter = time.perf_counter() - run.seconds, _PeakMemory(problem.y.device)
        counter = Counter(*run.counts)
        # who looks at each step, or saves it, wants to know at once
        watch = Watch(self.name, self.steps, callback is not None or run.path is not None or not problem.y.is_cuda)
        with torch.no_grad(), Memory.parse(memory).active(), counting(counter), _bar(progress, self, len(chunks)) as tick:
            denoiser = self.condition(problem, Counted(prior, counter))
            tick(len(run.finished) * self.steps + (run.state or {}).get("step", 0))
            for chunk in chunks[len(run.finished) :]:
                streams = Streams(seed, chunk)
                try:
                    state = self._resumed(run, problem, denoiser, streams)
                    while state.step < self.steps:
                        new = self.step(problem, denoiser, state, streams)
                        watch.look(new.step, new.x)
                        state = new
                        facts = {"step": state.step, **self.describe(state)}
                        facts = numbers(facts) if watch.prompt else facts
                        if not run.finished:
                            run.info.append(facts)
                        tick(1)
                        run.state = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
                        run.counts, run.seconds = (counter.operator, counter.network, counter.vjp), time.perf_counter() - start
                        if callback is not None:
                            callback({**facts, "draws": tuple(chunk), "x": state.x})
                        run.save_now_and_then()
                    watch.settle()
                except BaseException as error:
                    if isinstance(error, Exception):
                        # it may follow from a value that was not finite, some steps before
                        watch.settle()
                    run.save()
                    raise
                run.info = [numbers(facts) for facts in run.info]
                run.finished.append(state.x)
                run.state = None
        run.remove()
        return Samples(
            x=torch.cat(run.finished).repeat(copies, *[1] * len(problem.shape)),
            kind=self.kind,
            sampler=self.name,
            info=run.info,
            network_calls=counter.network / n,
            network_vjps=counter.vjp / n,
            operator_calls=counter.operator / n,
            seconds=time.perf_counter() - start,
            peak_bytes=meter(),
        )

    def differentiate(
        self,
        problem: Problem,
        prior: Denoiser,
        n: int = 1,
        *,
        seed: int,
        memory: str | Memory = "full",
        start: Tensor | None = None,
    ) -> Tensor:
        """The draws (n, *shape) of `__call__` with their graph.

        Gradients flow to whatever requires one of: the prior's parameters, the operator's, the measurement y, and `start`.

        Args:
            problem, prior, n, seed: as of a run; the draws are the same.
            memory: a policy, or its text, see `core.memory`: what is kept for the derivative.
            start: the first iterate, at the highest level, (n, *shape); None draws it.

        Raises:
            CapabilityError, ShapeError, ConfigError: the parts do not fit together, or the sampler has no such derivative.
            NumericalError: a draw that is not finite.
        """
        self._check(problem, prior, n, None)
        require_differentiable(self)
        streams = Streams(seed, n)
        denoiser = self.condition(problem, prior)
        state = started(self.init(problem, denoiser, streams), start)
        x = self.unroll(problem, denoiser, state, streams, Memory.parse(memory))
        Watch(self.name, self.steps).look(self.steps, x)
        return x

    def unroll(self, problem: Problem, prior: Denoiser, state: State, streams: Streams, memory: Memory) -> Tensor:
        """The draws, (n, *shape), from the state before the first step, as one chain under a memory policy."""
        return unrolled(self, problem, prior, state, streams, memory)

    def _resumed(self, run: Progress, problem: Problem, denoiser: Denoiser, streams: Streams) -> State:
        if run.state is None:
            return self.init(problem, denoiser, streams)
        device = problem.y.device
        fields: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in run.state.items()}
        try:
            return self.state_class(**fields)
        except TypeError:
            raise DataError(f"resume: {run.path} holds no state of {self.name}: delete it to start anew") from None

    def _check(self, problem: Problem, prior: Denoiser, n: int, batch: int | None) -> None:
        if self.steps < 1:
            raise ConfigError(f"{self.name}: expected steps >= 1, got {self.steps}")
        parts: tuple[tuple[object, type], ...] = ((problem, Problem), (prior, Denoiser))
        for part, kind in parts:
            if not isinstance(part, kind):
                raise ConfigError(f"{self.name}: expected a {kind.__name__}, got {type(part).__name__}")
        if not (_counts(n) and (batch is None or _counts(batch))):
            raise ConfigError(f"{self.name}: expected integers n >= 1 and batch >= 1, got n={n!r}, batch={batch!r}")
        if not (prior.posterior_mean or self.takes_consistency):
            raise CapabilityError(
                f"{self.name}: {type(prior).__name__} is a consistency function and no posterior mean: use Multistep"
            )
        operator = problem.operator
        if operator.in_complex:
            raise ShapeError(
                f"{self.name}: the unknown of {type(operator).__name__} is complex: use "
                f"problem.through(ViewAsComplex({operator.in_shape}))"
            )
        fits = len(prior.shape) == len(problem.shape) and all(
            s in (None, k) for s, k in zip(prior.shape, problem.shape, strict=True)
        )
        if not fits:
            raise ShapeError(
                f"{self.name}: the prior is on {_text(prior.shape)}, the operator {type(operator).__name__} takes "
                f"{_text(problem.shape)}"
            )
        if len(problem.y) != 1:
            raise ShapeError(f"{self.name}: expected one measurement, got a batch of {len(problem.y)}: make a Problem for each")
        missing = self.needs - capabilities(operator)
        if missing:
            raise CapabilityError(
                f"{self.name} needs {', '.join(sorted(missing))} of the operator; {type(operator).__name__} offers "
                f"{', '.join(sorted(capabilities(operator)))}"
            )


def _counts(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _text(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if s is None else str(s) for s in shape)})"


@contextmanager
def _bar(progress: bool, sampler: Sampler, chunks: int) -> Iterator[Callable[[int], object]]:
    if not progress:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=sampler.steps * chunks, desc=sampler.name, unit="step", leave=False) as bar:
        yield bar.update


class _PeakMemory:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def __call__(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        try:
            import resource
        except ImportError:
            return 0
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
