"""`task=inspect`: what a checkpoint's files say, without torch: what is in it, and what a run would take."""

from __future__ import annotations

from bertflow import hookimpl
from bertflow.errors import ConfigError
from bertflow.flow import Flow
from bertflow.hookspecs import Result


@hookimpl
def run_task(flow: Flow) -> Result:
    """Ask the model plugin; nothing is built or loaded."""
    report = dict(flow.call("inspect_model"))
    if not report:
        where = f"model={flow.choices['model']}"
        raise ConfigError("nothing is known of the model before a run", where, "use task=forward")
    return Result("inspect", report=report)
