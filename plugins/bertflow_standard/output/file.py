"""`output=file`: the results in a file whose suffix says the format.

What a task gives at once is written at once. What streams is written in parts, and an interrupted run goes on: the rows
as columns in the file, the rows that were left out in `NAME.rejects.jsonl`, and `NAME.receipt.json`: what decided them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertflow import hookimpl
from bertflow.errors import ConfigError, InputError, StorageError, did_you_mean
from bertflow.flow import Flow
from bertflow.hookspecs import Part, Result
from bertflow.redaction import redact
from bertflow_standard.formats import WRITERS, refuse_columns
from bertflow_standard.ledger import Ledger, is_finished
from bertflow_standard.summary import Format, render

if TYPE_CHECKING:
    import pyarrow as pa


class Dtype(Enum):
    """Of the vectors in the file."""

    float32 = "float32"
    float16 = "float16"


@dataclass
class Config:
    """Where the results go, and how the summary is shown."""

    path: str
    overwrite: bool
    dtype: Dtype
    format: Format
    values: bool


def _write_npz(path: Path, outputs: Mapping[str, Any]) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.savez(file, **outputs)


def _write_safetensors(path: Path, outputs: Mapping[str, Any]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in outputs.items()}, path)


TENSOR_WRITERS = {".npz": _write_npz, ".safetensors": _write_safetensors}
"""Formats for arrays of any shape; `WRITERS` are those for columns."""


def _path(config: Config) -> Path:
    return Path(os.path.expanduser(config.path))


@hookimpl
def check_run(flow: Flow) -> None:
    """Refuse a target that cannot be written, before anything is computed."""
    config: Config = flow.settings["output"]
    path = _path(config)
    if path.suffix not in WRITERS:
        fix = did_you_mean(path.suffix, WRITERS)
        raise ConfigError("no such file format", f"output.path={config.path}", fix)
    if path.is_dir():
        raise ConfigError("target is a folder", f"output.path={path}", "name a file in it")
    if not is_finished(path):
        _refuse_replacing(path, config)
    if not path.parent.is_dir():
        raise StorageError("folder not found", str(path.parent), "create it first")
    if not os.access(path.parent, os.W_OK):
        raise StorageError("permission denied", str(path.parent), "choose a folder that you may write to")


def _refuse_replacing(path: Path, config: Config) -> None:
    if path.exists() and not config.overwrite:
        raise ConfigError("file exists", f"output.path={path}", "choose another path, or add output.overwrite=true")


@hookimpl
def write_result(config: Config, result: Result) -> Result:
    """Write the outputs beside the target, then put them in its place in one step; a stream has written already."""
    if result.written:
        return result
    path = _path(config)
    if not result.outputs:
        raise ConfigError("there is nothing to write", f"task={result.task} with output=file", "use output=print")
    if path.suffix not in TENSOR_WRITERS:
        fix = f"choose {' or '.join(TENSOR_WRITERS)}"
        raise ConfigError(f"task={result.task} gives tensors, not columns", f"output.path={path}", fix)
    # A folder of its own takes the half-written file, so that a failure leaves nothing behind.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        part = Path(folder, path.name)
        TENSOR_WRITERS[path.suffix](part, result.outputs)
        witness = Path(folder, "witness")
        witness.touch()
        shutil.copymode(path if path.exists() else witness, part)  # safetensors makes its files private.
        _refuse_replacing(path, config)  # It may have come while the model ran.
        part.replace(path)
    return replace(result, written={"path": str(path), "bytes": path.stat().st_size})


@hookimpl
def open_output(config: Config, identity: Mapping[str, Any]) -> ColumnsFile:
    """Open the ledger of the target's parts, new or as an interrupted run left it."""
    return ColumnsFile(_path(config), config, identity)


