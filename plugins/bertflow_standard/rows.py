"""What makes a row of ids well-formed, whichever model it is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bertflow.errors import InputError
from bertflow.hookspecs import Row


def check_row(row: Row, number: int) -> None:
    """Raise InputError unless the row's inputs are equally long lists of whole numbers that make sense."""
    ids = row["input_ids"]
    _check_numbers("input_ids", ids, number)
    if not ids:
        raise InputError("empty row", f"row {number}", "give at least one token id, or leave the row out")
    for name in ("attention_mask", "token_type_ids"):
        if name in row:
            _check_numbers(name, row[name], number)
            if len(row[name]) != len(ids):
                where = f"row {number}: {name} has {len(row[name])} values, input_ids has {len(ids)}"
                raise InputError("lengths differ", where, "give one value for each token")
    mask = row.get("attention_mask", (1,))
    if set(mask) - {0, 1}:
        raise InputError("mask is not 0 or 1", f"row {number} of attention_mask", "1 is a token, 0 is padding")
    if not any(mask):
        raise InputError("every token is masked", f"row {number} of attention_mask", "leave at least one token in")


def _check_numbers(name: str, values: Any, number: int) -> None:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise InputError("a row is not a list", f"row {number} of {name}: {values!r}", "give a list of whole numbers")
    for column, value in enumerate(values):
        where = f"row {number}, column {column} of {name}: {value!r}"
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"not a whole number but {type(value).__name__}", where, "give whole numbers")
        if value < 0:
            raise InputError("negative id", where, "ids count from 0")
