"""`task=similarity`: how near the two texts of each row are: the cosine of their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bertflow import hookimpl
from bertflow.flow import Flow
from bertflow.hookspecs import Result
from bertflow_standard.embedding import Embedding, settle
from bertflow_standard.stream import Encoded, stream

Config = Embedding


@hookimpl
def check_run(flow: Flow) -> None:
    """Settle what the checkpoint leaves open, before anything heavy is imported."""
    settle(flow, flow.settings["task"])


@hookimpl
def run_task(flow: Flow, config: Embedding) -> Result:
    """Stream the pairs through the model."""
    import numpy as np

    embedder = settle(flow, config)

    def score(*sides: Sequence[Encoded]) -> dict[str, Any]:
        one, other = (embedder.vectors(flow, side) for side in sides)
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        return {"similarity": (one * other).sum(1) / np.maximum(lengths, 1e-12)}

    fields = ("text", "text_pair")
    outputs, summary, written = stream(
        flow, embedder.settled(), embedder.fitter(flow), score, embedder.prompted, fields
    )
    result = flow.result(outputs, saved=flow.save())
    result.report, result.written = summary, written or None
    return result
