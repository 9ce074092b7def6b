"""The user's own configurations: what is passed over, and what a file may not say.

hydra builds callbacks, launchers and sweepers from what a configuration says under `hydra`, before the program sees it, with
nearly no limit on the classes. A task from a stranger must not do that, so only the command line may speak to hydra.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..configs import names
from .messages import Misuse

__all__ = ["examine"]


def examine(folder: str | Path) -> list[str]:
    """A warning for each file that is hidden by a packaged one of the same name.

    Raises:
        Misuse: the folder does not exist, or a file in it is not readable as YAML or configures hydra.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Misuse(f"--config-dir: there is no folder {folder}")
    hidden = []
    for file in sorted(p for p in folder.rglob("*") if p.suffix in (".yaml", ".yml")):
        try:
            text = file.read_text("utf-8")
            content = yaml.safe_load(text)
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise Misuse(f"{file}: can't be read as YAML ({error})") from None
        if _speaks_to_hydra(file.relative_to(folder), text, content):
            raise Misuse(f"{file}: may not configure hydra: give hydra.OPTION=VALUE on the command line instead")
        if file.parent.parent == folder and file.stem in names(file.parent.name):
            group = file.parent.name
            hidden.append(f"{file} is not used, because {group}={file.stem} is the packaged one: give the file another name")
    return hidden


def _speaks_to_hydra(place: Path, text: str, content: Any) -> bool:
    packages = re.findall(r"^\s*#\s*@package\s+(.*)$", text, re.MULTILINE)
    defaults = content.get("defaults", []) if isinstance(content, dict) else []
    return (
        "hydra" in place.parts
        or any("hydra" in said for said in [*packages, *_strings(defaults)])
        or "hydra" in _roots(content)
    )


def _roots(content: Any) -> Iterator[str]:
    """The first part of every key: where a file lands in the whole is known only when everything is composed."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield str(key).partition(".")[0]
            yield from _roots(value)
    elif isinstance(content, list):
        for value in content:
            yield from _roots(value)


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield str(key)
            yield from _strings(value)
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value)
    else:
        yield str(content)
