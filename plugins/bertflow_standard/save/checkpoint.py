"""`save=checkpoint`: a folder that `from_pretrained` loads, written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertflow import hookimpl
from bertflow.errors import ConfigError, StorageError
from bertflow.flow import Flow
from bertflow.hookspecs import Result
from bertflow_standard.checkpoint import left_aside
from bertflow_standard.manifest import manifest_names, write_manifest


@dataclass
class Config:
    """Where the checkpoint goes."""

    path: str
    overwrite: bool
    max_shard_size: str

    def __post_init__(self) -> None:
        """Refuse a size that the writer could not read, before anything is computed."""
        if not re.search("[1-9]", self.max_shard_size) or not re.fullmatch(
            r"\d+(\.\d+)?\s*[KMGT]B", self.max_shard_size, flags=re.IGNORECASE
        ):
            where = f"save.max_shard_size={self.max_shard_size}"
            raise ConfigError("not a size", where, "write a number and a unit, such as 500MB or 5GB")


# What transformers' `save_pretrained` and the tokenizers write; a folder with anything else is not ours to replace.
CHECKPOINT_FILES = re.compile(
    r"(.*config|tokenizer|special_tokens_map|added_tokens|vocab|modules)\.json|.*\.safetensors(\.index\.json)?"
    r"|(vocab|merges)\.txt|.*\.model|README\.md|\.gitattributes"
)


def _target(config: Config) -> Path:
    """Return the folder to write, links followed."""
    try:
        return Path(os.path.expanduser(config.path)).resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError("path leads nowhere", f"save.path={config.path}", "choose another path") from error


def _recover(path: Path) -> None:
    """Put back an old checkpoint that a killed save left aside, or remove it where the new one had arrived."""
    old = left_aside(path)
    if old.is_dir() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


@hookimpl
def check_run(flow: Flow) -> None:
    """Refuse a target that cannot be written, before anything is computed."""
    config: Config = flow.settings["save"]
    path = _target(config)
    if Path.cwd().is_relative_to(path):
        raise ConfigError("target is the working folder", f"save.path={config.path}", "name a folder of its own")
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StorageError("no folder to write in", str(parent), "choose a folder that you may write to")
    _recover(path)
    if path.exists() and not path.is_dir():
        raise ConfigError("target is a file", f"save.path={path}", "name a folder")
    if path.is_dir() and any(path.iterdir()):
        _refuse_replacing(path, config.overwrite)


@hookimpl(wrapper=True)
def run_task() -> Generator[None, Result, Result]:
    """Say so where the task has nothing to save: what was asked for is never silently left out."""
    result = yield
    if result.saved is None:
        raise ConfigError("task saves no model", f"task={result.task} with save=checkpoint", "use save=none")
    return result


def _refuse_replacing(path: Path, overwrite: bool) -> None:
    if not overwrite:
        fix = "choose another path, or add save.overwrite=true"
        raise ConfigError("folder exists", f"save.path={path}", fix)
    names = manifest_names(path)
    for entry in sorted(path.iterdir()):
        ours = entry.name in names if names is not None else CHECKPOINT_FILES.fullmatch(entry.name) is not None
        if not ours or not entry.is_file():
            fix = "choose another path: only a checkpoint is ever replaced"
            raise ConfigError("folder holds more than a checkpoint", f"save.path={path} with {entry.name}", fix)


@hookimpl
def save_checkpoint(flow: Flow, config: Config, model: Any) -> dict[str, Any]:
    """Write into a new folder beside the target, then put it in the target's place."""
    path = _target(config)
    sources = {Path(file).resolve() for file in flow.weights().files}
    if path.resolve() in sources | {source.parent for source in sources}:
        raise ConfigError("target is the checkpoint that was loaded", f"save.path={path}", "choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as work:
        new = Path(work, "new")
        new.mkdir()
        files = list(flow.call("save_model", model=model, folder=new, max_shard_size=config.max_shard_size))
        files.append(write_manifest(new, files))
        sizes = {file.relative_to(new).as_posix(): file.stat().st_size for file in files}
        _commit(new, path, config.overwrite)
    return {"path": str(Path(os.path.expanduser(config.path))), "files": sizes}


def _commit(new: Path, path: Path, overwrite: bool) -> None:
    """Move the new checkpoint to the target; if that fails, the old one is put back."""
    if not path.exists() or not any(path.iterdir()):
        if path.exists():
            path.rmdir()
        new.rename(path)
        return
    _refuse_replacing(path, overwrite)  # It may have come while the model ran.
    path.rename(left_aside(path))
    try:
        new.rename(path)
    except BaseException:
        left_aside(path).rename(path)
        raise
    shutil.rmtree(left_aside(path), ignore_errors=True)
