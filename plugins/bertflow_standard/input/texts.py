"""`input=texts`: sentences from the command line or a preset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertflow import hookimpl
from bertflow.errors import InputError
from bertflow.hookspecs import Row


@dataclass
class Config:
    """`texts` is a text or a list of texts; its form is checked here, with the answer of bad input."""

    texts: Any
    pairs: Any


@hookimpl
def read_rows(config: Config) -> Sequence[Row]:
    """Give one row per text, or per pair of texts."""
    texts = _texts("texts", config.texts)
    if config.pairs is None:
        return [{"text": text} for text in texts]
    pairs = _texts("pairs", config.pairs)
    if len(pairs) != len(texts):
        where = f"input.pairs has {len(pairs)} texts, input.texts has {len(texts)}"
        raise InputError("number of rows differs", where, "give one for each")
    return [{"text": text, "text_pair": pair} for text, pair in zip(texts, pairs, strict=True)]


def _texts(name: str, texts: Any) -> list[str]:
    example = f"""write input.{name}='["Hello!", "Cool"]'"""
    if isinstance(texts, str):
        if texts[:1] == "[":
            raise InputError("malformed list", f"input.{name}={texts}", example)
        texts = [texts]
    if not isinstance(texts, list):
        raise InputError("not a list of texts", f"input.{name}={texts}", example)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError("not a text", f"input.{name}, row {number}: {text!r}", f'quote it: "{text}"')
    return texts
