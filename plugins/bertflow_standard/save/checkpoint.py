"""`save=checkpoint`: a folder that `from_pretrained` loads, written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertflow import hookimpl
from bertflow.errors import ConfigError, StorageError
from bertflow.flow import Flow


@dataclass
class Config:
    """Where the checkpoint goes."""

    path: str
    overwrite: bool
    max_shard_size: str

    def __post_init__(self) -> None:
        """Refuse a size that the writer could not read, before anything is computed."""
        if not re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]?B", self.max_shard_size, flags=re.IGNORECASE):
            where = f"save.max_shard_size={self.max_shard_size}"
            raise ConfigError("not a size", where, "write a number and a unit, such as 500MB or 5GB")


def _target(config: Config) -> Path:
    return Path(config.path).expanduser().absolute()


@hookimpl
def check_run(flow: Flow) -> None:
    """Refuse a target that cannot be written, before anything is computed."""
    config: Config = flow.settings["save"]
    path = _target(config)
    if path.exists() and not path.is_dir():
        raise ConfigError("target is a file", f"save.path={path}", "name a folder")
    if path.is_dir() and any(path.iterdir()):
        if not config.overwrite:
            fix = "choose another path, or add save.overwrite=true"
            raise ConfigError("folder exists", f"save.path={path}", fix)
        if not (path / "config.json").is_file():
            fix = "choose another path: only a checkpoint is ever replaced"
            raise ConfigError("folder holds something else", f"save.path={path}", fix)
    parent = next(folder for folder in path.parents if folder.exists())
    if not os.access(parent, os.W_OK):
        raise StorageError("permission denied", str(parent), "choose a folder that you may write to")


@hookimpl
def save_checkpoint(flow: Flow, config: Config, model: Any) -> dict[str, Any]:
    """Write into a new folder beside the target, then put it in the target's place."""
    path = _target(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as work:
        new, old = Path(work, "new"), Path(work, "old")
        new.mkdir()
        files = flow.call("save_model", model=model, folder=new, max_shard_size=config.max_shard_size)
        sizes = {str(file.relative_to(new)): file.stat().st_size for file in files}
        if path.exists():
            path.rename(old)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    return {"path": str(Path(config.path).expanduser()), "files": sizes}
