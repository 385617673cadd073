"""Columns as numpy arrays in a file: `.npz` and `.safetensors`, written and read in pieces.

Both formats hold one column after the other, so that a writer goes over the batches once for each.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bertflow.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

Batches = Callable[[], "Iterable[pa.RecordBatch]"]
Writer = Callable[[Path, "pa.Schema", Batches, int], None]
"""Takes the target, the schema, what yields the batches (anew each time it is called), and the number of rows."""

Choose = Callable[[Sequence[str]], list[str]]
"""Takes the names of a file's columns; returns those to read, or raises InputError."""

BATCH_ROWS = 4096
PIECE_BYTES = 1 << 22
_CODES = {"f": "F", "i": "I", "u": "U"}


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
    return bool(t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind))


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
    header, start = {}, 0
    for name in names:
        dtype, width = layouts[name]
        stop = start + rows * math.prod(width) * dtype.itemsize
        code = "BOOL" if dtype.kind == "b" else f"{_CODES[dtype.kind]}{8 * dtype.itemsize}"
        header[name] = {"dtype": code, "shape": [rows, *width], "data_offsets": [start, stop]}
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
    import pyarrow.compute as pc

    kind = decoded(field.type)
    if _is_text(kind):
        lengths = (pc.max(pc.utf8_length(batch.column(field.name).cast(kind))).as_py() for batch in batches())
        return np.dtype(f"<U{max((length or 1 for length in lengths), default=1)}"), ()
    width = (kind.list_size,) if is_vector(kind) else ()
    return np.dtype((kind.value_type if width else kind).to_pandas_dtype()).newbyteorder("<"), width


def _write_pieces(file: IO[bytes], name: str, dtype: Any, batches: Batches) -> None:
    row = 0
    for batch in batches():
        column = batch.column(name)
        if column.null_count:
            number = row + column.is_null().to_pylist().index(True)
            raise ConfigError("numpy arrays hold no null", f"column {name}, row {number}", "choose .parquet")
        numbers = column.flatten() if is_vector(column.type) else column.cast(decoded(column.type))
        step = max(1, PIECE_BYTES // dtype.itemsize)
        for start in range(0, len(numbers), step):
            piece = numbers.slice(start, step).to_numpy(zero_copy_only=False)
            file.write(piece.astype(dtype, copy=False).tobytes())
        row += batch.num_rows


def read_npz(path: Path, choose: Choose) -> Iterator[pa.RecordBatch]:
    """Yield the columns of a `.npz` file in batches."""
    import numpy as np

    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(path))
        names = choose([name.removesuffix(".npy") for name in archive.namelist()])
        members: dict[str, tuple[IO[bytes], Any, tuple[int, ...]]] = {}
        for name in names:
            file = stack.enter_context(archive.open(f"{name}.npy"))
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, by_columns, dtype = read_header[np.lib.format.read_magic(file)](file)
            if dtype.hasobject or by_columns:
                raise ValueError(f"{name} is {'pickled' if dtype.hasobject else 'stored by columns'}")
            members[name] = file, dtype, shape

        def read(name: str, start: int, rows: int) -> Any:
            file, dtype, shape = members[name]
            data = file.read(rows * math.prod(shape[1:]) * dtype.itemsize)
            return np.frombuffer(data, dtype).reshape(rows, *shape[1:])

        yield from _batches({name: members[name][2] for name in names}, read)


def read_safetensors(path: Path, choose: Choose) -> Iterator[pa.RecordBatch]:
    """Yield the columns of a safetensors file in batches."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        tensors = {name: file.get_slice(name) for name in choose(list(file.keys()))}
        shapes = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
        yield from _batches(shapes, lambda name, start, rows: tensors[name][start : start + rows])


def _batches(shapes: Mapping[str, tuple[int, ...]], read: Callable[[str, int, int], Any]) -> Iterator[pa.RecordBatch]:
    """Yield batches of arrays of these shapes, of which `read(name, start, rows)` gives a piece."""
    import pyarrow as pa

    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(f"its columns have other numbers of rows: {dict(shapes)}")
    ((rows,),) = lengths
    for start in range(0, rows, BATCH_ROWS):
        pieces = {name: read(name, start, min(BATCH_ROWS, rows - start)) for name in shapes}
        yield pa.RecordBatch.from_pydict({name: _column(piece) for name, piece in pieces.items()})


def _column(piece: Any) -> pa.Array:
    import pyarrow as pa

    if piece.ndim == 1:
        return pa.array(piece)
    return pa.FixedSizeListArray.from_arrays(pa.array(piece.reshape(-1)), piece.shape[1])
