"""How far a stream is: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from bertflow.flow import Flow

INTERVAL = 5.0
"""Seconds between two plain lines."""


class Progress:
    """Shows rows and tokens per second on stderr, where somebody reads it."""

    def __init__(self, flow: Flow, total: int | None) -> None:
        self._total = total
        self._start = time.perf_counter()
        self._shown = self._start
        self._before = self._resumed = 0
        self.tokens = 0
        self._bar: Any = None
        self._task: Any = None
        self._plain = flow.interactive and not sys.stderr.isatty()
        if flow.interactive and sys.stderr.isatty():
            self._open_bar()

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        self._bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
        self._task = self._bar.add_task("loading", total=None)
        self._bar.start()

    @property
    def seconds(self) -> float:
        """Seconds since the stream began."""
        return time.perf_counter() - self._start

    @property
    def peak_memory(self) -> int | None:
        """The most memory that the process has taken, in bytes; None where the system does not say."""
        try:
            import resource
        except ImportError:  # Windows
            return None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def resume(self, counts: Mapping[str, int]) -> None:
        """Begin behind the rows that an interrupted run has done."""
        self._before, self._resumed = counts["tokens"], counts["rows"] + counts["rejected"]
        if counts["rows"] and (self._plain or self._bar):
            print(f"resuming behind {counts['rows']:,} rows", file=sys.stderr)

    def show(self, counts: Mapping[str, int]) -> None:
        """Show the counts so far."""
        self.tokens = counts["tokens"] - self._before
        rows = counts["rows"] + counts["rejected"]
        line = f"{rows:,} rows, {self.tokens / self.seconds:,.0f} tokens/s"
        line += f", {counts['padding'] / (counts['padding'] + counts['tokens'] or 1):.0%} padding avoided"
        line += f", {counts['rejected']:,} rejected" if counts["rejected"] else ""
        done = (rows - self._resumed) / (self._total - self._resumed) if self._total else 0
        line += f", {self.seconds * (1 - done) / done:,.0f} s to go" if done > 0 else ""
        if self._bar:
            self._bar.update(self._task, description=line)
        elif self._plain and time.perf_counter() - self._shown >= INTERVAL:
            self._shown = time.perf_counter()
            print(line, file=sys.stderr)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.stop()
