"""Of the whole process: settings that are changed for a while and put back, also by runs on several threads; memory."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Borrowed:
    """A process-wide setting that overlapping runs may change.

    The first to enter notes how it was, the last to leave puts that back; in between the last change counts.

    Args:
        read: returns the setting.
        write: sets it.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], object]) -> None:
        self._read, self._write = read, write
        self._lock, self._users, self._before = threading.Lock(), 0, None

    @contextlib.contextmanager
    def set(self, value: Any) -> Iterator[None]:
        """Change the setting for a while."""
        with self._lock:
            if not self._users:
                self._before = self._read()
            self._users += 1
            self._write(value)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._write(self._before)


def peak_memory() -> int | None:
    """Return the most memory that the process has taken, in bytes; None where the system does not say."""
    # On Linux `getrusage` would count what the process that started this one had taken by then.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
