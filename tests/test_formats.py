"""Files of vectors, against the readers of their formats' own projects."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from bertflow.errors import ConfigError, InputError
from bertflow_standard.formats import WRITERS, read_vectors, refuse_columns

SUFFIXES = sorted(WRITERS)
TEXTS = ["Hello!", "äöü 日本語 🙂", "", '"quoted"\r\n\\ \u2028', "2020-01-01"]


def vectors(numbers: Any) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), numbers.shape[1])


def table(rows: int, width: int = 8, dtype: str = "float32") -> pa.Table:
    random = np.random.default_rng(rows)
    return pa.table(
        {
            "id": pa.array(range(rows), pa.int64()),
            "embedding": vectors(random.standard_normal((rows, width)).astype(dtype)),
            "n_tokens": pa.array(random.integers(1, 512, rows), pa.int32()),
            "truncated": pa.array(random.integers(0, 2, rows) == 1),
            "score": pa.array(random.standard_normal(rows)),
            "user.name": pa.array([TEXTS[row % len(TEXTS)] for row in range(rows)]),
        }
    )


def fitting(suffix: str, whole: pa.Table) -> pa.Table:
    """The columns that the format can hold."""
    return whole.drop_columns(["user.name"]) if suffix == ".safetensors" else whole


def write(path: Path, whole: pa.Table, batch_rows: int = 1000) -> Path:
    """Write a table in batches, under another name as the callers do."""
    refuse_columns(path.suffix, whole.schema)
    part = path.with_suffix(".part")
    WRITERS[path.suffix](part, whole.schema, lambda: whole.to_batches(batch_rows), whole.num_rows)
    return part.replace(path)


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    schema, batches = read_vectors(path, columns)
    return pa.Table.from_batches(batches, schema)


def independently(path: Path) -> dict[str, Any]:
    """What the format's own project reads."""
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
        return {name: [row[name] for row in rows] for name in rows[0]}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    whole = pq.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(path.read_bytes()).read_all()
    return {name: whole[name].to_pylist() for name in whole.column_names}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_formats_own_readers_read_it(suffix: str, dtype: str, tmp_path: Path) -> None:
    whole = fitting(suffix, table(2500, dtype=dtype))
    found = independently(write(tmp_path / f"vectors{suffix}", whole))
    assert set(found) == set(whole.column_names)
    for name in whole.column_names:
        kind = dtype if name == "embedding" else None
        np.testing.assert_array_equal(np.array(found[name], kind), np.array(whole[name].to_pylist(), kind))
    if suffix in (".npz", ".safetensors"):
        assert [found[name].dtype for name in ("embedding", "n_tokens", "truncated")] == [dtype, np.int32, np.bool_]
    assert [path.name for path in tmp_path.iterdir()] == [f"vectors{suffix}"]


FLOATS = {
    "float32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "float16": st.floats(width=16, allow_nan=False, allow_infinity=False),
}
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), suffix=st.sampled_from(SUFFIXES), dtype=st.sampled_from(sorted(FLOATS)))
def test_what_is_written_is_read(data: st.DataObject, suffix: str, dtype: str, tmp_path_factory: Any) -> None:
    rows, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    numbers = data.draw(st.lists(FLOATS[dtype], min_size=rows * width, max_size=rows * width))
    columns = {
        "id": pa.array(data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=rows, max_size=rows))),
        "embedding": vectors(np.array(numbers, dtype).reshape(rows, width)),
        "flag": pa.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))),
        "text": pa.array(data.draw(st.lists(st.text(CHARACTERS), min_size=rows, max_size=rows))),
    }
    whole = pa.table({name: columns[name] for name in data.draw(st.permutations(sorted(columns)))})
    whole = whole.drop_columns(["text"]) if suffix == ".safetensors" else whole
    path = write(tmp_path_factory.mktemp("written") / f"vectors{suffix}", whole, data.draw(st.integers(1, 12)))
    found = read(path).select(whole.column_names)
    assert found.drop_columns(["embedding"]).equals(whole.drop_columns(["embedding"]))
    kind = found.schema.field("embedding").type
    assert kind.list_size == width
    assert str(kind.value_type) == ("float" if dtype == "float32" or suffix == ".jsonl" else "halffloat")
    exact = np.array(found["embedding"].to_pylist(), dtype)
    assert exact.tobytes() == np.array(numbers, dtype).tobytes()  # Down to the sign of zero.


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_batches_give_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    whole = fitting(suffix, table(2500))
    anew = pa.Table.from_pylist(whole.to_pylist(), whole.schema)  # Other memory, no slices, other null masks.
    one, other = (write(tmp_path / f"{name}{suffix}", part) for name, part in (("one", whole), ("other", anew)))
    assert one.read_bytes() == other.read_bytes()
    if suffix == ".npz":
        with zipfile.ZipFile(one) as archive:
            assert {member.date_time[0] for member in archive.infolist()} == {1980}


