"""`input=texts`: sentences from the command line or a preset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertflow import hookimpl
from bertflow.errors import InputError
from bertflow.hookspecs import Row
from bertflow_standard.rows import check_texts


@dataclass
class Config:
    """`texts` is a text or a list of texts; its form is checked here, with the answer of bad input."""

    texts: Any
    pairs: Any


@hookimpl
def read_rows(config: Config) -> Sequence[Row]:
    """Give one row per text, or per pair of texts."""
    texts = check_texts("input.texts", config.texts)
    if config.pairs is None:
        return [{"text": text} for text in texts]
    pairs = check_texts("input.pairs", config.pairs)
    if len(pairs) != len(texts):
        where = f"input.pairs has {len(pairs)} texts, input.texts has {len(texts)}"
        raise InputError("number of rows differs", where, "give one for each")
    return [{"text": text, "text_pair": pair} for text, pair in zip(texts, pairs, strict=True)]
