"""Putting a folder in the place of another: whole or not at all, whatever ends the process and whenever.

While it happens, `.NAME.bertflow-lock` and `.NAME.bertflow-new` stand beside the target `NAME`; where the system cannot
exchange two folders in one step, `.NAME.bertflow-old` does for an instant. What a killed process left the next clears.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from bertflow.errors import StorageError

if sys.platform != "win32":
    import fcntl

UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""How a system or a file system says that it has no such operation."""

AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2


def _beside(target: Path, word: str) -> Path:
    return target.with_name(f".{target.name}.bertflow-{word}")


def left_aside(target: Path) -> Path:
    """Return where the old folder waits in the instant between two renames; a process killed then leaves it there."""
    return _beside(target, "old")


@contextlib.contextmanager
def settled(target: Path) -> Iterator[None]:
    """Keep others from writing the target while it is looked at, and first recover what a killed process left of it.

    Raises:
        StorageError: another process is writing the target.
    """
    if not any(path.exists() for path in (target, *(_beside(target, word) for word in ("lock", "new", "old")))):
        yield
        return
    with _locked(target):
        _clear(target)
        yield


@contextlib.contextmanager
def replacement(target: Path) -> Iterator[Path]:
    """Lend an empty folder beside the target, to fill and to `commit`. Whatever happens, nothing else is left behind.

    Raises:
        StorageError: another process is writing the target.
    """
    new = _beside(target, "new")
    with naming(target), _parents(target), _locked(target):
        _clear(target)
        try:
            new.mkdir()
            yield new
        finally:
            _clear(target)


def commit(new: Path, target: Path) -> None:
    """Put the new folder, once it is safe on the disk, in the target's place; `new` then holds what stood there."""
    for path in (*new.rglob("*"), new):
        _sync(path)
    if not target.exists():
        new.rename(target)
    elif not _exchange(new, target):
        target.rename(left_aside(target))
        new.rename(target)
        left_aside(target).rename(new)
    _sync(target.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the path in an error of the system that names none, as those of writing, syncing and locking do."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Create the folders above the target that are missing, and remove them again if it comes to nothing."""
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise
    for folder in missing:
        _sync(folder.parent)


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the target's lock, which the system takes back when the process ends, however it ends. Windows has none."""
    if sys.platform == "win32":
        yield
        return
    path = _beside(target, "lock")
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                fix = "wait until it is done, or choose another path"
                raise StorageError("locked: another run is saving there", str(target), fix) from error
            if not is_at(path, file.fileno()):
                continue  # Its last holder removed it between the two steps.
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def is_at(path: Path, handle: int) -> bool:
    """Whether the open file still lies at the path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _clear(target: Path) -> None:
    """Put back the old folder if the target is gone, and remove the rest. Only the holder of the lock may."""
    old, new = left_aside(target), _beside(target, "new")
    shutil.rmtree(new, ignore_errors=True)
    if old.is_dir():  # Under its own name it is whole, at every instant.
        old.rename(new if target.exists() else target)
        shutil.rmtree(new, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until the disk holds the file, or the folder's list of names. Windows cannot be asked to."""
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change their names in one step. Return False where the system or the file system cannot."""
    import ctypes

    names = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "linux":
            libc = ctypes.CDLL(None, use_errno=True)
            failed = libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)
        elif sys.platform == "darwin":
            failed = ctypes.CDLL(None, use_errno=True).renamex_np(*names, RENAME_SWAP)
        else:
            return False
    except AttributeError:  # A C library that lacks the function.
        return False
    if failed and ctypes.get_errno() not in UNSUPPORTED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    return not failed
