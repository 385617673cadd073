"""Files of columns: rows with their vectors, written and read batch by batch, so that any number takes little memory.

The suffix says the format. A writer gives the same bytes for the same batches, always; syncing and renaming is the
caller's business.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertflow.errors import BertflowError, ConfigError, InputError, did_you_mean
from bertflow_standard import arrays
from bertflow_standard.arrays import BATCH_ROWS, Batches, Choose, Writer

if TYPE_CHECKING:
    import pyarrow as pa

VECTORS = "embedding"


def refuse_columns(suffix: str, schema: pa.Schema) -> None:
    """Raise ConfigError for a column that the format cannot hold."""
    for field in schema:
        if not _HOLDS[suffix](field):
            fix = "choose .arrow" if suffix == ".parquet" else "choose .parquet"
            raise ConfigError(f"{suffix} holds no {field.type}", f"column {field.name}", fix)


def read_vectors(path: Path, columns: Sequence[str] | None = None) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Open a file of vectors; return its schema, and its batches of at most `BATCH_ROWS` rows.

    The column `embedding` is a list of fixed size and holds finite numbers only.

    Args:
        path: the file; its suffix says the format.
        columns: the columns to read besides `embedding`; None reads all.

    Raises:
        InputError: the file is missing, damaged or empty, or has no such column; a damage further on is raised later.
    """
    if path.suffix not in _READERS:
        raise InputError("no such file format", str(path), did_you_mean(path.suffix, _READERS))
    if not path.is_file():
        raise InputError("vectors file not found", str(path), "write it with task=embed output=file")

    def choose(names: Sequence[str]) -> list[str]:
        for name in (VECTORS, *(columns or ())):
            if name not in names:
                raise InputError(f"vectors file has no column {name}", str(path), did_you_mean(name, names))
        return [name for name in names if columns is None or name in (VECTORS, *columns)]

    batches = _checked(path, _READERS[path.suffix](path, choose))
    first = next(batches, None)
    if first is None:
        raise InputError("vectors file has no row", str(path), "write it with task=embed output=file")
    return first.schema, itertools.chain((first,), batches)


def _checked(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Pass batches on that hold what they should, and say of any trouble which file it is."""
    row, kind = 0, None
    try:
        for batch in batches:
            batch.validate(full=True)  # Offsets of a damaged file must not lead out of its memory.
            vectors = _vectors(batch.column(VECTORS), kind, row)
            kind = vectors.type
            yield batch.set_column(batch.schema.get_field_index(VECTORS), VECTORS, vectors)
            row += batch.num_rows
    except Exception as error:
        if isinstance(error, BertflowError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        where = f"{path}, from row {row} on ({reason})"
        raise InputError("vectors file is damaged", where, "write it with task=embed output=file") from error


def _vectors(column: pa.Array, kind: pa.DataType | None, row: int) -> pa.Array:
    """Return a column of equally long lists as one of vectors; other tools write them as lists of any length."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(lengths) > 1:
            raise ValueError(f"{VECTORS} is of several lengths: {lengths}".replace("None", "null"))
        column = pa.FixedSizeListArray.from_arrays(column.flatten(), lengths[0])
    if not arrays.is_vector(column.type) or kind not in (None, column.type):
        raise ValueError(f"{VECTORS} is {column.type}, not {kind or 'vectors of one length'}")
    lost = column.is_null() if column.null_count else pc.invert(_is_finite(column.flatten()))
    wrong = pc.index(lost, True).as_py()
    if wrong >= 0:
        raise ValueError(f"{VECTORS} of row {row + wrong * len(column) // len(lost)} is null or not finite")
    return column


def _is_finite(numbers: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    wide = numbers.cast(pa.float32()) if pa.types.is_float16(numbers.type) else numbers  # For pyarrow 16.
    return pc.is_finite(wide).fill_null(False)


def _write_parquet(path: Path, schema: pa.Schema, batches: Batches, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # The exponents of vectors are alike: with their bytes apart, zstd saves a sixth at no cost in time.
    apart = [f"{field.name}.list.element" for field in schema if arrays.is_vector(field.type)]
    with (
        path.open("wb") as file,
        pq.ParquetWriter(
            file,
            schema,
            version="2.6",
            data_page_version="1.0",
            compression="zstd",
            use_dictionary=False,
            use_byte_stream_split=apart or False,
            write_statistics=[field.name for field in schema if not pa.types.is_nested(field.type)],
            write_page_checksum=True,
        ) as writer,
    ):
        for batch in batches():
            if batch.num_rows:
                writer.write_batch(batch, row_group_size=batch.num_rows)


def _read_parquet(path: Path, choose: Choose) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    # Without these settings it reads far ahead, and whole columns at once.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True) as file:
        names = choose(file.schema_arrow.names)
        batches = file.iter_batches(BATCH_ROWS, columns=names, use_threads=False)
        yield from (batch.select(names) for batch in batches)


def _parquet_holds(field: pa.Field) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])).close()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return False
    return True


