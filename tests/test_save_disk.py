"""What a disk, a limit or a permission refuses: one line, the old checkpoint as it was, and nothing left beside it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bertflow
from bertflow.cli import main
from bertflow_standard import atomic
from conftest import Command, Run, exit_code, listing, start_child

if sys.platform == "win32":
    pytest.skip("Windows has neither fork nor modes", allow_module_level=True)

import resource

SMALL = ("model=tiny", "model.config.vocab_size=50", "model.config.max_position_embeddings=8", "input.ids=[[1,2]]")
NOBODY = 65534

Forked = Callable[..., Run]


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import now whatever a save imports: nobody may not be allowed to read it."""
    bertflow.run(*SMALL, "save=checkpoint", f"save.path={tmp_path_factory.mktemp('warm') / 'checkpoint'}")


@pytest.fixture
def forked(capfd: pytest.CaptureFixture[str]) -> Forked:
    """Run bertflow's `main` in a fork of this process that `prepare` readies for it."""

    def command(*words: str, prepare: Callable[[], object]) -> Run:
        capfd.readouterr()

        def run() -> int:
            prepare()
            return main(words)

        code = exit_code(start_child(run))
        captured = capfd.readouterr()
        return Run(code, captured.out, captured.err)

    return command


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may enter and write in; pytest's own are private."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    for path in (folder, *folder.rglob("*/")):
        path.chmod(0o777)
    shutil.rmtree(folder)


