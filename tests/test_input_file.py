"""`input=file`: what each format gives, in order and with its place; what is refused, and where."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bertflow as package
from conftest import Command, MakePlugin

TASK = """
import bertflow
from bertflow.hookspecs import Result

@bertflow.hookimpl
def run_task(flow):
    return Result("rows", report={"rows": list(flow.rows()), "sources": flow.call("describe_input")})
"""
COUNT = """
import sys

import psutil

import bertflow
from bertflow.hookspecs import Result

@bertflow.hookimpl
def run_task(flow):
    process, peak, count = psutil.Process(), 0, 0
    for count, row in enumerate(flow.rows(), 1):
        if count % 500 == 0:
            peak = max(peak, process.memory_info().rss)
    return Result("count", report={"rows": count, "peak": peak, "torch": "torch" in sys.modules})
"""

TEXTS = ["Hello, world!", "NA", "1.10", "true", "", 'She said "no"', "two\nlines", "naïve 雪 🙂", "null", "\ttab"]
TABLE: dict[str, list[Any]] = {
    "id": [f"r{number}" for number in range(len(TEXTS))],
    "text": TEXTS,
    "label": ["pos", "neg"] * 5,
    "unused": list(range(10)),
}


@pytest.fixture(autouse=True)
def rows_task(plugin: MakePlugin, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a task that gives the rows as the input plugin read them."""
    env = plugin({"conf/task/rows.yaml": "# Rows\nplugin: rows\n", "task/rows.py": TASK}, name="rows")
    monkeypatch.syspath_prepend(env["PYTHONPATH"])
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "bertflow_rows"]:
        del sys.modules[name]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder that holds nothing yet."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def report(path: Path | str, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = package.run("task=rows", "input=file", f"input.path={path}", *words).report
    return found


def read(path: Path | str, *words: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = report(path, *words)["rows"]
    return rows


def texts(path: Path | str, *words: str) -> list[Any]:
    return [row["text"] for row in read(path, *words)]


def records() -> list[dict[str, Any]]:
    return [dict(zip(TABLE, values, strict=True)) for values in zip(*TABLE.values(), strict=True)]


def write(path: Path) -> Path:
    """Write the table with a library that bertflow does not read it with, where there is one."""
    kind = path.suffix
    if kind in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(record) + "\n" for record in records()), encoding="utf-8")
    elif kind in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if kind == ".tsv" else ",")
            writer.writerows([list(TABLE), *zip(*TABLE.values(), strict=True)])
    elif kind == ".parquet":
        pq.write_table(pa.table(TABLE), path, row_group_size=3)
    else:
        new = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
        with new(path, pa.table(TABLE).schema) as sink:
            sink.write_table(pa.table(TABLE), 3)
    return path


NAMES = ["a.jsonl", "a.ndjson", "a.csv", "a.tsv", "a.parquet", "a.arrow", "stream.arrow", "a.feather"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_rows(name: str, data: Path) -> None:
    path = write(data / name)
    rows = read(path, "input.id_column=id", "input.keep=[label]", "input.pair_column=label")
    assert [{key: value for key, value in row.items() if key not in ("place", "read")} for row in rows] == [
        {"text": text, "text_pair": label, "id": name, "keep": {"label": label}}
        for name, text, label in zip(TABLE["id"], TEXTS, TABLE["label"], strict=True)
    ]
    lines = list(range(1, 11))
    if path.suffix in (".csv", ".tsv"):  # A quoted text of two lines, and the header.
        lines = [2 + number + "".join(TEXTS[:number]).count("\n") for number in range(10)]
    assert [row["place"] for row in rows] == [(str(path), line) for line in lines]


@pytest.mark.parametrize("name", [*NAMES, "a.jsonl.gz"])
def test_a_row_tells_the_share_that_has_been_read(name: str, data: Path) -> None:
    path = write(data / name.removesuffix(".gz"))
    if name.endswith(".gz"):
        path.rename(path := path.with_name("plain"))
        (data / name).write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    (data / "z.txt").write_text("one\n" * 100)
    shares = [row["read"] for row in read(data)]
    sizes = (data / name).stat().st_size, 400
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[9] <= sizes[0] / sum(sizes)
    np.testing.assert_allclose(shares[10:], [(sizes[0] + 4 * row) / sum(sizes) for row in range(1, 101)])


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    ".lz4": lambda data: pa.Codec("lz4").compress(data, asbytes=True),
}


