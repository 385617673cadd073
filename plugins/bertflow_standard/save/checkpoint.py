"""`save=checkpoint`: a folder that `from_pretrained` loads, written whole or not at all."""

from __future__ import annotations

import functools
import operator
import os
import re
import shutil
import stat
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertflow import hookimpl
from bertflow.errors import ConfigError, StorageError
from bertflow.flow import Flow
from bertflow.hookspecs import Result
from bertflow_standard.atomic import commit, replacement, settled
from bertflow_standard.manifest import MANIFEST, manifest_names, write_manifest
from bertflow_standard.shards import SavedDtype, check_shard_size


@dataclass
class Config:
    """Where the checkpoint goes, and in what form."""

    path: str
    overwrite: bool
    max_shard_size: str
    dtype: SavedDtype | None

    def __post_init__(self) -> None:
        """Refuse a size that the writer could not read."""
        check_shard_size(self.max_shard_size)


# What transformers' `save_pretrained` and the tokenizers write; a folder with anything else is not ours to replace.
CHECKPOINT_FILES = re.compile(
    r"(.*config|tokenizer|special_tokens_map|added_tokens|vocab|modules)\.json|.*\.safetensors(\.index\.json)?"
    rf"|(vocab|merges)\.txt|.*\.model|README\.md|\.gitattributes|{re.escape(MANIFEST)}"
)


def _target(config: Config) -> Path:
    """Return the folder to write, links followed."""
    try:
        return Path(os.path.expanduser(config.path)).resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError("path leads nowhere", f"save.path={config.path}", "choose another path") from error


@hookimpl
def check_run(flow: Flow) -> None:
    """Refuse a target that cannot be written, before anything is computed."""
    config: Config = flow.settings["save"]
    path = _target(config)
    if Path.cwd().is_relative_to(path):
        raise ConfigError("target is the working folder", f"save.path={config.path}", "name a folder of its own")
    parent = next(folder for folder in path.parents if folder.exists())
    if not _is_writable(parent):
        raise StorageError("no folder to write in", str(parent), "choose a folder that you may write to")
    with settled(path):
        _refuse_replacing(path, config.overwrite)


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.R_OK | os.W_OK | os.X_OK)


@hookimpl(wrapper=True)
def run_task() -> Generator[None, Result, Result]:
    """Say so where the task has nothing to save: what was asked for is never silently left out."""
    result = yield
    if result.saved is None:
        raise ConfigError("task saves no model", f"task={result.task} with save=checkpoint", "use save=none")
    return result


def _refuse_replacing(path: Path, overwrite: bool) -> None:
    """Raise ConfigError unless there is nothing at the path, or a checkpoint and nothing more that may be replaced."""
    if path.exists() and not path.is_dir():
        raise ConfigError("target is a file", f"save.path={path}", "name a folder")
    entries = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if not entries:
        return
    if not overwrite:
        raise ConfigError("folder exists", f"save.path={path}", "choose another path, or add save.overwrite=true")
    fix = "choose another path: only a checkpoint is ever replaced"
    names = manifest_names(path)
    ours = {name for name in entries if CHECKPOINT_FILES.fullmatch(name)} if names is None else names
    for other in _others(path, path, ours):
        raise ConfigError("folder holds more than a checkpoint", f"save.path={path} with {other}", fix)
    if names is None and not ((path / "config.json").exists() and any(path.glob("*.safetensors"))):
        raise ConfigError("folder is no checkpoint", f"save.path={path}", fix)
    if not _is_writable(path):
        raise StorageError("permission denied", str(path), "only a folder that you may write to can be replaced")


def _others(path: Path, folder: Path, names: Collection[str]) -> Iterator[str]:
    """Yield what a folder in that at the path holds beside files of these names, and the folders of those."""
    for entry in sorted(folder.iterdir()):
        name = entry.relative_to(path).as_posix()
        if entry.is_dir() and not entry.is_symlink() and any(own.startswith(f"{name}/") for own in names):
            yield from _others(path, entry, names)
        elif not (entry.is_file() and name in names):
            yield name


def _refuse_source(path: Path, files: Sequence[str]) -> None:
    """Raise ConfigError where the target holds the weights that were loaded, under whichever name."""
    for source in map(Path, files):
        if path in (source.resolve(), source.resolve().parent, source.parent.resolve()):
            fix = "choose another path"
            raise ConfigError("target is the checkpoint that was loaded", f"save.path={path}", fix)


@hookimpl
def save_checkpoint(flow: Flow, config: Config, model: Any) -> dict[str, Any]:
    """Write into a new folder beside the target, then put it in the target's place."""
    path = _target(config)
    _refuse_source(path, flow.weights().files)
    form = {"max_shard_size": config.max_shard_size, "dtype": config.dtype.value if config.dtype else None}
    with replacement(path) as new:
        files = list(flow.call("save_model", model=model, folder=new, **form))
        files.append(write_manifest(new, files))
        sizes = {file.relative_to(new).as_posix(): file.stat().st_size for file in files}
        _refuse_replacing(path, config.overwrite)  # It may have come while the model ran.
        _set_modes(files, path)
        commit(new, path)
    return {"path": str(Path(os.path.expanduser(config.path))), "files": sizes}


def _set_modes(files: Sequence[Path], target: Path) -> None:
    """Let the files' modes follow the umask, as the manifest's does; what replaces a file or the folder keeps its mode.

    A file without a namesake gets no right that one of the old files withholds.
    """
    manifest = files[-1]
    old = {file.relative_to(target): file.stat().st_mode for file in target.rglob("*") if file.is_file()}
    mode = functools.reduce(operator.and_, old.values(), manifest.stat().st_mode)
    for file in files:
        file.chmod(stat.S_IMODE(old.get(file.relative_to(manifest.parent), mode)))
    if target.exists():
        shutil.copymode(target, manifest.parent)
