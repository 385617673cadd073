"""`input=ids`: token ids from the command line or a preset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertflow import hookimpl
from bertflow.errors import InputError
from bertflow.hookspecs import Row
from bertflow_standard.rows import check_row


@dataclass
class Config:
    """Each is a list of rows; their form is checked here, with the answer of bad input."""

    ids: Any
    attention_mask: Any
    token_type_ids: Any


@hookimpl
def read_rows(config: Config) -> Sequence[Row]:
    """Give one row per list of ids. A bad row is answered before a model is built."""
    columns = {"input_ids": _rows("ids", config.ids)}
    for name in ("attention_mask", "token_type_ids"):
        if getattr(config, name) is not None:
            columns[name] = _rows(name, getattr(config, name))
            _same_shape(name, columns[name], columns["input_ids"])
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for number, row in enumerate(rows):
        check_row(row, number)
    return rows


def _rows(name: str, value: Any) -> list[Any]:
    example = f"write input.{name}='[[101,7592,102],[101,102]]'"
    if not isinstance(value, list):
        raise InputError("malformed list", f"input.{name}={value}", example)
    if not value:
        raise InputError("empty batch", f"input.{name}=[]", "give at least one row")
    for number, row in enumerate(value):
        if not isinstance(row, list):
            raise InputError("a row is not a list", f"input.{name}, row {number}: {row!r}", example)
    return value


def _same_shape(name: str, rows: list[Any], ids: list[Any]) -> None:
    if len(rows) != len(ids):
        where = f"input.{name} has {len(rows)} rows, input.ids has {len(ids)}"
        raise InputError("number of rows differs", where, "give one row for each row of ids")