def test_compressed_files(data: Path) -> None:
    for name in ("a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.arrow", "stream.arrow"):
        plain = write(data / name).read_bytes()
        for suffix, pack in PACKERS.items():
            (data / f"{name}{suffix}").write_bytes(pack(plain))
    read_from: dict[str, list[str]] = {}
    for row in read(data):
        read_from.setdefault(Path(row["place"][0]).name, []).append(row["text"])
    assert len(read_from) == 30
    assert all(found == TEXTS for found in read_from.values())


def test_a_gzip_file_of_several_members(data: Path) -> None:
    path = data / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\ntw") + gzip.compress(b"o\nthree"))
    assert texts(path) == ["one", "two", "three"]


def test_a_line_of_text_is_a_row_whatever_is_on_it(data: Path) -> None:
    path = data / "a.txt"
    path.write_bytes(b"\xef\xbb\xbffirst\r\n\n  kept  \nlone\rreturn\x0band more\xe2\x80\xa8\nlast")
    rows = read(path)
    assert [row["text"] for row in rows] == ["first", "", "  kept  ", "lone\rreturn\x0band more\u2028", "last"]
    assert [row["place"][1] for row in rows] == [1, 2, 3, 4, 5]


def test_signs_of_other_systems_are_no_part_of_a_row(data: Path) -> None:
    (data / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    (data / "b.csv").write_bytes(b'\xef\xbb\xbftext,n\r\nc,1\r\n\r\n"d\r\n",2\r\ne,3')
    rows = read(data)
    assert [row["text"] for row in rows] == ["a", "b", "c", "d\r\n", "e"]
    assert [row["place"][1] for row in rows] == [1, 4, 2, 4, 6]


def test_values_keep_their_types(data: Path) -> None:
    (data / "a.jsonl").write_text('{"text": null, "id": 7, "k": [1, {"a": 2.5}]}\n{"text": 3, "id": "x", "k": true}\n')
    day = datetime.date(2024, 2, 29)
    columns = {
        "text": pa.array(["yes", None]).dictionary_encode(),
        "id": pa.array([1, 2], pa.int8()),
        "k": pa.array([day, None], pa.date32()),
    }
    pq.write_table(pa.table(columns), data / "b.parquet")
    columns["text"] = pa.array(["yes", None], pa.large_string())
    with pa.ipc.new_file(data / "c.arrow", pa.table(columns).schema) as sink:
        sink.write_table(pa.table(columns))
    rows = read(data, "input.id_column=id", "input.keep=[k]")
    table = [("yes", 1, {"k": day}), (None, 2, {"k": None})]
    assert [(row["text"], row["id"], row["keep"]) for row in rows] == [
        (None, 7, {"k": [1, {"a": 2.5}]}),
        (3, "x", {"k": True}),
        *table,
        *table,
    ]


def test_ids_of_csv_are_texts(data: Path) -> None:
    path = data / "a.csv"
    path.write_text("id,text,k\n007,a,1.50\n1e5,b,\n")
    rows = read(path, "input.id_column=id", "input.keep=[k]")
    assert [(row["id"], row["keep"]["k"]) for row in rows] == [("007", "1.50"), ("1e5", "")]


def test_a_row_of_jsonl_may_lack_what_is_only_carried(data: Path) -> None:
    path = data / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "lang": "de"}\n{"text": "c"}\n')
    assert [row["keep"] for row in read(path, "input.keep=[lang]")] == [{"lang": None}, {"lang": "de"}, {"lang": None}]


def test_long_fields_are_read_and_pythons_limit_is_put_back(data: Path) -> None:
    long, before = "word " * 400_000, csv.field_size_limit()
    for name, line in {"a.jsonl": json.dumps({"text": long}), "b.csv": f"text\n{long}", "c.txt": long}.items():
        (data / name).write_text(f"{line}\n")
    assert texts(data) == [long] * 3
    assert csv.field_size_limit() == before


