"""A stream: rows in, columns out, part by part, so that any number of rows takes the memory of a few parts.

A part is a fixed number of consecutive rows. It is read and tokenized on one thread, computed by the engine, and kept
by the output on another; what computes and where is not the stream's business. A part that an interrupted run has kept
is read again, compared by its digest, and not computed again.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from bertflow.defaults import Collected
from bertflow.errors import ConfigError, InputError
from bertflow.flow import Flow
from bertflow.hookspecs import Part, Row, Sink
from bertflow_standard.identity import facts, identity
from bertflow_standard.overflow import Fitter
from bertflow_standard.process import peak_memory
from bertflow_standard.progress import Progress

PART_ROWS = 1024
USUAL_BATCH = 32

Column = Sequence[Any]


@dataclass(frozen=True)
class Encoded:
    """A row as ids: itself, or its windows where it was too long."""

    number: int
    windows: Sequence[Row]
    truncated: bool

    @property
    def tokens(self) -> int:
        """The tokens of all windows, special ones included."""
        return sum(len(window["input_ids"]) for window in self.windows)


Compute = Callable[..., Mapping[str, Column]]
"""Takes the rows of a part as ids, a sequence of `Encoded` for each field; returns columns with one value a row."""


@dataclass
class Work:
    """One part on its way: its rows as ids, those that were rejected, and what its rows carry along."""

    number: int
    rows: int
    digest: str
    encoded: list[tuple[Encoded, ...]] = field(default_factory=list)
    carried: dict[str, list[Any]] = field(default_factory=dict)
    rejects: list[dict[str, Any]] = field(default_factory=list)


def stream(
    flow: Flow,
    settled: Mapping[str, Any],
    fitter: Fitter,
    compute: Compute,
    prepare: Callable[[Iterable[Row]], Iterable[Row]] = iter,
    fields: Sequence[str] = ("text",),
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Run the rows through `compute`; return columns (where the output kept them here), counts, and what was written.

    Args:
        flow: the run.
        settled: what the settings that were left open came to, as JSON has it.
        fitter: makes rows fit the model.
        compute: the work on the rows of one part.
        prepare: what is done to the rows before they are tokenized.
        fields: the texts of a row, each tokenized by itself; rows of ids have one.

    Raises:
        InputError: there is no row; or one that the model cannot take, and `input.on_error` is not `skip`.
    """
    known = facts(flow, settled)
    clock = dict.fromkeys(("tokenizing", "forward", "writing"), 0.0)
    sink: Sink = flow.call("open_output", identity=identity(known))
    progress = Progress(flow)
    try:
        _refuse_rejects(flow, sink.done)
        encode = functools.partial(_encode, flow, fitter, fields)
        works = _works(flow, prepare(flow.rows()), sink.done, encode, clock, progress)
        counts = _pump(flow, sink, works, compute, clock, progress)
        summary = _summary(counts, clock, progress)
        written = dict(sink.finish({**known, "counts": counts}))
    finally:
        progress.close()
        sink.close()
    columns = _join(sink.parts) if isinstance(sink, Collected) else {}
    if isinstance(sink, Collected):
        summary["rejects"] = [reject for part in sink.parts for reject in part.rejects] or None
    return columns, summary, written


def _refuse_rejects(flow: Flow, done: Iterable[Part]) -> None:
    """Raise ConfigError where the interrupted run skipped rows and this one would stop at them."""
    rejected = sum(part.counts["rejected"] for part in done)
    if rejected and not _skips(flow):
        fix = "add input.on_error=skip, or remove what that run has kept and start anew"
        raise ConfigError("the interrupted run left rows out", f"{rejected} of them, with input.on_error=skip", fix)


def _skips(flow: Flow) -> bool:
    policy = getattr(flow.settings["input"], "on_error", None)
    return policy is not None and policy.value == "skip"


def _pump(
    flow: Flow, sink: Sink, works: Iterator[Work], compute: Compute, clock: dict[str, float], progress: Progress
) -> dict[str, int]:
    counts: Counter[str] = Counter(rows=0, tokens=0, truncated=0, rejected=0, padding=0)

    def run(work: Work) -> Part:
        start = time.perf_counter()
        columns = compute(*zip(*work.encoded, strict=True)) if work.encoded else {}
        clock["forward"] += time.perf_counter() - start
        truncated = [any(text.truncated for text in row) for row in work.encoded]
        tokens = [sum(text.tokens for text in row) for row in work.encoded]
        numbers = {"rows": len(tokens), "tokens": sum(tokens), "truncated": sum(truncated)}
        numbers |= {"rejected": len(work.rejects), "padding": _padding(work.encoded)}
        everything = {**work.carried, **columns, "n_tokens": tokens, "truncated": truncated}
        return Part(work.number, work.rows, work.digest, everything, work.rejects, numbers)

    def keep(part: Part) -> None:
        start = time.perf_counter()
        sink.add(part)
        clock["writing"] += time.perf_counter() - start

    for part in sink.done:
        counts.update(part.counts)
    progress.resume(len(sink.done), counts)
    pending: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer:
        for part in flow.call("map_work", function=run, items=works):
            if pending:
                pending.result()
            pending = writer.submit(keep, part)
            counts.update(part.counts)
            progress.finish(part.number, counts)
        if pending:
            pending.result()
    return dict(counts)


def _padding(rows: Sequence[tuple[Encoded, ...]]) -> int:
    """Return the tokens of padding that batches of `USUAL_BATCH` rows, in the order of the input, would have had."""
    lengths = [len(window["input_ids"]) for row in rows for text in row for window in text.windows]
    batches = (lengths[start : start + USUAL_BATCH] for start in range(0, len(lengths), USUAL_BATCH))
    return sum(max(batch) * len(batch) - sum(batch) for batch in batches)


