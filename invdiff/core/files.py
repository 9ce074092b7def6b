"""The one way in which the package writes files: under a temporary name in the folder of the target, then renamed."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from .errors import DataError

__all__ = ["atomic", "require_writable", "save"]


@contextmanager
def atomic(path: str | os.PathLike[str], *, parents: bool = False) -> Iterator[Path]:
    """Write a file completely or not at all.

        with atomic("report.json") as part:
            part.write_text(text)

    Args:
        parents: make the folder of `path` if there is none; it goes again when the block raises.

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
    new = []
    try:
        if parents:
            new = [folder for folder in target.parents if not folder.exists()]
            target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        # without the sync a power cut after the rename may leave an empty file under the final name
        with part.open("r+b") as stream:
            os.fsync(stream.fileno())
        part.replace(target)
        new = []
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{target}: can't be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
            for folder in new:
                folder.rmdir()


def save(path: str | os.PathLike[str], content: Any) -> None:
    """`torch.save`, completely or not at all; from memory, because torch hides that a disk is full."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic(path, parents=True) as part:
        part.write_bytes(buffer.getbuffer())


def require_writable(folder: str | os.PathLike[str]) -> None:
    """Raise a DataError if no file could be written in the folder, which need not exist; leaves nothing behind."""
    folder = Path(folder)
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise DataError(f"{folder}: {there} is a file, not a folder")
    probe = there / f".part-{secrets.token_hex(4)}"
    try:
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        raise DataError(f"{folder}: no file can be written in {there}: {error.strerror}") from error