def become_nobody() -> None:
    """Give up root's rights, before which no permission holds."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [300, 20_000])
@pytest.mark.parametrize("target", ["checkpoint", "some/new/folders/checkpoint"])
def test_a_file_that_may_not_get_so_large(size: int, target: str, bertflow: Command, tmp_path: Path) -> None:
    assert bertflow(*SMALL, "save=checkpoint", f"save.path={tmp_path / 'checkpoint'}").code == 0
    before = listing(tmp_path)
    words = (*SMALL, "runtime.seed=7", "save=checkpoint", f"save.path={tmp_path / target}", "save.overwrite=true")
    with largest_file(size):
        refused = bertflow(*words)
    assert refused.code == 5
    assert "file too large" in refused.error
    assert str(tmp_path) in refused.error
    assert listing(tmp_path) == before
    assert os.listdir(tmp_path) == ["checkpoint"]
    assert bertflow(*words).code == 0


def mount_small_disk(folder: Path) -> int:
    """Mount a disk of 1 MB that only this process sees. Return 0, or the number of the error where it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    private, recursive, new_namespace = 1 << 18, 1 << 14, 0x20000
    for function, *arguments in (
        (libc.unshare, new_namespace),
        (libc.mount, b"none", b"/", None, private | recursive, None),
        (libc.mount, b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=1m"),
    ):
        if function(*arguments):
            return ctypes.get_errno()
    return 0


# F02
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_disk(tmp_path: Path) -> None:
    """The disk fills up one page later each time, so in another file, until it is large enough."""
    if exit_code(start_child(lambda: mount_small_disk(tmp_path))):
        pytest.skip("mounting a file system of one's own is not permitted here")
    words = (*SMALL, "save=checkpoint", f"save.path={tmp_path / 'checkpoint'}", "save.overwrite=true")

    def fill_up() -> int:
        assert mount_small_disk(tmp_path) == 0
        assert main(words) == 0
        before, ballast = listing(tmp_path / "checkpoint"), tmp_path / "ballast"
        page = os.statvfs(tmp_path).f_frsize
        for pages in itertools.count():
            free = os.statvfs(tmp_path).f_bavail
            ballast.write_bytes(bytes((free - pages) * page))
            code = main((*words, "runtime.seed=7"))
            ballast.unlink()
            assert os.listdir(tmp_path) == ["checkpoint"]
            if code == 0:
                break
            assert code == 5
            assert listing(tmp_path / "checkpoint") == before
        assert pages > 10
        assert listing(tmp_path / "checkpoint") != before
        return 0

    assert exit_code(start_child(fill_up)) == 0


# F09
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_read_only_place_is_refused_before_anything_is_computed(
    overwrite: bool, forked: Forked, public: Path
) -> None:
    words = (*SMALL, "save=checkpoint", f"save.path={public / 'checkpoint'}", f"save.overwrite={overwrite}")
    if overwrite:
        assert forked(*words, prepare=become_nobody).code == 0
    before = listing(public)
    public.chmod(0o555)
    # What comes with the computation, an id outside the vocabulary, is not reached.
    refused = forked(*words, "input.ids=[[99]]", prepare=become_nobody)
    assert refused.code == 5
    assert str(public) in refused.error
    assert listing(public) == before
    public.chmod(0o777)
    assert forked(*words, "input.ids=[[99]]", prepare=become_nobody).code == 4
    assert forked(*words, prepare=become_nobody).code == 0


def test_a_read_only_checkpoint_is_not_replaced(forked: Forked, public: Path) -> None:
    folder = public / "checkpoint"
    words = (*SMALL, "save=checkpoint", f"save.path={folder}", "save.overwrite=true")
    assert forked(*words, prepare=become_nobody).code == 0
    before = listing(public)
    folder.chmod(0o555)
    refused = forked(*words, prepare=become_nobody)
    assert refused.code == 5
    assert str(folder) in refused.error
    assert listing(public) == before
    folder.chmod(0o755)
    assert forked(*words, prepare=become_nobody).code == 0


@pytest.mark.parametrize("failing", range(2))
def test_a_rename_that_fails_costs_nothing(
    failing: int, bertflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint"
    words = (*SMALL, "save=checkpoint", f"save.path={folder}", "save.overwrite=true")
    assert bertflow(*words).code == 0
    before, rename, calls = listing(folder), Path.rename, itertools.count()

    def full_disk(self: Path, target: Path) -> Path:
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return rename(self, target)

    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", full_disk)
    refused = bertflow(*words, "runtime.seed=7")
    assert refused.code == 5
    assert "no space left" in refused.error
    assert listing(folder) == before
    assert os.listdir(tmp_path) == [folder.name]
    assert bertflow(*words, "runtime.seed=7").code == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks the system which file was synced")
def test_the_disk_holds_the_new_checkpoint_before_it_takes_its_place(
    bertflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, new = tmp_path / "checkpoint", tmp_path / ".checkpoint.bertflow-new"
    words = (*SMALL, "save=checkpoint", f"save.path={folder}", "save.overwrite=true")
    assert bertflow(*words).code == 0
    old, sync = listing(folder), os.fsync
    synced = []

    def fsync(handle: int) -> None:
        sync(handle)
        synced.append((Path(f"/proc/self/fd/{handle}").readlink(), listing(folder) == old))

    monkeypatch.setattr(os, "fsync", fsync)
    assert bertflow(*words, "runtime.seed=7").code == 0
    *before, after = synced
    assert {path for path, _ in before} == {new, *(new / name for name in listing(folder))}
    assert all(old_is_there for _, old_is_there in before)
    assert after == (tmp_path, False)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}


# F08
def test_modes_follow_the_umask(bertflow: Command, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert bertflow(*SMALL, "save=checkpoint", f"save.path={tmp_path / 'checkpoint'}").code == 0
    finally:
        os.umask(before)
    found = modes(tmp_path / "checkpoint")
    assert found.pop("checkpoint") == 0o750
    assert set(found.values()) == {0o640}


def test_an_overwrite_keeps_the_modes(bertflow: Command, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    words = (*SMALL, "save=checkpoint", f"save.path={folder}", "save.overwrite=true")
    assert bertflow(*words).code == 0
    (folder / "README.md").unlink()
    kept = {"checkpoint": 0o700, "config.json": 0o644, "model.safetensors": 0o600, "bertflow.json": 0o640}
    for name, mode in kept.items():
        (folder / name if name != "checkpoint" else folder).chmod(mode)
    assert bertflow(*words, "save.max_shard_size=30KB").code == 0
    found = modes(folder)
    assert {name: found.pop(name) for name in kept if name != "model.safetensors"} == {
        name: mode for name, mode in kept.items() if name != "model.safetensors"
    }
    # What has no namesake is no more open than what it replaces.
    assert len(found) > 3
    assert set(found.values()) == {0o600}


def test_another_run_is_told_that_the_target_is_locked(forked: Forked, tmp_path: Path) -> None:
    words = (*SMALL, "save=checkpoint", f"save.path={tmp_path / 'checkpoint'}")
    with atomic.replacement(tmp_path / "checkpoint"):
        refused = forked(*words, prepare=lambda: None)
    assert refused.code == 5
    assert "locked" in refused.error
    assert str(tmp_path / "checkpoint") in refused.error
    assert os.listdir(tmp_path) == []
    assert forked(*words, prepare=lambda: None).code == 0
    assert os.listdir(tmp_path) == ["checkpoint"]
