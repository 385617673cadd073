"""A transformers module into a checkpoint: the hook `save_model` of all transformers models."""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from bertflow import hookimpl
from bertflow.errors import ConfigError
from bertflow.flow import Flow
from bertflow.redaction import redact
from bertflow_standard.atomic import naming
from bertflow_standard.card import model_card
from bertflow_standard.confidential import remove_tokens
from bertflow_standard.manifest import CARD
from bertflow_standard.sentence_modules import module_files
from bertflow_standard.transformers_model import TOKENIZER_FILES, TransformersModel, quiet


@hookimpl
def save_model(
    flow: Flow, model: TransformersModel, folder: Path, max_shard_size: str, dtype: str | None
) -> Sequence[Path]:
    """Write `config.json`, safetensors weights, a model card, and the checkpoint's own files that still hold."""
    module = _copy(model.module, dtype)
    with naming(folder):
        _write(module, folder, max_shard_size)
        if model.checkpoint:
            _copy_files(model.checkpoint.folder, folder, module)
        remove_tokens(folder)
        tokenizer = any((folder / name).exists() for name in TOKENIZER_FILES)
        card = model_card(module, flow.weights(), model.checkpoint, tokenizer)
        (folder / CARD).write_text(redact(card), encoding="utf-8")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _copy_files(source: Path, folder: Path, module: Any) -> None:
    """Copy a checkpoint's tokenizer, and what makes it an embedder of sentence-transformers if it has no head."""
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if module.base_model is module:
        names += module_files(source)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def _copy(module: Any, dtype: str | None) -> Any:
    """Return the module in the dtype, for `save_pretrained` to change its config; what needs no cast is shared.

    Raises:
        ConfigError: a value is too large for the dtype.
    """
    import torch

    tensors = {}
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        saved = tensor.detach().to(getattr(torch, dtype)) if dtype and tensor.is_floating_point() else tensor
        if saved.dtype != tensor.dtype and not torch.isfinite(saved).all():
            where = f"save.dtype={dtype}, tensor {name}"
            raise ConfigError("value is too large for the dtype", where, "choose one with a larger range")
        tensors[id(tensor)] = saved
    return copy.deepcopy(module, tensors)


def _write(module: Any, folder: Path, max_shard_size: str) -> None:
    """Write what transformers writes. Raises OSError, also where safetensors has words of its own for a full disk."""
    from safetensors import SafetensorError

    try:
        with quiet():
            module.save_pretrained(str(folder), max_shard_size=max_shard_size)
    except SafetensorError as error:
        refused = re.search(r"\(os error (\d+)\)", str(error))
        if refused is None:
            raise
        raise OSError(int(refused[1]), os.strerror(int(refused[1]))) from error