def _write_arrow(path: Path, schema: pa.Schema, batches: Batches, rows: int) -> None:
    import pyarrow as pa

    # The format has one dictionary a column, and only the last batch knows all its values.
    plain = pa.schema([field.with_type(arrays.decoded(field.type)) for field in schema], schema.metadata)
    with path.open("wb") as file, pa.ipc.new_file(file, plain) as writer:
        for batch in batches():
            writer.write_batch(batch.cast(plain))


def _read_arrow(path: Path, choose: Choose) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
        names = choose(file.schema.names)
        for number in range(file.num_record_batches):
            batch = file.get_batch(number).select(names)
            yield from (batch.slice(start, BATCH_ROWS) for start in range(0, batch.num_rows, BATCH_ROWS))


def _write_jsonl(path: Path, schema: pa.Schema, batches: Batches, rows: int) -> None:
    names = [json.dumps(name, ensure_ascii=False) for name in schema.names]
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for batch in batches():
            columns = [_json_values(column) for column in batch.columns]
            for row in zip(*columns, strict=True):
                members = ", ".join(f"{name}: {value}" for name, value in zip(names, row, strict=True))
                file.write(f"{{{members}}}\n")


def _json_values(column: pa.Array) -> list[str]:
    """Return each value as JSON; a float has the fewest digits that give it back in its own type."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if arrays.is_vector(column.type) and not column.null_count:
        numbers = column.flatten()
        if pa.types.is_float16(numbers.type):  # Arrow writes all its digits.
            numbers = numbers.cast(pa.float32())
        words = pc.if_else(_is_finite(numbers), numbers.cast(pa.string()), "null")
        words = pc.if_else(pc.equal(words, "-0"), "-0.0", words)  # Readers take -0 for a whole number, without sign.
        bounds = pa.array(range(0, len(words) + 1, column.type.list_size), pa.int64())
        lines = pc.binary_join(pa.LargeListArray.from_arrays(bounds, words), ", ")
        return [f"[{line}]" for line in lines.to_pylist()]
    if pa.types.is_floating(column.type):
        column = column.cast(pa.string()).cast(pa.float64())
    elif pa.types.is_temporal(column.type):  # Python knows no nanoseconds.
        column = column.cast(pa.string())
    return [json.dumps(finite(value), ensure_ascii=False, default=str) for value in column.to_pylist()]


def finite(value: Any) -> Any:
    """Return the value as JSON can have it: null for a number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(item) for item in value]
    return {name: finite(item) for name, item in value.items()} if isinstance(value, dict) else value


def _jsonl_holds(field: pa.Field) -> bool:
    from pyarrow import types as t

    known = (t.is_null, t.is_boolean, t.is_integer, t.is_floating, t.is_decimal, t.is_date, t.is_time, t.is_timestamp)
    texts = (t.is_string, t.is_large_string)
    return all(any(is_kind(leaf) for is_kind in (*known, *texts)) for leaf in _leaves(field.type))


def _leaves(kind: pa.DataType) -> Iterator[pa.DataType]:
    """Yield the types of the values inside a type, however deep."""
    kind = arrays.decoded(kind)
    if not kind.num_fields:
        yield kind
    for number in range(kind.num_fields):
        yield from _leaves(kind.field(number).type)


def _read_jsonl(path: Path, choose: Choose) -> Iterator[pa.RecordBatch]:
    """Types are those of each batch's own values."""
    import pyarrow as pa

    with path.open(encoding="utf-8") as file:
        names: list[str] = []
        while lines := list(itertools.islice(file, BATCH_ROWS // 4)):  # Objects of Python's take much memory.
            rows = [json.loads(line) for line in lines]
            names = names or choose(list(rows[0]))
            kinds = {VECTORS: pa.list_(pa.float32())}
            yield pa.RecordBatch.from_pydict(
                {name: pa.array([row[name] for row in rows], kinds.get(name)) for name in names}
            )


WRITERS: Mapping[str, Writer] = {
    ".parquet": _write_parquet,
    ".arrow": _write_arrow,
    ".feather": _write_arrow,
    ".jsonl": _write_jsonl,
    ".npz": arrays.write_npz,
    ".safetensors": arrays.write_safetensors,
}

_READERS: Mapping[str, Callable[[Path, Choose], Iterator[pa.RecordBatch]]] = {
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".jsonl": _read_jsonl,
    ".npz": arrays.read_npz,
    ".safetensors": arrays.read_safetensors,
}

_HOLDS: Mapping[str, Callable[[pa.Field], bool]] = {
    ".parquet": _parquet_holds,
    ".arrow": lambda field: True,
    ".feather": lambda field: True,
    ".jsonl": _jsonl_holds,
    ".npz": arrays.npz_holds,
    ".safetensors": arrays.safetensors_holds,
}
