"""Objects from plain dictionaries, for allow-listed classes only.

    build({"_target_": "invdiff.core.Gaussian", "sigma": 0.1})

A target must start with an allowed prefix and be defined in a module with an allowed prefix, so that a name re-exported from
elsewhere is refused. Prefixes beyond `invdiff.` come from the caller or the command line, never from a file. With
`_partial_: true` the result is the target with these arguments bound, to be called with the others. Other keys that start and
end with one underscore are notes for people and tests, and are skipped.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import ConfigError

__all__ = ["build", "check", "resolve"]

# these take prefixes to allow as arguments, which no file may give
# programs and functions are the user's to start, and not a file's
_CLOSED = ("invdiff.cli.", "invdiff.commands.", "invdiff.core.build.", "invdiff.operators.blackbox.")


def build(config: Any, allow: Sequence[str] = (), **more: Any) -> Any:
    """The object that a configuration describes; dictionaries without `_target_`, lists and leaves come back as they are.

    Args:
        config: nested dictionaries, lists, numbers, strings.
        allow: module prefixes allowed beside "invdiff".
        more: further arguments of the outermost target.

    Raises:
        ConfigError: a target is not allowed or does not exist, an argument is unknown, missing or of the wrong type.
    """
    if isinstance(config, Mapping):
        if "_target_" not in config:
            return {k: build(v, allow) for k, v in config.items()}
        target = resolve(str(config["_target_"]), allow)
        arguments = {k: build(v, allow) for k, v in config.items() if not (k.startswith("_") and k.endswith("_"))} | more
        partial = config.get("_partial_", False)
        if not isinstance(partial, bool):
            raise ConfigError(f"{target.__qualname__}: expected _partial_ to be true or false, got {partial!r}")
        check(target, arguments, partial)
        return functools.partial(target, **arguments) if partial else target(**arguments)
    if isinstance(config, list | tuple):
        return [build(v, allow) for v in config]
    return config


def resolve(path: str, allow: Sequence[str] = ()) -> Any:
    """The class or function of that dotted name, if it is an allowed one."""
    prefixes = tuple(p.rstrip(".") + "." for p in ("invdiff", *allow))
    module_name, _, name = path.rpartition(".")
    if not path.startswith(prefixes):
        raise ConfigError(f"build: {path} is not under {', '.join(prefixes)}: allow its package explicitly to use it")
    try:
        target = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"build: there is no {path} ({error})") from None
    home = f"{getattr(target, '__module__', '')}."
    if not callable(target) or not home.startswith(prefixes) or home.startswith(_CLOSED):
        raise ConfigError(f"build: {path} is not a class or function of {', '.join(prefixes)}")
    return target


def check(target: Any, arguments: dict[str, Any], partial: bool = False) -> None:
    """Raise a ConfigError if the target does not take these arguments, lacks some (unless partial), or a leaf does not fit.

    Numbers, strings, booleans, None, and lists and dictionaries of them have to fit, and objects where the
    annotation is a class of invdiff; other objects are left to the target.
    """
    name, signature = target.__qualname__, inspect.signature(target)
    accepted = [p.name for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    unknown = sorted(set(arguments) - set(accepted))
    if unknown:
        raise ConfigError(f"{name}: unknown option {', '.join(unknown)}; it takes {', '.join(accepted) or 'none'}")
    required = {p.name for p in signature.parameters.values() if p.default is p.empty and p.name in accepted}
    missing = sorted(required - set(arguments), key=accepted.index)
    if missing and not partial:
        raise ConfigError(f"{name}: missing option {', '.join(missing)}")
    for key, value in arguments.items():
        hint = _hint(target, signature.parameters[key])
        if not _fits(value, hint):
            raise ConfigError(f"{name}: expected {key} to be {_text(hint)}, got {value!r}")


def _hint(target: Any, parameter: inspect.Parameter) -> Any:
    """The annotation of a parameter, evaluated alone, since its neighbours may name what only type checkers import."""
    if dataclasses.is_dataclass(target) and isinstance(target, type):
        owner = next((b for b in target.__mro__ if parameter.name in vars(b).get("__annotations__", {})), target)
        namespace = vars(sys.modules[owner.__module__])
    else:
        function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
        namespace = getattr(function, "__globals__", {})
    if parameter.annotation is parameter.empty:
        return typing.Any
    try:
        alone = types.SimpleNamespace(__annotations__={"hint": parameter.annotation})
        return typing.get_type_hints(alone, namespace)["hint"]
    except (NameError, TypeError):
        return typing.Any


def _text(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _fits(value: object, hint: object) -> bool:
    """Whether what YAML or the command line can say is of the annotated type, or an object of an annotated class of invdiff."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return True
    if isinstance(hint, types.UnionType) or origin is typing.Union:
        return any(_fits(value, h) for h in inner)
    if not isinstance(value, bool | int | float | str | type(None) | list | tuple | dict):
        ours = isinstance(hint, type) and hint.__module__.startswith("invdiff.")
        return isinstance(value, hint) if ours else True  # type: ignore[arg-type]
    if isinstance(value, list | tuple | dict):
        return _fits_together(value, hint, origin, inner)
    if origin is typing.Literal:
        return value in inner
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, type(None) if hint is type(None) else hint)
    return not isinstance(value, bool) and getattr(hint, "__module__", "").startswith("pathlib") and isinstance(value, str)


def _fits_together(
    value: list[Any] | tuple[Any, ...] | dict[Any, Any], hint: object, origin: object, inner: tuple[Any, ...]
) -> bool:
    if origin is typing.Literal or (origin is None and isinstance(hint, type)):
        return isinstance(hint, type) and isinstance(value, hint)
    if isinstance(value, dict) or origin not in (tuple, list, Sequence):
        return True
    if origin is tuple and inner[1:] != (...,):
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return all(_fits(v, inner[0]) for v in value)
