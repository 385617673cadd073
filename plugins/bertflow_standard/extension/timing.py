"""`extension=[timing]`: how long each hook took, on stderr at the end of the run.

A model for extensions: a wrapper runs around the hook of its name, whoever implements it. What comes before the `yield`
happens first; `yield` runs the hook and gives its result, which the wrapper returns.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from bertflow import hookimpl
from bertflow.catalogue import OWNERS
from bertflow.flow import Flow


@dataclass
class Clock:
    """Calls of one hook, and the seconds spent in them, with the hooks that they called in turn."""

    calls: int = 0
    seconds: float = 0.0


_clocks: WeakKeyDictionary[Flow, dict[str, Clock]] = WeakKeyDictionary()
_lock = threading.Lock()


def _timed(hook: str) -> Callable[[Flow], Generator[None, Any, Any]]:
    @hookimpl(wrapper=True)
    def wrapper(flow: Flow) -> Generator[None, Any, Any]:
        start = time.perf_counter()
        try:
            return (yield)
        finally:
            seconds = time.perf_counter() - start
            with _lock:  # An engine may run `forward` on several threads.
                clock = _clocks.setdefault(flow, {}).setdefault(hook, Clock())
                clock.calls += 1
                clock.seconds += seconds

    return wrapper


build_model = _timed("build_model")
load_weights = _timed("load_weights")
place_model = _timed("place_model")
read_rows = _timed("read_rows")
tokenize = _timed("tokenize")
run_batch = _timed("run_batch")
forward = _timed("forward")
save_checkpoint = _timed("save_checkpoint")
run_task = _timed("run_task")


@hookimpl(wrapper=True)
def write_result(flow: Flow) -> Generator[None, Any, Any]:
    """Print the table once the last step is done."""
    result = yield
    _print(_clocks.pop(flow, {}))
    return result


def _print(clocks: dict[str, Clock]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "hook", "calls", "seconds", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for hook, clock in clocks.items():
        table.add_row(OWNERS[hook], hook, str(clock.calls), f"{clock.seconds:.3f}")
    Console(file=sys.stderr, color_system=None, force_terminal=False, width=100, highlight=False).print(table)
