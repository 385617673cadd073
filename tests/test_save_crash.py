"""A save is killed at every step, in the manner of SQLite's crash tests: the old checkpoint is left or the new one."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertflow
from bertflow.config import PRIMARY, catalogue, compose_run
from bertflow.errors import StorageError
from bertflow.flow import Flow
from bertflow_standard import atomic
from conftest import exit_code, listing, start_child

if sys.platform == "win32":
    pytest.skip("Windows has neither fork nor kill -9", allow_module_level=True)

import resource

SMALL = ("model=tiny", "model.config.vocab_size=50", "model.config.max_position_embeddings=8")
SINGLE = (*SMALL, "runtime.seed=1")
SHARDED = (*SMALL, "runtime.seed=2", "save.max_shard_size=30KB")
OTHER = (*SMALL, "runtime.seed=3", "model.config.num_hidden_layers=1")


@dataclass(frozen=True)
class Case:
    """What is saved over what, and what is special about it.

    `exchange`: the system can exchange two folders in one step. `aside`: a save was killed between its two renames.
    """

    old: tuple[str, ...] | None
    new: tuple[str, ...]
    exchange: bool = True
    aside: bool = False


CASES = {
    "nothing before": Case(None, SHARDED),
    "single over single": Case(SINGLE, OTHER),
    "sharded over single": Case(SINGLE, SHARDED),
    "two renames": Case(SINGLE, OTHER, exchange=False),
    "two renames, single over sharded": Case(SHARDED, SINGLE, exchange=False),
    "two renames, killed there before": Case(SINGLE, OTHER, exchange=False, aside=True),
}
KILLS_PER_CASE = 35

INTERRUPTED = 130

STEPS = {"open", "os.mkdir", "os.chmod", "os.rename", "os.remove", "os.rmdir", "fcntl.flock", "ctypes.dlsym"}
"""Events that Python announces; what changes unannounced, by a write or an exchange, does so before the next event."""


class Save:
    """A save of a model that is built beforehand."""

    def __init__(self, words: tuple[str, ...], target: Path) -> None:
        words = (*words, "save=checkpoint", f"save.path={target}", "save.overwrite=true")
        self.flow = Flow(compose_run(words, catalogue([]), PRIMARY))
        self.flow.model()

    def run(self) -> None:
        self.flow.call("check_run")
        self.flow.save()


class Place:
    """A folder with one target, over which a case's new checkpoint is saved again and again."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.target, self.aside = folder / "checkpoint", folder / ".checkpoint.bertflow-old"
        self.save = Save(case.new, self.target)
        self.files: dict[str, dict[str, bytes]] = {}
        self.outputs: dict[str, np.ndarray] = {}
        for name, words in (("old", case.old), ("new", case.new)):
            if words:
                Save(words, self.target).run()
                self.files[name], self.outputs[name] = listing(self.target), outputs(self.target)
        self.loaded: set[tuple[str, Path]] = set()

    def start(self, prepare: Callable[[], None]) -> int:
        """Lay out the old checkpoint, and save over it in a child that `prepare` readies; return its id."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        if self.case.old:
            there = self.aside if self.case.aside else self.target
            there.mkdir()
            for name, content in self.files["old"].items():
                (there / name).write_bytes(content)

        def save() -> int:
            prepare()
            try:
                self.save.run()
            except KeyboardInterrupt:
                return INTERRUPTED
            return 0

        return start_child(save)

    def kill(self, prepare: Callable[[], None]) -> bool:
        """Save in a process that `prepare` lets be killed; return whether it was."""
        code = exit_code(self.start(prepare))
        assert code in (0, -signal.SIGKILL, -signal.SIGXFSZ)
        return code != 0

    def left(self) -> str:
        """Return which checkpoint was left. It is whole, and loads; and the next save goes well and tidies up."""
        there = self.target if self.target.exists() else self.aside
        assert there == self.target or self.case.old is None or not self.case.exchange
        found = self.look(there)
        if (found, there) not in self.loaded:  # What is the same loads in the same way.
            self.loaded.add((found, there))
            if found == "none":
                with pytest.raises(bertflow.BertflowError, match="not found"):
                    outputs(self.target)
            else:
                np.testing.assert_array_equal(outputs(self.target), self.outputs[found])
        self.save.run()
        assert listing(self.target) == self.files["new"]
        assert os.listdir(self.folder) == [self.target.name]
        return found

    def look(self, there: Path) -> str:
        if not there.exists() and self.case.old is None:
            return "none"
        (found,) = (name for name, files in self.files.items() if files == listing(there))
        return found


def outputs(folder: Path) -> np.ndarray:
    """Return what the model of a checkpoint computes; every tensor comes from there."""
    result = bertflow.run("model=auto", f"model.checkpoint={folder}", "input.ids=[[1,2,3]]")
    assert result.weights is not None
    assert list(result.weights.random) == []
    hidden: np.ndarray = result.outputs["last_hidden_state"]
    return hidden


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    case: Case = CASES[request.param]
    # What a killed process has written the system keeps, whether it is on the disk already or not.
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    if not case.exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    if case.exchange and not atomic._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("the file system of this machine cannot exchange folders")
    return Place(case, tmp_path / "place")


def signal_at(number: int, folder: Path, signum: int = signal.SIGKILL) -> None:
    """Let this process get a signal before it takes that step in the folder."""
    steps = itertools.count()

    def step(*_: object) -> None:
        if next(steps) == number:
            os.kill(os.getpid(), signum)

    def announced(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STEPS and (event != "open" or str(folder) in str(arguments[0])):
            step()

    os.fsync = step  # type: ignore[assignment]
    sys.addaudithook(announced)


def kill_behind(size: int) -> None:
    """Let this process be killed when a file that it writes gets longer than so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


