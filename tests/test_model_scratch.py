"""`model=scratch`: BERT from its config, as transformers builds it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from transformers.activations import ACT2FN

import bertflow
from bertflow_standard.activations import ACTIVATIONS
from conftest import IDS, Command

ROOT = Path(__file__).parents[1]

NOT_BUILDING_BLOCKS = {
    "architectures": "written by transformers",
    "dtype": "is model.dtype",
    "is_encoder_decoder": "BERT is none",
    "return_dict": "bertflow always reads a dict",
    "transformers_version": "written by transformers",
}


def test_the_yaml_lists_every_field_with_the_default_of_bert_config() -> None:
    ours = yaml.safe_load((ROOT / "conf/model/scratch.yaml").read_text())["config"]
    fields = {field.name: field.default for field in dataclasses.fields(transformers.BertConfig)}
    assert ours == {name: value for name, value in fields.items() if name not in NOT_BUILDING_BLOCKS}


def test_the_activations_are_those_of_transformers() -> None:
    assert set(ACTIVATIONS) == set(ACT2FN)


def test_a_bare_run_is_bert_base(bertflow: Command) -> None:
    document = bertflow("output.format=json").json
    with torch.device("meta"):
        plain = transformers.BertModel(transformers.BertConfig())
    assert document["model"]["parameters"] == sum(part.numel() for part in plain.parameters())
    assert document["model"]["config"]["num_hidden_layers"] == 12
    assert document["outputs"]["last_hidden_state"] == {"shape": [3, 4, 768], "dtype": "float32"}
    assert document["outputs"]["pooler_output"] == {"shape": [3, 768], "dtype": "float32"}
    assert document["weights"]["source"] == "random"
    assert "noise" in document["weights"]["note"]


@pytest.mark.parametrize("seed", [0, 7])
def test_the_seed_gives_the_weights_of_plain_transformers(seed: int) -> None:
    words = ("model=tiny", "model.config.num_hidden_layers=3", "model.config.hidden_act=relu")
    result = bertflow.run(*words, f"runtime.seed={seed}")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, hidden_act="relu"
    )
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        expected = transformers.BertModel(config).eval()(torch.tensor(IDS))
    np.testing.assert_allclose(result.outputs["last_hidden_state"], expected.last_hidden_state, atol=1e-6)
    np.testing.assert_allclose(result.outputs["pooler_output"], expected.pooler_output, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "architecture", "shape"),
    [
        ("masked_lm", "BertForMaskedLM", (3, 4, 30522)),
        ("sequence_classification", "BertForSequenceClassification", (3, 2)),
        ("token_classification", "BertForTokenClassification", (3, 4, 2)),
    ],
)
def test_heads(head: str, architecture: str, shape: tuple[int, ...]) -> None:
    result = bertflow.run("model=tiny", f"model.head={head}")
    assert result.model is not None
    assert result.model["architecture"] == architecture
    assert result.outputs["logits"].shape == shape


def test_labels_give_the_width_of_a_classification_head() -> None:
    words = ("model=tiny", "model.head=sequence_classification", "model.config.id2label={0: no, 1: maybe, 2: yes}")
    assert bertflow.run(*words).outputs["logits"].shape == (3, 3)


def test_hidden_states_are_numbered() -> None:
    result = bertflow.run("model=tiny", "model.config.output_hidden_states=true")
    assert {f"hidden_states.{layer}" for layer in range(3)} < set(result.outputs)
    np.testing.assert_array_equal(result.outputs["hidden_states.2"], result.outputs["last_hidden_state"])


def test_half_precision() -> None:
    assert bertflow.run("model=tiny", "model.dtype=float16").outputs["last_hidden_state"].dtype == np.float16
    # numpy has no bfloat16
    assert bertflow.run("model=tiny", "model.dtype=bfloat16").outputs["last_hidden_state"].dtype == np.float32
