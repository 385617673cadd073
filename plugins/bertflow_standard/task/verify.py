"""`task=verify`: whether a checkpoint's files are byte for byte those that were saved or published."""

from __future__ import annotations

from bertflow import hookimpl
from bertflow.flow import Flow
from bertflow.hookspecs import Result


@hookimpl
def run_task(flow: Flow) -> Result:
    """Ask the model plugin; a file that is not the right one is an error."""
    return Result("verify", report=list(flow.call("verify_model")))
