"""Ctrl-C and SIGTERM, at whatever a run is busy with: one line, 130 or 143, and nothing half-written.

No time is guessed: a process signals itself from an audit hook, or is signalled when the Hub has got its request.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Command
from hub_server import TOKEN, Handler, Hub

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")

HOOK = """
import json, os, re, sys
waiting = json.loads(os.environ["SIGNALS"])
def hook(event, arguments):
    if waiting and arguments and re.fullmatch(waiting[0][0], f"{event} {arguments[0]}"):
        os.kill(os.getpid(), waiting.pop(0)[1])
sys.addaudithook(hook)
"""
WORDS = ("model=pretrained", "save=checkpoint", "save.path=saved")


def exit_code(number: int) -> int:
    return 128 + number


def test_without_a_signal_the_run_succeeds(bertflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bertflow(*WORDS).code == 0
    assert os.listdir(tmp_path) == ["saved"]


# G09
@pytest.mark.parametrize(
    "signals",
    [
        [("import omegaconf", signal.SIGINT)],
        [("import torch.nn", signal.SIGTERM)],
        # torch goes on without numpy, whatever becomes of its import.
        [("import numpy._typing", signal.SIGINT)],
        [("open .*/model.safetensors", signal.SIGTERM)],
        [("open .*saved.*/config.json", signal.SIGINT)],
        [("open .*saved.*/config.json", signal.SIGTERM), ("shutil.rmtree .*saved.*", signal.SIGTERM)],
        [("os.rename .*saved.*", signal.SIGINT)],
    ],
    ids=lambda signals: " ".join(pattern for pattern, _ in signals),
)
def test_a_run_is_interrupted(signals: list[tuple[str, int]], shell: Command, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(HOOK)
    env = {"PYTHONPATH": str(tmp_path / "site"), "SIGNALS": json.dumps(signals)}
    stopped = shell(*WORDS, env=env, cwd=tmp_path / "work")
    assert stopped.code == exit_code(signals[0][1])
    assert "interrupted" in stopped.error
    assert os.listdir(tmp_path / "work") == []


def sends_a_half_and_stalls(handler: Handler) -> None:
    content = handler.server.repos["tiny-bert"].files()["model.safetensors"]
    handler.answer(200, content, send=len(content) // 2)
    handler.stall()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_download_is_interrupted(
    number: signal.Signals, at_hub: Hub, hub_environment: dict[str, str], bertflow: Command, tmp_path: Path
) -> None:
    words = ("model=auto", "model.checkpoint=tiny-bert", "model.hub_timeout=100")
    at_hub.at("GET .*/model.safetensors", sends_a_half_and_stalls)
    assert interrupted(at_hub, words, hub_environment, number, tmp_path) == exit_code(number)
    assert not list(tmp_path.rglob("*.incomplete"))
    at_hub.at("", None)
    assert bertflow(*words).code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_upload_is_interrupted(
    number: signal.Signals, hub: Hub, hub_environment: dict[str, str], tmp_path: Path
) -> None:
    words = ("model=tiny", "save=hub", "save.repo_id=me/new", "save.max_shard_size=1MB")
    hub.at("PUT .*", Handler.stall)
    env = {**hub_environment, "HF_TOKEN": TOKEN, "TMPDIR": str(tmp_path)}
    assert interrupted(hub, words, env, number, tmp_path) == exit_code(number)
    assert list(hub.repos["me/new"].files()) == [".gitattributes"]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("bertflow-")]


def interrupted(hub: Hub, words: tuple[str, ...], env: dict[str, str], number: int, cwd: Path) -> int:
    """Run bertflow, signal it once the Hub has stalled, check what it says and return how it ended."""
    command = [sys.executable, "-m", "bertflow", *words]
    with subprocess.Popen(
        command, env={**os.environ, **env}, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert hub.stalled.wait(60)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: interrupted")
    return process.returncode
