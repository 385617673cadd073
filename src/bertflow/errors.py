"""The errors that a user can meet, each with its exit code.

Every error is one line: what is wrong, where (file, key or row), and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 2000
"""Characters of an error's line."""


def printable(text: str) -> str:
    """Spell out what a terminal would take for a command, or could not show: names in a file may hold anything."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


class BertflowError(Exception):
    """Something went wrong that one line can explain.

    Args:
        what: what is wrong, in a few words.
        where: the file, key, row or plugin that it concerns.
        fix: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, where: str, fix: str) -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        line = " ".join(f"{self.what}: {self.where} - {self.fix}".split())
        # What a file holds may be quoted, at any length: both ends say enough.
        return printable(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}")


class ConfigError(BertflowError):
    """A wrong command line or config; an existing target without `overwrite` too."""

    exit_code = 2


class CheckpointError(BertflowError):
    """A checkpoint that is missing, damaged, or not the one that was asked for."""

    exit_code = 3


class InputError(BertflowError):
    """Input rows that are missing or that the model cannot take."""

    exit_code = 4


class StorageError(BertflowError):
    """The disk or a permission stands in the way."""

    exit_code = 5

    @classmethod
    def of(cls, error: OSError) -> StorageError:
        """Say in one line what the operating system refused."""
        where = error.filename if error.filename is not None else type(error).__name__
        return cls(
            (error.strerror or str(error)).lower(), str(where), "check the path, its permissions and the free space"
        )


class NetworkError(BertflowError):
    """A server cannot be reached, or does not answer as it should."""

    exit_code = 6


class PluginError(BertflowError):
    """A plugin breaks the rules of its group, or fails."""

    exit_code = 7


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `did you mean X?` for a near miss, else the list of what there is."""
    names = sorted(known)
    folded = {name.casefold(): name for name in names}
    near = [folded[name] for name in difflib.get_close_matches(word.casefold(), folded, n=1)]
    near = near or [name for name in names if word and name.startswith(word)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose one of {', '.join(names)}" if names else "there is none to choose"
