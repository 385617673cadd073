"""What is seen of a stream while it runs: a bar on a terminal, plain lines elsewhere, nothing from Python."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import bertflow as package
from bertflow_standard import progress
from conftest import Command

ROWS = 200


@pytest.fixture
def words(readable: Path, tmp_path: Path) -> tuple[str, ...]:
    """A stream of four parts."""
    (tmp_path / "rows.txt").write_text("hello cool nice\n" * ROWS)
    model = ("model=auto", f"model.checkpoint={readable}", "task=embed", "task.pooling=mean", "engine.part_rows=50")
    target = ("output=file", f"output.path={tmp_path / 'vectors.parquet'}", "output.format=json")
    return *model, "runtime.batch_tokens=50", "input=file", f"input.path={tmp_path / 'rows.txt'}", *target


def test_plain_lines(words: tuple[str, ...], bertflow: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVALS", {True: 0.0, False: 0.0})
    run = bertflow(*words)
    assert run.json["report"]["rows"] == ROWS
    lines = run.err.splitlines()
    pattern = r"([\d,]+) rows, [\d,]+ tokens/s(?:, 0% padding avoided)?(, \d+:\d\d:\d\d to go)?"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert all(found), lines
    counted = [int(match[1]) for match in found if match]
    assert counted == sorted(counted)
    assert counted[-1] == ROWS
    assert len(set(counted)) > ROWS / 50, "a part that takes long must be seen to advance"
    assert sum(bool(match[2]) for match in found if match) >= len(found) - 2


def test_what_a_pipe_leaves_is_not_told(
    words: tuple[str, ...], bertflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVALS", {True: 0.0, False: 0.0})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"hello\n" * ROWS))))
    piped = [word if not word.startswith("input.path") else "input.path=-" for word in words]
    run = bertflow(*piped, "input.format=txt")
    assert run.code == 0
    assert run.err.splitlines()[-1].startswith(f"{ROWS} rows")
    assert "to go" not in run.err


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
def test_a_bar_on_a_terminal(words: tuple[str, ...], tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    seen: list[bytes] = []

    def watch() -> None:
        try:
            while data := os.read(ours, 4096):
                seen.append(data)
        except OSError:  # How Linux tells that nobody has the terminal open any more.
            return

    command = [sys.executable, "-m", "bertflow", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path, text=True) as process:
        os.close(theirs)
        watcher = threading.Thread(target=watch)
        watcher.start()
        out, _ = process.communicate(timeout=120)
        watcher.join()
    os.close(ours)
    assert process.returncode == 0
    assert out.startswith("{"), "stdout is the result and nothing else"
    shown = b"".join(seen).decode()
    assert "loading" in shown
    assert "\u2501" in shown


def test_nothing_is_printed_from_python(
    words: tuple[str, ...], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVALS", {True: 0.0, False: 0.0})
    package.run(*words)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process takes over what its parent had taken")
def test_the_peak_memory_is_not_that_of_the_caller(words: tuple[str, ...]) -> None:
    script = "import subprocess, sys; ballast = b'.' * int(sys.argv[1]); subprocess.run(sys.argv[2:], check=True)"
    peaks = []
    for ballast in (0, 1_500_000_000):
        command = [sys.executable, "-c", script, str(ballast), sys.executable, "-m", "bertflow", *words]
        done = subprocess.run([*command, "output.overwrite=true"], capture_output=True, text=True, check=True)
        peaks.append(json.loads(done.stdout)["report"]["peak_memory_bytes"])
    assert peaks[1] < 1.2 * peaks[0]
