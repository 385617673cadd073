"""The parts of a stream on disk, so that an interrupted run goes on where it was and ends in the same bytes.

Beside the target `NAME` stands the folder `.NAME.bertflow-parts`: a file a part, and a ledger of one JSON line each.
Line 0 is the identity of the run; until a part is done another run may take its place. A part counts once its line is
written whole, and the line is written when its file is on the disk. The last line says which finished files go where;
then the folder is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bertflow.errors import ConfigError, StorageError
from bertflow.hookspecs import Part
from bertflow.redaction import redact
from bertflow_standard.atomic import is_at

if TYPE_CHECKING:
    import pyarrow as pa

LEDGER = "ledger.jsonl"


def parts_folder(target: Path) -> Path:
    """Return where the parts of an unfinished run lie."""
    return target.with_name(f".{target.name}.bertflow-parts")


def is_finished(target: Path) -> bool:
    """Whether a run had finished all but the last renames when it was interrupted.

    One that was interrupted later still is done; the empty folder that it may have left is removed.
    """
    with contextlib.suppress(OSError):
        parts_folder(target).rmdir()
    try:
        return "moves" in _lines(parts_folder(target) / LEDGER)[-1]
    except (OSError, IndexError):
        return False


def sync(path: Path) -> None:
    """Have the system put a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the ledger's whole lines; a torn one at the end was never counted."""
    lines = []
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


class Ledger:
    """The parts of one run on disk.

    Args:
        target: the file that the run ends in.
        identity: what decides the numbers, as JSON has it.

    Raises:
        ConfigError: parts of another run are there: of another config, checkpoint or version.
        StorageError: another run is writing there, or the disk refuses.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any]) -> None:
        self.target, self.folder = target, parts_folder(target)
        self._file = self._lock()
        lines = _lines(self.folder / LEDGER)
        self.moves: dict[str, str] = lines[-1].get("moves", {}) if lines else {}
        self.parts = [line for line in lines[1:] if "number" in line]
        try:
            if self.parts:
                _refuse_another(lines[0], json.loads(_line(identity)), self.folder)
            else:
                lines = []
            self._file.truncate(sum(len(_line(line)) for line in lines))
            self._file.seek(0, os.SEEK_END)
            if not lines:
                self._append(identity)
                sync(self.folder.parent)
        except BaseException:
            self.close()
            raise

    def _lock(self) -> IO[bytes]:
        while True:
            self.folder.mkdir(exist_ok=True)
            file = (self.folder / LEDGER).open("ab")
            with contextlib.suppress(ImportError):
                import fcntl

                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    file.close()
                    fix = "wait for it, or choose another path"
                    raise StorageError("another run is writing there", str(self.target), fix) from error
            if is_at(self.folder / LEDGER, file.fileno()):
                return file
            file.close()  # Its last holder removed it between the two steps.

    @property
    def done(self) -> list[Part]:
        """The parts that are on the disk."""
        return [Part(line["number"], line["rows"], line["digest"], counts=line["counts"]) for line in self.parts]

    def add(self, part: Part, table: pa.Table) -> None:
        """Put a part on the disk, and then into the ledger."""
        import pyarrow as pa

        path, rejects = self._paths(part.number)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        sync(path)
        if part.rejects:
            rejects.write_bytes(b"".join(map(_line, part.rejects)))
            sync(rejects)
        numbers = {"number": part.number, "rows": part.rows, "digest": part.digest, "counts": dict(part.counts)}
        line = numbers | {"bytes": path.stat().st_size, "rejects": len(part.rejects)}
        self._append(line)
        self.parts.append(line)

    def _paths(self, number: int) -> tuple[Path, Path]:
        """Return the file of a part, and that of its rejects."""
        return self.folder / f"part-{number:06}.arrow", self.folder / f"part-{number:06}.rejects.jsonl"

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.write(_line(line))
        self._file.flush()
        os.fsync(self._file.fileno())

    def schema(self) -> pa.Schema | None:
        """Return the schema of all parts: that of the first, or a wider one where a later part needs it."""
        import pyarrow as pa

        schemas = []
        for line in self.parts:
            path, _ = self._paths(line["number"])
            if not path.is_file() or path.stat().st_size != line["bytes"]:
                raise StorageError("part of an interrupted run is damaged", str(path), f"remove {self.folder}")
            with pa.memory_map(str(path)) as file:
                schemas.append(pa.ipc.open_file(file).schema)
        return pa.unify_schemas(schemas, promote_options="permissive") if schemas else None

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield a batch for each part, in the schema of all."""
        import pyarrow as pa

        for line in self.parts:
            with pa.memory_map(str(self._paths(line["number"])[0])) as file:
                table = pa.ipc.open_file(file).read_all()
                missing = [field for field in schema if field.name not in table.schema.names]
                for field in missing:
                    table = table.append_column(field, pa.nulls(len(table), field.type))
                yield from table.select(schema.names).cast(schema).combine_chunks().to_batches()

    def rejects(self) -> Iterator[bytes]:
        """Yield the rejects of each part that has any, a JSON line each."""
        for line in self.parts:
            if line["rejects"]:
                yield self._paths(line["number"])[1].read_bytes()

    def plan(self, moves: Mapping[str, str]) -> None:
        """Note which finished files of the folder go where; from here on the next run does it if this one is killed."""
        for name in moves:
            sync(self.folder / name)
        sync(self.folder)
        self._append({"moves": dict(moves)})
        self.moves = dict(moves)

    def move(self) -> None:
        """Move the finished files to their places beside the target, and remove the folder."""
        for name, place in self.moves.items():
            if (self.folder / name).exists():
                (self.folder / name).replace(self.target.parent / place)
        sync(self.target.parent)
        self.close()
        # The ledger goes last: a folder without one is an empty beginning.
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == LEDGER):
            path.unlink()
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Let the lock go; what holds no part is of no use to anybody, and is removed."""
        if not self.parts:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._file.close()


def _line(line: Mapping[str, Any]) -> bytes:
    text = json.dumps(line, ensure_ascii=False, sort_keys=True, default=str)
    return redact(text).encode("utf-8", "backslashreplace") + b"\n"


def _refuse_another(before: Any, now: Any, folder: Path) -> None:
    changed = list(_differences(before, now, ""))
    if changed:
        where = "; ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")  # noqa: PLR2004
        fix = f"give the command that was interrupted, or remove {folder} to start anew"
        raise ConfigError("an interrupted run was another one", where, fix)


def _differences(before: Any, now: Any, path: str) -> Iterator[str]:
    """Yield each value that differs, as `path: before -> now`."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            yield from _differences(before.get(name), now.get(name), f"{path}.{name}".lstrip("."))
    elif before != now:
        yield f"{path}: {before} -> {now}"