# F01, F05
@pytest.mark.parametrize("place", CASES, indirect=True)
def test_killed_at_every_step(place: Place) -> None:
    left: list[str] = []
    while place.kill(partial(signal_at, len(left), place.folder)):
        left.append(place.left())
    assert len(left) >= KILLS_PER_CASE
    assert left == sorted(left, key=["none", "old", "new"].index)
    assert set(left) == {"old" if place.case.old else "none", "new"}


def test_these_are_more_than_200_kills() -> None:
    assert len(CASES) * KILLS_PER_CASE > 200


# F07
@pytest.mark.parametrize("place", ["nothing before", "sharded over single"], indirect=True)
def test_killed_within_a_file(place: Place) -> None:
    longest = max(map(len, place.files["new"].values()))
    for size in (0, 1, 600, *range(700, longest, longest // 10)):
        assert place.kill(partial(kill_behind, size))
        assert place.left() == ("old" if place.case.old else "none")
    assert not place.kill(partial(kill_behind, longest))
    assert place.left() == "new"


# F12
@pytest.mark.parametrize("place", ["single over single", "two renames"], indirect=True)
def test_interrupted_at_every_step(place: Place) -> None:
    for number in itertools.count():
        code = exit_code(place.start(partial(signal_at, number, place.folder, signal.SIGINT)))
        if code == 0:
            break
        assert code == INTERRUPTED
        assert place.target.exists()
        place.left()
    assert number >= KILLS_PER_CASE


@pytest.mark.parametrize("place", ["single over single", "two renames"], indirect=True)
def test_two_writers_at_every_step(place: Place) -> None:
    """One stops at the step while the other saves, and then goes on."""
    other = Save(SHARDED, place.target)
    other.run()
    theirs = listing(place.target)
    locked = []
    for number in itertools.count():
        writer = place.start(partial(signal_at, number, place.folder, signal.SIGSTOP))
        if not os.WIFSTOPPED(os.waitpid(writer, os.WUNTRACED)[1]):
            break
        try:
            other.run()
        except StorageError as error:
            locked.append("locked" in str(error))
        else:
            assert listing(place.target) == theirs
        os.kill(writer, signal.SIGCONT)
        assert exit_code(writer) == 0
        assert listing(place.target) == place.files["new"]
        assert os.listdir(place.folder) == [place.target.name]
    assert all(locked)
    assert number > len(locked) > KILLS_PER_CASE // 2
