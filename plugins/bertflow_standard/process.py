"""Settings of the whole process, changed for a while and put back, also where runs overlap on several threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
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
