"""`task=search`: the rows that a computation over all of them gives."""

from __future__ import annotations

import json
import math
import operator
import shutil
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import bertflow as package
from bertflow.errors import InputError
from bertflow_standard.formats import WRITERS, read_vectors
from bertflow_standard.nearest import nearest
from conftest import Command

SEARCH = ("model=pretrained", "task=search")
QUERY = "a text about vectors"


def batches_of(vectors: Any, batch_rows: int, **columns: Sequence[Any]) -> list[pa.RecordBatch]:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    arrays = {name: pa.array(values) for name, values in columns.items()}
    batches: list[pa.RecordBatch] = pa.table({"embedding": flat, **arrays}).to_batches(batch_rows)
    return batches


def write(path: Path, vectors: Any, **columns: Sequence[Any]) -> Path:
    batches = batches_of(vectors, 4096, **columns)
    WRITERS[path.suffix](path, batches[0].schema, lambda: batches, len(vectors))
    return path


def embedded(folder: Path, text: str) -> Any:
    """The mean of the last hidden states, from plain transformers."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        return transformers.AutoModel.from_pretrained(folder)(**tokens).last_hidden_state[0].mean(0).numpy()


@pytest.fixture(scope="session")
def random_vectors() -> Any:
    vectors = np.random.default_rng(0).standard_normal((50_000, 32)).astype(np.float32)
    return vectors * np.random.default_rng(1).uniform(0.01, 100, (50_000, 1)).astype(np.float32)


def ranking(vectors: Any, query: Any) -> tuple[Any, Any]:
    """The rows from best to worst, and all cosines, over the whole array at once."""
    vectors, query = vectors.astype(np.float64), query.astype(np.float64)
    cosines = (vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)).astype(np.float32)
    return np.argsort(-cosines, kind="stable"), cosines


@pytest.mark.parametrize("suffix", sorted(WRITERS))
def test_all_formats_are_searched_exactly(suffix: str, random_vectors: Any, tmp_path: Path) -> None:
    path = write(tmp_path / f"vectors{suffix}", random_vectors, id=range(100_000, 150_000))
    queries = np.random.default_rng(2).standard_normal((3, 32)).astype(np.float32)
    for query, found in zip(queries, nearest(queries, read_vectors(path)[1], 25), strict=True):
        order, cosines = ranking(random_vectors, query)
        assert [match.row for match in found] == order[:25].tolist()
        assert [match.score for match in found] == cosines[order[:25]].tolist()
        assert [match.columns for match in found] == [{"id": 100_000 + match.row} for match in found]


def test_the_command_finds_what_plain_transformers_finds(
    random_vectors: Any, bertflow: Command, tmp_path: Path, minilm: Path
) -> None:
    path = write(tmp_path / "vectors.parquet", random_vectors, id=range(100_000, 150_000))
    words = (f"task.query={QUERY}", f"task.vectors={path}", "task.truncate_dim=32", "task.top=25")
    report = bertflow(*SEARCH, *words, "output.format=json").json["report"]
    order, cosines = ranking(random_vectors, embedded(minilm, QUERY)[:32])
    scores = [found["score"] for found in report]
    np.testing.assert_allclose(scores, cosines[order[:25]], atol=1e-5)
    np.testing.assert_allclose(scores, cosines[[found["row"] for found in report]], atol=1e-5)
    assert [found["rank"] for found in report] == list(range(1, 26))
    assert [found["id"] for found in report] == [100_000 + found["row"] for found in report]
    assert {found["query"] for found in report} == {QUERY}


def cosine(left: Sequence[float], right: Sequence[float]) -> np.float32:
    """Of vectors of Python's own floats."""
    product = math.hypot(*left) * math.hypot(*right)
    return np.float32(math.fsum(map(operator.mul, left, right)) / product if product else 0)


SCALES = [1.0, 3.0, 1e-30, 1e-16, 1e16, 1e30]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), width=st.integers(1, 4), dtype=st.sampled_from(["float16", "float32", "float64"]))
def test_ties_zeros_and_batches(data: st.DataObject, width: int, dtype: str) -> None:
    """Small whole numbers, so that many vectors point the same way; some very short or long."""
    vector = st.lists(st.integers(-2, 2), min_size=width, max_size=width)
    rows = data.draw(st.lists(vector, min_size=1, max_size=40))
    scales = data.draw(
        st.lists(st.sampled_from(SCALES if dtype != "float16" else [1.0, 3.0]), min_size=len(rows), max_size=len(rows))
    )
    vectors = (np.array(rows, np.float64) * np.array(scales)[:, None]).astype(dtype)
    queries = data.draw(st.lists(vector, min_size=1, max_size=3))
    top = data.draw(st.integers(1, 50))
    found = nearest(np.array(queries, np.float32), batches_of(vectors, data.draw(st.integers(1, 41))), top)
    for query, matches in zip(queries, found, strict=True):
        scores = [cosine(row, query) for row in vectors.tolist()]
        best = sorted(range(len(rows)), key=lambda row: (-scores[row], row))[:top]
        assert [match.row for match in matches] == best
        assert [match.score for match in matches] == [scores[row] for row in best]


