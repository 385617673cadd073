"""`output=file`: the outputs in a file whose suffix says the format."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bertflow import hookimpl
from bertflow.errors import ConfigError, StorageError
from bertflow.flow import Flow
from bertflow.hookspecs import Result
from bertflow_standard.summary import Format, render


@dataclass
class Config:
    """Where the outputs go, and how the summary is shown."""

    path: str
    overwrite: bool
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


WRITERS = {".npz": _write_npz, ".safetensors": _write_safetensors}


@hookimpl
def check_run(flow: Flow) -> None:
    """Refuse a target that cannot be written, before anything is computed."""
    config: Config = flow.settings["output"]
    path = Path(os.path.expanduser(config.path))
    if path.suffix not in WRITERS:
        raise ConfigError("no such file format", f"output.path={path}", f"let it end in {' or '.join(WRITERS)}")
    if path.is_dir():
        raise ConfigError("target is a folder", f"output.path={path}", "name a file in it")
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
    """Write the outputs beside the target, then put them in its place in one step."""
    path = Path(os.path.expanduser(config.path))
    if not result.outputs:
        raise ConfigError("there is nothing to write", f"task={result.task} with output=file", "use output=print")
    # A folder of its own takes the half-written file, so that a failure leaves nothing behind.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        part = Path(folder, path.name)
        WRITERS[path.suffix](part, result.outputs)
        witness = Path(folder, "witness")
        witness.touch()
        shutil.copymode(path if path.exists() else witness, part)  # safetensors makes its files private.
        _refuse_replacing(path, config)  # It may have come while the model ran.
        part.replace(path)
    return replace(result, written={"path": str(path), "bytes": path.stat().st_size})


@hookimpl
def render_result(config: Config, result: Result) -> str:
    """Show a summary of what was written."""
    return render(result, config.format, config.values)
