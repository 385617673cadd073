"""The rows of a file that are nearest to a query by cosine: exact, in one pass, in the memory of one batch.

Cosines are computed in float64 and rounded to float32, so that equal vectors score the same wherever they stand. That
is done for few rows: a product in float32, ten times as fast, passes over those that cannot be among the best.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bertflow_standard.formats import VECTORS

if TYPE_CHECKING:
    import pyarrow as pa

SHORTEST, LONGEST = 1e-15, 1e15
"""Lengths of vectors whose squares float32 can hold."""


@dataclass(frozen=True)
class Match:
    """A row that was found: its number, its cosine, and its columns besides the vector."""

    row: int
    score: float
    columns: Mapping[str, Any]


def nearest(queries: Any, batches: Iterable[pa.RecordBatch], top: int) -> list[list[Match]]:
    """Return for each query the `top` rows with the largest cosines, best first; of equal ones the earlier.

    A vector of length zero has the cosine 0.

    Args:
        queries: array of shape [queries, width].
        batches: with a column `embedding` of that width, as `read_vectors` gives them.
        top: how many.
    """
    import numpy as np

    queries = np.asarray(queries, np.float64)
    found: list[list[Match]] = [[] for _ in queries]
    first = 0
    for batch in batches:
        vectors = batch.column(VECTORS).flatten().to_numpy().reshape(len(batch), -1)
        bounds = _bounds(vectors, queries)
        for query, bound, best in zip(queries, bounds.T, found, strict=True):
            least = best[-1].score if len(best) == top else -np.inf
            rows = np.flatnonzero(bound >= least)
            scores = _cosines(vectors[rows], query)
            order = np.argsort(-scores, kind="stable")[:top]
            chosen = batch.take(rows[order]).to_pylist()
            for row, score, columns in zip(rows[order].tolist(), scores[order].tolist(), chosen, strict=True):
                del columns[VECTORS]
                best.append(Match(first + row, score, columns))
            best.sort(key=lambda match: -match.score)  # A stable sort: of equal ones the earlier stays in front.
            del best[top:]
        first += len(batch)
    return found


def _bounds(vectors: Any, queries: Any) -> Any:
    """Return what each cosine is at most: from a product in float32, infinity where that cannot tell."""
    import numpy as np

    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        numbers = vectors.astype(np.float32, copy=False)
        lengths = np.sqrt(np.einsum("ij,ij->i", numbers, numbers))
        units = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        cosines = numbers @ units.astype(np.float32).T / lengths[:, None]
    cosines[~((lengths > SHORTEST) & (lengths < LONGEST))] = np.inf
    return cosines + (vectors.shape[1] + 8) * np.finfo(np.float32).eps  # More than float32 is wrong by.


def _cosines(vectors: Any, query: Any) -> Any:
    """Return the cosines of vectors with the query, as float32; summed row by row, which no other row can change."""
    import numpy as np

    vectors = vectors.astype(np.float64)
    lengths = np.sqrt((vectors * vectors).sum(1) * (query * query).sum())
    return ((vectors * query).sum(1) / np.where(lengths == 0, 1, lengths)).astype(np.float32)
