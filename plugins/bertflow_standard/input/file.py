"""`input=file`: rows from files, from all files of a folder or pattern, or from stdin."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from bertflow import hookimpl
from bertflow.errors import ConfigError, InputError, did_you_mean
from bertflow.flow import Flow
from bertflow.hookspecs import Row
from bertflow_standard.readers import SUFFIXES, Columns, FileFormat, Record, format_of, read_records

STDIN = "-"
RESERVED = ("id", "embedding", "n_tokens", "similarity", "truncated")
"""What bertflow's own columns are called where a carried column would stand beside them."""


class OnError(Enum):
    """What a row that cannot be used does to the run."""

    stop = "stop"
    skip = "skip"


@dataclass
class Config:
    """Where the rows are, in which columns, and what becomes of a bad one."""

    path: str
    format: FileFormat | None
    column: str
    pair_column: str | None
    id_column: str | None
    keep: list[str]
    on_error: OnError

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("a value is missing", "input.path", "give it: input.path=...")
        for column in self.keep:
            if column in RESERVED:
                raise ConfigError("name is taken in the output", f"input.keep: {column}", "rename the column")
            if self.keep.count(column) > 1:
                raise ConfigError("column is named twice", f"input.keep: {column}", "name it once")
        if self.path == STDIN and self.format is None:
            raise ConfigError("the format of stdin is not known", "input.path=-", "say it, such as input.format=jsonl")


@hookimpl
def check_run(flow: Flow) -> None:
    """Find the files, and read the first row of each: a wrong name is answered before a model is loaded."""
    config: Config = flow.settings["input"]
    for file in _files(config):
        kind = _format(file, config)
        if file and file.is_file():  # What comes through a pipe can be read only once.
            next(read_records(file, kind, _columns(config)), None)


@hookimpl
def read_rows(config: Config) -> Iterator[Row]:
    """Give one row after the other, each with its `place`: the file, and the number that the file's reader counts.

    `read` is the share of all files that has been read with it, by their sizes.

    `text` is what the file holds, a text or not; so are `text_pair` and `id` where their columns are named, and `keep`
    maps each carried column to its value. A row that cannot be read has an `error` instead: the reason.
    """
    files = _files(config)
    sizes = [file.stat().st_size if file else 0 for file in files]
    before, total = 0, sum(sizes)
    for file, size in zip(files, sizes, strict=True):
        name = str(file) if file else "stdin"
        for number, record, share in read_records(file, _format(file, config), _columns(config)):
            row = _row(config, record, (name, number))
            yield row if share is None else {**row, "read": (before + share * size) / total}
        before += size


def _row(config: Config, record: Record, place: tuple[str, int]) -> Row:
    if isinstance(record, str):
        return {"error": record, "place": place}
    row: dict[str, Any] = {"place": place}
    try:
        if config.id_column is not None:
            row["id"] = record[config.id_column]
        row["text"] = record[config.column]
        if config.pair_column is not None:
            row["text_pair"] = record[config.pair_column]
    except KeyError as missing:  # Only jsonl can lack one here: a header was checked when the file was opened.
        known = {"id": row["id"]} if "id" in row else {}
        reason = f"no column {missing.args[0]} (it has {', '.join(record) or 'none'})"
        return {"error": reason, "place": place, **known}
    if config.keep:
        row["keep"] = {column: record.get(column) for column in config.keep}
    return row


@hookimpl
def describe_input(config: Config) -> Mapping[str, Any]:
    """Tell the name and size of each file, by which a later run knows the same input."""
    return {"files": {str(file): file.stat().st_size for file in _files(config) if file}}


def _columns(config: Config) -> Columns:
    needed = (config.column, config.pair_column, config.id_column)
    return Columns([column for column in needed if column is not None], config.keep)


def _format(file: Path | None, config: Config) -> FileFormat:
    kind = config.format or (format_of(file) if file else None)
    if kind is None:
        fix = f"let it end in {', '.join(SUFFIXES)}, or say it, such as input.format=jsonl"
        raise ConfigError("no such file format", f"input.path={file}", fix)
    return kind


def _files(config: Config) -> Sequence[Path | None]:
    """Return the files to read, sorted; None is stdin."""
    if config.path == STDIN:
        return [None]
    path = Path(os.path.expanduser(config.path))
    if path.is_dir():
        return _folder(path, config)
    if os.path.lexists(path):
        return [path]
    found = sorted(file for file in set(map(Path, glob.glob(str(path), recursive=True))) if not file.is_dir())
    if not found:
        raise _not_found(path, "no file matches" if glob.has_magic(str(path)) else "file not found")
    return found


def _folder(folder: Path, config: Config) -> Sequence[Path]:
    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [Path(place, name) for name in names if not name.startswith(".")]
        wanted = [config.format] if config.format else list(FileFormat)
        found += [file for file in files if format_of(file) in wanted]
    if not found:
        suffixes = [suffix for suffix, kind in SUFFIXES.items() if config.format in (None, kind)]
        fix = f"it is searched for names that end in {', '.join(suffixes)}"
        raise InputError("no file to read in the folder", f"input.path={folder}", fix)
    return sorted(found)


def _refuse(error: OSError) -> NoReturn:
    raise error


def _not_found(path: Path, what: str) -> InputError:
    near = ""
    with contextlib.suppress(OSError):
        near = did_you_mean(path.name, os.listdir(path.parent))
    fix = near if near.startswith("did you mean") else "check the path"
    return InputError(what, f"input.path={path}", fix)
