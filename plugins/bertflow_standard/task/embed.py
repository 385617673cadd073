"""`task=embed`: one vector a row."""

from __future__ import annotations

from bertflow import hookimpl
from bertflow.flow import Flow
from bertflow.hookspecs import Result
from bertflow_standard.embedding import Embedding, settle
from bertflow_standard.stream import stream

Config = Embedding


@hookimpl
def check_run(flow: Flow) -> None:
    """Settle what the checkpoint leaves open, before anything heavy is imported."""
    settle(flow, flow.settings["task"])


@hookimpl
def run_task(flow: Flow, config: Embedding) -> Result:
    """Stream the rows through the model."""
    embedder = settle(flow, config)
    outputs, summary, written = stream(
        flow, embedder.fitter(flow), lambda rows: {"embedding": embedder.vectors(flow, rows)}, embedder.prompted
    )
    result = flow.result(outputs, saved=flow.save())
    result.report, result.written = summary, written or None
    return result
