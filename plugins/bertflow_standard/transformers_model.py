"""What the model plugins share: a transformers module behind bertflow's hooks.

`tokenize`, `forward` and `describe_model`, and `save_model` of `saving.py`, are imported by `model/scratch.py`,
`model/pretrained.py` and `model/auto.py`, and are their hooks as if they stood there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import cached_property
from typing import Any

from bertflow import hookimpl
from bertflow.errors import CheckpointError, ConfigError, InputError
from bertflow.hookspecs import CARRIED, Batch, ModelDescription, Row
from bertflow_standard.checkpoint import Checkpoint
from bertflow_standard.closed_world import load_tokenizer
from bertflow_standard.process import Borrowed
from bertflow_standard.rows import INPUTS, check_row

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spm.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


class Head(Enum):
    """What stands on the body of the model, in the words of transformers' Auto classes."""

    masked_lm = "AutoModelForMaskedLM"
    sequence_classification = "AutoModelForSequenceClassification"
    token_classification = "AutoModelForTokenClassification"  # no password
    question_answering = "AutoModelForQuestionAnswering"


class Dtype(Enum):
    """Of the parameters and of the arithmetic; `auto` is the checkpoint's own, or float32 for a new model."""

    auto = "auto"
    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"
    float64 = "float64"


class TransformersModel:
    """A transformers module with the checkpoint that it comes from, if any, and the SHA-256 of the files there."""

    def __init__(
        self, module: Any, checkpoint: Checkpoint | None = None, digests: Mapping[str, str] | None = None
    ) -> None:
        self.module = module
        self.checkpoint = checkpoint
        self.digests = digests or {}

    def to(self, device: str) -> TransformersModel:
        """Move the module to a device."""
        self.module.to(device)
        return self

    @cached_property
    def inputs(self) -> frozenset[str]:
        """The names of the inputs that the module takes."""
        return frozenset(inspect.signature(self.module.forward).parameters)

    @cached_property
    def vocabulary_size(self) -> int:
        """The number of rows of the embedding table."""
        return int(self.module.get_input_embeddings().num_embeddings)

    @cached_property
    def token_bytes(self) -> int:
        """The bytes that one token takes in the widest layer."""
        config = self.module.config
        sizes = (getattr(config, name, None) for name in ("intermediate_size", "hidden_dim", "hidden_size", "dim"))
        return int(next(filter(None, sizes), 1)) * int(self.module.dtype.itemsize)

    @cached_property
    def longest(self) -> int | None:
        """The longest row in tokens, or None where the positions are relative and set no limit."""
        from torch import nn

        for name, part in self.module.named_modules():
            if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
                # RoBERTa and MPNet count positions from behind the padding index.
                return int(part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1))
        config = self.module.config
        return getattr(config, "max_position_embeddings", None) if hasattr(config, "rope_parameters") else None

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's own tokenizer."""
        if self.checkpoint is None:
            raise no_tokenizer()
        folder = self.checkpoint.folder
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise CheckpointError("checkpoint has no tokenizer", str(folder), "use input=ids, or add its files")
        with quiet():
            return load_tokenizer(self.checkpoint)


def no_tokenizer() -> ConfigError:
    """Return the error of texts for a model that has no checkpoint."""
    fix = "use input=ids, or model=pretrained or model=auto, whose checkpoints bring one"
    return ConfigError("a model from its config alone has no tokenizer", "input of texts", fix)


def _read_log() -> tuple[int, bool]:
    from transformers.utils import logging

    return logging.get_verbosity(), logging.is_progress_bar_enabled()


def _write_log(setting: tuple[int, bool]) -> None:
    from transformers.utils import logging

    logging.set_verbosity(setting[0])
    (logging.enable_progress_bar if setting[1] else logging.disable_progress_bar)()


_log = Borrowed(_read_log, _write_log)


def quiet() -> contextlib.AbstractContextManager[None]:
    """Keep transformers' log and progress bars off stderr: bertflow's report says what it loaded."""
    return _log.set((logging.CRITICAL, False))


