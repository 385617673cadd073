"""`task=search`: the rows of a file of vectors that are nearest to a text."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertflow import hookimpl
from bertflow.errors import ConfigError, InputError
from bertflow.flow import Flow
from bertflow.hookspecs import Result
from bertflow_standard.embedding import Embedder, Embedding, settle
from bertflow_standard.formats import VECTORS, finite, read_vectors
from bertflow_standard.nearest import Match, nearest
from bertflow_standard.rows import check_texts
from bertflow_standard.stream import Encoded

COUNTED = ("n_tokens", "truncated")
"""Columns of `task=embed` that tell of the embedding, not of the row."""


@dataclass
class Config(Embedding):
    """What is searched for and where; and how the query is embedded."""

    query: Any
    vectors: str
    top: int

    def __post_init__(self) -> None:
        """Refuse a number of rows that makes no sense."""
        super().__post_init__()
        if self.top < 1:
            raise ConfigError("wrong value", f"task.top={self.top}", "give at least 1")

    @property
    def path(self) -> Path:
        """The file of vectors."""
        return Path(os.path.expanduser(self.vectors))


@hookimpl
def check_run(flow: Flow) -> None:
    """Look at query, file and receipt before anything heavy is imported."""
    config: Config = flow.settings["task"]
    if not check_texts("task.query", config.query):
        raise InputError("there is no query", "task.query=[]", "give at least one text")
    read_vectors(config.path)
    _settle(flow, config)
    _refuse_other_vectors(flow, config, {})


@hookimpl
def run_task(flow: Flow, config: Config) -> Result:
    """Embed the queries, and go through the file once."""
    _refuse_other_vectors(flow, config, flow.weights().digests)
    queries = check_texts("task.query", config.query)
    vectors = _embed(flow, config, queries)
    schema, batches = read_vectors(config.path)
    width = schema.field(VECTORS).type.list_size
    if vectors.shape[1] != width:
        where = f"{config.path} has {width} numbers a vector, the query has {vectors.shape[1]}"
        raise InputError("vectors are of another width", where, "use the model and task.truncate_dim of the file")
    found = zip(queries, nearest(vectors, batches, config.top), strict=True)
    return Result("search", report=[_row(query, *place) for query, best in found for place in enumerate(best, 1)])


def _settle(flow: Flow, settings: Embedding) -> Embedder:
    """Settle how a query is embedded: as sentence-transformers' `encode_query` does."""
    return settle(flow, settings, "query")


def _embed(flow: Flow, settings: Embedding, texts: Sequence[str]) -> Any:
    """Return the vectors of texts: float32 of shape [texts, width]."""
    embedder = _settle(flow, settings)
    fitter = embedder.fitter(flow)
    rows = flow.tokenize(list(embedder.prompted({"text": text} for text in texts)), 0)
    return embedder.vectors(flow, [Encoded(number, *fitter.fit(row, number)) for number, row in enumerate(rows)])


def _row(query: str, rank: int, match: Match) -> dict[str, Any]:
    """Return a match as the report has it: a score in the fewest digits that say which float32 it is."""
    import numpy as np

    columns = {name: value for name, value in match.columns.items() if name not in COUNTED}
    told = {
        "query": query,
        "rank": rank,
        "score": float(str(np.float32(match.score))),
        "id": columns.pop("id", match.row),
        "row": match.row,
    }
    return told | {f"vectors.{name}" if name in told else name: finite(value) for name, value in columns.items()}


def _refuse_other_vectors(flow: Flow, config: Config, digests: Mapping[str, str]) -> None:
    """Raise ConfigError where the receipt beside the file names another pooling or checkpoint than the query's."""
    receipt = config.path.with_name(f"{config.path.name}.receipt.json")
    if not receipt.is_file():
        return
    try:
        content = json.loads(receipt.read_bytes())
        theirs = {"pooling": content["settled"]["pooling"], **content["checkpoint"]["digests"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("receipt is damaged", str(receipt), "remove it, to search without comparing models") from error
    for name, value in {"pooling": _settle(flow, config).pooling.value, **digests}.items():
        if theirs.get(name) != value:
            where = f"{config.path}: {name} was {theirs.get(name)!s:.12}, the query's is {value:.12}"
            raise ConfigError("vectors are of another model", where, f"embed the query as {receipt.name} says")
