"""The file from which an interrupted run continues: finished draws, the state of the running chunk, counters.

Because noise is a function of (seed, draw, step), there is no generator state in it. It is read with `weights_only=True`.
"""

from __future__ import annotations

import json
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import DataError
from .files import save

if TYPE_CHECKING:
    from .denoiser import Denoiser
    from .problem import Problem
    from .sampler import Sampler

__all__ = ["Progress", "fingerprint"]


def fingerprint(
    sampler: Sampler, problem: Problem, prior: Denoiser, n: int, batch: int | str | None, seed: int
) -> dict[str, str]:
    """What must agree between the interrupted and the resumed call, by name."""
    return {
        "sampler": repr(sampler),
        "seed": str(seed),
        "n": str(n),
        "batch": str(batch),
        "y": _crc([problem.y]),
        "operator": f"{problem.operator!r} {_crc(problem.operator.buffers())}",
        "noise": f"{problem.noise!r} {_crc(problem.noise.buffers())}",
        "prior": f"{prior!r} {_crc([*prior.parameters(), *prior.buffers()])}",
    }


def _crc(tensors: Any) -> str:
    total = 0
    for t in tensors:
        dense = t.detach()
        parts = [dense.crow_indices(), dense.col_indices(), dense.values()] if dense.layout == torch.sparse_csr else [dense]
        for part in parts:
            data = part.cpu().contiguous().reshape(-1)
            total = zlib.crc32(data.view(torch.uint8).numpy().tobytes() if data.numel() else b"", total)
    return f"{total:08x}"


@dataclass
class Progress:
    """The progress of a run, kept in a file when `path` is given.

    Attributes:
        finished: draws of the chunks that are done.
        state: fields of the running chunk's State, or None.
        counts: operator, network and vjp evaluations so far.
    """

    path: Path | None = None
    facts: dict[str, str] = field(default_factory=dict)
    finished: list[Tensor] = field(default_factory=list)
    state: dict[str, Any] | None = None
    counts: tuple[int, int, int] = (0, 0, 0)
    seconds: float = 0.0
    info: list[dict[str, Any]] = field(default_factory=list)
    saved: float = field(default_factory=time.monotonic)

    @classmethod
    def load(cls, path: str | Path | None, facts: dict[str, str]) -> Progress:
        """A fresh start, or what the file holds; a file of another run is an error, never overwritten."""
        run = cls(None if path is None else Path(path), facts)
        if run.path is None or not run.path.exists():
            return run
        try:
            content = torch.load(run.path, weights_only=True, map_location="cpu")
            old = json.loads(content["facts"])
            run.finished, run.state = list(content["finished"]), content["state"]
            run.counts, run.seconds, run.info = tuple(content["counts"]), content["seconds"], json.loads(content["info"])
            if not (all(isinstance(x, Tensor) for x in run.finished) and isinstance(run.state, dict | None)):
                raise TypeError
        except Exception as error:  # torch raises many kinds for a file that is not its own
            raise DataError(
                f"resume: {path} is not a file of an interrupted run ({type(error).__name__}): delete it to start anew"
            ) from None
        for key, value in facts.items():
            if old.get(key) != value:
                raise DataError(
                    f"resume: {path} belongs to another run: its {key} is {old.get(key)}, here it is {value}: "
                    "delete it to start anew"
                )
        return run

    def save(self) -> None:
        """Write the file under a temporary name, then rename it; nothing before the first step."""
        if self.path is None or (self.state is None and not self.finished):
            return
        content = {
            "facts": json.dumps(self.facts),
            "finished": self.finished,
            "state": self.state,
            "counts": list(self.counts),
            "seconds": self.seconds,
            "info": json.dumps(self.info),
        }
        save(self.path, content)
        self.saved = time.monotonic()

    def save_now_and_then(self, every: float = 30.0) -> None:
        """Save when the last time was `every` seconds ago, for runs that are killed rather than interrupted."""
        if self.path is not None and time.monotonic() - self.saved > every:
            self.save()

    def remove(self) -> None:
        """Delete the file once the run is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
