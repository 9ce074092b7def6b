"""invdiff: Bayesian inverse problems with diffusion priors.

    plan = invdiff.task("ct_sparse_view")           # a problem, a prior and a sampler with data and metrics
    report = plan.run(n=8, seed=0, out="outputs/ct")

    problem = invdiff.Problem(A, invdiff.Gaussian(0.02), y)
    samples = invdiff.sampler("mmps", steps=50)(problem, invdiff.prior("ct128"), n=8, seed=0)

Names are imported when they are first used, so that `import invdiff` costs nothing by itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "VP",
    "CapabilityError",
    "ConfigError",
    "DataError",
    "Denoiser",
    "Gaussian",
    "InvdiffError",
    "Karras",
    "LinearOperator",
    "LogUniform",
    "Noise",
    "NumericalError",
    "Operator",
    "Plan",
    "Poisson",
    "Problem",
    "Sampler",
    "Samples",
    "ShapeError",
    "Stack",
    "Streams",
    "ViewAsComplex",
    "__version__",
    "core",
    "guidance",
    "io",
    "learning",
    "metrics",
    "operator",
    "operators",
    "prior",
    "priors",
    "sampler",
    "samplers",
    "task",
    "tasks",
]

__version__ = "0.1.0"

_PARTS = frozenset({"core", "guidance", "io", "learning", "metrics", "operators", "priors", "samplers", "tasks"})
_FRONT_DOOR = frozenset({"Plan", "operator", "prior", "sampler", "task"})

if TYPE_CHECKING:
    from . import core, guidance, io, learning, metrics, operators, priors, samplers, tasks
    from .catalogue import Plan, operator, prior, sampler, task
    from .core import (
        VP,
        CapabilityError,
        ConfigError,
        DataError,
        Denoiser,
        Gaussian,
        InvdiffError,
        Karras,
        LinearOperator,
        LogUniform,
        Noise,
        NumericalError,
        Operator,
        Poisson,
        Problem,
        Sampler,
        Samples,
        ShapeError,
        Stack,
        Streams,
        ViewAsComplex,
    )


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{'catalogue' if name in _FRONT_DOOR else 'core'}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
