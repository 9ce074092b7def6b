"""Whether all values of a run are finite, found out without making the host wait for the device.

`bool(tensor)` after each step would empty the queue of an accelerator, which then idles while the host queues the next step. A
`Watch` copies one flag for each draw to pinned memory behind the step, with an event behind the copy, and looks at what has
passed: a value that is not finite is reported with its step, a few steps late. `settle` waits for what is left. On a CPU, and
where somebody looks at every step anyway, each is judged as it ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import NumericalError

__all__ = ["Watch", "numbers"]


class _Event(Protocol):
    def query(self) -> bool: ...
    def synchronize(self) -> None: ...


class Watch:
    """Looks for draws that are not finite.

    Args:
        name, steps: of the sampler, for the error.
        prompt: judge each step at once; otherwise when its flags have arrived.
    """

    def __init__(self, name: str, steps: int, prompt: bool = True) -> None:
        self.name, self.steps, self.prompt = name, steps, prompt
        self._pending: deque[tuple[int, Tensor, _Event]] = deque()

    def look(self, step: int, x: Tensor) -> None:
        """Take note of the iterate after a step, (B, ...).

        Raises:
            NumericalError: this one, or one before, has values that are not finite.
        """
        finite = torch.isfinite(x).flatten(1).all(1)
        if self.prompt:
            self._judge(step, finite)
            return
        self._pending.append((step, *self.copied(finite)))
        while self._pending and self._pending[0][2].query():
            self._judge(*self._pending.popleft()[:2])

    def settle(self) -> None:
        """Wait for the steps that are not judged yet.

        Raises:
            NumericalError: one of them has values that are not finite.
        """
        while self._pending:
            step, finite, event = self._pending.popleft()
            event.synchronize()
            self._judge(step, finite)

    def copied(self, finite: Tensor) -> tuple[Tensor, _Event]:
        """The flags on the host, once the event has passed."""
        host = torch.empty(finite.shape, dtype=torch.bool, pin_memory=True)
        host.copy_(finite, non_blocking=True)
        return host, torch.cuda.current_stream(finite.device).record_event()

    def _judge(self, step: int, finite: Tensor) -> None:
        if bool(finite.all()):
            return
        self._pending.clear()
        bad = (~finite).nonzero().flatten().tolist()
        raise NumericalError(
            f"{self.name}: values that are not finite after step {step} of {self.steps} in draws {bad[:8]} of the batch"
        )


def numbers(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a step with the tensors of one number among them read from the device."""
    return {name: value.item() if isinstance(value, Tensor) else value for name, value in facts.items()}
