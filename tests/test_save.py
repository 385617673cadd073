"""`save=checkpoint`: what plain transformers loads, whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import bertflow
from conftest import IDS, Command, MakeCheckpoint, listing


def test_plain_transformers_loads_it(bertflow: Command, tmp_path: Path, minilm: Path) -> None:
    folder = tmp_path / "directory_on_my_computer"
    words = ("model=pretrained", "save=checkpoint", f"save.path={folder}", "output.format=json")
    saved = bertflow(*words).json["saved"]
    assert saved["path"] == str(folder)
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert saved["files"] == {path.relative_to(folder).as_posix(): path.stat().st_size for path in written}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(saved["files"])
    texts = ["Hello!", "Cool", "Nice!"]
    hidden = []
    for source in (folder, minilm):
        encoded = transformers.AutoTokenizer.from_pretrained(source)(texts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            hidden.append(transformers.AutoModel.from_pretrained(source)(**encoded).last_hidden_state.numpy())
    np.testing.assert_array_equal(*hidden)
    assert os.listdir(tmp_path) == [folder.name]


def test_a_task_that_saves_nothing_is_refused(bertflow: Command, tmp_path: Path) -> None:
    refused = bertflow("task=plugins", "save=checkpoint", f"save.path={tmp_path / 'checkpoint'}")
    assert refused.code == 2
    assert "task=plugins" in refused.error


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


# F13
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


def test_an_old_checkpoint_that_a_killed_save_left_aside_comes_back(bertflow: Command, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    words = ("model=tiny", "save=checkpoint", f"save.path={folder}")
    assert bertflow(*words).code == 0
    before = listing(folder)
    folder.rename(tmp_path / ".checkpoint.bertflow-old")
    loaded = bertflow("model=auto", f"model.checkpoint={folder}", "output.format=json").json
    assert loaded["weights"]["random"] == []
    assert bertflow(*words).code == 2
    assert listing(folder) == before
    assert os.listdir(tmp_path) == [folder.name]


@pytest.mark.parametrize("other", ["thesis.tex", "src/a.py"])
@pytest.mark.parametrize("manifest", [True, False])
def test_a_checkpoint_with_other_files_in_it_is_not_replaced(
    other: str, manifest: bool, bertflow: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    words = ("model=tiny", "save=checkpoint", f"save.path={folder}", "save.overwrite=true")
    assert bertflow(*words).code == 0
    if not manifest:
        (folder / "bertflow.json").unlink()
        assert bertflow(*words).code == 0
        (folder / "bertflow.json").unlink()
    (folder / other).parent.mkdir(exist_ok=True)
    (folder / other).write_text("precious")
    before = listing(folder)
    refused = bertflow(*words)
    assert refused.code == 2
    assert Path(other).parts[0] in refused.error
    assert listing(folder) == before


# F11
def test_the_source_is_not_replaced(bertflow: Command, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    assert bertflow("model=tiny", "save=checkpoint", f"save.path={folder}").code == 0
    before = listing(folder)
    words = ("model=auto", f"model.checkpoint={folder}", "save=checkpoint", f"save.path={folder}/")
    refused = bertflow(*words, "save.overwrite=true")
    assert refused.code == 2
    assert "loaded" in refused.error
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ('{"files": {"../secret": {"bytes": 6, "sha256": "0"}}}', "leads outside"),
        ('{"files": {"x/../../secret": {"bytes": 6, "sha256": "0"}}}', "leads outside"),
        ('{"files": {"/etc/hostname": {"bytes": 6, "sha256": "0"}}}', "leads outside"),
        ('{"files": {"config.json": {}}}', "cannot be read"),
        ('{"files": ["config.json"]}', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("null", "cannot be read"),
        ('{"fil', "cannot be read"),
    ],
)
def test_a_manifest_that_is_wrong_itself(
    manifest: str, said: str, bertflow: Command, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("bert"), folder)
    words = ("model=auto", f"model.checkpoint={folder}")
    assert bertflow(*words).code == 0
    (tmp_path / "secret").write_text("secret")
    (folder / "bertflow.json").write_text(manifest)
    refused = bertflow(*words)
    assert refused.code == 3
    assert said in refused.error
    assert str(folder / "bertflow.json") in refused.error


def test_a_damaged_manifest_does_not_stand_in_the_way_of_a_new_save(bertflow: Command, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    words = ("model=tiny", "save=checkpoint", f"save.path={folder}", "save.overwrite=true")
    assert bertflow(*words).code == 0
    before = listing(folder)
    (folder / "bertflow.json").write_text('{"fil')
    assert bertflow("model=auto", f"model.checkpoint={folder}").code == 3
    assert bertflow(*words).code == 0
    assert listing(folder) == before


def test_a_snapshot_of_the_hub_that_was_loaded_is_not_replaced(
    bertflow: Command, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/0123"
    shutil.copytree(checkpoint("bert"), blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    before = listing(tmp_path)
    words = ("model=auto", f"model.checkpoint={snapshot}", "save=checkpoint", "save.overwrite=true")
    refused = bertflow(*words, f"save.path={snapshot}")
    assert refused.code == 2
    assert "loaded" in refused.error
    assert listing(tmp_path) == before
    assert bertflow(*words, f"save.path={tmp_path / 'elsewhere'}").code == 0


def test_a_link_is_followed(bertflow: Command, tmp_path: Path) -> None:
    folder = tmp_path / "real"
    assert bertflow("model=tiny", "save=checkpoint", f"save.path={folder}").code == 0
    (tmp_path / "link").symlink_to(folder)
    words = ("model=tiny", "model.config.num_hidden_layers=1", "save=checkpoint", "save.overwrite=true")
    assert bertflow(*words, f"save.path={tmp_path / 'link'}").code == 0
    assert transformers.AutoConfig.from_pretrained(folder).num_hidden_layers == 1
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_the_target_may_be_named_in_a_roundabout_way(
    bertflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint"
    words = ("model=tiny", "save=checkpoint", "save.overwrite=true")
    assert bertflow(*words, f"save.path={folder}").code == 0
    assert bertflow(*words, f"save.path={folder}/../checkpoint").code == 0
    monkeypatch.chdir(folder)
    before = listing(folder)
    assert bertflow(*words, "save.path=../checkpoint").code == 2
    assert listing(folder) == before
    assert os.listdir(tmp_path) == [folder.name]


@pytest.mark.parametrize("names", [["thesis.tex"], ["README.md"], ["README.md", "tsconfig.json"], ["config.json"]])
def test_files_that_are_no_checkpoint_are_never_touched(names: list[str], bertflow: Command, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("precious")
    refused = bertflow("model=tiny", "save=checkpoint", f"save.path={tmp_path}", "save.overwrite=true")
    assert refused.code == 2
    assert listing(tmp_path) == dict.fromkeys(names, b"precious")


def test_a_checkpoint_that_transformers_saved_may_be_replaced(
    bertflow: Command, checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("bert"), folder)
    words = ("model=tiny", "save=checkpoint", f"save.path={folder}")
    assert bertflow(*words).code == 2
    assert bertflow(*words, "save.overwrite=true").code == 0
    assert transformers.AutoConfig.from_pretrained(folder).vocab_size == 30522


def test_an_empty_folder_is_filled(bertflow: Command, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    assert bertflow("model=tiny", "save=checkpoint", f"save.path={folder}").code == 0
    assert "config.json" in os.listdir(folder)
    assert os.listdir(tmp_path) == [folder.name]


def test_a_file_is_no_target(bertflow: Command, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    refused = bertflow("model=tiny", "save=checkpoint", f"save.path={path}", "save.overwrite=true")
    assert refused.code == 2
    assert path.read_text() == "precious"


def test_a_failed_run_saves_nothing(bertflow: Command, tmp_path: Path) -> None:
    words = ("model=tiny", "save=checkpoint", f"save.path={tmp_path / 'checkpoint'}")
    assert bertflow(*words, "input.ids=[[99999]]").code == 4
    assert os.listdir(tmp_path) == []
