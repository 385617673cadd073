"""Rows that are longer than the model takes: refused, cut, or split into overlapping windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from bertflow.errors import CheckpointError, ConfigError, InputError
from bertflow.flow import Flow
from bertflow.hookspecs import Row


class Overflow(Enum):
    """What is done with a row that is too long."""

    error = "error"
    truncate = "truncate"
    window = "window"


@dataclass(frozen=True)
class Fitter:
    """Makes rows fit.

    Args:
        limit: the longest row in tokens; None for no limit.
        policy: what is done with a longer one.
        overlap: tokens that two neighbouring windows share.
        before: special tokens that the tokenizer puts before a text; each window keeps them.
        behind: those behind it.
    """

    limit: int | None
    policy: Overflow
    overlap: int
    before: int = 0
    behind: int = 0

    def fit(self, row: Row, number: int) -> tuple[Sequence[Row], bool]:
        """Return the row's windows, mostly itself alone, and whether it was cut.

        Raises:
            InputError: it is too long, and the policy is `error`.
        """
        length = len(row["input_ids"])
        if self.limit is None or length <= self.limit:
            return (row,), False
        if self.policy is Overflow.error:
            fix = "shorten it, or add task.overflow=truncate or task.overflow=window"
            raise InputError("row is too long", f"row {number}: {length} tokens, limit {self.limit}", fix)
        room = self.limit - self.before - self.behind
        last = length - self.before - self.behind - room
        if self.policy is Overflow.truncate:
            return (self._window(row, 0, room),), True
        starts = [*range(0, last, room - self.overlap), last]
        return [self._window(row, start, room) for start in starts], False

    def _window(self, row: Row, start: int, room: int) -> Row:
        first = self.before + start
        return {
            name: [
                *values[: self.before],
                *values[first : first + room],
                *values[len(values) - self.behind :],
            ]
            for name, values in row.items()
        }


def fitter(flow: Flow, limit: int | None, policy: Overflow, overlap: int) -> Fitter:
    """Return a `Fitter` for the run's model.

    Raises:
        ConfigError: the limit leaves no room for text, or the windows would not advance.
    """
    longest = flow.description().longest
    limits = [value for value in (limit, longest) if value is not None]
    if policy is Overflow.error or not limits:
        return Fitter(min(limits, default=None), policy, overlap)
    before, behind = _affixes(flow)
    room = min(limits) - before - behind
    if room < 1 or (policy is Overflow.window and overlap >= room):
        where = f"task.max_tokens={limit}, task.overlap={overlap}, {before + behind} special tokens"
        raise ConfigError("windows have no room to advance", where, "take a larger max_tokens or a smaller overlap")
    return Fitter(min(limits), policy, overlap, before, behind)


def _affixes(flow: Flow) -> tuple[int, int]:
    """Return how many special tokens stand before a text and behind it."""
    try:
        # What stands around the text is what an empty text and one of a letter have in common.
        empty, letter = (row["input_ids"] for row in flow.tokenize([{"text": ""}, {"text": "a"}], 0))
    except InputError:  # An empty text has no token: there are none.
        return 0, 0
    except (ConfigError, CheckpointError):  # A text would end the run; ids do not need a tokenizer.
        flow.note("there is no tokenizer that knows special tokens: rows of ids are cut without regard to them")
        return 0, 0
    before = _common(empty, letter)
    return before, min(_common(empty[::-1], letter[::-1]), len(empty) - before)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many values two sequences have in common at their start."""
    equal = [a == b for a, b in zip(left, right, strict=False)]
    return equal.index(False) if False in equal else len(equal)