@hookimpl
def tokenize(model: TransformersModel, rows: Sequence[Row], start: int) -> Sequence[Row]:
    """Tokenize texts, whole, and check ids against the model's tables."""
    numbers = [index for index, row in enumerate(rows) if "text" in row]
    encoded = dict(zip(numbers, _encode(model, [rows[i]["text"] for i in numbers], start, numbers), strict=True))
    ready = [encoded.get(index, row) for index, row in enumerate(rows)]
    for number, row in enumerate(ready, start):
        if number - start not in encoded:
            check_row(row, number)
            _refuse_unmasked_padding(model, row, number)
        _check_bounds(model, row, number)
    return [
        {"attention_mask": [1] * len(row["input_ids"]), **{name: row[name] for name in INPUTS if name in row}}
        for row in ready
    ]


def _encode(model: TransformersModel, texts: Sequence[Any], start: int, numbers: Sequence[int]) -> Iterator[Row]:
    if not texts:
        return
    for text, number in zip(texts, numbers, strict=True):
        where = f"row {start + number}"
        if not isinstance(text, str):
            raise InputError(f"not a text but {type(text).__name__}", where, "give a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            place = f"{where}, character {error.start}"
            raise InputError("text is not valid Unicode (lone surrogate)", place, "remove the character") from error
    encoded = model.tokenizer(list(texts), truncation=False, padding=False, verbose=False)
    names = [name for name in INPUTS if name in encoded and name in model.inputs]
    for values in zip(*(encoded[name] for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


def _refuse_unmasked_padding(model: TransformersModel, row: Row, number: int) -> None:
    """Raise InputError for padding at an end that no mask leaves out: attention would silently see it."""
    pad, ids = getattr(model.module.config, "pad_token_id", None), row["input_ids"]
    if "attention_mask" not in row and len(ids) > 1 and pad in (ids[0], ids[-1]):
        where = f"row {number}: id {pad} at its {'start' if ids[0] == pad else 'end'}"
        raise InputError("padding without a mask", where, "leave padding out, or give an attention_mask")


def _check_bounds(model: TransformersModel, row: Row, number: int) -> None:
    known = [name for name in INPUTS if name in model.inputs]
    unknown = ", ".join(sorted(set(row) - {*known, *CARRIED}))
    if unknown:
        raise InputError(f"the model takes no {unknown}", f"row {number}", f"it takes {', '.join(known)}")
    ids = row["input_ids"]
    if not ids:
        raise InputError("text has no token", f"row {number}", "leave the row out")
    limits = {"input_ids": ("token id outside the vocabulary", "vocabulary", model.vocabulary_size)}
    if "token_type_ids" in row:
        segments = getattr(model.module.config, "type_vocab_size", 0) or 1
        limits["token_type_ids"] = ("token type outside the table", "type vocabulary", segments)
    for name, (what, table, size) in limits.items():
        if max(row[name]) >= size:
            column = next(index for index, value in enumerate(row[name]) if value >= size)
            where = f"row {number}, column {column}: id {row[name][column]}, {table} size {size}"
            raise InputError(what, where, f"use ids from 0 to {size - 1}")


@hookimpl
def forward(model: TransformersModel, batch: Batch) -> Mapping[str, Any]:
    """Run the module; an output that is a tuple, such as `hidden_states`, is numbered from 0."""
    outputs: dict[str, Any] = {}
    for name, value in model.module(**batch).items():
        parts = {f"{name}.{index}": part for index, part in enumerate(value)} if isinstance(value, tuple) else {}
        # A decoder's cache of keys and values is no array; it is for the next step, which bertflow does not take.
        outputs |= {key: part for key, part in (parts or {name: value}).items() if hasattr(part, "shape")}
    return outputs


@hookimpl
def describe_model(model: TransformersModel) -> ModelDescription:
    """Describe the module by its class, its parameters and its config, the architecture's own fields first."""
    from transformers import PreTrainedConfig

    common = {field.name for field in dataclasses.fields(PreTrainedConfig)} | {"output_attentions"}
    fields = {key: value for key, value in model.module.config.to_dict().items() if key not in _HOUSEKEEPING}
    config = dict(sorted(fields.items(), key=lambda item: item[0] in common))
    return ModelDescription(
        architecture=type(model.module).__name__,
        parameters=sum(part.numel() for part in model.module.parameters()),
        dtype=str(model.module.dtype).removeprefix("torch."),
        config=config,
        pad_token_id=getattr(model.module.config, "pad_token_id", None) or 0,
        longest=model.longest,
    )


_HOUSEKEEPING = {"_name_or_path", "architectures", "dtype", "model_type", "return_dict", "transformers_version"}
