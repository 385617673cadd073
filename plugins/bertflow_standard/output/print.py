"""`output=print`: the result on stdout."""

from __future__ import annotations

from dataclasses import dataclass

from bertflow import hookimpl
from bertflow.hookspecs import Result
from bertflow_standard.summary import Format, render


@dataclass
class Config:
    """How the result is shown."""

    format: Format
    values: bool


@hookimpl
def write_result(result: Result) -> Result:
    """Write nowhere: the result is what `render_result` shows."""
    return result


@hookimpl
def render_result(config: Config, result: Result) -> str:
    """Show the whole result."""
    return render(result, config.format, config.values)
