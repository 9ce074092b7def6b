"""The front door: objects by the name of their packaged configuration, with options changed by keyword.

    sampler("mmps", steps=50, cg_steps=5)     # steps is the sampler's own, cg_steps is its guidance's
    task("ct_sparse_view", sampler="ddnm").run(n=8, seed=0)

`compose` gives the plain dictionary that hydra composes for `invdiff run`, without hydra.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from .configs import choices, names, read
from .core import Denoiser, Operator, Sampler
from .core.build import build, check, resolve
from .core.errors import ConfigError

if TYPE_CHECKING:
    from .report import Report
    from .tasks import Task

__all__ = ["Plan", "Run", "compose", "load", "make", "names", "operator", "override", "prior", "sampler", "task"]

Config = dict[str, Any]


def load(group: str, name: str) -> Config:
    """The configuration of a name in a group (task, operator, prior, sampler, guidance, set), without its list of defaults.

    Raises:
        ConfigError: there is no such name; the message has the one that is nearest.
    """
    known = names(group)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? There are" if near else "there are"
        raise ConfigError(f"{group} {name!r} does not exist: {hint} {', '.join(known) or 'none'}")
    config = read(f"{group}/{name}")
    config.pop("defaults", None)
    return config


def make(group: str, name: str, /, **options: Any) -> Any:
    """Build the object of that name; an option of a nested object may be given by its own name where only one has it.

    Raises:
        ConfigError: the name or an option is unknown, an option is ambiguous or of the wrong type.
    """
    return build(override(load(group, name), options, f"{group} {name}"))


def operator(name: str, /, **options: Any) -> Operator:
    """The packaged operator of that name, its options changed by keyword; `invdiff list operators` has the names."""
    return make("operator", name, **options)


def prior(name: str, /, **options: Any) -> Denoiser:
    """The packaged prior of that name, its options changed by keyword; `invdiff list priors` has the names."""
    return make("prior", name, **options)


def sampler(name: str, /, **options: Any) -> Sampler:
    """The packaged sampler of that name, its options changed by keyword; `invdiff list samplers` has the names."""
    return make("sampler", name, **options)


def task(name: str, /, sampler: str | Sampler | None = None, prior: str | Denoiser | None = None, **options: Any) -> Plan:
    """A packaged task with its own prior and sampler, or with others, by name or as objects; see `invdiff list tasks`.

    Args:
        options: of the task, e.g. task("ct_sparse_view", path="slice.npy").
    """
    given = {"sampler": sampler, "prior": prior}
    config = compose(name, sampler if isinstance(sampler, str) else None, prior if isinstance(prior, str) else None)
    config["task"] = override(config["task"], options, f"task {name}")
    return Plan.from_config(config | {k: v for k, v in given.items() if v is not None and not isinstance(v, str)})


def compose(
    task: str = "toy_gaussian", sampler: str | None = None, prior: str | None = None, options: Mapping[str, Any] | None = None
) -> Config:
    """The dictionary that hydra composes for `invdiff run task=... sampler=... prior=...`.

    A task's list of defaults may only say `override /sampler@_global_.sampler: NAME`, and the same of its prior; without what
    is behind the @, hydra looks for a sampler inside the task.

    Args:
        options: values at dotted paths, e.g. {"n": 4, "sampler.steps": 10}.
    """
    load("task", task)
    config = read("config")
    del config["hydra"], config["defaults"]
    given = {"task": task, "sampler": sampler, "prior": prior}
    chosen = choices("config") | choices(f"task/{task}") | {group: name for group, name in given.items() if name is not None}
    groups = {group: load(group, name) for group, name in chosen.items() if name is not None}
    return override(config | groups, {} if options is None else options, "run")


def override(config: Config, options: Mapping[str, Any], who: str) -> Config:
    """A copy of a configuration with options changed.

    An option is a dotted path, a key of the top level, or a key of a nested object if exactly one nested object has it. A
    dictionary without `_target_` changes the keys that it names and leaves the others.

    Raises:
        ConfigError: the option is unknown or ambiguous; the message lists the possible ones.
    """
    config = copy.deepcopy(config)
    for option, value in options.items():
        node, key = _place(config, option, who)
        node[key] = _merged(node.get(key), value)
    return config


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, Mapping) and "_target_" not in new:
        return old | {key: _merged(old.get(key), value) for key, value in new.items()}
    return new


def _place(config: Config, option: str, who: str) -> tuple[Config, str]:
    """The dictionary that an option lives in, and its key there."""
    *path, key = option.split(".")
    for depth, part in enumerate(path):
        if not isinstance(config.get(part), dict):
            raise ConfigError(f"{who}: there is no {'.'.join(path[: depth + 1])} to set {option} in")
        config = config[part]
    if path or key in _keys(config):
        return config, key
    nested = {".".join(where): node for where, node in _objects(config) if where}
    found = [where for where, node in nested.items() if key in _keys(node)]
    if len(found) > 1:
        raise ConfigError(f"{who}: option {key} is ambiguous: give {' or '.join(f'{where}.{key}' for where in found)}")
    if not found:
        inner = [f"{where}.{k}" for where, node in nested.items() for k in _keys(node)]
        near = difflib.get_close_matches(key, [*_keys(config), *(k.rpartition(".")[2] for k in inner)], n=1)
        hint = f", did you mean {near[0]}?" if near else ";"
        raise ConfigError(f"{who}: unknown option {key}{hint} it takes {', '.join([*_keys(config), *inner]) or 'none'}")
    return nested[found[0]], key


def _objects(config: Config, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Config]]:
    """Every dictionary that describes an object, with its path."""
    if "_target_" in config:
        yield where, config
    for key, value in config.items():
        if isinstance(value, dict) and not key.startswith("_"):
            yield from _objects(value, (*where, key))


def _keys(config: Config) -> list[str]:
    """The options of one object: those that are written down and those that its signature has besides."""
    keys = [key for key in config if not key.startswith("_")]
    if "_target_" in config:
        parameters = inspect.signature(resolve(config["_target_"])).parameters.values()
        keys += [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in keys]
    return keys


@dataclass(frozen=True)
class Run:
    """The options of a run that do not belong to the task, the prior or the sampler.

    Args:
        n: draws for each item; None for the number that the task has.
        items: images, volumes ... of the task's data.
        seed: of the data, the noise and the draws.
        out: folder of the report; None writes nothing.
        batch: draws computed at once, or a memory budget like "8GiB"; None for all.
        dtype, device: of the problem and the draws.
        resume: continue an interrupted run that is found in `out`.
        progress: show bars.
    """

    n: int | None = None
    items: int = 1
    seed: int = 0
    out: str | None = None
    batch: int | str | None = None
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    resume: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        if self.out == "":
            raise ConfigError("Run: expected out to be the name of a folder, got an empty one")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"Run: expected 0 <= seed < 2^63, got {self.seed}")
        require_device(self.device, "Run")


def require_device(name: str, who: str) -> None:
    """Raise a ConfigError if torch does not know the device, or does not find it on this machine."""
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise ConfigError(f"{who}: expected device to be cpu, cuda, cuda:1, mps ..., got {name!r}") from None
    module = getattr(torch, kind, None)
    if kind != "cpu" and not (module is not None and hasattr(module, "is_available") and module.is_available()):
        raise ConfigError(f"{who}: torch finds no device {name!r} on this machine: use device=cpu")


@dataclass(frozen=True)
class Plan:
    """A task with the prior and the sampler that it is run with.

    Attributes:
        config: what they were built from, as `compose` gives it; objects that were given are themselves.
    """

    task: Task
    prior: Denoiser | None
    sampler: Sampler
    config: Config

    @classmethod
    def from_config(cls, config: Config, allow: Sequence[str] = ()) -> Plan:
        """Build the three; `allow` are module prefixes beside `invdiff.` from which the configuration may build objects."""
        from .tasks import Task

        parts = {part: build(config.get(part), allow) for part in ("task", "sampler", "prior")}
        for part, kind in {"task": Task, "sampler": Sampler, "prior": Denoiser}.items():
            if not isinstance(parts[part], kind) and (part != "prior" or parts[part] is not None):
                got = "none" if parts[part] is None else f"the {type(parts[part]).__name__} {parts[part]!r}"[:100]
                raise ConfigError(f"run: expected {part} to be a {kind.__name__}, got {got}: choose one by {part}=NAME")
        return cls(**parts, config=config)

    def run(
        self,
        *,
        n: int | None = None,
        items: int = 1,
        seed: int = 0,
        out: str | None = None,
        batch: int | str | None = None,
        dtype: Literal["float32", "float64"] = "float32",
        device: str = "cpu",
        resume: bool = True,
        progress: bool = False,
    ) -> Report:
        """Draw, measure, and write the report to `out` if that is given; the options are those of `Run`."""
        check(Run, {"n": n, "items": items, "seed": seed, "batch": batch, "dtype": dtype, "device": device, "resume": resume})
        options = Run(n, items, seed, out, batch, dtype, device, resume, progress)
        parts = {key: value if isinstance(value, dict | type(None)) else repr(value) for key, value in self.config.items()}
        return self.task.run(prior=self.prior, sampler=self.sampler, config=parts | asdict(options), **asdict(options))
