"""The manifest of a saved checkpoint: the SHA-256 of its files, so that a changed byte never passes as a right one.

It is written last, as `bertflow.json` beside the files: `{"bertflow": version, "files": {name: {"bytes", "sha256"}}}`.
The model card is left out: it is for people, who may edit it, and loading does not read it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Collection
from pathlib import Path

from bertflow.errors import CheckpointError

MANIFEST = "bertflow.json"
CARD = "README.md"


def digest(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, files: Collection[Path]) -> Path:
    """Write the manifest of the files, which lie in the folder, and return its path."""
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(files)
        if path.name != CARD
    }
    content = {"bertflow": importlib.metadata.version("bertflow"), "files": entries}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder / MANIFEST


def _read(folder: Path) -> dict[str, tuple[int, str]] | None:
    """Return name -> (bytes, sha256) of the folder's manifest, None without one. Raises CheckpointError."""
    path = folder / MANIFEST
    fix = "save the checkpoint again"
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        entries = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError("manifest cannot be read", str(path), fix) from error
    for name in entries:
        if not name or Path(name).name != name:
            raise CheckpointError("manifest leads outside the checkpoint", f"{path}: {name}", fix)
    return entries


def manifest_names(folder: Path) -> frozenset[str] | None:
    """Return the names that the folder's manifest lists, its own and the card's; None without one that can be read."""
    try:
        entries = _read(folder)
    except CheckpointError:
        return None
    return None if entries is None else frozenset(entries) | {MANIFEST, CARD}


def verify(folder: Path) -> None:
    """Compare every file with the manifest, if there is one.

    Raises:
        CheckpointError: a file is missing, or is not the one that was saved; or the manifest cannot be read, or names
            a file outside the folder, which is then not opened.
    """
    for name, (size, sha256) in (_read(folder) or {}).items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError("file of the checkpoint is missing", str(path), "restore it, or save again")
        if path.stat().st_size != size or digest(path) != sha256:
            fix = f"restore it, or save again; remove {MANIFEST} if you changed the checkpoint yourself"
            raise CheckpointError("file is not the one that was saved (sha256 mismatch)", str(path), fix)
