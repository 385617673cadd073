"""The README tells the truth: its commands are run and give the output that it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import bertflow as package
from conftest import Command, examples, shows

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLES = examples(README)


def test_the_readme_has_examples() -> None:
    assert len(EXAMPLES) > 5


@pytest.mark.parametrize(("line", "shown"), EXAMPLES, ids=[line for line, _ in EXAMPLES])
def test_a_command_prints_what_the_readme_shows(
    line: str, shown: str, bertflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "bertflow"]
    run = bertflow(*words[3:])
    assert shows(shown, run.out or run.err), run.out or run.err


def test_the_course_table_runs(bertflow: Command) -> None:
    commands = re.findall(r"`python -m bertflow([^`…]*)`", README.split("## Install")[0])
    local = [command for command in commands if "bert-base-cased" not in command]
    assert len(local) >= 3
    for command in local:
        assert bertflow(*shlex.split(command)).code == 0


def test_the_python_example() -> None:
    result = package.run("model=pretrained", rows=["Hello!", "Cool"])
    assert result.outputs["last_hidden_state"].shape == (2, 4, 384)
    assert isinstance(result.outputs["last_hidden_state"], np.ndarray)
    assert result.weights is not None
    assert list(result.weights.random) == []


def test_the_groups_and_options_are_all_named() -> None:
    conf = Path(__file__).parents[1] / "conf"
    table = README.split("| group | decides | options |")[1]
    for path in conf.glob("*/*.yaml"):
        row = next(line for line in table.splitlines() if line.startswith(f"| `{path.parent.name}` |"))
        assert f"`{path.stem}`" in row
