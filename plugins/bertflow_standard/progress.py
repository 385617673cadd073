"""How far a stream is: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from bertflow.flow import Flow

INTERVALS = {True: 0.1, False: 5.0}
"""Seconds between two looks at a terminal's bar, and between two plain lines."""

LEAST_SHARE = 0.01
"""Of the input: what must be done before the time that is left is told."""


@dataclass(frozen=True)
class _Waiting:
    """A part that has been read: its rows and tokens, and the share of the input that has been read with it."""

    rows: int
    tokens: int
    share: float | None


class Progress:
    """Shows rows, tokens per second and the time that is left on stderr, where somebody reads it."""

    def __init__(self, flow: Flow) -> None:
        self._start = self._shown = time.perf_counter()
        self._waiting: dict[int, _Waiting] = {}
        self._counts: Mapping[str, int] = {}
        self._parts_before = self._tokens_before = 0
        self._share_before = self._share_done = 0.0
        self._rows_now = self._tokens_now = 0
        self._lock = threading.Lock()
        self._interactive, self._bar = flow.interactive, self._open_bar() if flow.interactive else None
        self._flow = flow
        flow.watch = self.advance

    def _open_bar(self) -> Any:
        """Return rich's bar on a terminal, else None."""
        if not sys.stderr.isatty():
            return None
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
        bar.add_task("loading", total=None)
        bar.start()
        return bar

    @property
    def seconds(self) -> float:
        """Seconds since the stream began."""
        return time.perf_counter() - self._start

    @property
    def tokens(self) -> int:
        """Tokens that this run has computed."""
        return self._counts["tokens"] - self._tokens_before + self._tokens_now

    def resume(self, parts: int, counts: Mapping[str, int]) -> None:
        """Begin behind the parts that an interrupted run has done."""
        self._counts, self._parts_before, self._tokens_before = counts, parts, counts["tokens"]
        if parts and self._interactive:
            self._print(f"resuming behind {counts['rows'] + counts['rejected']:,} rows")

    def read(self, part: int, rows: int, tokens: int, share: float | None) -> None:
        """Note what a part has, and the share of the input that has been read with it; None where it is not known."""
        if part < self._parts_before:
            self._share_before = self._share_done = share or 0.0
        else:
            self._waiting[part] = _Waiting(rows, tokens, share)

    def advance(self, rows: int, tokens: int) -> None:
        """Note what has been computed of the part that is first in line; several threads may."""
        with self._lock:
            self._rows_now += rows
            self._tokens_now += tokens
            self._show()

    def finish(self, part: int, counts: Mapping[str, int]) -> None:
        """Note that a part is done, and what has been counted so far."""
        self._counts, self._rows_now, self._tokens_now = dict(counts), 0, 0
        self._share_done = self._waiting.pop(part).share or 0.0
        self._show()

    def _show(self) -> None:
        now = time.perf_counter()
        if self._interactive and now - self._shown >= INTERVALS[self._bar is not None]:
            self._shown = now
            if self._bar:
                share = self._share()
                self._bar.update(0, description=self._line(), completed=share, total=None if share is None else 1.0)
            else:
                self._print(self._line())

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError):  # Nobody reads stderr any more; the work goes on.
            print(line, file=sys.stderr)

    def _line(self) -> str:
        counts = self._counts
        rows = counts["rows"] + counts["rejected"] + min(self._rows_now, self._part().rows)
        line = f"{rows:,} rows, {self.tokens / self.seconds:,.0f} tokens/s"
        if counts["tokens"]:
            line += f", {counts['padding'] / (counts['padding'] + counts['tokens']):.0%} padding avoided"
        line += f", {counts['rejected']:,} rejected" if counts["rejected"] else ""
        share = self._share()
        if share is not None and LEAST_SHARE <= share - self._share_before < 1 - self._share_before:
            left = self.seconds * (1 - share) / (share - self._share_before)
            line += f", {timedelta(seconds=round(left))} to go"
        return line

    def _part(self) -> _Waiting:
        """Return the part that is first in line."""
        return self._waiting.get(min(self._waiting, default=-1), _Waiting(0, 0, self._share_done or None))

    def _share(self) -> float | None:
        """Return the share of the input that has been computed."""
        part = self._part()
        if part.share is None:
            return None
        return self._share_done + (part.share - self._share_done) * min(1, self._tokens_now / (part.tokens or 1))

    def close(self) -> None:
        """Take the bar away, and watch no more."""
        self._flow.watch = None
        if self._bar:
            self._bar.stop()
