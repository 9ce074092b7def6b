"""A task: a problem, a prior and a sampler that everybody can run again, with data and metrics.

For each item: the operator is made to fit it, the measurement is simulated (or is the user's), the problem is brought to the
prior's real grid, the sampler draws, and draws and baselines are compared with the truth in the domain of the image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..core import ConfigError, DataError, Denoiser, Noise, Operator, Problem, Sampler, Samples
from ..core.files import require_writable
from ..core.rng import derived
from ..kernels.dispatch import enabled
from ..report import Report
from .data import Data, Item
from .evaluate import Case, evaluate, volumes
from .progress import discard, sample
from .setups import Relative, synthesis

__all__ = ["Task"]

Baseline = Callable[[Problem], tuple[Tensor, Mapping[str, Any]]]
Score = Callable[[Item, Tensor], Mapping[str, Any]]
Inspect = Callable[[Item, Samples, Problem], tuple[Mapping[str, Any], Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A named, reproducible experiment.

    Args:
        name: of the task.
        data: where truths and measurements come from.
        operator: item -> operator on the item's image, real or complex.
        noise: of the measurement; `Relative` follows the signal.
        baselines: problem -> (image, facts), with a name as the class has it.
        view: how images are compared: "real", the "magnitude" of complex ones, or the "part" of a packed vector that is the
            image, where the operator has unknown parameters.
        units: of the image, for labels.
        data_range: that PSNR and SSIM refer to: a number, or the truth's maximum ("max") or its extent ("extent"); None for
            unknowns that are no images.
        levels: the two values of an unknown that has only two: the report has an error rate.
        window: grey values shown as black and white; None chooses for each item.
        exact: add the exact posterior where the prior and the problem have one in closed form.
        score: item, images (n, *shape) -> further facts of draws and of baselines: what a control is worth, say.
        inspect: item, draws of the prior's unknown, their problem -> further facts and {caption: figure}, where they say
            more than their images do: the reflectivity under speckle, say.
        draws: number of draws when the caller does not say.
        notes: what a reader of a report has to know.
    """

    name: str
    data: Data
    operator: Callable[[Item], Operator]
    noise: Noise | Relative
    baselines: Sequence[Baseline] = ()
    view: Literal["real", "magnitude", "part"] = "real"
    units: str = ""
    data_range: float | Literal["max", "extent"] | None = "extent"
    levels: Sequence[float] | None = None
    window: Sequence[float] | None = None
    exact: bool = False
    score: Score | None = None
    inspect: Inspect | None = None
    draws: int = 8
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.data_range, str | None) and not 0.0 < self.data_range < math.inf:
            raise ConfigError(f"{self.name}: expected data_range > 0, got {self.data_range}")
        for name, pair in (("window", self.window), ("levels", self.levels)):
            if pair is not None and not (len(pair) == 2 and pair[0] < pair[1]):
                raise ConfigError(f"{self.name}: expected {name} to be [low, high] with low < high, got {list(pair)}")
        if self.draws < 1:
            raise ConfigError(f"{self.name}: expected draws >= 1, got {self.draws}")

    def problem(
        self, item: Item, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Problem:
        """The problem of an item in the domain of its image; simulated where the item has no measurement."""
        operator = self.operator(item).to(device)
        if item.y is None:
            if item.truth is None:
                raise DataError(f"{self.name}: {item.name} has neither a truth nor a measurement")
            truth = _cast(item.truth, dtype, device)[None]
            operator.check(truth, "x")
            if isinstance(self.noise, Relative):
                with torch.no_grad():
                    clean = operator(truth)
                noise = self.noise.of(clean, operator, noisy=False).to(device)
                if self.noise.noise_free:
                    return Problem(operator, noise, clean if operator.measured is None else clean * operator.measured)
                return Problem.simulate(operator, noise, truth, seed)
            return Problem.simulate(operator, self.noise.to(device), truth, seed)
        y = _cast(item.y, dtype, device)[None]
        operator.check(y, "y")
        if operator.measured is not None:
            y = y * operator.measured
        noise = self.noise.of(y, operator, noisy=True) if isinstance(self.noise, Relative) else self.noise
        return Problem(operator, noise.to(device), y)

    def run(
        self,
        *,
        prior: Denoiser | None,
        sampler: Sampler,
        n: int | None = None,
        items: int = 1,
        seed: int = 0,
        out: str | Path | None = None,
        batch: int | str | None = None,
        dtype: str | torch.dtype = "float32",
        device: torch.device | str = "cpu",
        resume: bool = True,
        progress: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> Report:
        """Reconstruct some items, and measure.

        Args:
            prior: a denoiser whose grid holds the image; it is copied when another dtype or device is asked for.
            sampler: what draws.
            n: draws for each item; None for the task's own number.
            items: number of items of the data.
            seed: of the data, the noise and the draws.
            out: folder of the report; None writes nothing. An interrupted run leaves only `out`/resume there.
            batch: draws computed at once, or a memory budget like "8GiB"; None computes all.
            dtype, device: of the problem, the prior and the draws.
            resume: continue the interrupted run that is found in `out`; False discards it.
            progress: show bars.
            config: what the objects were built from, for the report.

        Raises:
            InvdiffError: what does not fit together, before anything is drawn.
        """
        # a misspelt INVDIFF_KERNELS is an error now, not where a kernel is first asked for
        enabled()
        n, dtype = self.draws if n is None else n, _dtype(dtype)
        if items < 1:
            raise ConfigError(f"{self.name}: expected items >= 1, got {items}")
        if prior is None:
            raise ConfigError(f"{self.name}: has no prior: choose one by prior=NAME")
        folder = None if out is None else _folder(Path(out), resume)
        prior = _on(prior, dtype, torch.device(device))
        cases = [
            self.case(item, _told(item, prior), seed=derived(seed, k), dtype=dtype, device=device)
            for k, item in enumerate(self.data.items(items, seed, prior))
        ]
        results = []
        for k, case in enumerate(cases):
            own = _told(case.item, prior)
            draws = sample(folder, k, sampler, case.unknown, own, n, seed=case.seed, batch=batch, progress=progress)
            results.append(evaluate(self, case, own, draws, figures=out is not None))
        rows = [r.row for r in results]
        report = Report(
            task=self.name,
            items=rows,
            seed=seed,
            config=config if config is not None else self._config(prior, sampler, n, items, seed),
            units=self.units,
            device=torch.device(device).type,
            notes=[*self.notes, *sampler.caveats, *_untold(cases[0].item, prior), *_noiseless(self.noise, cases[0].item)],
            facts={"data": {r.row.name: r.facts for r in results}},
            figures={caption: figure for r in results for caption, figure in r.figures.items()},
            extra=volumes([case.item for case in cases], rows),
        )
        if out is not None:
            report.write(out)
            discard(Path(out))
        return report

    def case(
        self,
        item: Item,
        prior: Denoiser,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Case:
        """The problem of an item as a sampler gets it, `unknown`, and the way from there to the image."""
        problem = self.problem(item, seed=seed, dtype=dtype, device=device)
        to_image = synthesis(problem.operator, prior)
        to_image = None if to_image is None else to_image.to(device)
        unknown = problem if to_image is None else problem.through(to_image)
        decoder = prior.synthesis(unknown.shape)
        if decoder is not None:
            unknown = unknown.through(decoder)
        return Case(item=item, problem=problem, unknown=unknown, to_image=to_image, decoder=decoder, seed=seed)

    def _config(self, prior: Denoiser, sampler: Sampler, n: int, items: int, seed: int) -> dict[str, Any]:
        return {"task": repr(self), "prior": repr(prior), "sampler": repr(sampler), "n": n, "items": items, "seed": seed}


def _told(item: Item, prior: Denoiser) -> Denoiser:
    """The prior, told what belongs to the item where it can be."""
    tell = getattr(prior, "tell", None)
    return prior if not item.told or tell is None else tell(item.told)


def _noiseless(noise: Noise | Relative, item: Item) -> list[str]:
    if not (isinstance(noise, Relative) and noise.noise_free and item.y is None):
        return []
    return [
        f"The measurement was simulated without noise; the sampler allows for {noise.level:g} of its root mean square: "
        "coverage and misfit are not those of a posterior."
    ]


def _untold(item: Item, prior: Denoiser) -> list[str]:
    if not item.told or hasattr(prior, "tell"):
        return []
    return [f"{type(prior).__name__} can't be told {', '.join(item.told)}: the draws know nothing of it."]


def _dtype(name: str | torch.dtype) -> torch.dtype:
    known = {"float32": torch.float32, "float64": torch.float64}
    dtype = known.get(name) if isinstance(name, str) else name
    if dtype is None or dtype not in known.values():
        raise ConfigError(f"expected dtype float32 or float64, got {name}")
    return dtype


def _cast(x: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    return x.to(device, dtype.to_complex() if x.is_complex() else dtype)


def _on(prior: Denoiser, dtype: torch.dtype, device: torch.device) -> Denoiser:
    """The prior in the dtype and on the device of the run, a copy where it was not."""
    tensors = [*prior.parameters(), *prior.buffers()]
    if all(t.device == device and (t.dtype == dtype or not t.is_floating_point()) for t in tensors):
        return prior
    return copy.deepcopy(prior).to(device=device, dtype=dtype)


def _folder(out: Path, resume: bool) -> Path:
    """Where the run keeps its progress; an error now rather than after hours when nothing could be written there."""
    require_writable(out)
    if not resume:
        discard(out)
    return out / "resume"
