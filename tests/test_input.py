"""Rows from the command line: what is taken, and what is answered with row and column."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import bertflow
from conftest import Command, MakeCheckpoint


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["input.ids=[[101,99999,102]]"], ["row 0, column 1", "99999", "vocabulary size 30522"]),
        (["input.ids=[[101],[7,-1]]"], ["row 1, column 1", "-1"]),
        (["input.ids=[]"], ["empty batch"]),
        (["input.ids=[[101],[]]"], ["empty row", "row 1"]),
        (["input.ids=[[101,7592"], ["malformed list", "[[101,7592"]),
        (["input.ids=101"], ["malformed list"]),
        (["input.ids={a:1}"], ["malformed list"]),
        (["input.ids=[101,102]"], ["row 0", "not a list"]),
        (["input.ids=[[true,false]]"], ["row 0, column 0", "bool"]),
        (["input.ids=[[1.5]]"], ["row 0, column 0", "float"]),
        (["input.ids=[[a]]"], ["row 0, column 0", "str"]),
        (["model.config.max_position_embeddings=8", f"input.ids=[{[5] * 9}]"], ["row 0", "9 tokens", "limit 8"]),
        (["input.ids=[[5,6]]", "input.attention_mask=[[1]]"], ["row 0", "1 values", "2"]),
        (["input.ids=[[5,6]]", "input.attention_mask=[[1,1],[1,1]]"], ["2 rows", "1"]),
        (["input.ids=[[5,6]]", "input.attention_mask=[[0,0]]"], ["row 0", "masked"]),
        (["input.ids=[[5,6]]", "input.attention_mask=[[1,2]]"], ["row 0", "0 or 1"]),
        (["input.ids=[[5,6]]", "input.token_type_ids=[[0,2]]"], ["row 0, column 1", "type vocabulary size 2"]),
        (["model=pretrained", "input=texts", 'input.texts=["a"'], ["malformed list"]),
        (["model=pretrained", "input=texts", "input.texts=[1.10]"], ["row 0", "quote it"]),
        (["model=pretrained", "input=texts", "input.texts=[]"], ["empty batch"]),
    ],
)
def test_bad_rows(words: list[str], said: list[str], bertflow: Command) -> None:
    refused = bertflow("model=tiny", *words)
    assert refused.code == 4
    for part in said:
        assert part in refused.error


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "empty batch"),
        (["fine", 3.5], "row 1"),
        (["fine", "\ud800"], "row 1, character 0"),
        ([[101, -1]], "row 0, column 1"),
        ([{"input_ids": [101], "atention_mask": [1]}], "atention_mask"),
        ([{"input_ids": [101], "labels": [1]}], "labels"),
        ([{"attention_mask": [1]}], "no input_ids"),
        ([b"abc"], "row 0"),
        ("Hello", "rows='Hello'"),
        ({"text": "Hello"}, "rows="),
        (5, "rows=5"),
        (["word " * 600], "limit 512"),
    ],
)
def test_bad_rows_of_the_python_call(rows: list[object], said: str) -> None:
    with pytest.raises(bertflow.InputError, match=said):
        bertflow.run("model=pretrained", rows=rows)


def test_arrays_are_rows() -> None:
    arrays = bertflow.run("model=tiny", rows=np.array([[5, 6], [7, 8]])).outputs
    lists = bertflow.run("model=tiny", rows=[[5, 6], (7, 8)]).outputs
    np.testing.assert_array_equal(arrays["last_hidden_state"], lists["last_hidden_state"])


def test_what_the_callers_iterable_raises_comes_through() -> None:
    def rows() -> Iterator[list[int]]:
        yield [5]
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        bertflow.run("model=tiny", rows=rows())


def test_rows_stand_in_for_any_input() -> None:
    assert bertflow.run("model=tiny", "input=texts", rows=[[5]]).outputs["last_hidden_state"].shape == (1, 1, 32)


def test_an_empty_text_is_the_tokenizers_own_tokens() -> None:
    empty = bertflow.run("model=pretrained", rows=[""]).outputs["last_hidden_state"]
    assert empty.shape == (1, 2, 384)  # the tokenizer's own first and last token


def test_a_decoder_gives_arrays_only() -> None:
    assert set(bertflow.run("model=tiny", "model.config.is_decoder=true").outputs) == {
        "last_hidden_state",
        "pooler_output",
    }


def test_row_numbers_count_through_all_rows() -> None:
    with pytest.raises(bertflow.InputError, match="row 1500, column 0"):
        bertflow.run("model=tiny", "runtime.batch_tokens=64", rows=[[5]] * 1500 + [[99999]])


def test_roberta_counts_positions_from_behind_the_padding(checkpoint: MakeCheckpoint) -> None:
    words = ("model=auto", f"model.checkpoint={checkpoint('roberta')}")
    assert bertflow.run(*words, rows=[[5] * 512]).outputs["last_hidden_state"].shape == (1, 512, 32)
    with pytest.raises(bertflow.InputError, match="513 tokens, limit 512"):
        bertflow.run(*words, rows=[[5] * 513])


def test_relative_positions_set_no_limit(checkpoint: MakeCheckpoint) -> None:
    result = bertflow.run("model=auto", f"model.checkpoint={checkpoint('deberta-v2')}", rows=[[5] * 100])
    assert result.outputs["last_hidden_state"].shape == (1, 100, 32)


def test_an_input_that_the_architecture_does_not_take(bertflow: Command, checkpoint: MakeCheckpoint) -> None:
    words = ("model=auto", f"model.checkpoint={checkpoint('distilbert')}")
    refused = bertflow(*words, "input.ids=[[5,6]]", "input.token_type_ids=[[0,0]]")
    assert refused.code == 4
    assert "token_type_ids" in refused.error


def test_masks_and_segments_reach_the_model() -> None:
    base = bertflow.run("model=tiny", "input.ids=[[5,6,7]]").outputs["last_hidden_state"]
    masked = bertflow.run("model=tiny", "input.ids=[[5,6,7]]", "input.attention_mask=[[1,1,0]]")
    short = bertflow.run("model=tiny", "input.ids=[[5,6]]")
    segments = bertflow.run("model=tiny", "input.ids=[[5,6,7]]", "input.token_type_ids=[[0,1,1]]")
    np.testing.assert_allclose(
        masked.outputs["last_hidden_state"][:, :2], short.outputs["last_hidden_state"], atol=1e-6
    )
    assert not np.allclose(segments.outputs["last_hidden_state"], base)


def test_batches_change_nothing() -> None:
    rows = [[5] * length for length in (3, 7, 1, 12, 2)]
    whole = bertflow.run("model=tiny", rows=rows).outputs["last_hidden_state"]
    split = bertflow.run("model=tiny", "runtime.batch_tokens=8", rows=rows).outputs["last_hidden_state"]
    assert split.shape == whole.shape == (5, 12, 32)
    for number, row in enumerate(rows):
        np.testing.assert_allclose(split[number, : len(row)], whole[number, : len(row)], atol=1e-6)


def test_a_sentence_needs_no_quotes(bertflow: Command) -> None:
    words = ("model=pretrained", "input=texts", "output.format=json")
    sentence = bertflow(*words, "input.texts=Hello, world! It's 5 o'clock: (really)")
    assert sentence.json["outputs"]["last_hidden_state"]["shape"][0] == 1
