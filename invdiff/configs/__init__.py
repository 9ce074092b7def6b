"""The packaged configurations: a folder for each group, a YAML file for each name; read without torch and hydra."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import yaml

__all__ = ["choices", "names", "read", "summary"]


class _SafeLoader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-3 for a string; here, as in hydra, it is a number."""


_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_SafeLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def names(group: str) -> list[str]:
    """The names in a group (task, operator, prior, sampler, guidance, train, set), sorted; none for an unknown group."""
    folder = resources.files(__name__) / group
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")) if folder.is_dir() else []


def read(path: str) -> dict[str, Any]:
    """The content of one file as it stands, e.g. of "sampler/mmps" or of "config"."""
    return yaml.load(_text(path), Loader=_SafeLoader)


def choices(path: str) -> dict[str, str | None]:
    """What the list of defaults of a file chooses or overrides: group -> name."""
    lines = [line for line in read(path).get("defaults", []) if isinstance(line, dict)]
    chosen = {key.removeprefix("override ").lstrip("/").partition("@")[0]: name for line in lines for key, name in line.items()}
    return {group: name for group, name in chosen.items() if not group.startswith("hydra")}


def summary(path: str) -> str:
    """The first line of the comment that opens a file, or an empty string."""
    lines = (line for line in _text(path).splitlines() if not line.startswith("# @package"))
    first = next(lines, "")
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""


def _text(path: str) -> str:
    return (resources.files(__name__) / f"{path}.yaml").read_text("utf-8")
