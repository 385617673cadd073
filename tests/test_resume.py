"""A stream that is interrupted at any instant goes on where it was, and ends in the same bytes."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from conftest import Command, Fork, Forked, snapshot

ROWS = 60
SIZES = [1 + (7 * number) % 50 for number in range(ROWS)]

Stream = Callable[..., Forked]


@pytest.fixture
def words(readable: Path, tmp_path: Path) -> tuple[str, ...]:
    """A stream of nine parts, with a row that is too long in one of them."""
    texts = [" ".join(["hello", "cool", "nice"][number % 3] for _ in range(size)) for number, size in enumerate(SIZES)]
    texts[31] = "hello " * 70
    lines = [json.dumps({"text": text, "key": f"k{number}", "note": number}) for number, text in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "out").mkdir()
    source = ("input=file", "input.path=rows.jsonl", "input.id_column=key", "input.keep=[note]", "input.on_error=skip")
    target = ("output=file", "output.path=out/vectors.parquet")
    model = ("model=auto", f"model.checkpoint={readable}", "task=embed", "task.pooling=mean")
    return *model, *source, *target, "engine.part_rows=7"


@pytest.fixture
def whole(words: tuple[str, ...], forked: Fork, tmp_path: Path) -> dict[str, tuple[str, str]]:
    """What an undisturbed run leaves."""
    run = forked(*words)
    assert run.code == 0, run.err
    found = snapshot(tmp_path / "out")
    assert set(found) == {"vectors.parquet", "vectors.parquet.receipt.json", "vectors.parquet.rejects.jsonl"}
    _clear(tmp_path)
    return found


def _clear(folder: Path) -> None:
    shutil.rmtree(folder / "out")
    (folder / "out").mkdir()


def _go_on(words: tuple[str, ...], forked: Fork, folder: Path) -> None:
    """Give the command again; one that was killed after its very last rename was done, and is not repeated."""
    was_done = (folder / "out/vectors.parquet").exists() and not _ledger(folder).exists()
    ended = forked(*words)
    assert ended.code == (2 if was_done else 0), ended.err


def _ledger(folder: Path) -> Path:
    return folder / "out/.vectors.parquet.bertflow-parts/ledger.jsonl"


def test_what_the_undisturbed_run_writes(words: tuple[str, ...], forked: Fork, tmp_path: Path) -> None:
    assert forked(*words).code == 0
    table = pq.read_table(tmp_path / "out/vectors.parquet")
    kept = [number for number in range(ROWS) if number != 31]
    assert table["id"].to_pylist() == [f"k{number}" for number in kept]
    assert table["note"].to_pylist() == kept
    assert table["n_tokens"].to_pylist() == [SIZES[number] + 2 for number in kept]
    reject = json.loads((tmp_path / "out/vectors.parquet.rejects.jsonl").read_text())
    assert (reject["row"], reject["line"], reject["id"]) == (31, 32, "k31")
    assert "72 tokens" in reject["reason"]
    receipt = json.loads((tmp_path / "out/vectors.parquet.receipt.json").read_text())
    counts = {"rows": 59, "tokens": sum(SIZES[n] + 2 for n in kept), "truncated": 0, "rejected": 1}
    assert {name: receipt["counts"][name] for name in counts} == counts
    assert len(receipt["checkpoint"]["digests"]["model.safetensors"]) == 64
    assert receipt["config"]["input"]["on_error"] == "skip"


def test_killed_before_each_change_of_a_file(
    words: tuple[str, ...], whole: dict[str, tuple[str, str]], forked: Fork, tmp_path: Path
) -> None:
    for number in range(1000):
        killed = forked(*words, kill_at=number)
        if killed.code == 0:
            break
        assert killed.code == -9
        _go_on(words, forked, tmp_path)
        assert snapshot(tmp_path / "out") == whole
        _clear(tmp_path)
    assert number > 20


def test_killed_at_random_instants(
    words: tuple[str, ...], whole: dict[str, tuple[str, str]], forked: Fork, tmp_path: Path
) -> None:
    control = forked(*words)
    _clear(tmp_path)
    instants = random.Random(0)
    killed = 0
    while killed < 50:
        run = forked(*words, alarm=instants.uniform(0.02, control.wall))
        if run.code == 0:
            _clear(tmp_path)
            continue
        killed += 1
        if instants.random() < 0.3:  # Some are killed again and again.
            continue
        _go_on(words, forked, tmp_path)
        assert snapshot(tmp_path / "out") == whole
        _clear(tmp_path)


def _interrupt(words: tuple[str, ...], forked: Fork, tmp_path: Path, parts: int = 4) -> Path:
    """Leave a run with some parts done."""
    for number in range(100):
        forked(*words, kill_at=number)
        ledger = _ledger(tmp_path)
        if ledger.is_file() and ledger.read_bytes().count(b"\n") > parts:
            return ledger.parent
    raise AssertionError("no part was written")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("task.pooling=max", "task.pooling: mean -> max"),
        ("runtime.batch_tokens=9", "runtime.batch_tokens: None -> 9"),
        ("output.dtype=float16", "dtype: float32 -> float16"),
        ("engine.part_rows=8", "engine.part_rows: 7 -> 8"),
    ],
)
def test_another_command_does_not_go_on(
    change: str, said: str, words: tuple[str, ...], forked: Fork, tmp_path: Path
) -> None:
    folder = _interrupt(words, forked, tmp_path)
    before = snapshot(tmp_path / "out")
    refused = forked(*words, change)
    assert refused.code == 2
    assert said in refused.error
    assert str(folder.name) in refused.error
    assert snapshot(tmp_path / "out") == before
    ended = forked(*words)
    assert ended.code == 0
    assert "resuming behind" in ended.err


def test_a_run_that_stopped_at_a_bad_row_goes_on_and_skips_it(
    words: tuple[str, ...], whole: dict[str, tuple[str, str]], forked: Fork, tmp_path: Path
) -> None:
    stopped = forked(*words, "input.on_error=stop")
    assert stopped.code == 4
    assert "row 31" in stopped.error
    assert "input.on_error=skip" in stopped.error
    ended = forked(*words)
    assert ended.code == 0
    assert "resuming behind" in ended.err
    assert snapshot(tmp_path / "out") == whole


def test_a_run_that_skipped_a_row_does_not_go_on_as_if_it_had_not(
    words: tuple[str, ...], forked: Fork, tmp_path: Path
) -> None:
    _interrupt(words, forked, tmp_path, parts=6)
    before = snapshot(tmp_path / "out")
    refused = forked(*words, "input.on_error=stop")
    assert refused.code == 2
    assert "left rows out" in refused.error
    assert snapshot(tmp_path / "out") == before


def test_a_run_that_kept_no_part_stands_in_nobodys_way(words: tuple[str, ...], forked: Fork, tmp_path: Path) -> None:
    assert forked(*words, "task.max_tokens=3", "input.on_error=stop").code == 4
    assert snapshot(tmp_path / "out") == {}
    # A killed one leaves its identity, and what it had written of its first part.
    _interrupt(words, forked, tmp_path)
    ledger = _ledger(tmp_path)
    ledger.write_bytes(ledger.read_bytes().splitlines(keepends=True)[0])
    ended = forked(*words, "task.pooling=max")
    assert ended.code == 0
    assert "resuming" not in ended.err
    assert pq.read_metadata(tmp_path / "out/vectors.parquet").num_rows == ROWS - 1
    assert not ledger.parent.exists()


@pytest.mark.parametrize("kind", ["a row that was done", "a row less", "a row more"])
def test_another_input_does_not_go_on(kind: str, words: tuple[str, ...], forked: Fork, tmp_path: Path) -> None:
    _interrupt(words, forked, tmp_path)
    path = tmp_path / "rows.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    changed = {
        "a row that was done": [lines[0].replace("hello", "nices"), *lines[1:]],
        "a row less": lines[:-1],
        "a row more": [*lines, lines[0]],
    }
    path.write_text("".join(changed[kind]))
    refused = forked(*words)
    line = refused.err.splitlines()[-1]
    assert (refused.code, "rows 0 to 6" in line) == ((4, True) if kind == "a row that was done" else (2, False))
    assert "remove" in line
    path.write_text("".join(lines))
    assert forked(*words).code == 0


def test_another_checkpoint_does_not_go_on(
    words: tuple[str, ...], readable: Path, forked: Fork, tmp_path: Path
) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(readable, copied)
    words = tuple(f"model.checkpoint={copied}" if word.startswith("model.checkpoint") else word for word in words)
    _interrupt(words, forked, tmp_path)
    content = bytearray((copied / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copied / "model.safetensors").write_bytes(content)
    refused = forked(*words)
    assert refused.code == 2
    assert "model.safetensors" in refused.error


@pytest.mark.parametrize(
    ("name", "before", "after", "said"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "mean"}, {"pooling_mode": "cls"}, "settled.pooling: mean -> cls"),
        ("sentence_bert_config.json", {}, {"max_seq_length": 64}, "settled.max_tokens: None -> 64"),
    ],
)
def test_what_the_checkpoint_says_of_embeddings_counts(
    name: str, before: Any, after: Any, said: str, words: tuple[str, ...], readable: Path, forked: Fork, tmp_path: Path
) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(readable, copied)
    (copied / "1_Pooling").mkdir()
    stages = [{"type": "Transformer", "path": ""}, {"type": "Pooling", "path": "1_Pooling"}]
    files = {"modules.json": stages, "1_Pooling/config.json": {"pooling_mode": "mean"}, name: before}
    for path, content in files.items():
        (copied / path).write_text(json.dumps(content))
    own = [word for word in words if not word.startswith(("model.checkpoint", "task.pooling"))]
    own.append(f"model.checkpoint={copied}")
    _interrupt(tuple(own), forked, tmp_path)
    (copied / name).write_text(json.dumps(after))
    refused = forked(*own)
    assert refused.code == 2
    assert said in refused.error
    (copied / name).write_text(json.dumps(before))
    assert forked(*own).code == 0
    receipt = json.loads((tmp_path / "out/vectors.parquet.receipt.json").read_text())
    assert receipt["settled"]["pooling"] == "mean"


def test_another_number_of_threads_does_not_go_on(
    words: tuple[str, ...], shell: Command, forked: Fork, tmp_path: Path
) -> None:
    _interrupt(words, forked, tmp_path)
    refused = shell(*words, env={"OMP_NUM_THREADS": "2"})
    assert refused.code == 2
    assert "runtime.threads: 1 -> 2" in refused.err
    assert forked(*words).code == 0


@pytest.mark.parametrize("bad", [7, ROWS])
def test_parts_without_a_row(bad: int, words: tuple[str, ...], forked: Fork, tmp_path: Path) -> None:
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    lines[:bad] = [json.dumps({"text": None, "key": f"k{number}", "note": number}) for number in range(bad)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    run = forked(*[word.replace("vectors.parquet", "vectors.npz") for word in words])
    if bad == ROWS:
        assert run.code == 4
        assert "no row is left" in run.error
        return
    assert run.code == 0, run.err
    with np.load(tmp_path / "out/vectors.npz") as arrays:
        assert arrays["note"].tolist() == [number for number in range(bad, ROWS) if number != 31]
        assert arrays["truncated"].dtype == bool


@pytest.mark.parametrize("value", [10**30, "\ud800", [1, "a"]])
def test_a_value_that_cannot_be_stored(value: Any, words: tuple[str, ...], forked: Fork, tmp_path: Path) -> None:
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    lines[3] = json.dumps({"text": "hello", "key": "k3", "note": value})
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    refused = forked(*words)
    assert refused.code == 4
    assert "note" in refused.error


def test_an_existing_file_is_replaced_only_on_request(words: tuple[str, ...], forked: Fork, tmp_path: Path) -> None:
    target = tmp_path / "out/vectors.parquet"
    target.write_text("precious")
    refused = forked(*words)
    assert refused.code == 2
    assert "output.overwrite=true" in refused.error
    assert snapshot(tmp_path / "out").keys() == {"vectors.parquet"}
    assert forked(*words, "output.overwrite=true").code == 0
    assert pq.read_metadata(target).num_rows == ROWS - 1


def test_a_full_disk_is_one_line_and_the_run_goes_on(
    words: tuple[str, ...], whole: dict[str, tuple[str, str]], forked: Fork, tmp_path: Path
) -> None:
    for limit in (1_000, 2_000):
        refused = forked(*words, file_size=limit)
        assert refused.code == 5
        assert "goes on from here" in refused.error
    assert forked(*words).code == 0
    assert snapshot(tmp_path / "out") == whole


def test_stdin_is_read_again(readable: Path, shell: Command, tmp_path: Path) -> None:
    words = ("model=auto", f"model.checkpoint={readable}", "task=embed", "task.pooling=mean", "input=file")
    stream = ("input.path=-", "input.format=jsonl", "output=file", "output.path=stdin.npz")
    assert shell(*words, *stream, stdin='{"text": "hello"}\n{"text": "cool nice"}\n').code == 0
    assert np.load(tmp_path / "stdin.npz")["n_tokens"].tolist() == [3, 4]


def test_memory_does_not_grow_with_the_rows(readable: Path, shell: Command, tmp_path: Path) -> None:
    peaks = []
    for rows in (10_000, 60_000):  # Fewer do not fill what waits between reading, computing and writing.
        lengths = np.random.default_rng(0).integers(1, 20, rows)  # So that each pack is of a size of its own.
        (tmp_path / "rows.txt").write_text("".join("hello " * length + "\n" for length in lengths))
        words = ("model=auto", f"model.checkpoint={readable}", "task=embed", "task.pooling=mean", "input=file")
        target = ("output=file", f"output.path=v{rows}.arrow", "engine.part_rows=1000", "output.format=json")
        run = shell(*words, "input.path=rows.txt", *target)
        assert run.json["report"]["rows"] == rows
        peaks.append(run.json["report"]["peak_memory_bytes"])
    assert peaks[1] < 1.1 * peaks[0]