class ColumnsFile:
    """The sink of a stream: parts on disk, joined into one file at the end."""

    def __init__(self, path: Path, config: Config, identity: Mapping[str, Any]) -> None:
        self._path, self._config = path, config
        with _resumable(path):
            self._ledger = Ledger(path, {**identity, "file": {"dtype": config.dtype.value, "format": path.suffix}})
        self.done = self._ledger.done
        self._schema = None if self._ledger.moves else self._ledger.schema()

    def add(self, part: Part) -> None:
        """Write a part to the disk."""
        table = _table(part.columns, self._config.dtype)
        self._schema = _widen(self._schema, table.schema, part.number)
        refuse_columns(self._path.suffix, self._schema)
        with _resumable(self._path):
            self._ledger.add(part, table)

    def finish(self, receipt: Mapping[str, Any]) -> Mapping[str, Any]:
        """Join the parts, and put file, rejects and receipt in their places."""
        with _resumable(self._path):
            if not self._ledger.moves:
                self._join(receipt)
            names = {
                Path(place).suffixes[-2]: place for place in self._ledger.moves.values() if place != self._path.name
            }
            self._ledger.move()
            if self._config.overwrite and "rejects" not in self._ledger.moves:  # Those of the file that was replaced.
                self._path.with_name(f"{self._path.name}.rejects.jsonl").unlink(missing_ok=True)
        written: dict[str, Any] = {"path": str(self._path), "bytes": self._path.stat().st_size}
        return written | {kind.removeprefix("."): str(self._path.parent / place) for kind, place in names.items()}

    def _join(self, receipt: Mapping[str, Any]) -> None:
        folder, rows = self._ledger.folder, receipt["counts"]["rows"]
        if not rows:
            raise InputError("no row is left", str(self._path), f"all were rejected: see {folder} for the reasons")
        assert self._schema is not None
        seen = 0

        def batches() -> Any:
            nonlocal seen
            seen = 0
            for batch in self._ledger.batches(self._schema):
                seen += batch.num_rows
                yield batch

        refuse_columns(self._path.suffix, self._schema)
        WRITERS[self._path.suffix](folder / "joined", self._schema, batches, rows)
        if seen != rows or sum(part.rows for part in self._ledger.done) != rows + receipt["counts"]["rejected"]:
            raise AssertionError(f"{seen} rows written of {rows} computed")
        moves = {"joined": self._path.name, "receipt": f"{self._path.name}.receipt.json"}
        digests = "".join(part.digest for part in self._ledger.done)
        rows_digest = hashlib.blake2b(digests.encode(), digest_size=16).hexdigest()
        text = json.dumps({**receipt, "rows_digest": rows_digest}, indent=2, ensure_ascii=False, default=str)
        (folder / "receipt").write_text(redact(f"{text}\n"), encoding="utf-8", errors="backslashreplace")
        if receipt["counts"]["rejected"]:
            with (folder / "rejects").open("wb") as file:
                file.writelines(self._ledger.rejects())
            moves["rejects"] = f"{self._path.name}.rejects.jsonl"
        _refuse_replacing(self._path, self._config)  # It may have come while the model ran.
        if self._path.exists():
            shutil.copymode(self._path, folder / "joined")
        self._ledger.plan(moves)

    def close(self) -> None:
        """Let the ledger go."""
        self._ledger.close()


@contextlib.contextmanager
def _resumable(path: Path) -> Iterator[None]:
    """Say of an error of the disk that the run can go on."""
    try:
        yield
    except OSError as error:
        fix = "mend it and give the same command again: it goes on from here"
        raise StorageError(StorageError.of(error).what, str(error.filename or path), fix) from error


def _table(columns: Mapping[str, Any], dtype: Dtype) -> pa.Table:
    """Return columns as Arrow has them: vectors as fixed-size lists, counts as int32."""
    import numpy as np
    import pyarrow as pa

    types = {"n_tokens": pa.int32(), "truncated": pa.bool_()}
    arrays = {}
    for name, values in columns.items():
        if isinstance(values, np.ndarray) and values.ndim > 1:
            numbers = np.ascontiguousarray(values, dtype=dtype.value)
            if not np.isfinite(numbers).all():
                raise InputError(f"{name} is too large for float16", "output.dtype", "use output.dtype=float32")
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), values.shape[1])
        else:
            try:
                arrays[name] = pa.array(values, type=types.get(name))
            except (ValueError, TypeError, OverflowError) as error:
                reason = " ".join(str(error).split())
                fix = "give its values one type that Arrow has, or leave it out of input.keep"
                raise InputError("column cannot be stored", f"{name}: {reason}", fix) from error
    return pa.table(arrays)


def _widen(schema: pa.Schema | None, other: pa.Schema, number: int) -> pa.Schema:
    import pyarrow as pa

    try:
        return pa.unify_schemas([schema or other, other], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        reason = " ".join(str(error).split())
        fix = "give its values one type, or leave it out of input.keep"
        raise InputError("column changes its type", f"part {number}: {reason}", fix) from error


@hookimpl
def render_result(config: Config, result: Result) -> str:
    """Show a summary of what was written."""
    return render(result, config.format, config.values)
