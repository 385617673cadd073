"""Rows from the command line: what is taken, and what is answered with row and column."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import bertflow as package
from conftest import Command, MakeCheckpoint

SHORT = ["model.config.max_position_embeddings=8"]
TEXTS = ["model=pretrained", "input=texts"]

BAD_ROWS: dict[str, tuple[list[str], list[str], list[str], list[str]]] = {
    "E01 an id outside the vocabulary": (
        [],
        ["input.ids=[[101,7592,102]]"],
        ["input.ids=[[101,99999,102]]"],
        ["row 0, column 1", "99999", "vocabulary size 30522"],
    ),
    "E02 a negative id": ([], ["input.ids=[[101],[7,1]]"], ["input.ids=[[101],[7,-1]]"], ["row 1, column 1", "-1"]),
    "E03 no row": ([], ["input.ids=[[101]]"], ["input.ids=[]"], ["empty batch"]),
    "E03 no text": (TEXTS, ["input.texts=[a]"], ["input.texts=[]"], ["empty batch"]),
    "E03 a row of nothing": ([], ["input.ids=[[101],[7]]"], ["input.ids=[[101],[]]"], ["empty row", "row 1"]),
    "E06 a row that is too long": (
        SHORT,
        [f"input.ids=[{[5] * 8}]"],
        [f"input.ids=[{[5] * 9}]"],
        ["row 0", "9 tokens", "limit 8", "truncat"],
    ),
    "E07 a row that is masked": (
        ["input.ids=[[5,6],[7]]"],
        ["input.attention_mask=[[1,0],[1]]"],
        ["input.attention_mask=[[1,1],[0]]"],
        ["row 1", "masked"],
    ),
    "E08 booleans for ids": ([], ["input.ids=[[1,1]]"], ["input.ids=[[true,false]]"], ["input_ids", "row 0", "bool"]),
    "E08 fractions for ids": ([], ["input.ids=[[1]]"], ["input.ids=[[1.5]]"], ["row 0, column 0", "float"]),
    "E08 words for ids": ([], ["input.ids=[[1]]"], ["input.ids=[[a]]"], ["row 0, column 0", "str"]),
    "E08 a number for a text": (
        TEXTS,
        ["input.texts=['1.10']"],
        ["input.texts=[1.10]"],
        ["row 0", "quote it"],
    ),
    "E12 more rows of the mask": (
        ["input.ids=[[5,6]]"],
        ["input.attention_mask=[[1,1]]"],
        ["input.attention_mask=[[1,1],[1,1]]"],
        ["attention_mask has 2 rows", "ids has 1"],
    ),
    "E12 a longer row of ids": (
        ["input.ids=[[5,6]]"],
        ["input.attention_mask=[[1,1]]"],
        ["input.attention_mask=[[1]]"],
        ["row 0", "1 values", "2"],
    ),
    "E16 a token type outside the table": (
        ["input.ids=[[5,6]]"],
        ["input.token_type_ids=[[0,1]]"],
        ["input.token_type_ids=[[0,2]]"],
        ["token type", "row 0, column 1", "type vocabulary size 2"],
    ),
    "E17 padding without a mask": (
        ["input.ids=[[101,7592,102],[5,6,0]]"],
        ["input.attention_mask=[[1,1,1],[1,1,0]]"],
        [],
        ["row 1", "id 0", "attention_mask"],
    ),
    "E18 a lone surrogate": (TEXTS, ["input.texts=caf\xe9"], ["input.texts=caf\udce9"], ["row 0", "surrogate"]),
    "a mask that is neither 0 nor 1": (
        ["input.ids=[[5,6]]"],
        ["input.attention_mask=[[1,0]]"],
        ["input.attention_mask=[[1,2]]"],
        ["row 0", "0 or 1"],
    ),
    "a list without its end": ([], ["input.ids=[[101,7592]]"], ["input.ids=[[101,7592"], ["malformed list", "[[101"]),
    "texts without their end": (TEXTS, ['input.texts=["a"]'], ['input.texts=["a"'], ["malformed list"]),
    "a number": ([], ["input.ids=[[101]]"], ["input.ids=101"], ["malformed list"]),
    "a mapping": ([], ["input.ids=[[1]]"], ["input.ids={a:1}"], ["malformed list"]),
    "one row without its brackets": ([], ["input.ids=[[101,102]]"], ["input.ids=[101,102]"], ["row 0", "not a list"]),
}
"""Name -> the words of both commands, of the control, of the faulty one; and what its answer must name."""


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_bad_rows(fault: str, bertflow: Command) -> None:
    words, good, bad, said = BAD_ROWS[fault]
    control = bertflow("model=tiny", *words, *good)
    assert control.code == 0, control.err
    refused = bertflow("model=tiny", *words, *bad)
    assert refused.code == 4
    for part in said:
        assert part in refused.error


@pytest.mark.parametrize(
    ("name", "misspelt"), [("attention_mask", "atention_mask"), ("token_type_ids", "token_typ_ids")]
)
def test_an_input_that_is_misspelt(name: str, misspelt: str, bertflow: Command) -> None:  # E13
    words = ("model=tiny", "input.ids=[[5,6]]")
    assert bertflow(*words, f"input.{name}=[[1,1]]").code == 0
    for sign in ("", "+"):
        refused = bertflow(*words, f"{sign}input.{misspelt}=[[1,1]]")
        assert refused.code == 2
        assert f"input.{misspelt}" in refused.error
        assert f"did you mean {name}?" in refused.error


def test_positions_are_no_input(bertflow: Command) -> None:  # E16
    words = ("model=tiny", "input.ids=[[5,6]]")
    assert bertflow(*words).code == 0
    refused = bertflow(*words, "+input.position_ids=[[0,99]]")
    assert refused.code == 2
    assert "input.position_ids" in refused.error
    with pytest.raises(package.InputError, match="position_ids"):
        package.run("model=tiny", rows=[{"input_ids": [5, 6], "position_ids": [0, 99]}])


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
    with pytest.raises(package.InputError, match=said):
        package.run("model=pretrained", rows=rows)


def test_arrays_are_rows() -> None:
    arrays = package.run("model=tiny", rows=np.array([[5, 6], [7, 8]])).outputs
    lists = package.run("model=tiny", rows=[[5, 6], (7, 8)]).outputs
    np.testing.assert_array_equal(arrays["last_hidden_state"], lists["last_hidden_state"])


def test_a_megabyte_of_text() -> None:  # E18
    text = "a " * 500_000
    assert package.run("model=pretrained", rows=[text[:1000]]).outputs["pooler_output"].shape == (1, 384)
    with pytest.raises(package.InputError, match=r"row 1: 500002 tokens, limit 512"):
        package.run("model=pretrained", rows=["a", text])


def test_what_the_callers_iterable_raises_comes_through() -> None:
    def rows() -> Iterator[list[int]]:
        yield [5]
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        package.run("model=tiny", rows=rows())


def test_rows_stand_in_for_any_input() -> None:
    assert package.run("model=tiny", "input=texts", rows=[[5]]).outputs["last_hidden_state"].shape == (1, 1, 32)


def test_an_empty_text_is_the_tokenizers_own_tokens() -> None:  # E18
    empty = package.run("model=pretrained", rows=[""]).outputs["last_hidden_state"]
    assert empty.shape == (1, 2, 384)  # the tokenizer's own first and last token


def test_a_decoder_gives_arrays_only() -> None:
    assert set(package.run("model=tiny", "model.config.is_decoder=true").outputs) == {
        "last_hidden_state",
        "pooler_output",
    }


def test_row_numbers_count_through_all_rows() -> None:
    with pytest.raises(package.InputError, match="row 1500, column 0"):
        package.run("model=tiny", "runtime.batch_tokens=64", rows=[[5]] * 1500 + [[99999]])


def test_roberta_counts_positions_from_behind_the_padding(checkpoint: MakeCheckpoint) -> None:
    words = ("model=auto", f"model.checkpoint={checkpoint('roberta')}")
    assert package.run(*words, rows=[[5] * 512]).outputs["last_hidden_state"].shape == (1, 512, 32)
    with pytest.raises(package.InputError, match="513 tokens, limit 512"):
        package.run(*words, rows=[[5] * 513])


def test_relative_positions_set_no_limit(checkpoint: MakeCheckpoint) -> None:
    result = package.run("model=auto", f"model.checkpoint={checkpoint('deberta-v2')}", rows=[[5] * 100])
    assert result.outputs["last_hidden_state"].shape == (1, 100, 32)


def test_an_input_that_the_architecture_does_not_take(bertflow: Command, checkpoint: MakeCheckpoint) -> None:
    words = ("model=auto", f"model.checkpoint={checkpoint('distilbert')}")
    refused = bertflow(*words, "input.ids=[[5,6]]", "input.token_type_ids=[[0,0]]")
    assert refused.code == 4
    assert "token_type_ids" in refused.error


def test_masks_and_segments_reach_the_model() -> None:
    base = package.run("model=tiny", "input.ids=[[5,6,7]]").outputs["last_hidden_state"]
    masked = package.run("model=tiny", "input.ids=[[5,6,7]]", "input.attention_mask=[[1,1,0]]")
    short = package.run("model=tiny", "input.ids=[[5,6]]")
    segments = package.run("model=tiny", "input.ids=[[5,6,7]]", "input.token_type_ids=[[0,1,1]]")
    np.testing.assert_allclose(
        masked.outputs["last_hidden_state"][:, :2], short.outputs["last_hidden_state"], atol=1e-6
    )
    assert not np.allclose(segments.outputs["last_hidden_state"], base)


def test_batches_change_nothing() -> None:
    rows = [[5] * length for length in (3, 7, 1, 12, 2)]
    whole = package.run("model=tiny", rows=rows).outputs["last_hidden_state"]
    split = package.run("model=tiny", "runtime.batch_tokens=8", rows=rows).outputs["last_hidden_state"]
    assert split.shape == whole.shape == (5, 12, 32)
    for number, row in enumerate(rows):
        np.testing.assert_allclose(split[number, : len(row)], whole[number, : len(row)], atol=1e-6)


def test_a_sentence_needs_no_quotes(bertflow: Command) -> None:
    words = ("model=pretrained", "input=texts", "output.format=json")
    sentence = bertflow(*words, "input.texts=Hello, world! It's 5 o'clock: (really)")
    assert sentence.json["outputs"]["last_hidden_state"]["shape"][0] == 1
