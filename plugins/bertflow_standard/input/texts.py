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


@hookimpl
def read_rows(config: Config) -> Sequence[Row]:
    """Give one row per text."""
    texts = config.texts
    example = """write input.texts='["Hello!", "Cool"]'"""
    if isinstance(texts, str):
        if texts[:1] == "[":
            raise InputError("malformed list", f"input.texts={texts}", example)
        texts = [texts]
    if not isinstance(texts, list):
        raise InputError("not a list of texts", f"input.texts={texts}", example)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError("not a text", f"input.texts, row {number}: {text!r}", f'quote it: "{text}"')
    return [{"text": text} for text in texts]
