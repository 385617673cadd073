"""The bytes of a file or of stdin: unpacked, and from the disk where a format needs to jump about in them."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bertflow.errors import InputError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
BUFFER = 1 << 20


@contextlib.contextmanager
def opened(file: Path | None) -> Iterator[tuple[io.BufferedReader, io.BufferedReader]]:
    """Open a file, or stdin for None; gives the bytes to read, and those of the file, which may be compressed."""
    if file is None:
        stdin = getattr(sys.stdin, "buffer", None)
        if stdin is None:
            raise InputError("stdin is closed", "input.path=-", "pipe the rows in, or name a file")
        yield stdin, stdin
        return
    compression = COMPRESSIONS.get(file.suffix.lower())
    with file.open("rb") as plain:
        if compression is None:
            yield plain, plain
            return
        if not plain.peek(1):  # pyarrow takes this for a file without rows; no compressor writes it.
            raise InputError("compressed file is empty", str(file), "make it anew")
        import pyarrow as pa

        with io.BufferedReader(pa.CompressedInputStream(plain, compression), BUFFER) as unpacked:
            yield unpacked, plain


@contextlib.contextmanager
def seekable(source: io.BufferedReader) -> Iterator[IO[bytes]]:
    """Give the source, or for a pipe or a compressed file a copy on the disk: these formats begin at their end."""
    if source.seekable():
        yield source
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(source, copy, BUFFER)
        copy.seek(0)
        yield copy