def test_files_are_read_in_sorted_order_and_hidden_ones_left_alone(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["b.txt", "a.txt", "sub/c.TXT", ".hidden.txt", ".git/d.txt", "readme.md", "e.jsonl.gz", "[x].txt"]:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(gzip.compress(b'{"text": "e"}') if name == "e.jsonl.gz" else name.encode())
    assert texts(data) == ["[x].txt", "a.txt", "b.txt", "e", "sub/c.TXT"]
    assert texts(data, "input.format=txt") == ["[x].txt", "a.txt", "b.txt", "sub/c.TXT"]
    assert texts(data / "*.txt") == ["[x].txt", "a.txt", "b.txt"]
    assert texts(data / "**/*.[tT]*") == ["[x].txt", "a.txt", "b.txt", "sub/c.TXT"]
    assert texts(data / "[x].txt") == ["[x].txt"]
    monkeypatch.setenv("HOME", str(data.parent))
    assert texts("~/data/a.*") == ["a.txt"]
    found = report("*[ab].txt")
    assert found["sources"] == {"files": {"a.txt": 5, "b.txt": 5}}
    assert [row["place"] for row in found["rows"]] == [("a.txt", 1), ("b.txt", 1)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "stream.arrow", "a.parquet"])
def test_stdin(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data / name
    path.write_text("one\ntwo") if path.suffix == ".txt" else write(path)
    expected = texts(path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(path.read_bytes()))))
    found = report("-", f"input.format={path.suffix[1:]}")
    assert [row["text"] for row in found["rows"]] == expected
    assert found["rows"][0]["place"][0] == "stdin"
    assert found["sources"] == {"files": {}}
    assert not sys.stdin.closed


def test_stdin_that_has_nothing_to_say(shell: Command) -> None:
    refused = shell("model=pretrained", "input=file", "input.path=-", "input.format=jsonl")
    assert refused.code == 4
    assert "empty batch" in refused.error


@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX")
@pytest.mark.parametrize("name", NAMES)
def test_every_format_through_a_pipe(name: str, data: Path) -> None:
    content = write(data / name).read_bytes()
    (data / name).unlink()
    os.mkfifo(data / name)
    writer = threading.Thread(target=(data / name).write_bytes, args=(content,))
    writer.start()
    assert texts(data / name) == TEXTS
    writer.join()


@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX")
def test_a_pipe_is_read_once(data: Path) -> None:
    pipe = data / "pipe.jsonl"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=('{"text": "a"}\n{"text": "b"}\n',))
    writer.start()
    assert texts(pipe) == ["a", "b"]
    writer.join()


