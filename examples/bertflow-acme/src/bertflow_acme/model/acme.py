"""`model=acme`: a text is the mean of its words' vectors, and the vectors come from which words stand together.

The vectors are the singular value decomposition of the positive pointwise mutual information of neighbouring words
(Levy and Goldberg, 2014, "Neural Word Embedding as Implicit Matrix Factorization").
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bertflow
from bertflow.errors import CheckpointError, ConfigError, InputError
from bertflow.hookspecs import Batch, ModelDescription, Row, WeightsReport

if TYPE_CHECKING:
    import numpy as np


@dataclass
class Config:
    """The types of the keys; their defaults and words are in `conf/model/acme.yaml`."""

    checkpoint: str | None
    corpus: str | None
    size: int
    window: int

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before anything is imported or read."""
        for name in ("size", "window"):
            if getattr(self, name) < 1:
                raise ConfigError("wrong value", f"model.{name}={getattr(self, name)}", "give at least 1")


@dataclass
class Bag:
    """Words, and one vector each; word 0 stands for all that are unknown, with a vector of zeros."""

    words: list[str]
    vectors: np.ndarray

    def ids(self, text: str) -> list[int]:
        """Return the number of each word, at least one."""
        numbers = {word: number for number, word in enumerate(self.words)}
        return [numbers.get(word, 0) for word in text.lower().split()] or [0]


@bertflow.hookimpl
def build_model(config: Config) -> Bag:
    """Give an empty bag of the right width."""
    import numpy as np  # What takes long to import is imported where it is used.

    return Bag(["<unknown>"], np.zeros((1, config.size), dtype=np.float32))


@bertflow.hookimpl
def load_weights(config: Config, model: Bag) -> tuple[Bag, WeightsReport]:
    """Load the folder, or learn from the corpus."""
    if config.checkpoint:
        folder = Path(config.checkpoint).expanduser()
        return _load(folder), WeightsReport(config.checkpoint, loaded=1, files=[str(folder)])
    corpus = Path(config.corpus).expanduser() if config.corpus else Path(__file__).parents[1] / "corpus.txt"
    if not corpus.is_file():
        raise InputError("corpus not found", f"model.corpus={corpus}", "give a text file, one sentence a line")
    lines = corpus.read_text(encoding="utf-8").lower().splitlines()
    return _learn(config, lines), WeightsReport(f"learned from {corpus.name}", loaded=1, files=[str(corpus)])


def _learn(config: Config, lines: Iterable[str]) -> Bag:
    import numpy as np

    sentences = [line.split() for line in lines]
    words = ["<unknown>", *sorted({word for sentence in sentences for word in sentence})]
    numbers = {word: number for number, word in enumerate(words)}
    pairs: Counter[tuple[int, int]] = Counter()
    for sentence in sentences:
        for place, word in enumerate(sentence):
            for other in sentence[place + 1 : place + 1 + config.window]:
                pairs[numbers[word], numbers[other]] += 1
                pairs[numbers[other], numbers[word]] += 1
    counts = np.zeros((len(words), len(words)))
    for (one, other), count in pairs.items():
        counts[one, other] = count
    alone = counts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(counts * counts.sum() / np.outer(alone, alone))
    left, values, _ = np.linalg.svd(np.where(np.isfinite(information), np.maximum(information, 0), 0))
    vectors = left[:, : config.size] * np.sqrt(values[: config.size])
    vectors[0] = 0
    return Bag(words, vectors.astype(np.float32))


def _load(folder: Path) -> Bag:
    import numpy as np

    try:
        words = json.loads((folder / "config.json").read_text(encoding="utf-8"))["words"]
        vectors = np.load(folder / "vectors.npy", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("no bag of embeddings", str(folder), "give a folder that model=acme saved") from error
    if len(words) != len(vectors):
        raise CheckpointError("words and vectors differ in number", str(folder), "save the checkpoint again")
    return Bag(words, vectors)


@bertflow.hookimpl
def describe_model(model: Bag) -> ModelDescription:
    """Say what the report shows."""
    words, size = model.vectors.shape
    dtype = str(model.vectors.dtype)
    return ModelDescription("BagOfEmbeddings", model.vectors.size, dtype, {"words": words, "size": size})


@bertflow.hookimpl
def tokenize(model: Bag, rows: Sequence[Row], start: int) -> Sequence[Row]:
    """Turn each text into the numbers of its words, and check rows of ids."""
    encoded = [model.ids(row["text"]) if "text" in row else list(row["input_ids"]) for row in rows]
    for number, ids in enumerate(encoded, start):
        if not ids or max(ids) >= len(model.words) or min(ids) < 0:
            raise InputError("id outside the vocabulary", f"row {number}", f"use ids from 0 to {len(model.words) - 1}")
    return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in encoded]


@bertflow.hookimpl
def forward(model: Bag, batch: Batch) -> Mapping[str, Any]:
    """Give the mean vector of each row: float32 of shape [rows, size]."""
    import numpy as np

    # A runtime has arrays of its own type; numpy reads them all.
    ids, mask = np.asarray(batch["input_ids"]), np.asarray(batch["attention_mask"], dtype=np.float32)[..., None]
    return {"embedding": (model.vectors[ids] * mask).sum(axis=1) / mask.sum(axis=1)}


@bertflow.hookimpl
def save_model(model: Bag, folder: Path, dtype: str | None) -> Sequence[Path]:
    """Write the words as JSON and the vectors as npy, which has no bfloat16."""
    import numpy as np

    if dtype == "bfloat16":
        raise ConfigError("npy has no such dtype", f"save.dtype={dtype}", "choose float16, float32 or float64")
    vectors = model.vectors.astype(dtype or model.vectors.dtype)
    (folder / "config.json").write_text(json.dumps({"model_type": "acme", "words": model.words}), encoding="utf-8")
    np.save(folder / "vectors.npy", vectors, allow_pickle=False)
    return [folder / "config.json", folder / "vectors.npy"]
