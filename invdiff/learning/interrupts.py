"""Ctrl-C and the termination signal of a cluster, kept until a step is complete."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["postponed", "termination_interrupts"]


@contextmanager
def postponed(*, patient: bool) -> Iterator[Callable[[], None]]:
    """Keep the signals that would raise KeyboardInterrupt; yields a function that raises it if one came meanwhile.

    Those are SIGINT, and SIGTERM where its handler is `signal.default_int_handler`. Outside the main thread, where none arrive,
    this does nothing.

    Args:
        patient: keep every one of them; else the second raises at once, for a user who does not want to wait.
    """
    came: list[int] = []

    def keep(number: int, _: object) -> None:
        came.append(number)
        if len(came) > 1 and not patient:
            raise KeyboardInterrupt

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    ours = [n for n in (signal.SIGINT, signal.SIGTERM) if main and signal.getsignal(n) is signal.default_int_handler]
    for number in ours:
        signal.signal(number, keep)
    try:
        yield check
    finally:
        for number in ours:
            signal.signal(number, signal.default_int_handler)
    check()


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does, unless it has a handler already."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
