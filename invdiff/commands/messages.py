"""Errors that a user can mend, in one line each."""

from __future__ import annotations

import difflib
import errno
import re
import sys
from collections.abc import Sequence

from ..configs import read

__all__ = ["Misuse", "near", "one_line"]

_GROUPS = ("task", "prior", "sampler")


class Misuse(Exception):
    """A command line that can't be understood."""


def near(word: str, known: Sequence[str]) -> str:
    """A hint at the nearest of the known words, beginning with a comma, or nothing."""
    found = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {found[0]}?" if found else ""


def one_line(error: Exception) -> str:
    """What a user can mend, in one line; empty for an error of the program."""
    if isinstance(error, Misuse) or _is(error, "invdiff.core.errors", "InvdiffError"):
        return " ".join(str(error).split()) + _room(error.__cause__)
    if _is(error, "hydra.errors", "MissingConfigException"):
        missing, options = str(getattr(error, "missing_cfg_file", "")), list(getattr(error, "options", None) or ())
        name = missing.rpartition("/")[2]
        return f"there is no {missing}{near(name, options) or ':'} there are {', '.join(options) or 'none'}"
    if _is(error, "hydra.errors", "HydraException") or _is(error, "omegaconf.errors", "OmegaConfBaseException"):
        text = re.sub(r"\s*(See https|full_key:|object_type=|reference_type=)[^\n]*", "", str(error))
        wrong = re.search(r"Could not override '([^'.]+)'", text)
        return " ".join(text.split()) + (near(wrong[1], [*read("config"), *_GROUPS]) if wrong else "")
    if isinstance(error, MemoryError) or _is(error, "torch", "OutOfMemoryError") or "can't allocate memory" in str(error):
        return "out of memory: compute fewer draws at once, as in batch=1"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}{_room(error)}"
    return ""


def _room(error: BaseException | None) -> str:
    """What to do about a full disk."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return ": free some space, or choose another place by out=DIR" if full else ""


def _is(error: Exception, module: str, name: str) -> bool:
    """isinstance without an import: a class that was not imported was not raised."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(error, kind)
