"""What is known of a checkpoint before torch is imported: `task=inspect` prints it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from bertflow_standard.checkpoint import ITEM_BYTES, Checkpoint, TensorHeader, read_json
from bertflow_standard.sentence_modules import sentence_modules

LIBRARIES = 470_000_000
"""Bytes that Python takes with torch and transformers imported, on Linux; most of a small model's run."""

_CLASSIFIER = ("classifier.weight", "classifier.bias")
_SPANS = ("qa_outputs.weight", "qa_outputs.bias")


def _both(*modules: str) -> tuple[str, ...]:
    return tuple(f"{module}.{part}" for module in modules for part in ("weight", "bias"))


def _heads(masked_lm: tuple[str, ...], sequence: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    return {
        "masked_lm": masked_lm,
        "sequence_classification": sequence,
        "token_classification": _CLASSIFIER,
        "question_answering": _SPANS,
    }


_CLS = ("cls.predictions.bias", *_both("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"))
_POOLER = _both("pooler.dense")
_BERT = _heads(_CLS, (*_CLASSIFIER, *_POOLER))
_TWO_LAYERS = _both("classifier.dense", "classifier.out_proj")
_ROBERTA = _heads(("lm_head.bias", *_both("lm_head.dense", "lm_head.layer_norm")), _TWO_LAYERS)
_MODERN = ("head.dense.weight", "head.norm.weight")
_MODERN_CLASSIFIER = (*_MODERN, *_CLASSIFIER)

# Architecture -> the prefix of its body, and each head's own parameters in transformers' names; a tied decoder is the
# embedding table and is not among them.
HEADS: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    "bert": ("bert", _BERT),
    "camembert": ("roberta", _ROBERTA),
    "deberta": ("deberta", _BERT),
    "deberta-v2": ("deberta", _BERT),
    "distilbert": (
        "distilbert",
        _heads(
            ("vocab_projector.bias", *_both("vocab_transform", "vocab_layer_norm")),
            (*_both("pre_classifier"), *_CLASSIFIER),
        ),
    ),
    "electra": (
        "electra",
        _heads(
            ("generator_lm_head.bias", *_both("generator_predictions.LayerNorm", "generator_predictions.dense")),
            _TWO_LAYERS,
        ),
    ),
    "modernbert": (
        "model",
        {
            "masked_lm": (*_MODERN, "decoder.bias"),
            "sequence_classification": _MODERN_CLASSIFIER,
            "token_classification": _MODERN_CLASSIFIER,
            "question_answering": _MODERN_CLASSIFIER,
        },
    ),
    "mpnet": ("mpnet", _ROBERTA),
    "roberta": ("roberta", _ROBERTA),
    "xlm-roberta": ("roberta", _ROBERTA),
}


