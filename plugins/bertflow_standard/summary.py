"""A result as a table for people or as JSON for programs."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import textwrap
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any

from bertflow.errors import printable
from bertflow.hookspecs import Result, WeightsReport

if TYPE_CHECKING:
    from rich.console import Console


class Format(Enum):
    """How stdout shows a result."""

    table = "table"
    json = "json"


def render(result: Result, style: Format, values: bool) -> str:
    """Return the result as text; `values` adds the outputs' numbers."""
    return _json(result, values) if style is Format.json else _table(result, values)


def _json(result: Result, values: bool) -> str:
    document = {field.name: _finite(getattr(result, field.name)) for field in dataclasses.fields(result)}
    document["weights"] = dataclasses.asdict(result.weights) if result.weights else None
    document["outputs"] = {name: _output(array, values) for name, array in result.outputs.items()}
    return json.dumps(document, ensure_ascii=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    """Return a value with null for NaN and infinity, which JSON does not know; a config may hold them."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _output(array: Any, values: bool) -> dict[str, Any]:
    import numpy as np

    described = {"shape": list(array.shape), "dtype": str(array.dtype)}
    finite: Any = array
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        finite = np.where(np.isfinite(array), array.astype(object), None)
    return {**described, "values": finite.tolist()} if values else described


def _table(result: Result, values: bool) -> str:
    from rich.console import Console
    from rich.table import Table

    text = io.StringIO()
    console = Console(
        file=text, color_system=None, force_terminal=False, width=1000, highlight=False, markup=False, emoji=False
    )
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in _lines(result):
        table.add_row(name, value)
    console.print(table)
    if result.report is not None:
        _report(console, result.report)
    if values:
        for name, array in result.outputs.items():
            console.print(f"\n{name}\n{array}")
    return "\n".join(printable(line.rstrip()) for line in text.getvalue().rstrip("\n").split("\n")) + "\n"


def _report(console: Console, report: Any) -> None:
    """Print what a task says: a list of mappings as a table, a mapping line by line, anything else as it is."""
    from rich.table import Table

    console.print()
    if isinstance(report, list) and report and all(isinstance(row, dict) for row in report):
        columns = list(dict.fromkeys(name for row in report for name in row))
        table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for row in report:
            table.add_row(*(_words(row.get(name)) for name in columns))
        console.print(table)
    elif isinstance(report, dict):
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for name, value in report.items():
            table.add_row(name, _words(value))
        console.print(table)
    else:
        console.print(_words(report))


def _words(value: Any) -> str:
    """Return a value of a report as text."""
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    return "" if value is None else f"{value:,}" if type(value) is int else str(value)


def _lines(result: Result) -> Iterator[tuple[str, str]]:
    yield "task", result.task
    if result.model:
        count = result.model["parameters"]
        size = f", {count:,} parameters" if count is not None else ""
        dtype = f", {result.model['dtype']}" if result.model["dtype"] else ""
        yield "model", f"{result.model['architecture']} (model={result.model['option']}){size}{dtype}"
        config = " ".join(f"{key}={_compact(value)}" for key, value in result.model["config"].items())
        yield "config", textwrap.fill(config, 90, break_long_words=False, break_on_hyphens=False)
    if result.weights:
        yield from _weights(result.weights)
    for name, array in result.outputs.items():
        yield name, f"{list(array.shape)} {array.dtype}"
    if result.written:
        yield "written", f"{result.written['path']} ({_size(result.written['bytes'])})"
    if result.saved:
        yield "saved", result.saved["path"]
        for name, size in result.saved["files"].items():
            yield f"  {name}", _size(size)


def _compact(value: Any) -> str:
    """Return a config value without spaces, so that a line never breaks inside it."""
    return json.dumps(value, default=str, separators=(",", ":"))


def _weights(report: WeightsReport) -> Iterator[tuple[str, str]]:
    yield "weights", report.source
    counts = f"{report.loaded} tensors loaded, {len(report.random)} random, {len(report.unused)} unused"
    casts = "".join(f", {number} cast {change}" for change, number in report.cast.items())
    yield "", counts + casts
    if report.note:
        yield "", report.note


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)
