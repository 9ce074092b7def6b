"""Which sampler runs on which task: every pair is tried, at tiny size.

A task is taken at its `_test_` size with a Gaussian prior that fits it, a sampler with two steps and as few particles, points
and inner steps as it can have. What comes of a pair is draws, or the sampler's own error, which names what is missing; `WANTS`
has the names.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ..catalogue import load, override, sampler
from ..configs import names
from ..core import (
    CapabilityError,
    ConfigError,
    Denoiser,
    InvdiffError,
    NumericalError,
    Problem,
    Sampler,
    ShapeError,
    ViewAsComplex,
    build,
    capabilities,
)
from ..core.schedule import Grid
from ..guidance import MMPS
from ..priors import GaussianField, Independent, Matern, SpeckledPrior, StationaryGaussian, normal_parameters
from ..samplers import LangevinDraw
from ..tasks import Task
from ..tasks.setups import gaussian_signal

__all__ = ["WANTS", "column", "outcome", "page", "parse", "reduced", "tiny", "tiny_problem"]

# what a sampler's message says -> the name of what is missing
WANTS = {
    r"needs [^;]*\badjoint\b": "a linear operator",
    r"needs [^;]*\bspectral\b": "a spectrum of the operator",
    r"needs Gaussian noise": "Gaussian noise",
    r"needs one noise level": "one noise level",
    r"at most 64 real measurements": "64 measurements or fewer",
    r"has no guess": "a crude inverse of the operator",
    r"expected a Mask": "a mask",
    r"expected a Calibrated operator|expected an Independent prior": "unknown parameters of the operator",
    r"complex images through Speckled": "a speckled image",
    r"LogIntensity noise": "a log-intensity",
    r"as (prior|reference) a Gaussian field": "a Gaussian field, of its size, as prior",
    r"consistency function": "a consistency function as prior",
    r"as the network was trained for|IDMNetwork: expected an operator": "the measurement that its network was trained for",
    r"levels inside the prior's": "a prior in its units",
    r"values that are not finite|give steps >=": "a smaller step",
}
LETTERS = dict(zip(WANTS.values(), "ASGNMIKBVUFCTPH", strict=True))
CAREFUL = {"full_waveform": 600.0, "navier_stokes_128": 0.3, "navier_stokes_initial": 0.3, "sar_imaging": 2.0}
# the fewest of everything
FEW = {
    "particles": 2,
    "points": 2,
    "candidates": 2,
    "inner": 1,
    "repeats": 1,
    "jump": 1,
    "flow_steps": 2,
    "krylov": 2,
    "chords": 2,
    "stages": 3,
}


def tiny(name: str, **options: Any) -> tuple[Task, Denoiser]:
    """A packaged task at its `_test_` size, and a Gaussian prior that fits it."""
    config = load("task", name)
    task = build(override(config, config["_test_"] | options, name))
    if name == "toy_gaussian":
        return task, gaussian_signal()
    if name == "poisson_source":
        return task, GaussianField((1, 8, 8), Matern(2.5), length=0.2, spacing=1 / 9, boundary="dirichlet")
    if name == "inverse_scattering":
        return task, StationaryGaussian((1, 12, 12), mean=0.1, std=0.1)
    if name == "full_waveform":
        return task, StationaryGaussian((1, 10, 10), mean=3000.0, std=300.0, sigma_max=2e4)
    if name == "ct_centre":
        return task, Independent([StationaryGaussian((1, 16, 16), mean=0.4, std=0.3), normal_parameters(1, 1.5)])
    if name == "sar_imaging":
        return task, SpeckledPrior(StationaryGaussian((1, 16, 16), std=1.0))
    operator = task.operator(next(task.data.items(1, 0, None)))  # type: ignore[arg-type]  # no source of these asks the prior
    shape = operator.in_shape if not operator.in_complex else ViewAsComplex(operator.in_shape).in_shape
    return task, StationaryGaussian(shape, mean=0.4, std=0.3)


def tiny_problem(name: str) -> tuple[Problem, Denoiser]:
    """The problem of the first item of a tiny task, for the unknown of its prior; float32.

    Where a solver refuses what two steps from pure noise ask of it, the prior's largest level is two standard deviations.
    """
    task, prior = tiny(name)
    prior = prior.float()
    case = task.case(next(task.data.items(1, 0, prior)), prior)
    if name in CAREFUL:
        prior.sigma_max = CAREFUL[name]
    return case.unknown, prior


def reduced(made: Sampler) -> Sampler:
    """The sampler with two steps and the fewest of everything, on the prior's own levels."""
    have = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    options: dict[str, Any] = {name: few for name, few in FEW.items() if isinstance(have.get(name), int)}
    if "network" not in have:
        options["steps"] = 2
    if isinstance(have.get("grid"), Grid) and have["grid"].sigma_min is None:
        options["grid"] = dataclasses.replace(have["grid"], sigma_max=None)
    for part, type_, few in (("guidance", MMPS, {"cg_steps": 1}), ("draw", LangevinDraw, {"steps": 2})):
        if isinstance(have.get(part), type_):
            options[part] = dataclasses.replace(have[part], **few)
    return dataclasses.replace(made, **options)


def outcome(problem: Problem, prior: Denoiser, made: Sampler) -> str:
    """What is missing for the sampler to draw from the problem, by its name in `WANTS`; empty where it draws.

    Raises:
        InvdiffError: it did not draw, and did not say what is missing.
    """
    try:
        made(problem, prior, n=1, seed=0)
    except (CapabilityError, ConfigError, NumericalError, ShapeError) as error:
        text = str(error)
        missing = made.needs - capabilities(problem.operator)
        if any(name not in text for name in missing):
            raise InvdiffError(f"{made.name} misses {', '.join(sorted(missing))}, and does not say so: {text}") from error
        for pattern, name in WANTS.items():
            if re.search(pattern, text):
                return name
        raise
    return ""


def column(task: str) -> dict[str, str]:
    """The outcome of every packaged sampler on a tiny task."""
    problem, prior = tiny_problem(task)
    return {name: outcome(problem, prior, reduced(sampler(name))) for name in names("sampler")}


def page(columns: Mapping[str, Mapping[str, str]]) -> str:
    """The matrix as a page of Markdown, from {task: column}."""
    tasks = list(columns)
    missing = {m for outcomes in columns.values() for m in outcomes.values() if m}
    head = ["sampler", *(str(k) for k in range(1, len(tasks) + 1))]
    lines = [
        "# Which sampler runs on which task",
        "",
        "Made by `python benchmarks/matrix.py`, which tries every pair at tiny size; the tests compare. A dot: it runs. A",
        "letter: what it lacks, as its error says. The priors of the trial are Gaussian fields: `laplace` and `mmps_field`",
        "take no others.",
        "",
        *(f"- **{LETTERS[m]}** {m}" for m in WANTS.values() if m in missing),
        "",
        "Tasks: " + ", ".join(f"{k} `{task}`" for k, task in enumerate(tasks, 1)) + ".",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for name in columns[tasks[0]]:
        cells = [LETTERS[columns[t][name]] if columns[t][name] else "." for t in tasks]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parse(text: str) -> dict[str, dict[str, str]]:
    """{task: {sampler: what is missing}} of a page."""
    tasks = re.findall(r"\d+ `(\w+)`", text)
    by_letter = {letter: missing for missing, letter in LETTERS.items()} | {".": ""}
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines() if line.startswith("|")][2:]
    return {task: {row[0]: by_letter[row[k]] for row in rows} for k, task in enumerate(tasks, 1)}
