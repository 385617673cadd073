"""The records of one file, one after the other: jsonl, csv, tsv, txt, parquet and Arrow, compressed or not.

A record comes with its place, counted from 1: the line of a text file on which it starts, the row of parquet and Arrow.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

from bertflow.errors import InputError, did_you_mean
from bertflow_standard.opening import BUFFER, COMPRESSIONS, opened, seekable
from bertflow_standard.process import Borrowed


class FileFormat(Enum):
    """How a file holds its records."""

    jsonl = "jsonl"
    csv = "csv"
    tsv = "tsv"
    txt = "txt"
    parquet = "parquet"
    arrow = "arrow"


SUFFIXES = {f".{kind.value}": kind for kind in FileFormat} | {
    ".ndjson": FileFormat.jsonl,
    ".feather": FileFormat.arrow,
}

Record = Mapping[str, Any] | str
"""Column -> value, or the reason why the record cannot be read."""

Records = Iterator[tuple[int, Record]]
"""Each record behind its place."""

_NO_TEXT = "not UTF-8"

_BATCH_ROWS = 1024
"""Rows of parquet or Arrow that are Python objects at one time."""

_LOOK_AHEAD = 1000
"""Records of jsonl in which every carried column must occur: there is no header to hold its name against."""

_field_limit = Borrowed(csv.field_size_limit, csv.field_size_limit)
_LONGEST_FIELD = 1 << 28  # Python's own limit is 131,072; without one, a forgotten quote reads the whole file.


@dataclass(frozen=True)
class Columns:
    """The columns to read: each record owes the needed ones; a record of jsonl may lack one that is only carried."""

    needed: Sequence[str]
    carried: Sequence[str]

    @property
    def names(self) -> list[str]:
        """Every column once."""
        return list(dict.fromkeys((*self.needed, *self.carried)))


def format_of(file: Path) -> FileFormat | None:
    """Return the format that a file's name says."""
    suffix = file.suffix.lower()
    return SUFFIXES.get(Path(file.stem).suffix.lower() if suffix in COMPRESSIONS else suffix)


def read_records(file: Path | None, kind: FileFormat, columns: Columns) -> Iterator[tuple[int, Record, float | None]]:
    """Read a file, or stdin for None, and never more of it than a few buffers at a time.

    Yields each record behind its place, and with the share of the file that has been read by then; None for a pipe.

    Raises:
        InputError: a column is missing, or the file cannot be read as what it should be.
        OSError: the operating system refuses the file.
    """
    name = str(file) if file else "stdin"
    try:
        with opened(file) as (source, plain):
            share = _share(plain, kind, source is plain) if file and plain.seekable() else lambda _: None
            for place, record in _READERS[kind](source, name, columns):
                yield place, record, share(place)
    except (OSError, ValueError, LookupError, MemoryError, NotImplementedError) as error:  # pyarrow, on damaged bytes
        if isinstance(error, OSError) and error.errno is not None:  # It is the operating system that refuses.
            raise
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        fix = f"it is damaged or not {kind.value}: make it anew, or say what it is with input.format"
        raise InputError(f"file cannot be read ({reason})", name, fix) from error


def _share(plain: io.BufferedReader, kind: FileFormat, is_plain: bool) -> Callable[[int], float]:
    """Return what tells the share of a file that has been read, when a record has been read from that place."""
    if kind is FileFormat.parquet and is_plain:  # It is not read from front to back.
        import pyarrow.parquet as pq

        rows = pq.read_metadata(plain).num_rows
        plain.seek(0)
        return lambda place: place / rows
    size = os.fstat(plain.fileno()).st_size
    return lambda _: plain.tell() / size


def _lines(source: io.BufferedReader) -> Iterator[bytes]:
    first = source.readline().removeprefix(b"\xef\xbb\xbf")
    return chain([first] if first else [], source)


def _check_columns(wanted: Iterable[str], found: Sequence[str], name: str) -> None:
    for column in wanted:
        if column not in found:
            raise InputError("no such column", f"{name}: {column}", did_you_mean(column, found))
        if found.count(column) > 1:
            raise InputError("two columns have one name", f"{name}: {column}", "rename one of them")


def _read_txt(source: io.BufferedReader, name: str, columns: Columns) -> Records:
    """Each line is a text, an empty one too, in a table of one column."""
    _check_columns(columns.names, ["text"], name)
    for number, line in enumerate(_lines(source), 1):
        try:
            yield number, {"text": line.removesuffix(b"\n").removesuffix(b"\r").decode()}
        except UnicodeDecodeError:
            yield number, _NO_TEXT


def _read_jsonl(source: io.BufferedReader, name: str, columns: Columns) -> Records:
    records = ((number, _json(line)) for number, line in enumerate(_lines(source), 1) if line.strip())
    head: list[tuple[int, Record]] = []
    seen: set[str] = set()
    for number, record in islice(records, _LOOK_AHEAD):
        head.append((number, record))
        seen |= set() if isinstance(record, str) else record.keys()
        if seen.issuperset(columns.carried):
            break
    else:
        if seen:
            _check_columns(columns.carried, list(seen), name)
    yield from chain(head, records)


