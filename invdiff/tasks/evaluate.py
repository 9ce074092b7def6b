"""From draws to the row of a report: baselines, the exact posterior, the distance to the prior, files beside the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import CapabilityError, ConfigError, Denoiser, LinearOperator, NumericalError, Operator, Problem, Samples
from ..io.images import write_nifti
from ..metrics import coverage
from ..operators.calibration import Calibrated
from ..report import LEVEL, Estimate
from ..report import Item as Row
from .closed_form import Exact, exact_posterior
from .data import Item
from .distance import distance_from_prior

if TYPE_CHECKING:
    from .task import Task

__all__ = ["Case", "evaluate", "volumes"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """An item, made into a problem.

    Args:
        item: what is reconstructed.
        problem: in the domain of the image.
        unknown: the same problem for the prior's unknown.
        to_image: from the prior's grid to the image; None where they agree.
        decoder: from the unknown to the prior's grid; None where they agree.
        seed: of this item's noise and draws.
    """

    item: Item
    problem: Problem
    unknown: Problem
    to_image: LinearOperator | None
    decoder: Operator | None
    seed: int

    def image(self, x: Tensor) -> Tensor:
        """Unknowns (B, *shape) as images."""
        x = x if self.decoder is None else self.decoder(x)
        return x if self.to_image is None else self.to_image(x)


@dataclass(frozen=True)
class Result:
    """What is reported of a case: the row of the report, further facts, further figures."""

    row: Row
    facts: Mapping[str, Any]
    figures: Mapping[str, Any] = field(default_factory=dict)


@torch.no_grad()
def evaluate(task: Task, case: Case, prior: Denoiser, draws: Samples, *, figures: bool) -> Result:
    """Compare draws (on the prior's grid) and baselines with the truth, as images in the task's view."""
    item, problem = case.item, case.problem
    view = _view(task, problem)
    estimates, failed = [], []
    for baseline in task.baselines:
        name = getattr(baseline, "name", type(baseline).__name__)
        try:
            x, facts = baseline(problem)
        except (NumericalError, CapabilityError) as error:
            # a baseline that does not apply to somebody's data must not cost them the draws
            failed.append(f"{name} is left out: {error}")
            continue
        # filtered back-projection is not to be called an adjoint
        name = facts.get("formula", name)
        facts = {**facts, **_scored(task, item, x, name, failed)}
        estimates.append(Estimate(method=name, image=view(x)[0], misfit=float(problem.chi2(x)), facts=facts))
    exact = None
    if task.exact:
        try:
            exact = exact_posterior(prior, case.unknown, len(draws), seed=case.seed)
        except NumericalError as error:
            failed.append(f"The exact posterior is left out: {error}")
    if exact is not None:
        mean = exact.mean[None]
        samples = exact.samples.map(lambda x: view(case.image(x)))
        image, misfit = samples.mean if task.view == "magnitude" else case.image(mean)[0], float(case.unknown.chi2(mean))
        estimates.append(Estimate(method="exact posterior", image=image, misfit=misfit, samples=samples))
    against = {} if exact is None else exact.compare(draws)
    images = draws.map(case.image)
    inspected, seen_in = ({}, {}) if task.inspect is None else task.inspect(item, draws, case.unknown)
    scored = {**_scored(task, item, images.x, draws.sampler, failed), **inspected}
    seen = images.map(view)
    each = float(torch.stack([case.unknown.chi2(x[None])[0] for x in draws.x]).mean())
    covered = _component_coverage(case, draws) if task.view == "magnitude" else None
    estimates.append(
        Estimate.of(
            seen, misfit=float(problem.chi2(images.mean[None])), coverage=covered, misfit_of_draws=each, **against, **scored
        )
    )
    distance, notes = _distance(case, prior, draws)
    truth = None if item.truth is None else view(item.truth.to(problem.y.device))
    row = Row(
        name=item.name,
        estimates=estimates,
        truth=None if truth is None else truth.to(seen.x.dtype),
        data_range=_data_range(task.data_range, truth),
        levels=_pair(task.levels),
        window=_pair(task.window),
        notes=[*([item.facts["note"]] if "note" in item.facts else []), *_agreement(against), *notes, *failed],
    )
    facts = {**item.facts, "pixel_mm": item.pixel, "operator": _line(problem.operator), "noise": _line(problem.noise)}
    drawn = _gaussian_figure(draws, exact, item.truth) if figures and exact is not None and exact.moments is not None else {}
    return Result(row, facts | ({} if distance is None else {"distance_from_prior": distance}), {**drawn, **seen_in})


def _view(task: Task, problem: Problem) -> Callable[[Tensor], Tensor]:
    if task.view != "part":
        return torch.abs if task.view == "magnitude" else lambda x: x
    packed = problem.operator
    if not isinstance(packed, Calibrated):
        raise ConfigError(f"{task.name}: view=part needs a Calibrated operator, got {type(packed).__name__}")
    return lambda x: packed.split(x)[0]


def _scored(task: Task, item: Item, images: Tensor, method: str, failed: list[str]) -> Mapping[str, Any]:
    """The task's own score of images; a solver that refuses one must not cost anybody the draws."""
    if task.score is None:
        return {}
    try:
        return task.score(item, images)
    except NumericalError as error:
        failed.append(f"The score of {method} is left out: {error}")
        return {}


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (float(values[0]), float(values[1]))


def _agreement(against: Mapping[str, float]) -> list[str]:
    if not against:
        return []
    largest = (
        f", largest z {against['z_mean']:.1f} (mean) and {against['z_cov']:.1f} (covariance)" if "z_mean" in against else ""
    )
    return [
        f"Against the exact posterior: the mean is off by {against['mean_error']:.2f} standard errors (1 expected), "
        f"the spread is {against['std_ratio']:.3f} of the right one{largest}."
    ]


def _component_coverage(case: Case, draws: Samples) -> float | None:
    """Coverage of real and imaginary parts: no interval of positive magnitudes holds the zero of an empty background."""
    if case.item.truth is None or draws.kind != "posterior" or len(draws) < 2:
        return None
    parts = draws.map(lambda x: torch.view_as_real(case.image(x).resolve_conj()))
    low, high = parts.interval(LEVEL)
    truth = torch.view_as_real(case.item.truth.to(low.device, draws.x.dtype.to_complex()))
    return float(coverage(low[None], high[None], truth[None]))


def _data_range(rule: float | str | None, truth: Tensor | None) -> float | None:
    if truth is None or rule is None:
        return None
    value = {"max": float(truth.max()), "extent": float(truth.max() - truth.min())}[rule] if isinstance(rule, str) else rule
    return value if value > 0 else None


def _distance(case: Case, prior: Denoiser, draws: Samples) -> tuple[dict[str, Any] | None, list[str]]:
    truth = case.item.truth
    if truth is None:
        images, of = draws.x[:4], "reconstruction"
    else:
        x = truth[None].to(draws.x.device, draws.x.dtype.to_complex() if truth.is_complex() else draws.x.dtype)
        images, of = prior.analyse(x if case.to_image is None else case.to_image.adjoint(x)), "truth"
    distance = distance_from_prior(prior, images, seed=case.seed)
    if distance is None:
        return None, []
    distance = {"of": of, **distance}
    return distance, [] if not distance["far"] else [
        f"The {of} is far from the prior: it is denoised {distance['worst']:.1f} times worse than the prior's own images. "
        "Trust neither the image nor its intervals without a prior that fits."
    ]


def _gaussian_figure(draws: Samples, exact: Exact, truth: Tensor | None) -> dict[str, Any]:
    from ..plot import gaussian_figure

    return {"Draws against the exact posterior": gaussian_figure(draws.x, exact.moments.mean, exact.moments.cov, truth=truth)}


def volumes(items: Sequence[Item], rows: Sequence[Row]) -> dict[str, Callable[[Path], object]]:
    """Writers of NIfTI files for the items that have an affine: the estimate, and its standard deviation where there is one."""
    writers: dict[str, Callable[[Path], object]] = {}
    for item, row in zip(items, rows, strict=True):
        if item.affine is None:
            continue
        stem = "" if len(items) == 1 else f"_{item.name.replace(' ', '_')}"
        last = row.estimates[-1]
        images = {"reconstruction": last.image} | ({"std": last.samples.std} if last.has_spread else {})
        for name, image in images.items():
            writers[f"{name}{stem}.nii.gz"] = partial(_write_volume, image=image, affine=item.affine)
    return writers


def _write_volume(path: Path, *, image: Tensor, affine: Any) -> None:
    write_nifti(path, image[0, :, :, None].detach().cpu().float().numpy(), affine)


def _line(thing: torch.nn.Module) -> str:
    own = thing.extra_repr()
    return f"{type(thing).__name__}({own})" if own else " ".join(repr(thing).split())
