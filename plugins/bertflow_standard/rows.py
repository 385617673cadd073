"""What makes a row of ids well-formed, whichever model it is for."""

from __future__ import annotations

from typing import Any

from bertflow.errors import InputError
from bertflow.hookspecs import Outputs, Row

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def check_row(row: Row, number: int) -> None:
    """Raise InputError unless the row's inputs are equally long lists of whole numbers that make sense."""
    if "input_ids" not in row:
        where = f"row {number} has {', '.join(map(str, row)) or 'nothing'}"
        raise InputError("row has no input_ids", where, "give a text, a list of ids, or a mapping with input_ids")
    ids = row["input_ids"]
    for name in INPUTS:
        if name in row:
            _check_numbers(name, row[name], number)
            if len(row[name]) != len(ids):
                where = f"row {number}: {name} has {len(row[name])} values, input_ids has {len(ids)}"
                raise InputError("lengths differ", where, "give one value for each token")
    if not ids:
        raise InputError("empty row", f"row {number}", "give at least one token id, or leave the row out")
    mask = row.get("attention_mask", (1,))
    if set(mask) - {0, 1}:
        raise InputError("mask is not 0 or 1", f"row {number} of attention_mask", "1 is a token, 0 is padding")
    if not any(mask):
        raise InputError("every token is masked", f"row {number} of attention_mask", "leave at least one token in")


def check_texts(key: str, texts: Any) -> list[str]:
    """Return the value of a key that is a text or a list of texts as a list. Raises InputError."""
    example = f"""write {key}='["Hello!", "Cool"]'"""
    if isinstance(texts, str):
        if texts[:1] == "[":
            raise InputError("malformed list", f"{key}={texts}", example)
        texts = [texts]
    if not isinstance(texts, list):
        raise InputError("not a list of texts", f"{key}={texts}", example)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError("not a text", f"{key}, row {number}: {text!r}", f'quote it: "{text}"')
    return texts


def check_finite(outputs: Outputs, start: int) -> None:
    """Raise InputError for a NaN or an infinity in an output; `start` is the number of the first row."""
    import numpy as np

    for name, array in outputs.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            row = start + next(row for row, values in enumerate(array) if not np.isfinite(values).all())
            fix = "numbers grew too large for the dtype: use model.dtype=float32, or look at the model"
            raise InputError(f"{name} is not finite (NaN or infinity)", f"row {row}", fix)


def _check_numbers(name: str, values: Any, number: int) -> None:
    if not isinstance(values, list | tuple):
        raise InputError("a row is not a list", f"row {number} of {name}: {values!r}", "give a list of whole numbers")
    if all(type(value) is int and value >= 0 for value in values):
        return
    wrong = next(column for column, value in enumerate(values) if type(value) is not int or value < 0)
    where = f"row {number}, column {wrong} of {name}: {values[wrong]!r}"
    if type(values[wrong]) is not int:
        raise InputError(f"not a whole number but {type(values[wrong]).__name__}", where, "give whole numbers")
    raise InputError("negative id", where, "ids count from 0")
