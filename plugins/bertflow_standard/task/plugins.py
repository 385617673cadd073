"""`task=plugins`: what is installed, what it offers, and what is wrong with it."""

from __future__ import annotations

from bertflow import hookimpl
from bertflow.flow import Flow
from bertflow.hookspecs import Result
from bertflow.plugins import survey


@hookimpl
def run_task(flow: Flow) -> Result:
    """Import each plugin by itself; the broken ones are reported, not raised."""
    return Result("plugins", report=survey(flow.catalogue))