def test_float32_alone_would_not_be_exact() -> None:
    """Cosines that float32 products cannot tell apart are ranked by what they are."""
    random = np.random.default_rng(0)
    query = random.standard_normal(384)
    near = (query + random.standard_normal((3000, 384)) * 1e-3).astype(np.float32)
    (found,) = nearest(query.astype(np.float32)[None], batches_of(near, 1000), 200)
    scores = [cosine(row, query.astype(np.float32).tolist()) for row in near.tolist()]
    best = sorted(range(len(near)), key=lambda row: (-scores[row], row))[:200]
    assert [match.row for match in found] == best
    rough = near @ query.astype(np.float32) / np.linalg.norm(near, axis=1)
    assert np.argsort(-rough, kind="stable")[:200].tolist() != best


def test_memory_is_that_of_a_batch() -> None:
    batch = batches_of(np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32), 2000)[0]
    peaks = []
    for count in (10, 100):
        tracemalloc.start()
        nearest(np.eye(3, 64, dtype=np.float32), (batch for _ in range(count)), 10)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("suffix", sorted(WRITERS))
def test_a_vector_that_is_not_finite(suffix: str, wrong: float, tmp_path: Path) -> None:
    vectors = np.ones((5000, 2), np.float32)
    query = np.ones((1, 2), np.float32)
    assert nearest(query, read_vectors(write(tmp_path / f"fine{suffix}", vectors))[1], 1)[0][0].row == 0
    vectors[4321, 1] = wrong
    path = write(tmp_path / f"vectors{suffix}", vectors)
    with pytest.raises(InputError, match=f"{path}.*embedding of row 4321 is null or not finite"):
        nearest(query, read_vectors(path)[1], 1)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the vectors of three texts, as `task=embed` writes them."""
    folder = tmp_path_factory.mktemp("corpus")
    for suffix in (".parquet", ".jsonl"):
        package.run(
            "model=pretrained",
            "task=embed",
            "output=file",
            f"output.path={folder / f'vectors{suffix}'}",
            rows=[
                {"text": text, "id": text[:3], "keep": {"text": text, "score": math.nan}}
                for text in ("a dog runs in the park", "the stock market fell", "a puppy plays outside")
            ],
        )
    return folder


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_what_embed_wrote_is_searched(suffix: str, corpus: Path, bertflow: Command) -> None:
    words = (f"task.vectors={corpus / f'vectors{suffix}'}", "task.top=2", "output.format=json")
    report = bertflow(*SEARCH, 'task.query=["animals","shares and bonds"]', *words).json["report"]
    assert [(found["query"], found["rank"]) for found in report] == [
        ("animals", 1),
        ("animals", 2),
        ("shares and bonds", 1),
        ("shares and bonds", 2),
    ]
    assert {found["text"] for found in report[:2]} == {"a dog runs in the park", "a puppy plays outside"}
    assert report[2]["text"] == "the stock market fell"
    assert list(report[2]) == ["query", "rank", "score", "id", "row", "text", "vectors.score"]
    assert (report[2]["id"], report[2]["row"], report[2]["vectors.score"]) == ("the", 1, None)
    assert report[2]["score"] == float(str(np.float32(report[2]["score"])))


def test_the_table(corpus: Path, bertflow: Command) -> None:
    run = bertflow(*SEARCH, "task.query=the stock market fell", f"task.vectors={corpus / 'vectors.parquet'}")
    assert run.code == 0
    lines = run.out.splitlines()
    assert lines[0].split() == ["task", "search"]
    assert lines[2].split() == ["query", "rank", "score", "id", "row", "text", "vectors.score"]
    assert len(lines) == 6
    assert " 1     1.0 " in lines[3]


def test_the_prompt_is_put_before_the_query(corpus: Path, bertflow: Command, minilm: Path) -> None:
    words = ("task.query=dog", "task.prompt=query: ", f"task.vectors={corpus / 'vectors.parquet'}")
    report = bertflow(*SEARCH, *words, "output.format=json").json["report"]
    query = embedded(minilm, "query: dog")
    found = embedded(minilm, report[0]["text"])
    assert report[0]["score"] == pytest.approx(cosine(found.tolist(), query.tolist()), abs=1e-5)
    assert report[0]["query"] == "dog"


@pytest.mark.parametrize(
    "prompts",
    [
        {"prompts": {"query": "query: ", "document": "passage: "}},
        {"prompts": {"query": "query: ", "other": "text: "}, "default_prompt_name": "other"},
        {"prompts": {"query": "", "other": "text: "}, "default_prompt_name": "other"},
        {"prompts": {"other": "text: "}, "default_prompt_name": "other"},
        {"prompts": {"other": "text: "}},
    ],
)
def test_a_query_has_the_prompt_that_the_checkpoint_gives_it(
    prompts: dict[str, Any], minilm: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "model"
    shutil.copytree(minilm, folder)
    settings = folder / "config_sentence_transformers.json"
    known = json.loads(settings.read_bytes()) if settings.is_file() else {}
    settings.write_text(json.dumps({**known, "default_prompt_name": None, **prompts}))
    query = SentenceTransformer(str(folder), device="cpu").encode_query("dog")
    path = write(tmp_path / "vectors.parquet", np.eye(len(query), dtype=np.float32))
    found = package.run(
        *SEARCH, f"model.checkpoint={folder}", "task.query=dog", f"task.vectors={path}", f"task.top={len(query)}"
    )
    scores = {row["row"]: row["score"] for row in found.report}
    np.testing.assert_allclose([scores[row] for row in range(len(query))], query, atol=1e-5)


@pytest.fixture(scope="session")
def control(corpus: Path) -> dict[str, str]:
    """The words of a search that works: key -> value."""
    words = {"task.query": "dog", "task.vectors": str(corpus / "vectors.parquet")}
    assert len(package.run(*SEARCH, *(f"{key}={value}" for key, value in words.items())).report) == 3
    return words


@pytest.mark.parametrize(
    ("key", "value", "code", "said"),
    [
        ("task.query", "???", 2, ["a value is missing", "task.query"]),
        ("task.query", "null", 4, ["task.query"]),
        ("task.query", "[]", 4, ["no query"]),
        ("task.query", "1.10", 4, ["task.query=1.1"]),
        ("task.query", "[a,2]", 4, ["task.query, row 1"]),
        ("task.query", "word " * 300, 4, ["302 tokens, limit 256"]),
        ("task.vectors", "???", 2, ["a value is missing", "task.vectors"]),
        ("task.vectors", "./nowhere.parquet", 4, ["nowhere.parquet", "not found"]),
        ("task.vectors", "./nowhere.csv", 4, ["nowhere.csv", ".parquet"]),
        ("task.top", "0", 2, ["task.top=0"]),
        ("task.top", "many", 2, ["task.top"]),
        ("task.pooling", "median", 2, ["did you mean mean"]),
        ("task.truncate_dim", "100", 4, ["384 numbers", "100"]),
    ],
)
def test_what_cannot_be_searched(
    key: str, value: str, code: int, said: list[str], control: dict[str, str], bertflow: Command
) -> None:
    refused = bertflow(*SEARCH, *(f"{name}={text}" for name, text in {**control, key: value}.items()))
    assert refused.code == code, refused.err
    for part in said:
        assert part in refused.error


@pytest.fixture
def other_model(tmp_path: Path, minilm: Path) -> Path:
    """MiniLM with one number changed."""
    folder = tmp_path / "other"
    shutil.copytree(minilm, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][5, 5] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_vectors_of_another_model_are_not_compared(
    corpus: Path, control: dict[str, str], other_model: Path, bertflow: Command, tmp_path: Path
) -> None:
    path = tmp_path / "vectors.parquet"
    receipt = tmp_path / "vectors.parquet.receipt.json"
    for file in (path, receipt):
        shutil.copy(corpus / file.name, file)
    words = ("task=search", f"task.query={control['task.query']}", f"task.vectors={path}")
    other = ("model=auto", f"model.checkpoint={other_model}")

    refused = bertflow(*words, "model=pretrained", "task.pooling=cls")
    assert refused.code == 2
    assert "pooling was mean, the query's is cls" in refused.error

    refused = bertflow(*words, *other)
    assert refused.code == 2
    digests = json.loads(receipt.read_text())["checkpoint"]["digests"]
    assert f"model.safetensors was {digests['model.safetensors'][:12]}, the query's is " in refused.error

    receipt.write_text("{}")
    refused = bertflow(*words, *other)
    assert refused.code == 4
    assert "vectors.parquet.receipt.json" in refused.error

    receipt.unlink()
    assert bertflow(*words, *other).code == 0