KEPT = {
    "text": pa.array(["a", None, "c"]),
    "label": pa.array(["x", "y", "x"]).dictionary_encode(),
    "when": pa.array([1, 2**40, None], pa.timestamp("ns", "UTC")),
    "day": pa.array([datetime.date(2020, 1, 1), None, datetime.date(1900, 2, 3)]),
    "price": pa.array([decimal.Decimal("1.10"), None, decimal.Decimal("-2.25")]),
    "raw": pa.array([b"\0\xff", None, b""]),
    "tags": pa.array([["a"], [], None]),
    "place": pa.array([{"file": "a", "line": 1}, None, {"file": None, "line": 2}]),
    "nothing": pa.nulls(3),
    "half": pa.array([0.1, None, 1e-20], pa.float32()),
}


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_columns_of_any_type_are_kept(suffix: str, tmp_path: Path) -> None:
    whole = pa.table({"embedding": vectors(np.eye(3, dtype=np.float32)), **KEPT})
    path = write(tmp_path / f"vectors{suffix}", whole, batch_rows=2)
    found = pq.read_table(path) if suffix == ".parquet" else pa.ipc.open_file(path.read_bytes()).read_all()
    label = whole.schema.get_field_index("label")
    plain = whole.schema.set(label, whole.schema.field(label).with_type(pa.string()))
    assert found.schema == (whole.schema if suffix == ".parquet" else plain)
    assert found.cast(plain).equals(whole.cast(plain))


def test_dictionaries_that_differ_from_batch_to_batch(tmp_path: Path) -> None:
    batches = [
        pa.record_batch(
            {"embedding": vectors(np.eye(2, dtype=np.float32)), "label": pa.array(words).dictionary_encode()}
        )
        for words in (["a", "b"], ["b", "c"])
    ]
    for suffix in (".parquet", ".arrow", ".npz", ".jsonl"):
        path = tmp_path / f"vectors{suffix}"
        refuse_columns(suffix, batches[0].schema)
        WRITERS[suffix](path, batches[0].schema, lambda: batches, 4)
        assert list(independently(path)["label"]) == ["a", "b", "b", "c"]


def test_json_lines_are_short_and_exact(tmp_path: Path) -> None:
    whole = pa.table(
        {
            "id": pa.array(["ä\n"]),
            "embedding": vectors(np.array([[0.1, -1e-20, 16777216]], np.float32)),
            **{name: KEPT[name][:1] for name in ("when", "day", "price", "tags", "place", "nothing", "half")},
            "broken": pa.array([[1.5, math.nan, math.inf]]),
        }
    )
    path = write(tmp_path / "vectors.jsonl", whole)
    assert path.read_text("utf-8") == (
        '{"id": "ä\\n", "embedding": [0.1, -1e-20, 16777216], "when": "1970-01-01 00:00:00.000000001Z", '
        '"day": "2020-01-01", "price": "1.10", "tags": ["a"], "place": {"file": "a", "line": 1}, "nothing": null, '
        '"half": 0.1, "broken": [1.5, null, null]}\n'
    )


