"""The one way in which the package writes files: under a temporary name in the folder of the target, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError

__all__ = ["atomic"]


@contextmanager
def atomic(path: str | os.PathLike[str], *, parents: bool = False) -> Iterator[Path]:
    """Write a file completely or not at all.

        with atomic("report.json") as part:
            part.write_text(text)

    Args:
        parents: make the folder of `path` if there is none.

    Yields:
        A new path in the folder of `path`, with the same suffix. It replaces `path` when the block ends; when the block
        raises, it is removed and `path` stays as it was.

    Raises:
        DataError: the system could not write (no such folder, no permission, disk full), or the block wrote nothing.
    """
    target = Path(path)
    if not target.name:
        raise DataError(f"{path!r}: not a file name")
    part = target.with_name(f".part-{secrets.token_hex(4)}-{target.name}")
    try:
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        # without the sync a power cut after the rename may leave an empty file under the final name
        with part.open("r+b") as stream:
            os.fsync(stream.fileno())
        part.replace(target)
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{target}: can't be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
