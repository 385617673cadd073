"""The manifest of a saved checkpoint: the SHA-256 of every file, so that a changed byte never passes as a right one.

It is written last, as `bertflow.json` beside the files: `{"bertflow": version, "files": {name: {"bytes", "sha256"}}}`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Collection
from pathlib import Path

from bertflow.errors import CheckpointError

MANIFEST = "bertflow.json"


def digest(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, files: Collection[Path]) -> Path:
    """Write the manifest of the files, which lie in the folder, and return its path."""
    entries = {
        str(path.relative_to(folder).as_posix()): {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(files)
    }
    content = {"bertflow": importlib.metadata.version("bertflow"), "files": entries}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder / MANIFEST


def manifest_names(folder: Path) -> frozenset[str] | None:
    """Return the names of the files that the folder's manifest lists, itself included; None without one."""
    try:
        return frozenset(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]) | {MANIFEST}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError("manifest cannot be read", str(folder / MANIFEST), "save the checkpoint again") from error


def verify(folder: Path) -> None:
    """Compare every file with the manifest, if there is one.

    Raises:
        CheckpointError: a file is missing, or is not the one that was saved.
    """
    names = manifest_names(folder)
    if names is None:
        return
    entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError("file of the checkpoint is missing", str(path), "restore it, or save again")
        if path.stat().st_size != entry["bytes"] or digest(path) != entry["sha256"]:
            fix = "restore it, or save again; remove bertflow.json if you changed the checkpoint yourself"
            raise CheckpointError("file is not the one that was saved (sha256 mismatch)", str(path), fix)
