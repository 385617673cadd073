"""Columns as numpy arrays in a file: `.npz` and `.safetensors`, written and read in pieces.

Both formats hold one column after the other, so that a writer goes over the batches once for each.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bertflow.errors import CheckpointError, ConfigError
from bertflow_standard.checkpoint import read_header

if TYPE_CHECKING:
    import pyarrow as pa

Batches = Callable[[], "Iterable[pa.RecordBatch]"]
Writer = Callable[[Path, "pa.Schema", Batches, int], None]
"""Takes the target, the schema, what yields the batches (anew each time it is called), and the number of rows."""

Choose = Callable[[Sequence[str]], list[str]]
"""Takes the names of a file's columns; returns those to read, or raises InputError."""

BATCH_ROWS = 4096
PIECE_BYTES = 1 << 24
_DTYPES = {
    "BOOL": "|b1",
    **{f"F{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    **{
        f"{kind}{8 * size}": f"{'<' if size > 1 else '|'}{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)
    },
}
"""What safetensors calls a dtype -> what numpy does."""


def decoded(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values, where they are kept in a dictionary."""
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column of this type holds vectors of one length."""
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type))


def safetensors_holds(field: pa.Field) -> bool:
    """Whether a safetensors file can hold the column: numbers, booleans and vectors."""
    from pyarrow import types as t

    kind = decoded(field.type)
    return bool(t.is_integer(kind) or t.is_floating(kind) or t.is_boolean(kind) or is_vector(kind))


def npz_holds(field: pa.Field) -> bool:
    """Whether a `.npz` file can hold the column: text too."""
    return _is_text(field.type) or safetensors_holds(field)


def _is_text(kind: pa.DataType) -> bool:
    from pyarrow import types as t

    kind = decoded(kind)
    return bool(t.is_string(kind) or t.is_large_string(kind))


def write_npz(path: Path, schema: pa.Schema, batches: Batches, rows: int) -> None:
    """Write a member for each column; `numpy.load` needs no pickle for it."""
    import numpy as np

    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for field in schema:
            dtype, width = _layout(field, batches)
            header = {"descr": dtype.str, "fortran_order": False, "shape": (rows, *width)}
            member = zipfile.ZipInfo(f"{field.name}.npy")  # Its date is 1980, whenever it is written.
            member.create_system = 3
            # Texts are filled up to the longest with zeros, which cost nothing that way.
            member.compress_type = zipfile.ZIP_DEFLATED if dtype.kind == "U" else zipfile.ZIP_STORED
            with archive.open(member, "w", force_zip64=True) as part:
                np.lib.format.write_array_header_1_0(part, header)
                _write_pieces(part, field.name, dtype, batches)


def write_safetensors(path: Path, schema: pa.Schema, batches: Batches, rows: int) -> None:
    """Write a tensor for each column, those of large numbers first, so that all are aligned."""
    layouts = {field.name: _layout(field, batches) for field in schema}
    names = sorted(layouts, key=lambda name: (-layouts[name][0].itemsize, name))
    codes = {dtype: code for code, dtype in _DTYPES.items()}
    header, start = {}, 0
    for name in names:
        dtype, width = layouts[name]
        stop = start + rows * math.prod(width) * dtype.itemsize
        header[name] = {"dtype": codes[dtype.str], "shape": [rows, *width], "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            _write_pieces(file, name, layouts[name][0], batches)


def _layout(field: pa.Field, batches: Batches) -> tuple[Any, tuple[int, ...]]:
    """Return the dtype of a column's numbers or texts, and the shape of each row's."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = decoded(field.type)
    if _is_text(kind):
        lengths = (pc.max(pc.utf8_length(batch.column(field.name).cast(kind))).as_py() for batch in batches())
        return np.dtype(f"<U{max((length or 1 for length in lengths), default=1)}"), ()
    width = (kind.list_size,) if is_vector(kind) else ()
    empty = pa.array([], kind.value_type if width else kind)
    return empty.to_numpy(zero_copy_only=False).dtype.newbyteorder("<"), width


def _write_pieces(file: IO[bytes], name: str, dtype: Any, batches: Batches) -> None:
    row = 0
    for batch in batches():
        column = batch.column(name)
        values = column.flatten() if is_vector(column.type) else column.cast(decoded(column.type))
        _refuse_values(column, values, name, row)
        step = max(1, PIECE_BYTES // dtype.itemsize)
        for start in range(0, len(values), step):
            piece = values.slice(start, step).to_numpy(zero_copy_only=False)
            file.write(piece.astype(dtype, copy=False).tobytes())
        row += batch.num_rows


def _refuse_values(column: pa.Array, values: pa.Array, name: str, row: int) -> None:
    """Raise ConfigError for what an array would silently change; `row` is the number of the first."""
    import pyarrow.compute as pc

    lost = {"null": column.is_null() if column.null_count else values.is_null()}
    if _is_text(values.type):
        lost["text that ends in NUL"] = pc.ends_with(values, "\0")
    for what, places in lost.items():
        wrong = pc.index(places, True).as_py()
        if wrong >= 0:
            where = f"column {name}, row {row + wrong * len(column) // len(places)}"
            raise ConfigError(f"numpy arrays hold no {what}", where, "choose .parquet")


def read_npz(path: Path, choose: Choose) -> Iterator[pa.RecordBatch]:
    """Yield the columns of a `.npz` file in batches."""
    import numpy as np

    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(path))
        members = {}
        for name in choose([name.removesuffix(".npy") for name in archive.namelist()]):
            file = stack.enter_context(archive.open(f"{name}.npy"))
            is_first = np.lib.format.read_magic(file) == (1, 0)
            read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = read(file)
            if dtype.hasobject or by_columns:
                raise ValueError(f"{name} is {'pickled' if dtype.hasobject else 'stored by columns'}")
            members[name] = Member(file, dtype, shape)
        yield from _batches(members)


def read_safetensors(path: Path, choose: Choose) -> Iterator[pa.RecordBatch]:
    """Yield the columns of a safetensors file in batches."""
    import numpy as np

    try:
        header = read_header(path)
    except CheckpointError as error:
        raise ValueError(error.where) from error
    with ExitStack() as stack:
        members = {}
        for name in choose(list(header)):
            tensor = header[name]
            file = stack.enter_context(path.open("rb"))
            file.seek(tensor.start)
            members[name] = Member(file, np.dtype(_DTYPES[tensor.dtype]), tensor.shape)
        yield from _batches(members)


@dataclass(frozen=True)
class Member:
    """An array in a file that stands at its next row."""

    file: IO[bytes]
    dtype: Any
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return math.prod(self.shape[1:]) * int(self.dtype.itemsize)

    def read(self, rows: int) -> pa.Array:
        """Return the next rows."""
        import numpy as np
        import pyarrow as pa

        numbers = np.frombuffer(self.file.read(rows * self.row_bytes), self.dtype)
        values = pa.array(numbers)
        return pa.FixedSizeListArray.from_arrays(values, self.shape[1]) if self.shape[1:] else values


def _batches(members: Mapping[str, Member]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    shapes = {name: member.shape for name, member in members.items()}
    if {len(shape) for shape in shapes.values()} - {1, 2} or len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError(f"its arrays are no columns: {shapes}")
    left = next(iter(shapes.values()))[0]
    most = min(BATCH_ROWS, PIECE_BYTES // max(1, *(member.row_bytes for member in members.values())))
    while left:
        rows = min(left, max(1, most))
        columns = {name: member.read(rows) for name, member in members.items()}
        yield pa.RecordBatch.from_pydict(columns)
        left -= rows
