"""`save=hub`: one commit to a repository, which holds the old checkpoint or the new one whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import bertflow as package
from conftest import Command
from hub_server import TOKEN, Handler, Hub, Repo, lfs_batch

# huggingface_hub uploads in a way that httpx2 wants to be written in another.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

WORDS = ("model=tiny", "model.config.vocab_size=8000", "output.format=json", "save=hub", "save.repo_id=me/tiny")


@pytest.fixture
def my_hub(at_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The Hub, with the token that may write there, and a folder of its own for what is temporary."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return at_hub


def test_what_was_committed_is_loaded_again(
    bertflow: Command, my_hub: Hub, with_tokenizer: Path, tmp_path: Path
) -> None:
    words = ("model=auto", f"model.checkpoint={with_tokenizer}", *WORDS[2:])
    run = bertflow(*words)
    repo = my_hub.repos["me/tiny"]
    assert repo.private
    assert run.json["saved"]["path"] == f"me/tiny@{repo.branches['main']}"
    assert run.json["saved"]["files"] == {
        name: len(content) for name, content in repo.files().items() if name != ".gitattributes"
    }
    assert {"config.json", "model.safetensors", "tokenizer.json", "bertflow.json"} <= set(repo.files())
    assert len(repo.commits) == 2, "one to create the repository, one with all the files"
    result = package.run("model=auto", "model.checkpoint=me/tiny", rows=["Hello!", "Cool"])
    assert result.weights
    folder = Path(result.weights.files[0]).parent
    hidden = []
    for source in (folder, with_tokenizer):
        encoded = transformers.AutoTokenizer.from_pretrained(source)(["Hello!"], return_tensors="pt")
        with torch.inference_mode():
            hidden.append(transformers.AutoModel.from_pretrained(source)(**encoded).last_hidden_state[0].numpy())
    np.testing.assert_array_equal(*hidden)
    np.testing.assert_allclose(result.outputs["last_hidden_state"][0][: len(hidden[0])], hidden[0], atol=1e-6)
    assert TOKEN not in run.out + run.err
    assert not any(TOKEN.encode() in content for content in repo.files().values())
    assert os.listdir(tmp_path / "temporary") == []


def test_an_embedder_comes_back_as_one(bertflow: Command, my_hub: Hub, minilm: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(minilm, source)
    (source / "1_Pooling").rename(source / "stage")
    (source / "modules.json").write_text((source / "modules.json").read_text().replace("1_Pooling", "stage"))
    assert bertflow("model=auto", f"model.checkpoint={source}", *WORDS[2:]).code == 0
    assert "stage/config.json" in my_hub.repos["me/tiny"].files()
    words = ("task=embed", "model=auto")
    expected, found = (
        package.run(*words, f"model.checkpoint={name}", rows=["Hello!", "Cool"]).outputs["embedding"]
        for name in (minilm, "me/tiny")
    )
    np.testing.assert_array_equal(found, expected)


def test_a_commit_replaces_the_checkpoint_and_nothing_else(bertflow: Command, my_hub: Hub, minilm: Path) -> None:
    repo = my_hub.repos["me/tiny"] = Repo()
    older = repo.commit(
        {
            "README.md": b"written by a person",
            "logo.png": b"picture",
            "config.json": b"{}",
            "vocab.txt": b"old",
            "model-00001-of-00002.safetensors": b"old",
            "model.safetensors.index.json": b"old",
            "pytorch_model.bin": b"old",
            "onnx/model.onnx": b"old",
        }
    )
    saved = bertflow(*WORDS).json["saved"]
    assert "README.md" not in saved["files"]
    others = {"README.md", "logo.png", "onnx/model.onnx"}
    assert set(repo.files()) == set(saved["files"]) | others
    assert all(repo.files()[name] == repo.commits[older][name] for name in others)
    assert package.run("model=auto", "model.checkpoint=me/tiny").weights
    sharded = bertflow(*WORDS, "save.max_shard_size=500KB").json["saved"]
    assert "model.safetensors.index.json" in sharded["files"]
    assert set(repo.files()) == set(sharded["files"]) | others
    assert package.run("model=auto", "model.checkpoint=me/tiny", "model.refresh=true").weights


def test_a_branch_is_created_and_main_stays(bertflow: Command, my_hub: Hub) -> None:
    words = (*WORDS, "save.revision=experiment/1")
    assert bertflow(*words).code == 0
    repo = my_hub.repos["me/tiny"]
    assert list(repo.files()) == [".gitattributes"]
    assert "model.safetensors" in repo.files("experiment/1")
    first = repo.branches["experiment/1"]
    assert bertflow(*words, "runtime.seed=1").json["saved"]["path"] == f"me/tiny@{repo.branches['experiment/1']}"
    assert repo.branches["experiment/1"] != first
    assert package.run("model=auto", "model.checkpoint=me/tiny", "model.revision=experiment/1").weights


def test_nothing_becomes_public_by_itself(bertflow: Command, my_hub: Hub) -> None:
    assert bertflow(*WORDS, "save.private=false").code == 0
    assert not my_hub.repos["me/tiny"].private
    commits = dict(my_hub.repos["me/tiny"].commits)
    refused = bertflow(*WORDS)
    assert refused.code == 2
    assert "save.private=false" in refused.error
    assert my_hub.repos["me/tiny"].commits == commits


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("save.repo_id=tiny", 2, "namespace/name"),
        ("save.repo_id=me/tiny/model", 2, "namespace/name"),
        ("save.repo_id=me/--tiny", 2, "namespace/name"),
        ("save.repo_id=https://huggingface.co/me/tiny", 2, "namespace/name"),
        ("save.repo_id=you/tiny", 2, "me, lab"),
        ("save.max_shard_size=huge", 2, "500MB"),
        ("save.hub_timeout=0", 2, "positive"),
    ],
)
def test_a_typo_costs_no_work(word: str, code: int, said: str, bertflow: Command, my_hub: Hub) -> None:
    refused = bertflow(*WORDS, word)
    assert refused.code == code
    assert word in refused.error
    assert said in refused.error
    assert "POST" not in " ".join(my_hub.requests)
    assert bertflow(*WORDS, "save.repo_id=lab/tiny").code == 0


def test_a_token_is_needed(bertflow: Command, my_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    refused = bertflow(*WORDS)
    assert refused.code == 2
    assert "HF_TOKEN" in refused.error
    assert my_hub.requests == []
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    refused = bertflow(*WORDS)
    assert refused.code == 6
    assert "401" in refused.error
    assert "POST" not in " ".join(my_hub.requests)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert bertflow(*WORDS).code == 0


def test_offline_mode_is_refused(bertflow: Command, my_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        refused = bertflow(*WORDS)
    assert refused.code == 6
    assert "HF_HUB_OFFLINE" in refused.error
    assert bertflow(*WORDS).code == 0


def refuses(handler: Handler) -> None:
    handler.refuse(403, "Forbidden")


def fails(handler: Handler) -> None:
    handler.answer(500, b"")


@pytest.mark.parametrize(
    ("request_line", "fault"),
    [
        ("GET /api/whoami-v2", Handler.stall),
        ("GET /api/models/me/tiny", Handler.stall),
        ("GET .*/auth-check/write", refuses),
        ("POST /api/repos/create", Handler.stall),
        ("POST .*/preupload/.*", refuses),
        ("POST .*/preupload/.*", Handler.stall),
        ("POST .*/batch", fails),
        ("PUT .*", refuses),
        ("PUT .*", fails),
        ("PUT .*", Handler.stall),
        ("POST .*/commit/.*", refuses),
        ("POST .*/commit/.*", fails),
        ("POST .*/commit/.*", Handler.stall),
    ],
)
def test_the_hub_has_the_old_checkpoint_or_the_new_one(
    request_line: str, fault: Callable[[Handler], object], bertflow: Command, my_hub: Hub, tmp_path: Path
) -> None:
    words = (*WORDS, "save.hub_timeout=0.5")
    assert bertflow(*words).code == 0
    before = dict(my_hub.repos["me/tiny"].branches)
    my_hub.at(request_line, fault)
    failed = bertflow(*words, "runtime.seed=1")
    assert failed.code == 6
    assert failed.out == ""
    assert failed.err.splitlines()[-1].startswith("error: ")
    assert "me/tiny" in failed.err.splitlines()[-1]
    assert my_hub.repos["me/tiny"].branches == before
    assert os.listdir(tmp_path / "temporary") == []
    my_hub.at("", None)
    assert bertflow(*words, "runtime.seed=1").code == 0
    assert my_hub.repos["me/tiny"].branches != before


def test_what_somebody_else_commits_meanwhile_is_not_mixed_in(bertflow: Command, my_hub: Hub) -> None:
    assert bertflow(*WORDS).code == 0
    repo = my_hub.repos["me/tiny"]

    def somebody_commits(handler: Handler) -> None:
        handler.server.at("", None)
        repo.commit({"theirs": b"theirs"})
        lfs_batch(handler, "me/tiny")

    my_hub.at("POST .*/batch", somebody_commits)
    refused = bertflow(*WORDS, "runtime.seed=1")
    assert refused.code == 6
    assert "412" in refused.err
    assert repo.files() == {"theirs": b"theirs"}


def test_a_task_that_saves_nothing_is_refused(bertflow: Command, my_hub: Hub) -> None:
    refused = bertflow("task=plugins", *WORDS)
    assert refused.code == 2
    assert "task=plugins" in refused.error
    assert "me/tiny" not in my_hub.repos
