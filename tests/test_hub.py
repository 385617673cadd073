"""Hub checkpoints, against a server on this machine that speaks the routes a download needs.

huggingface_hub reads its environment once, so each run is a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from conftest import IDS, Command, MakeCheckpoint

SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secretsecretsecret"


class Hub(ThreadingHTTPServer):
    """Serves one checkpoint folder as `tiny-bert` (public) and `private/tiny-bert` (with the token)."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.requests: list[str] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        private = "private/" in path
        if self.server.status != 200:
            self.answer(self.server.status, b"")
        elif private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif "tiny-bert" not in path:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif "nosuchbranch" in path:
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/models/") and "/tree/" in path:
            self.answer_json(
                [{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in self.server.files.items()]
            )
        elif path.startswith("/api/models/"):
            self.answer_json({"id": "tiny-bert", "sha": SHA, "siblings": [{"rfilename": n} for n in self.server.files]})
        else:
            content = self.server.files[path.rpartition("/")[2]]
            self.answer(200, content, {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    do_HEAD = do_GET  # noqa: N815  # the name that http.server calls

    def answer_json(self, document: object) -> None:
        self.answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep stderr for bertflow."""


@pytest.fixture
def hub(checkpoint: MakeCheckpoint) -> Iterator[Hub]:
    with Hub(checkpoint("bert")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}


WORDS = ("model=auto", "output.format=json", "output.values=true")


def test_a_download_is_cached_and_asked_for_once(
    shell: Command, hub: Hub, environment: dict[str, str], checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    first = shell(*WORDS, "model.checkpoint=tiny-bert", env=environment)
    with torch.inference_mode():
        expected = transformers.AutoModel.from_pretrained(checkpoint("bert"))(torch.tensor(IDS)).last_hidden_state
    values = first.json["outputs"]["last_hidden_state"]["values"]
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert (tmp_path / "cache/hub/models--tiny-bert/snapshots" / SHA / "model.safetensors").is_file()
    assert "Fetching 2 files" in first.err, "the progress bar belongs on stderr"
    assert hub.requests
    hub.requests.clear()
    again = shell(*WORDS, "model.checkpoint=tiny-bert", env=environment)
    assert again.out == first.out
    assert hub.requests == []
    assert shell(*WORDS, "model.checkpoint=tiny-bert", "model.refresh=true", env=environment).out == first.out
    assert hub.requests
    hub.shutdown()
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    assert shell(*WORDS, "model.checkpoint=tiny-bert", env=offline).out == first.out


def test_the_token_opens_a_private_repository_and_shows_nowhere(shell: Command, environment: dict[str, str]) -> None:
    words = (*WORDS, "model.checkpoint=private/tiny-bert")
    refused = shell(*words, env=environment)
    assert refused.code == 3
    assert "HF_TOKEN" in refused.error
    opened = shell(*words, env={**environment, "HF_TOKEN": TOKEN})
    assert opened.json["outputs"]
    assert TOKEN not in opened.out + opened.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["model.checkpoint=no/such-repo"], 3, "no such repository"),
        (["model.checkpoint=tiny-bert", "model.revision=nosuchbranch"], 3, "nosuchbranch"),
        (["model.checkpoint=not a repo!"], 3, "neither a folder nor a Hub id"),
    ],
)
def test_what_the_hub_does_not_have(
    words: list[str], code: int, said: str, shell: Command, environment: dict[str, str]
) -> None:
    refused = shell("model=auto", *words, env=environment)
    assert refused.code == code
    assert said in refused.error


def test_a_repository_without_safetensors(shell: Command, hub: Hub, environment: dict[str, str]) -> None:
    hub.files["pytorch_model.bin"] = hub.files.pop("model.safetensors")
    refused = shell("model=auto", "model.checkpoint=tiny-bert", env=environment)
    assert refused.code == 3
    assert "safetensors only" in refused.error
    assert not any("pytorch_model.bin" in request for request in hub.requests)


def test_a_failing_hub(shell: Command, hub: Hub, environment: dict[str, str]) -> None:
    hub.status = 500
    refused = shell("model=bert-base-cased", env=environment)
    assert refused.code == 6
    assert hub.url in refused.error


def test_a_hub_out_of_reach_says_what_works_without_one(shell: Command, environment: dict[str, str]) -> None:
    nobody = {**environment, "HF_ENDPOINT": "http://127.0.0.1:9"}
    refused = shell("model=bert-base-cased", env=nobody)
    assert refused.code == 6
    for part in ("bert-base-cased", "http://127.0.0.1:9", "model=pretrained"):
        assert part in refused.error
    offline = shell("model=bert-base-cased", env={**environment, "HF_HUB_OFFLINE": "1"})
    assert offline.code == 6
    assert "HF_HUB_OFFLINE" in offline.error
