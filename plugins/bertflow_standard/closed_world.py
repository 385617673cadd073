"""A checkpoint is data: nothing that its JSON files name is executed, fetched, or opened outside its folder.

transformers follows some of those names; a checkpoint that has them is refused before transformers is imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bertflow.errors import CheckpointError
from bertflow_standard.checkpoint import Checkpoint, read_object

ATTENTION = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
KERNELS = (None, "eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm")
"""Those of torch and transformers themselves; any other name may be one of code on the Hub."""

TOKENIZER = "tokenizer_config.json"
TOKENIZER_CLASS = re.compile(r"[A-Za-z]\w*Tokenizer(Fast)?|TokenizersBackend|PythonBackend|SentencePieceBackend")
ADDED_TOKEN = {"__type", "content", "id", "lstrip", "normalized", "rstrip", "single_word", "special"}
"""The fields of an added token; of any other the native code of tokenizers complains on stdout."""
TOKENIZER_CODE = ("auto_map", "init_inputs", "tokenizer_object", "vocab", "merges")
"""Fields that name code, or what stands in for the files in the folder."""


def check_closed(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a checkpoint whose JSON files name code or other files, saying which field."""
    for file, field, value in (*_names_in_config(checkpoint), *_names_in_tokenizer(checkpoint)):
        where = f"{checkpoint.folder / file}: {field}={json.dumps(value):.100}"
        fix = "a checkpoint is only data here: remove the field, or choose another checkpoint"
        raise CheckpointError("checkpoint names code or files of its own", where, fix)


def _names_in_config(checkpoint: Checkpoint) -> Iterator[tuple[str, str, Any]]:
    """Yield (file, field, value) of what names code or files."""
    config = checkpoint.config
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        yield from (("config.json", name, part[name]) for name in ATTENTION if part.get(name) not in KERNELS)
    for name in ("configuration_files", "quantization_config", "transformers_weights"):
        if config.get(name):
            yield "config.json", name, config[name]


def _names_in_tokenizer(checkpoint: Checkpoint) -> Iterator[tuple[str, str, Any]]:
    tokenizer = _read(checkpoint, TOKENIZER)
    for file, content in (("config.json", checkpoint.config), (TOKENIZER, tokenizer)):
        found = content.get("tokenizer_class")
        if found is not None and not (isinstance(found, str) and TOKENIZER_CLASS.fullmatch(found)):
            yield file, "tokenizer_class", found
    yield from ((TOKENIZER, name, tokenizer[name]) for name in TOKENIZER_CODE if tokenizer.get(name))
    versions = tokenizer.get("fast_tokenizer_files") or []
    if any(Path(str(name)).name != name for name in versions):
        yield TOKENIZER, "fast_tokenizer_files", versions
    for name, value in _read(checkpoint, "special_tokens_map.json").items():
        if not name.endswith(("_token", "_tokens")):
            yield "special_tokens_map.json", name, value


def _read(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    path = checkpoint.folder / name
    return read_object(path) if path.is_file() else {}


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the tokenizer of a checkpoint that has passed `check_closed`.

    Raises:
        CheckpointError: it cannot be loaded, or transformers would put a generic or an empty one in its place.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    folder, fix = checkpoint.folder, "restore its files, or use input=ids"
    for content in (_read(checkpoint, TOKENIZER), checkpoint.config):
        name = content.get("tokenizer_class")
        if name is not None and tokenizer_class_from_name(name) is None:
            raise CheckpointError("transformers has no such tokenizer", f"{folder}: tokenizer_class={name}", fix)
    _check_added_tokens(checkpoint)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise whatever the damage leads to.
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"tokenizer cannot be loaded ({reason})", str(folder), fix) from error
    if not isinstance(tokenizer.model_max_length, int | float):
        where = f"{folder / TOKENIZER}: model_max_length={json.dumps(tokenizer.model_max_length):.100}"
        raise CheckpointError("wrong value in the tokenizer's config", where, "it must be a number")
    files = list(filter(None, tokenizer.vocab_files_names.values()))
    if files and not any((folder / name).is_file() for name in files) and not any(folder.glob("*.model")):
        raise CheckpointError("tokenizer has no vocabulary", f"{folder}: none of {', '.join(files)}", fix)
    return tokenizer


def _check_added_tokens(checkpoint: Checkpoint) -> None:
    decoder = _read(checkpoint, TOKENIZER).get("added_tokens_decoder")
    added = {
        TOKENIZER: list(decoder.values()) if isinstance(decoder, dict) else (),
        "tokenizer.json": _read(checkpoint, "tokenizer.json").get("added_tokens"),
    }
    for file, tokens in added.items():
        for token in tokens if isinstance(tokens, list) else ():
            unknown = sorted(set(token) - ADDED_TOKEN) if isinstance(token, dict) else ()
            if unknown:
                where = f"{checkpoint.folder / file}: {unknown[0]:.100}"
                raise CheckpointError("added token has an unknown field", where, "remove the field")