def test_bad_rows_come_with_reason_and_place(data: Path) -> None:
    lines = [
        b'{"text": "fine", "id": 1}',
        b'{"text": "cut" ',
        b'["text"]',
        b'{"text": "\xff", "id": 3}',
        b'{"txet": "typo", "id": 4}',
        b'{"text": "no id"}',
        b"[" * 100_000,
        b'{"text": "\\ud800", "id": 8}',
    ]
    (data / "a.jsonl").write_bytes(b"\n".join(lines))
    rows = read(data / "a.jsonl", "input.id_column=id")
    assert [row["place"][1] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    for row, said in zip(
        rows[1:6], ["character 16", "list", "UTF-8", "(it has txet, id)", "no column id"], strict=True
    ):
        assert said in row["error"]
        assert "text" not in row
    assert rows[4]["id"] == 4
    assert "not valid JSON" in rows[6]["error"]
    assert rows[7]["text"] == "\ud800"  # The tokenizer's business, as null and numbers are.


def test_bad_rows_of_csv(data: Path) -> None:
    text = b'text,k\nfine,1\nshort\nlong,2,3\n\xff,4\n"a\n\xff\nb",5\n"a"b,6\nfine,7\n"never\nclosed,8\n'
    (data / "a.csv").write_bytes(text)
    rows = read(data / "a.csv")
    assert [(row["place"][1], row.get("text")) for row in rows if "error" not in row] == [(2, "fine"), (10, "fine")]
    assert [(row["place"][1], row["error"].partition(" (")[0]) for row in rows if "error" in row] == [
        (3, "1 fields where the header has 2"),
        (4, "3 fields where the header has 2"),
        (5, "not UTF-8"),
        (6, "not UTF-8"),
        (9, "not valid CSV"),
        (11, "not valid CSV"),
    ]


def test_bad_rows_of_other_formats(data: Path) -> None:
    (data / "a.txt").write_bytes(b"fine\n\xff\nfine\n")
    bad = pa.array([b"fine", b"\xff", b"fine"]).view(pa.string())
    pq.write_table(pa.table({"text": bad}), data / "b.parquet")
    for path in data.iterdir():
        assert [row.get("text", row.get("error")) for row in read(path)] == ["fine", "not UTF-8", "fine"]


@pytest.mark.parametrize("name", [*NAMES[2:], "a.txt"])
@pytest.mark.parametrize(
    "word", ["input.column=txet", "input.id_column=txet", "input.pair_column=txet", "input.keep=[txet]"]
)
def test_a_missing_column_is_named(name: str, word: str, bertflow: Command, data: Path) -> None:
    path = data / name
    path.write_text("one\n") if path.suffix == ".txt" else write(path)
    words = ("task=rows", "input=file", f"input.path={path}", "output.format=json")
    refused = bertflow(*words, word)
    assert refused.code == 4
    for said in (str(path), "txet", "did you mean text?"):
        assert said in refused.error
    assert bertflow(*words, word.replace("txet", "text")).code == 0


def test_a_column_that_is_missing_in_one_of_many_files(bertflow: Command, data: Path) -> None:
    (data / "a.csv").write_text("text,label\na,1\n")
    (data / "b.jsonl").write_text('{"text": "a", "lable": 1}\n')
    words = ("task=rows", "input=file", f"input.path={data}")
    refused = bertflow(*words, "input.keep=[label]")
    assert refused.code == 4
    for said in (str(data / "b.jsonl"), "label", "did you mean lable?"):
        assert said in refused.error
    assert bertflow(*words).code == 0


def test_two_columns_of_one_name(bertflow: Command, data: Path) -> None:
    (data / "a.csv").write_text("text,text,label\na,b,1\n")
    table = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "text", "label"])
    pq.write_table(table, data / "b.parquet")
    for path in data.iterdir():
        refused = bertflow("task=rows", "input=file", f"input.path={path}")
        assert refused.code == 4
        assert "two columns" in refused.error
        assert texts(path, "input.column=label") in (["1"], ["c"])


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zst", "a.txt.bz2", "a.parquet", "a.arrow", "stream.arrow"])
def test_damaged_files(name: str, bertflow: Command, data: Path) -> None:
    path, plain = data / name, data / Path(name).stem
    if path.suffix in PACKERS:
        plain.write_text("one\ntwo\n") if plain.suffix == ".txt" else write(plain)
        path.write_bytes(PACKERS[path.suffix](plain.read_bytes()))
    else:
        write(path)
    words = ("task=rows", "input=file", f"input.path={path}")
    assert bertflow(*words).code == 0
    whole = path.read_bytes()
    for damaged in (whole[:-4], whole[: len(whole) // 2], b"nothing of the kind" * 9, b""):
        path.write_bytes(damaged)
        refused = bertflow(*words)
        assert refused.code == 4
        assert str(path) in refused.error


def test_damage_behind_the_first_rows_does_not_end_the_process(bertflow: Command, data: Path) -> None:
    path = write(data / "a.arrow")
    whole = path.read_bytes()
    place = whole.index(b"Hello, world!") - 16 * 4  # Where a text begins, said by its neighbours.
    words = ("task=rows", "input=file", f"input.path={path}")
    assert bertflow(*words).code == 0
    path.write_bytes(whole[:place] + b"\x7f" * 64 + whole[place + 64 :])
    refused = bertflow(*words)
    assert refused.code == 4
    assert str(path) in refused.error


def test_a_wrong_name_is_answered_before_torch_is_imported(data: Path) -> None:
    write(data / "a.csv")
    (data / "b.csv").write_text("txet\nonly the second file has it wrong\n")
    words = "'model=pretrained', 'input=file', 'input.path=*.csv'"
    script = f"import sys; from bertflow.cli import main; print(main([{words}]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "4 False\n", done.stderr


def test_what_is_not_there(bertflow: Command, data: Path) -> None:
    write(data / "reviews.jsonl")
    (data / "empty").mkdir()
    (data / "empty/notes.md").touch()
    for name, said in {
        "reviews.jsnol": "did you mean reviews.jsonl?",
        "*.cvs": "no file matches",
        "no/such/folder.csv": "check the path",
        "empty": ".parquet",
    }.items():
        refused = bertflow("task=rows", "input=file", f"input.path={data / name}")
        assert refused.code == 4
        assert said in refused.error
        assert f"input.path={data / name}" in refused.error
    assert bertflow("task=rows", "input=file", f"input.path={data / 'reviews.jsonl'}").code == 0


def test_what_the_system_refuses(bertflow: Command, data: Path) -> None:
    (data / "a.txt").symlink_to("a.txt")
    refused = bertflow("task=rows", "input=file", f"input.path={data / 'a.txt'}")
    assert refused.code == 5
    assert str(data / "a.txt") in refused.error


@pytest.mark.parametrize(
    ("words", "said", "mended"),
    [
        (["input.format=jsnol"], "did you mean jsonl?", ["input.format=jsonl"]),
        (["input.on_error=skpi"], "did you mean skip?", ["input.on_error=skip"]),
        (["input.keep=[id]"], "input.keep: id", ["input.keep=[label]"]),
        (["input.keep=[embedding]"], "input.keep: embedding", []),
        (["input.keep=[label,label]"], "named twice", ["input.keep=[label,unused]"]),
        (["input.path="], "input.path", []),
        (["input.path=-"], "input.format=jsonl", []),
        (["input.path=a.xyz"], "input.format=jsonl", ["input.path=a.xyz", "input.format=jsonl"]),
    ],
)
def test_settings_that_cannot_be(words: list[str], said: str, mended: list[str], bertflow: Command, data: Path) -> None:
    (data / "a.xyz").write_bytes(write(data / "a.jsonl").read_bytes())
    command = ("task=rows", "input=file", "input.path=a.jsonl")
    refused = bertflow(*command, *words)
    assert refused.code == 2
    assert said in refused.error
    assert bertflow(*command, *mended).code == 0


def test_rows_of_a_file_are_the_models_rows(data: Path) -> None:
    path = data / "a.csv"
    path.write_text('text\nHello!\n"Cool, isn\'t it"\n')
    found = package.run("model=pretrained", "input=file", f"input.path={path}").outputs
    expected = package.run("model=pretrained", rows=["Hello!", "Cool, isn't it"]).outputs
    np.testing.assert_array_equal(found["last_hidden_state"], expected["last_hidden_state"])


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv", "a.parquet"])
def test_many_rows_need_no_more_memory_than_few(name: str, shell: Command, plugin: MakePlugin, data: Path) -> None:
    env = plugin({"conf/task/count.yaml": "# Count\nplugin: count\n", "task/count.py": COUNT}, name="count")
    env["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # The others keep what is no longer used for a while.
    peaks = []
    for count in (3_000, 300_000):
        path, rows = data / f"{count}-{name}", [f"row {number}: {'a word ' * 20}" for number in range(count)]
        if name == "a.parquet":
            pq.write_table(pa.table({"text": rows}), path)
        elif name == "a.csv":
            path.write_text("\n".join(["text", *rows]))
        else:
            path.write_bytes(gzip.compress("\n".join(f'{{"text": "{row}"}}' for row in rows).encode(), 1))
        found = shell("task=count", "input=file", f"input.path={path}", "output.format=json", env=env).json["report"]
        assert found["rows"] == count
        assert not found["torch"]
        peaks.append(found["peak"])
    assert peaks[1] < 1.1 * peaks[0]  # The texts of all rows are half as large as the process.
