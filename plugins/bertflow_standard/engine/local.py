"""`engine=local`: the work is done here, one item after the other, while a thread prepares the next."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bertflow import hookimpl
from bertflow.errors import ConfigError


@dataclass
class Config:
    """How a stream is cut."""

    part_rows: int

    def __post_init__(self) -> None:
        """Refuse parts of nothing."""
        if self.part_rows < 1:
            raise ConfigError("wrong value", f"engine.part_rows={self.part_rows}", "give at least 1")


@hookimpl
def map_work(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Apply the function to each item, when its result is asked for; the next item is prepared meanwhile."""
    for item in _ahead(items):
        yield function(item)


@dataclass(frozen=True)
class _Raised:
    error: BaseException


_END = object()


def _ahead(items: Iterable[Any]) -> Iterator[Any]:
    """Yield the items, of which one is taken in advance on a thread.

    The thread is a daemon: one that waits for a pipe must not keep an interrupted command alive.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=1)
    left = threading.Event()

    def take() -> None:
        try:
            for item in items:
                ready.put(item)
                if left.is_set():
                    return
            ready.put(_END)
        except BaseException as error:  # It is raised where the items are asked for.
            ready.put(_Raised(error))

    threading.Thread(target=take, daemon=True).start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        left.set()
        while not ready.empty():  # A thread that waits to hand over its item may go on, and end.
            ready.get_nowait()