def _json(line: bytes) -> Record:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        return _NO_TEXT
    except json.JSONDecodeError as error:
        return f"not valid JSON ({error.msg}, character {error.pos})"
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({error})"
    return record if isinstance(record, dict) else f"not a JSON object but {type(record).__name__}"


def _read_csv(source: io.BufferedReader, name: str, columns: Columns, delimiter: str = ",") -> Records:
    """Read with Python's csv: pyarrow's gives up the whole file at a text longer than its buffer or no UTF-8."""
    unreadable: list[str] = []

    def decoded() -> Iterator[str]:
        for line in _lines(source):
            try:
                yield line.decode()
            except UnicodeDecodeError:
                unreadable.append(_NO_TEXT)
                yield line.decode(errors="replace")

    with _field_limit.set(_LONGEST_FIELD):
        reader = csv.reader(decoded(), delimiter=delimiter, strict=True)
        header = _next_row(reader, unreadable)
        if header is None:
            return
        if isinstance(header, str):
            raise InputError(f"header is {header}", name, "mend its first line; texts are UTF-8")
        _check_columns(columns.names, header, name)
        places = {column: header.index(column) for column in columns.names}
        line = reader.line_num + 1
        while (row := _next_row(reader, unreadable)) is not None:
            if isinstance(row, str):
                yield line, row
            elif len(row) == len(header):
                yield line, {column: row[place] for column, place in places.items()}
            elif row:  # An empty line has no field at all.
                yield line, f"{len(row)} fields where the header has {len(header)}"
            line = reader.line_num + 1


def _next_row(reader: Any, unreadable: list[str]) -> list[str] | str | None:
    """Return the next row, the reason why it cannot be read, or None behind the last."""
    row: list[str] | str | None
    try:
        row = next(reader, None)
    except csv.Error as error:
        row = f"not valid CSV ({error})"
    if unreadable:
        unreadable.clear()
        return _NO_TEXT
    return row


def _read_tsv(source: io.BufferedReader, name: str, columns: Columns) -> Records:
    return _read_csv(source, name, columns, delimiter="\t")


def _read_parquet(source: io.BufferedReader, name: str, columns: Columns) -> Records:
    import pyarrow.parquet as pq

    with seekable(source) as whole:
        # The buffer lets a column come page by page; without it a whole row group is read at once.
        file = pq.ParquetFile(whole, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True)
        _check_columns(columns.names, file.schema_arrow.names, name)
        yield from _numbered(file.iter_batches(_BATCH_ROWS, columns=columns.names, use_threads=False), columns)


def _read_arrow(source: io.BufferedReader, name: str, columns: Columns) -> Records:
    import pyarrow as pa

    if source.peek(6)[:6] != b"ARROW1":
        stream = pa.ipc.open_stream(source)
        _check_columns(columns.names, stream.schema.names, name)
        yield from _numbered(map(_validated, stream), columns)
        return
    with seekable(source) as whole:
        names = pa.ipc.open_file(whole).schema.names
        _check_columns(columns.names, names, name)
        options = pa.ipc.IpcReadOptions(included_fields=[names.index(column) for column in columns.names])
        file = pa.ipc.open_file(whole, options=options)
        yield from _numbered(map(_validated, map(file.get_batch, range(file.num_record_batches))), columns)


def _validated(batch: Any) -> Any:
    """Return the batch: Arrow maps bytes as they are, and damaged ones would end the process."""
    batch.validate(full=True)
    return batch


def _numbered(batches: Iterable[Any], columns: Columns) -> Records:
    return enumerate(chain.from_iterable(_records(batch.select(columns.names)) for batch in batches), 1)


def _records(batch: Any) -> Iterator[Record]:
    for start in range(0, len(batch), _BATCH_ROWS):
        part = batch.slice(start, _BATCH_ROWS)
        try:
            yield from part.to_pylist()
        except (ValueError, OverflowError):  # One of its rows is to blame.
            yield from (_record(part.slice(row, 1)) for row in range(len(part)))


def _record(row: Any) -> Record:
    try:
        (record,) = row.to_pylist()
    except UnicodeDecodeError:
        return _NO_TEXT
    except (ValueError, OverflowError) as error:
        return f"a value that Python cannot hold ({error})"
    return cast(Record, record)


_READERS: Mapping[FileFormat, Callable[[io.BufferedReader, str, Columns], Records]] = {
    FileFormat.jsonl: _read_jsonl,
    FileFormat.csv: _read_csv,
    FileFormat.tsv: _read_tsv,
    FileFormat.txt: _read_txt,
    FileFormat.parquet: _read_parquet,
    FileFormat.arrow: _read_arrow,
}
