"""The result on stdout and in files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import bertflow
from conftest import Command


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_outputs_in_a_file(suffix: str, bertflow: Command, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    document = bertflow("model=tiny", "output=file", f"output.path={path}", "output.format=json").json
    assert document["written"] == {"path": str(path), "bytes": path.stat().st_size}
    stored = load_file(path) if suffix == ".safetensors" else dict(np.load(path))
    expected = _outputs("model=tiny")
    assert set(stored) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(stored[name], array)
    assert list(tmp_path.iterdir()) == [path]


def _outputs(*words: str) -> dict[str, np.ndarray]:
    return bertflow.run(*words).outputs


def test_an_existing_file_is_replaced_only_on_request(bertflow: Command, tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    path.write_text("precious")
    words = ("model=tiny", "output=file", f"output.path={path}")
    refused = bertflow(*words)
    assert refused.code == 2
    assert "output.overwrite=true" in refused.error
    assert path.read_text() == "precious"
    assert bertflow(*words, "output.overwrite=true").code == 0
    assert set(np.load(path)) == {"last_hidden_state", "pooler_output"}


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("out.xyz", 2, ".safetensors"), ("no/such/out.npz", 5, "folder not found"), (".", 2, "")],
)
def test_a_target_that_cannot_be_written(name: str, code: int, said: str, bertflow: Command, tmp_path: Path) -> None:
    refused = bertflow("model=tiny", "output=file", f"output.path={tmp_path / name}")
    assert refused.code == code
    assert said in refused.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_modes_follow_the_umask(suffix: str, tmp_path: Path) -> None:
    path, witness = tmp_path / f"out{suffix}", tmp_path / "witness"
    witness.touch()
    bertflow.run("model=tiny", "output=file", f"output.path={path}")
    assert path.stat().st_mode == witness.stat().st_mode


def test_a_failed_run_leaves_the_old_file(bertflow: Command, tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    path.write_text("precious")
    words = ("output=file", f"output.path={path}", "output.overwrite=true")
    assert bertflow("model=tiny", *words, "input.ids=[[99999]]").code == 4
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_json_holds_the_numbers_on_request(bertflow: Command) -> None:
    document = bertflow("model=tiny", "output.format=json", "output.values=true").json
    values = np.array(document["outputs"]["pooler_output"]["values"], dtype=np.float32)
    np.testing.assert_array_equal(values, _outputs("model=tiny")["pooler_output"])
    assert list(document) == ["task", "model", "weights", "outputs", "report", "saved", "written"]


def test_the_table_tells_the_story(bertflow: Command) -> None:
    run = bertflow("model=tiny", "output.values=true")
    assert run.code == 0
    assert run.err == ""
    for line in ("last_hidden_state", "[3, 4, 32] float32", "1,011,360 parameters", "hidden_size", "noise"):
        assert line in run.out


def test_the_python_call_prints_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    result = bertflow.run("model=tiny", "output=file", f"output.path={path}")
    assert result.written == {"path": str(path), "bytes": path.stat().st_size}
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_stdout_is_the_result_and_nothing_else(shell: Command) -> None:
    run = shell("model=pretrained", "output.format=json")
    assert json.loads(run.out)["task"] == "forward"
    assert run.err == ""
