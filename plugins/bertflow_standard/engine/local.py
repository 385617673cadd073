"""`engine=local`: the work is done here, one item after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bertflow import hookimpl


@hookimpl
def map_work(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Apply the function to each item, when its result is asked for."""
    return map(function, items)
