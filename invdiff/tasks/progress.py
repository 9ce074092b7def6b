"""What an interrupted run leaves in its folder: the draws of finished items, and the sampler's file of the running one.

    OUT/resume/0.draws      Samples of item 0, finished
    OUT/resume/1.run        where the sampler stands in item 1 (`invdiff.core.resume`)

Both know what they belong to: a file of another run is an error, never continued and never overwritten.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import torch

from ..core import DataError, Denoiser, Problem, Sampler, Samples
from ..core.files import save
from ..core.resume import fingerprint

__all__ = ["discard", "sample"]


def sample(
    folder: Path | None,
    index: int,
    sampler: Sampler,
    problem: Problem,
    prior: Denoiser,
    n: int,
    *,
    seed: int,
    batch: int | str | None,
    progress: bool,
) -> Samples:
    """The draws of item `index`: from the folder if they are finished, else continued or begun there; None keeps nothing."""
    if folder is None:
        return sampler(problem, prior, n, seed=seed, batch=batch, progress=progress)
    facts = fingerprint(sampler, problem, prior, n, batch, seed)
    path = folder / f"{index}.draws"
    if path.exists():
        return _load(path, facts)
    draws = sampler(problem, prior, n, seed=seed, batch=batch, progress=progress, resume=folder / f"{index}.run")
    _save(path, draws, facts)
    return draws


def discard(out: Path) -> None:
    """Delete what an interrupted run left in its folder."""
    shutil.rmtree(out / "resume", ignore_errors=True)


def _save(path: Path, draws: Samples, facts: dict[str, str]) -> None:
    content = {f.name: getattr(draws, f.name) for f in dataclasses.fields(draws)}
    save(path, content | {"info": json.dumps(draws.info), "facts": json.dumps(facts)})


def _load(path: Path, facts: dict[str, str]) -> Samples:
    try:
        content = torch.load(path, weights_only=True)
        old = json.loads(content.pop("facts"))
        draws = Samples(**content | {"info": json.loads(content["info"])})
    except Exception as error:
        raise DataError(f"{path}: is no file of an interrupted run ({type(error).__name__}): delete it to start anew") from None
    for key, value in facts.items():
        if old.get(key) != value:
            raise DataError(
                f"{path} belongs to another run: its {key} is {old.get(key)}, here it is {value}: resume=false starts anew"
            )
    return draws
