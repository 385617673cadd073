"""`model=auto`: any architecture by one command line, with the numbers of plain transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import bertflow
from conftest import IDS, TINY, MakeCheckpoint


def plain(folder: Path, ids: list[list[int]], mask: list[list[int]] | None = None) -> np.ndarray:
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        given = None if mask is None else torch.tensor(mask)
        hidden: np.ndarray = model(input_ids=torch.tensor(ids), attention_mask=given).last_hidden_state.numpy()
    return hidden


@pytest.mark.parametrize("model_type", TINY)
def test_equals_plain_transformers(model_type: str, checkpoint: MakeCheckpoint) -> None:
    folder = checkpoint(model_type)
    result = bertflow.run("model=auto", f"model.checkpoint={folder}")
    np.testing.assert_allclose(result.outputs["last_hidden_state"], plain(folder, IDS), atol=1e-6)
    assert result.weights is not None
    assert list(result.weights.random) == []


@pytest.mark.parametrize("model_type", TINY)
def test_ragged_rows_are_padded_and_masked(model_type: str, checkpoint: MakeCheckpoint) -> None:  # E05
    folder = checkpoint(model_type)
    rows = [[101, 7592, 999, 1012, 102], [101, 102], [101, 4658, 102]]
    result = bertflow.run("model=auto", f"model.checkpoint={folder}", f"input.ids={rows}")
    hidden = result.outputs["last_hidden_state"]
    assert hidden.shape == (3, 5, 32)
    for number, row in enumerate(rows):
        np.testing.assert_allclose(hidden[number, : len(row)], plain(folder, [row])[0], atol=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_a_pooler_that_the_checkpoint_lacks_is_left_out(model_type: str, checkpoint: MakeCheckpoint) -> None:
    folder = checkpoint(model_type, "AutoModelForMaskedLM")
    result = bertflow.run("model=auto", f"model.checkpoint={folder}")
    assert set(result.outputs) == {"last_hidden_state"}
    np.testing.assert_allclose(result.outputs["last_hidden_state"], plain(folder, IDS), atol=1e-6)
    assert result.weights is not None
    assert result.weights.unused


@pytest.mark.parametrize(
    ("head", "auto_class"),
    [
        ("masked_lm", "AutoModelForMaskedLM"),
        ("sequence_classification", "AutoModelForSequenceClassification"),
        ("token_classification", "AutoModelForTokenClassification"),
        ("question_answering", "AutoModelForQuestionAnswering"),
    ],
)
def test_heads_equal_plain_transformers(head: str, auto_class: str, checkpoint: MakeCheckpoint) -> None:
    folder = checkpoint("distilbert", auto_class)
    result = bertflow.run("model=auto", f"model.checkpoint={folder}", f"model.head={head}")
    with torch.inference_mode():
        expected = getattr(transformers, auto_class).from_pretrained(folder)(torch.tensor(IDS))
    assert set(result.outputs) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(result.outputs[name], values.numpy(), atol=1e-6)


def test_random_heads_follow_the_seed(checkpoint: MakeCheckpoint) -> None:
    words = ("model=auto", f"model.checkpoint={checkpoint('bert')}", "model.head=token_classification")
    first, again, other = (
        bertflow.run(*words, "model.weights=new_head", f"runtime.seed={seed}").outputs["logits"] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_dtype(checkpoint: MakeCheckpoint) -> None:
    result = bertflow.run("model=auto", f"model.checkpoint={checkpoint('bert')}", "model.dtype=float64")
    assert result.outputs["last_hidden_state"].dtype == np.float64
    assert result.weights is not None
    assert result.weights.cast == {"F32->F64": result.weights.loaded}


def test_the_torch_generator_is_left_as_it_was(checkpoint: MakeCheckpoint) -> None:
    before = torch.random.get_rng_state()
    bertflow.run("model=auto", f"model.checkpoint={checkpoint('bert')}")
    bertflow.run("model=tiny")
    assert torch.equal(before, torch.random.get_rng_state())
