"""Ctrl-C and SIGTERM unwind the stack, once, so that what is open is closed and nothing is left half-written."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


_arrived: KeyboardInterrupt | None = None


def arrived() -> KeyboardInterrupt | None:
    """Return the interruption that has arrived, whatever became of it."""
    return _arrived


def check() -> None:
    """Raise the interruption that has arrived: libraries swallow some, such as those that meet an import."""
    if _arrived is not None:
        raise _arrived


def _interrupt(number: int, _: object) -> None:
    global _arrived  # noqa: PLW0603  # signals belong to the process
    error = sys.exc_info()[1]
    while error is not None:
        if error is _arrived:  # The stack is unwound already; a second Ctrl-C must not stop that.
            return
        error = error.__context__
    _arrived = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
    raise _arrived


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let both signals raise KeyboardInterrupt or its subclass meanwhile, unless the parent process ignores them."""
    global _arrived  # noqa: PLW0603
    if threading.current_thread() is not threading.main_thread():  # Only the main thread may set a handler.
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: before for number, before in handlers.items() if before not in (signal.SIG_IGN, None)}
    for number in ours:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        _arrived = None
        for number, before in ours.items():
            signal.signal(number, before)
