"""`task=embed`: one vector a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bertflow import hookimpl
from bertflow.errors import ConfigError
from bertflow.flow import Flow
from bertflow.hookspecs import Result
from bertflow_standard.embedding import Embedding, settle
from bertflow_standard.stream import Encoded, stream

Config = Embedding


@hookimpl
def check_run(flow: Flow) -> None:
    """Settle what the checkpoint leaves open, and refuse pairs of texts, before anything heavy is imported."""
    settle(flow, flow.settings["task"])
    for key in ("pairs", "pair_column"):
        if getattr(flow.settings["input"], key, None) is not None:
            fix = "leave it out, or use task=similarity"
            raise ConfigError("task=embed takes one text a row", f"input.{key}={flow.config.input[key]}", fix)


@hookimpl
def run_task(flow: Flow, config: Embedding) -> Result:
    """Stream the rows through the model."""
    embedder = settle(flow, config)

    def embed(rows: Sequence[Encoded]) -> dict[str, Any]:
        return {"embedding": embedder.vectors(flow, rows)}

    outputs, summary, written = stream(flow, embedder.settled(), embedder.fitter(flow), embed, embedder.prompted)
    result = flow.result(outputs, saved=flow.save())
    result.report, result.written = summary, written or None
    return result