@pytest.mark.parametrize(
    ("suffix", "column", "said"),
    [
        (".npz", pa.array([["a"]]), "list"),
        (".npz", pa.array([{"a": 1}]), "struct"),
        (".npz", pa.array([b"a"]), "binary"),
        (".npz", pa.nulls(1), "null"),
        (".npz", pa.array([None, 1]), "row 0"),
        (".npz", pa.array(["a", None]), "row 1"),
        (".npz", pa.array(["a", "b\0"]), "NUL"),
        (".safetensors", pa.array(["a"]), "string"),
        (".safetensors", pa.array([True, None]), "row 1"),
        (".jsonl", pa.array([[b"a"]]), "binary"),
        (".jsonl", pa.array([1], pa.duration("s")), "duration"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(suffix: str, column: pa.Array, said: str, tmp_path: Path) -> None:
    whole = pa.table({"embedding": vectors(np.ones((len(column), 2), np.float32)), "odd one": column})
    with pytest.raises(ConfigError, match="column odd one") as caught:
        write(tmp_path / f"vectors{suffix}", whole)
    assert said in str(caught.value)
    assert "choose .parquet" in str(caught.value)
    assert read(write(tmp_path / "vectors.parquet", whole)).equals(whole)
    assert read(write(tmp_path / f"fine{suffix}", whole.drop_columns(["odd one"]))).num_rows == len(column)


def test_what_parquet_cannot_hold_is_refused(tmp_path: Path) -> None:
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])
    whole = pa.table({"embedding": vectors(np.ones((1, 2), np.float32)), "odd": union})
    with pytest.raises(ConfigError, match=r"column odd - choose \.arrow"):
        write(tmp_path / "vectors.parquet", whole)
    assert read(write(tmp_path / "vectors.arrow", whole)).equals(whole)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_only_the_columns_asked_for_are_read(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"vectors{suffix}", fitting(suffix, table(10)))
    assert set(read(path, ["id"]).column_names) == {"id", "embedding"}
    assert read(path, []).column_names == ["embedding"]
    with pytest.raises(InputError, match=r"no column idd: .* - did you mean id"):
        read_vectors(path, ["idd"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_that_are_no_vectors(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"vectors{suffix}"
    with pytest.raises(InputError, match=f"not found: {path}"):
        read_vectors(path)
    path.mkdir()
    with pytest.raises(InputError, match=f"not found: {path}"):
        read_vectors(path)
    path.rmdir()
    with pytest.raises(InputError, match="no column embedding"):
        read_vectors(write(path, pa.table({"id": [1, 2]})))
    for wrong in ([1.0, 2.0], ["a", "b"]):
        if suffix != ".safetensors" or wrong[0] == 1:
            with pytest.raises(InputError, match=f"damaged: {path}"):
                read_vectors(write(path, pa.table({"embedding": wrong})))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl"])
def test_vectors_that_other_tools_have_written(suffix: str, tmp_path: Path) -> None:
    """Some write lists of any length, and floats of another width; they are vectors as long as all are equally long."""
    path, numbers = tmp_path / f"vectors{suffix}", np.random.default_rng(0).standard_normal((5000, 3))
    for kind in (pa.list_(pa.float64()), pa.large_list(pa.float32())):
        found = read(write(path, pa.table({"embedding": pa.array(numbers.tolist(), kind)})))
        np.testing.assert_allclose(np.array(found["embedding"].to_pylist()), numbers, rtol=1e-6)
        assert found.schema.field("embedding").type.list_size == 3
    for wrong in ([0.5] * 4, [0.5, None, 0.5], [0.5, math.nan, 0.5], None):
        rows = [*numbers.tolist(), wrong]
        with pytest.raises(InputError, match=f"damaged: {path}, from row (4096|5000) on"):
            read(write(path, pa.table({"embedding": pa.array(rows, pa.list_(pa.float32()))})))


def test_a_format_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file format: .*out\.parket - did you mean \.parquet"):
        read_vectors(tmp_path / "out.parket")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_cut_file_is_said_to_be_damaged(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"vectors{suffix}", fitting(suffix, table(2500)))
    content = path.read_bytes()
    assert read(path).num_rows == 2500
    for length in [0, 1, 8, 100, len(content) // 3, len(content) // 2, len(content) - 2]:
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=f"(damaged|no row): {path}"):
            read(path)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(suffix=st.sampled_from(SUFFIXES), share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit(suffix: str, share: float, bit: int, tmp_path_factory: Any) -> None:
    """Whatever a bit does, the file is read or named; and data with a checksum is read as it was or not at all."""
    whole = fitting(suffix, table(300))
    path = write(tmp_path_factory.mktemp("flipped") / f"vectors{suffix}", whole)
    content = bytearray(path.read_bytes())
    place = int(share * len(content))
    content[place] ^= 1 << bit
    path.write_bytes(content)
    found = read_or_refuse(path)
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    if found is not None and (suffix == ".npz" or (suffix == ".parquet" and place < footer)):
        assert found.equals(whole)


def read_or_refuse(path: Path) -> pa.Table | None:
    try:
        found = read(path)
    except InputError as error:
        if str(path) not in error.where:
            raise
        return None
    found.validate(full=True)
    return found


MEMORY = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa
from bertflow_standard.formats import WRITERS, read_vectors
from bertflow_standard.process import peak_memory

values = pa.array(np.random.default_rng(0).standard_normal(64_000).astype("float32"))
columns = {"id": pa.array(range(1000)), "embedding": pa.FixedSizeListArray.from_arrays(values, 64)}
texts = {"text": pa.array([f"the text of row {row}" for row in range(1000)])}
for suffix, write in WRITERS.items():
    batch = pa.record_batch(columns if suffix == ".safetensors" else columns | texts)
    path = Path(sys.argv[1], f"vectors{suffix}")
    peaks = []
    for count in (20, 60 if suffix == ".jsonl" else 200):
        write(path, batch.schema, lambda: (batch for _ in range(count)), 1000 * count)
        peaks.append(peak_memory())
        assert sum(part.num_rows for part in read_vectors(path)[1]) == 1000 * count
        peaks.append(peak_memory())
    print(suffix, peaks[2] - peaks[1], peaks[3] - peaks[2])
    path.unlink()
"""


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """200,000 rows are 51 MB of vectors."""
    # The other allocators keep what is freed, and more on some days.
    env = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    grown = {line.split()[0]: [int(part) for part in line.split()[1:]] for line in done.stdout.splitlines()}
    assert sorted(grown) == SUFFIXES
    assert max(max(pair) for pair in grown.values()) < 10e6, grown
