"""`task=forward`: every output of the model for every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bertflow import hookimpl
from bertflow.flow import Flow
from bertflow.hookspecs import Outputs, Result
from bertflow_standard.rows import check_finite


@hookimpl
def run_task(flow: Flow) -> Result:
    """Run all rows and join the batches."""
    batches: list[Outputs] = []
    row = 0
    for outputs in flow.map():
        check_finite(outputs, row)
        row += len(next(iter(outputs.values())))
        batches.append(outputs)
    joined = {name: _join([batch[name] for batch in batches]) for name in batches[0]}
    return flow.result(joined, saved=flow.save())


def _join(parts: Sequence[Any]) -> Any:
    """Concatenate along the rows; where batches differ in length, the shorter ones are filled up with zeros."""
    import numpy as np

    if len(parts) == 1:
        return parts[0]
    shape = np.max([part.shape[1:] for part in parts], axis=0)
    joined = np.zeros((sum(len(part) for part in parts), *shape), dtype=parts[0].dtype)
    row = 0
    for part in parts:
        joined[(slice(row, row + len(part)), *map(slice, part.shape[1:]))] = part
        row += len(part)
    return joined