def inspect(checkpoint: Checkpoint, head: str | None, dtype: str, batch_tokens: int) -> dict[str, Any]:
    """Return what config, headers and tokenizer say.

    Args:
        checkpoint: whose files are read; of the weights, the headers alone.
        head: the head that a run would put on the body.
        dtype: of the parameters in memory; `auto` for the checkpoint's own.
        batch_tokens: tokens of one forward pass.

    Raises:
        CheckpointError: a file is damaged.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    named = config.get("architectures")
    architectures = named if isinstance(named, list) else []
    parameters = {name: tensor for name, tensor in tensors.items() if tensor.dtype.startswith(("F", "BF"))}
    random = {name: missing(checkpoint, name) for name in HEADS.get(str(config.get("model_type")), ("", {}))[1]}
    return {
        "checkpoint": checkpoint.name,
        "folder": str(checkpoint.folder),
        "network": f"not needed: {checkpoint.origin}",
        "architecture": ", ".join(map(str, architectures)) or config.get("model_type"),
        "model_type": config.get("model_type"),
        "parameters": sum(math.prod(tensor.shape) for tensor in parameters.values()),
        "weights_bytes": sum(file.stat().st_size for file in checkpoint.weights),
        "files": [file.name for file in checkpoint.weights],
        "dtypes": dict(Counter(tensor.dtype for tensor in tensors.values())),
        "longest_row": longest(config, tensors),
        **_embedding(checkpoint),
        "tokenizer": _tokenizer(checkpoint),
        "heads": _present(random, architectures) if random else None,
        "random": {name: len(names) for name, names in random.items()} or None,
        "random_tensors": random.get(head or ""),
        "memory_bytes": _memory(config, parameters, dtype, batch_tokens),
    }


def longest(config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> int | None:
    """Return the longest row in tokens; None where positions are relative and set no limit."""
    table = next((t.shape[0] for name, t in tensors.items() if name.endswith("position_embeddings.weight")), None)
    if table is None:
        limit = config.get("max_position_embeddings")
        return limit if type(limit) is int and config.get("model_type") == "modernbert" else None
    # These count positions from behind the padding index.
    shifted = config.get("model_type") in ("camembert", "mpnet", "roberta", "xlm-roberta")
    return table - (int(config.get("pad_token_id") or 1) + 1 if shifted else 0)


def missing(checkpoint: Checkpoint, head: str) -> list[str]:
    """Return the parameters of a head that the checkpoint lacks and a run would draw at random."""
    prefix, heads = HEADS[str(checkpoint.config["model_type"])]
    # Checkpoints of before 2019 call the parts of a norm gamma and beta.
    renamed = (name.replace(".gamma", ".weight").replace(".beta", ".bias") for name in checkpoint.tensors)
    known = {name.removeprefix(f"{prefix}.") for name in renamed}
    in_body = _POOLER if checkpoint.config["model_type"] == "bert" else ()
    return [f"{prefix}.{name}" if name in in_body else name for name in heads[head] if name not in known]


def _present(random: Mapping[str, list[str]], architectures: list[Any]) -> list[str]:
    """Return the heads in the checkpoint; two that have the same names are told apart by `architectures`."""
    whole = [head for head, names in random.items() if not names]
    named = [head for head in whole if any(head.replace("_", "").lower() in str(a).lower() for a in architectures)]
    return named or whole


def _embedding(checkpoint: Checkpoint) -> dict[str, Any]:
    modules = sentence_modules(checkpoint)
    if modules is None:
        return {"pooling": None, "normalize": None, "max_tokens": None}
    return {
        "pooling": modules.pooling,
        "normalize": modules.normalize,
        "max_tokens": modules.longest,
        "modules": modules.stages,
        "prompt": modules.prompt or None,
        "prompts": dict(modules.prompts) or None,
        "pools_prompt": modules.pools_prompt,
        "lower_case": modules.lower_case,
    }


def _tokenizer(checkpoint: Checkpoint) -> str | None:
    folder = checkpoint.folder
    path = folder / "tokenizer_config.json"
    content = read_json(path) if path.is_file() else {}
    kind = content.get("tokenizer_class") if isinstance(content, dict) else None
    files = [name for name in ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model") if (folder / name).is_file()]
    return f"{kind or 'of unknown class'} ({', '.join(files)})" if kind or files else None


def _memory(config: Mapping[str, Any], parameters: Mapping[str, TensorHeader], dtype: str, batch_tokens: int) -> int:
    """Return about the bytes that a run takes: libraries, weights (twice where they are cast) and one forward pass."""
    size = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}.get(dtype)
    weights = 0
    for tensor in parameters.values():
        stored, count = ITEM_BYTES.get(tensor.dtype, 4), math.prod(tensor.shape)
        weights += count * (stored if size in (None, stored) else stored + (size or 0))
    width = int(config.get("hidden_size") or config.get("dim") or 0)
    inner = int(config.get("intermediate_size") or config.get("hidden_dim") or 4 * width)
    return LIBRARIES + weights + batch_tokens * (8 * width + 2 * inner) * (size or 4)
