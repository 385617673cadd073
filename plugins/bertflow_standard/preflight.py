"""What a checkpoint's config and headers say of each other, compared before torch is imported or a tensor is read.

A wrong config would otherwise cost minutes (a million layers), memory (a vocabulary of a billion rows) or the truth (a
layer that is silently left out).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from bertflow.errors import CheckpointError, did_you_mean
from bertflow_standard.activations import ACTIVATIONS
from bertflow_standard.checkpoint import Checkpoint
from bertflow_standard.closed_world import check_closed

SIZES = (
    *("vocab_size", "hidden_size", "dim", "embedding_size", "num_hidden_layers", "n_layers", "num_attention_heads"),
    *("n_heads", "intermediate_size", "hidden_dim", "max_position_embeddings"),
)
LARGEST = {"num_hidden_layers": 10_000, "n_layers": 10_000}
LARGEST_SIZE = 10**9

# Encoders that number their layers `layer.0`, `layer.1`, ... and hold each once; ALBERT shares one among all.
FAMILY = (
    *("bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta"),
    "xlm-roberta",
)
PIECE = 1 << 20
"""Bytes that are looked at in one go; a multiple of every float's size."""

DTYPES = ("float16", "bfloat16", "float32", "float64")


def check(checkpoint: Checkpoint, whole: bool) -> None:
    """Raise CheckpointError where config, headers and tokenizer cannot belong together.

    Args:
        checkpoint: whose files are read, as far as their headers.
        whole: whether every tensor must have its place; False for `model.weights=any`.
    """
    config, where = checkpoint.config, str(checkpoint.folder / "config.json")
    check_closed(checkpoint)
    for name in SIZES:
        _check_size(name, config.get(name, 1), where)
    dtype = config.get("dtype") or config.get("torch_dtype")
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError("wrong value in the config", f"{where}: dtype={dtype}", did_you_mean(str(dtype), DTYPES))
    if config.get("model_type") not in FAMILY:
        return
    act = config.get("hidden_act", "gelu")
    if act not in ACTIVATIONS:
        fix = did_you_mean(str(act), ACTIVATIONS)
        raise CheckpointError("wrong value in the config", f"{where}: hidden_act={act}", fix)
    for name in ("layer_norm_eps", "norm_eps"):
        eps = config.get(name, 0.0)
        if not isinstance(eps, int | float) or not 0 <= eps < math.inf:
            fix = "it must be a finite number, and not negative"
            raise CheckpointError("wrong value in the config", f"{where}: {name}={json.dumps(eps)}", fix)
    _check_architecture(config, where)
    if config.get("is_decoder"):
        fix = "bertflow runs encoders: a decoder would see only what is on the left; set it to false"
        raise CheckpointError("wrong value in the config", f"{where}: is_decoder=true", fix)
    table = _embedding_table(checkpoint)
    if table is not None:
        _check_vocabulary(checkpoint, config, *table)
    if whole:
        _check_layers(checkpoint, config, where)


def _check_size(name: str, value: Any, where: str) -> None:
    most = LARGEST.get(name, LARGEST_SIZE)
    if type(value) is not int or not 1 <= value <= most:
        fix = f"it must be a whole number from 1 to {most}"
        raise CheckpointError("wrong value in the config", f"{where}: {name}={json.dumps(value)}", fix)


def _check_architecture(config: Mapping[str, Any], where: str) -> None:
    """Refuse a `model_type` under which the weights would fit and mean something else, such as RoBERTa's positions."""
    kind, known = str(config["model_type"]), sorted(FAMILY, key=len, reverse=True)
    architectures = config.get("architectures")
    named = [str(name).lower() for name in architectures] if isinstance(architectures, list) else []
    kinds = [next((k for k in known if name.startswith(k.replace("-", ""))), None) for name in named]
    if kind not in kinds and any(kinds):
        said = f"{where}: model_type={kind}, architectures={architectures}"
        raise CheckpointError("config contradicts itself", said, "restore or download the file again")


def _embedding_table(checkpoint: Checkpoint) -> tuple[str, int] | None:
    """Return the name of the vocabulary's embedding table and the number of its rows."""
    endings = ("embeddings.word_embeddings.weight", "embeddings.tok_embeddings.weight")
    tables = [
        (name, part.shape[0]) for name, part in checkpoint.tensors.items() if name.endswith(endings) and part.shape
    ]
    return tables[0] if tables else None


def _check_vocabulary(checkpoint: Checkpoint, config: Mapping[str, Any], name: str, rows: int) -> None:
    shape, width = list(checkpoint.tensors[name].shape), config.get("embedding_size", config.get("hidden_size"))
    if config.get("vocab_size", rows) != rows:
        config_says = [config["vocab_size"], config.get("dim", width)]
        said = f"{checkpoint.folder / 'config.json'}: vocab_size={config['vocab_size']}"
        said += f", so {name} would be {config_says}, it is {shape}"
        raise CheckpointError("config and weights differ", said, "mend config.json or the weights")
    path = checkpoint.folder / "tokenizer.json"
    largest = _largest_id(path.read_bytes()) if path.is_file() else None
    if largest is not None and largest >= rows:
        said = f"{path}: ids up to {largest}, the embedding table has {rows} rows"
        raise CheckpointError("tokenizer and weights differ", said, "use the tokenizer that belongs to the weights")


def _largest_id(content: bytes) -> int | None:
    """Return the largest id of a `tokenizer.json`; None for one that cannot be read here."""
    try:
        tokenizer = json.loads(content)
        vocabulary = tokenizer["model"]["vocab"]
        known = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return max(map(int, [*known, *(token["id"] for token in tokenizer.get("added_tokens") or ())]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # Loading the tokenizer says what is wrong with it.


def _check_layers(checkpoint: Checkpoint, config: Mapping[str, Any], where: str) -> None:
    numbers = {int(found[1]) for name in checkpoint.tensors if (found := re.search(r"\blayers?\.(\d+)\.", name))}
    field = "n_layers" if "n_layers" in config else "num_hidden_layers"
    if numbers and config.get(field, len(numbers)) != len(numbers):
        said = f"{where}: {field}={config[field]}, the weights hold {len(numbers)}"
        raise CheckpointError("config and weights differ", said, "mend config.json, or choose a whole checkpoint")


def check_finite(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a NaN or an infinity, also in a row that today's input never touches.

    The files are read in pieces, so that it takes no memory; a float is infinite or NaN where its exponent is all ones.
    """
    import numpy as np

    exponents = {"F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80), "F32": (np.uint32, 0x7F800000)}
    exponents["F64"] = (np.uint64, 0x7FF0000000000000)
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype not in exponents:
            continue
        integer, ones = exponents[tensor.dtype]
        with tensor.file.open("rb") as file:
            file.seek(tensor.start)
            for start in range(tensor.start, tensor.stop, PIECE):
                bits = np.frombuffer(file.read(min(PIECE, tensor.stop - start)), dtype=integer)
                if ((bits & integer(ones)) == ones).any():
                    where = f"{tensor.file}: {name}"
                    raise CheckpointError("weights are not finite (NaN or infinity)", where, "restore the checkpoint")
