"""`save=checkpoint`: what plain transformers loads, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import bertflow
from conftest import IDS, Command, MakeCheckpoint


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_plain_transformers_loads_it(bertflow: Command, tmp_path: Path, minilm: Path) -> None:
    folder = tmp_path / "directory_on_my_computer"
    words = ("model=pretrained", "save=checkpoint", f"save.path={folder}", "output.format=json")
    saved = bertflow(*words).json["saved"]
    assert saved["path"] == str(folder)
    assert saved["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(saved["files"])
    texts = ["Hello!", "Cool", "Nice!"]
    hidden = []
    for source in (folder, minilm):
        encoded = transformers.AutoTokenizer.from_pretrained(source)(texts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            hidden.append(transformers.AutoModel.from_pretrained(source)(**encoded).last_hidden_state.numpy())
    np.testing.assert_array_equal(*hidden)
    assert os.listdir(tmp_path) == [folder.name]


def test_a_scratch_model_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    result = bertflow.run("model=tiny", "save=checkpoint", f"save.path={folder}")
    with torch.inference_mode():
        expected = transformers.AutoModel.from_pretrained(folder)(torch.tensor(IDS)).last_hidden_state
    np.testing.assert_allclose(result.outputs["last_hidden_state"], expected, atol=1e-6)


def test_shards(bertflow: Command, tmp_path: Path, checkpoint: MakeCheckpoint) -> None:
    folder = tmp_path / "sharded"
    words = ("model=auto", f"model.checkpoint={checkpoint('bert')}", "output.format=json", "output.values=true")
    first = bertflow(*words, "save=checkpoint", f"save.path={folder}", "save.max_shard_size=500KB").json
    assert "model.safetensors.index.json" in first["saved"]["files"]
    again = bertflow("model=auto", f"model.checkpoint={folder}", *words[2:]).json
    assert again["outputs"] == first["outputs"]
    next(folder.glob("model-00001-*")).unlink()
    refused = bertflow("model=auto", f"model.checkpoint={folder}")
    assert refused.code == 3
    assert "shard is missing" in refused.error


def test_an_existing_checkpoint_is_replaced_only_on_request(bertflow: Command, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    words = ("model=tiny", "save=checkpoint", f"save.path={folder}")
    assert bertflow(*words).code == 0
    before = listing(folder)
    refused = bertflow(*words, "model.config.num_hidden_layers=1")
    assert refused.code == 2
    assert "save.overwrite=true" in refused.error
    assert listing(folder) == before
    assert bertflow(*words, "model.config.num_hidden_layers=1", "save.overwrite=true").code == 0
    assert transformers.AutoConfig.from_pretrained(folder).num_hidden_layers == 1
    assert os.listdir(tmp_path) == [folder.name]


def test_files_that_are_no_checkpoint_are_never_touched(bertflow: Command, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    refused = bertflow("model=tiny", "save=checkpoint", f"save.path={tmp_path}", "save.overwrite=true")
    assert refused.code == 2
    assert listing(tmp_path) == {"thesis.tex": b"precious"}


def test_a_file_is_no_target(bertflow: Command, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    refused = bertflow("model=tiny", "save=checkpoint", f"save.path={path}", "save.overwrite=true")
    assert refused.code == 2
    assert path.read_text() == "precious"


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_modes_follow_the_umask(tmp_path: Path) -> None:
    bertflow.run("model=tiny", "save=checkpoint", f"save.path={tmp_path / 'checkpoint'}")
    witness = tmp_path / "witness"
    witness.touch()
    modes = {path.stat().st_mode for path in (tmp_path / "checkpoint").iterdir()}
    assert modes == {witness.stat().st_mode}


def test_a_failed_run_saves_nothing(bertflow: Command, tmp_path: Path) -> None:
    words = ("model=tiny", "save=checkpoint", f"save.path={tmp_path / 'checkpoint'}")
    assert bertflow(*words, "input.ids=[[99999]]").code == 4
    assert os.listdir(tmp_path) == []
