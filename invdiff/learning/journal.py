"""The log of a run: one line of JSON for every so many steps, and the same numbers for TensorBoard.

    {"step": 500, "loss": 0.31, "gradient": 0.12, "lr": 1e-3, "images_per_s": 41.0, "seconds": 195.1, "octaves": {"-3": 0.9}}

loss and gradient (its norm before clipping) are means over the steps of the line; octaves the mean loss of the items with sigma
in [2^k, 2^(k+1)); seconds those of the run without its pauses; peak_bytes, on a GPU, the most memory that tensors ever had. The
numbers of a step stay on the device until they are read, so that a GPU need not wait for each step. A run that began with the
weights of another network says so in a line of its own, {"step": 0, "start": {...}}.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError, NumericalError
from ..core.files import atomic

__all__ = ["LOG", "Journal"]

LOG = "log.jsonl"


class Journal:
    """The log of a run from its step `first` on.

    Args:
        out: the folder; None for a process that writes nothing.
        state: what `state()` said at that step.
        device: of the numbers.
        tensorboard: write for TensorBoard as well.

    Raises:
        DataError: the log of the steps before `first` is missing or damaged.
        ConfigError: TensorBoard is asked for and not installed.
    """

    def __init__(self, out: Path | None, first: int, state: dict[str, Any], device: torch.device, *, tensorboard: bool) -> None:
        self.path = None if out is None else out / LOG
        self.step, self.before = first, float(state.get("seconds", 0.0))
        # of the steps since the last line: rows of (loss, gradient norm), and for every item (sigma, loss)
        self.steps: list[Tensor] = [x.to(device) for x in state.get("steps", [])]
        self.items: list[Tensor] = [x.to(device) for x in state.get("items", [])]
        self.read = len(self.steps)
        self.recent: deque[float] = deque(maxlen=50)
        self.images, self.begin = 0, time.perf_counter()
        self.line = (0, self.begin)
        self.board = _board(out, first) if tensorboard and out is not None else None
        if self.path is not None:
            lines = _read(self.path, first) if first else []
            with atomic(self.path, parents=True) as part:
                part.write_text("".join(lines))

    @property
    def seconds(self) -> float:
        """Time spent on the run, in this process and in those that it continues."""
        return self.before + time.perf_counter() - self.begin

    def add(self, losses: Tensor, sigma: Tensor, norm: Tensor) -> None:
        """The numbers of a step: losses and levels of its items (n,), norm of the gradient ()."""
        self.steps.append(torch.stack([losses.mean(), norm.to(losses)]))
        self.items.append(torch.stack([sigma, losses]))
        self.step, self.images = self.step + 1, self.images + len(losses)

    def check(self) -> None:
        """Wait for the numbers of the steps since the last check.

        Raises:
            NumericalError: one of them is not finite.
        """
        if fresh := self.steps[self.read :]:
            rows = torch.stack(fresh).tolist()
            for step, (loss, norm) in enumerate(rows, self.step - len(rows)):
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise NumericalError(f"fit: at step {step} the loss is {loss} and its gradient's norm {norm}")
                self.recent.append(loss)
        self.read = len(self.steps)

    def glance(self) -> str:
        """What the progress bar says: the mean loss of the last steps that were checked, and the speed of this process."""
        if not self.recent:
            return ""
        mean = sum(self.recent) / len(self.recent)
        return f"loss {mean:.4f}, {self.images / (time.perf_counter() - self.begin):.1f} images/s"

    def write(self, lr: float) -> None:
        """Close a line, after a check."""
        steps, items = torch.stack(self.steps).double().mean(0).tolist(), torch.cat(self.items, dim=1)
        (images, since), now = self.line, time.perf_counter()
        line: dict[str, Any] = {
            "step": self.step,
            "loss": steps[0],
            "gradient": steps[1],
            "lr": lr,
            "images_per_s": round((self.images - images) / (now - since), 2),
            "seconds": round(self.seconds, 1),
            "octaves": _octaves(*items.double().cpu()),
        }
        if items.is_cuda:
            line["peak_bytes"] = torch.cuda.max_memory_allocated(items.device)
        self.steps, self.items, self.read, self.line = [], [], 0, (self.images, now)
        self._append(line)
        if self.board is not None:
            for key, value in line.items():
                for name, number in value.items() if isinstance(value, dict) else [("", value)]:
                    self.board.add_scalar(f"{key}/2^{name}" if name else key, number, line["step"])
            self.board.flush()

    def note(self, entry: dict[str, Any]) -> None:
        """A line of something else than numbers, for the log file alone."""
        self._append({"step": self.step, **entry})

    def _append(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            try:
                with self.path.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
            except OSError as error:
                raise DataError(f"{self.path}: can't be written: {error.strerror or error}") from error

    def state(self) -> dict[str, Any]:
        """What a checkpoint remembers of the line that is open."""
        return {"seconds": self.seconds, "steps": [x.cpu() for x in self.steps], "items": [x.cpu() for x in self.items]}

    def close(self) -> None:
        """Let TensorBoard write what it has."""
        if self.board is not None:
            self.board.close()


def _octaves(sigma: Tensor, losses: Tensor) -> dict[str, float]:
    octave = sigma.log2().floor().long()
    return {str(int(k)): round(losses[octave == k].mean().item(), 6) for k in octave.unique()}


def _read(path: Path, step: int) -> list[str]:
    """The lines up to that step. A last line without its end was being written when the run was killed."""
    try:
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in lines if json.loads(line)["step"] <= step]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"fit: can't read the log {path} of the run to resume ({error})") from None


def _board(out: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("Training: tensorboard=true needs the package tensorboard: pip install tensorboard") from None
    return SummaryWriter(out / "tensorboard", purge_step=step or None)