def _works(
    flow: Flow,
    source: Iterable[Row],
    done: Sequence[Part],
    encode: Callable[[Sequence[Row], int, Work], None],
    clock: dict[str, float],
    progress: Progress,
) -> Iterator[Work]:
    """Yield the parts that are still to be computed; those that are done are read and compared."""
    size = getattr(flow.settings["engine"], "part_rows", PART_ROWS)
    rows = iter(source)
    first = number = 0
    while True:
        start = time.perf_counter()
        chunk = list(islice(rows, size))
        if not chunk:
            break
        work = Work(number, len(chunk), _digest(chunk))
        if number < len(done):
            _compare(work, done[number], first)
        else:
            encode(chunk, first, work)
        tokens = sum(text.tokens for row in work.encoded for text in row)
        progress.read(number, len(chunk), tokens, chunk[-1].get("read"))
        clock["tokenizing"] += time.perf_counter() - start
        if number >= len(done):
            yield work
        first, number = first + len(chunk), number + 1
    if number < len(done):
        raise InputError("input is shorter than before", f"{flow.source}: {first} rows", _ANEW)
    if not number:
        raise InputError("empty batch", flow.source, "give at least one row")


_ANEW = "give the same input again, or remove what the interrupted run has kept and start anew"


def _compare(work: Work, before: Part, first: int) -> None:
    if (work.rows, work.digest) != (before.rows, before.digest):
        where = f"rows {first} to {first + work.rows - 1} are not those of the interrupted run"
        raise InputError("input has changed", where, _ANEW)


def _digest(rows: Sequence[Row]) -> str:
    """Return a digest of what the rows hold, wherever they were read from."""
    summed = hashlib.blake2b(digest_size=16)
    for row in rows:
        content = {name: value for name, value in row.items() if name not in ("place", "read")}
        summed.update(repr(content).encode("utf-8", "surrogatepass"))
    return summed.hexdigest()


def _encode(flow: Flow, fitter: Fitter, fields: Sequence[str], rows: Sequence[Row], first: int, work: Work) -> None:
    """Tokenize the rows and make them fit; a bad one is searched for by halves, so that few cost little."""
    try:
        _refuse_second_texts(fields, rows, first)
        texts = [_tokenize(flow, fitter, name, rows, first) for name in fields]
    except InputError as error:
        if len(rows) > 1:
            half = len(rows) // 2
            _encode(flow, fitter, fields, rows[:half], first, work)
            _encode(flow, fitter, fields, rows[half:], first + half, work)
        else:
            work.rejects.append(_reject(flow, rows[0], first, error))
        return
    work.encoded += zip(*texts, strict=True)
    for number, row in enumerate(rows, first):
        carried = {"id": row.get("id", number), **row.get("keep", {})}
        if work.carried and carried.keys() != work.carried.keys():
            where = f"row {number} has {', '.join(carried)}; those before it have {', '.join(work.carried)}"
            raise InputError("rows carry different columns", where, "let every row keep the same")
        for name, value in carried.items():
            work.carried.setdefault(name, []).append(value)


def _refuse_second_texts(fields: Sequence[str], rows: Sequence[Row], first: int) -> None:
    for number, row in enumerate(rows, first):
        if "text_pair" in row and "text_pair" not in fields:
            raise InputError("row has a second text", f"row {number}", "leave it out, or use task=similarity")


def _tokenize(flow: Flow, fitter: Fitter, name: str, rows: Sequence[Row], first: int) -> list[Encoded]:
    if name != "text":
        rows = [row if "error" in row else {"text": row.get(name)} for row in rows]
    tokens = flow.tokenize(rows, first)
    return [Encoded(number, *fitter.fit(row, number)) for number, row in enumerate(tokens, first)]


def _reject(flow: Flow, row: Row, number: int, error: InputError) -> dict[str, Any]:
    """Return what the rejects say of a bad row; raise its error unless `input.on_error` is `skip`."""
    file, line = row.get("place") or (None, None)
    if not _skips(flow):
        where = f"{error.where} ({file}, line {line})" if file else error.where
        fix = f"{error.fix}, or add input.on_error=skip" if hasattr(flow.settings["input"], "on_error") else error.fix
        raise InputError(error.what, where, fix) from error
    return {"row": number, "file": file, "line": line, "id": row.get("id"), "reason": f"{error.what}: {error.where}"}


def _join(parts: Iterable[Part]) -> dict[str, Any]:
    """Return the columns of all parts that have rows, as numpy arrays; those of mappings and lists hold objects."""
    import numpy as np

    filled = [part.columns for part in parts if part.counts["rows"]]
    if any(columns.keys() != filled[0].keys() for columns in filled):
        raise InputError("rows carry different columns", "between two parts", "let every row keep the same")
    joined = {}
    for name in filled[0] if filled else ():
        arrays = [columns[name] for columns in filled]
        if isinstance(arrays[0], np.ndarray):
            joined[name] = np.concatenate(arrays)
            continue
        values = list(itertools.chain.from_iterable(arrays))
        nested = any(isinstance(value, list | dict) for value in values)
        joined[name] = np.fromiter(values, dtype=object, count=len(values)) if nested else np.asarray(values)
    return joined


def _summary(counts: Mapping[str, int], clock: Mapping[str, float], progress: Progress) -> dict[str, Any]:
    total = progress.seconds
    return {
        **{name: count for name, count in counts.items() if name != "padding"},
        "padding_avoided": round(counts["padding"] / (counts["padding"] + counts["tokens"] or 1), 3),
        "tokens_per_second": round(progress.tokens / total),
        "share_of_time": {name: round(seconds / total, 3) for name, seconds in clock.items()},
        "peak_memory_bytes": peak_memory(),
    }
