"""Writes files and folders whole or not at all, even with two writers at once.

    write_whole(path, [header, body])                    # bytes in pieces
    with whole_file(path) as file: file.write(...)       # a binary file that grows
    with whole_folder(path) as beside: ...               # a new folder; an existing one is refused
    make(folder)                                         # with its parents

While it is written, a name ends in `.partial`; one rename at the end, after everything is on disk,
gives it its own. Two writers of one name do not collide: each has a partial file that it locked or
whose name is secret, the last rename wins, and each of the two is whole. A killed writer's rest is
overwritten by the next one. Nothing here imports torch.
"""

import fcntl
import filecmp
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from megatron_qwen3.settings import ConfigError

SUFFIX = ".partial"
LONGEST_NAME = 255  # bytes, on every file system in use


def beside(path: Path, tag: str = "") -> Path:
    """The name of `path` while it is written: one that no other writer takes, or `tag`'s."""
    end = f".{tag or f'{os.getpid()}-{secrets.token_hex(4)}'}{SUFFIX}"
    stem = os.fsdecode(os.fsencode(path.name)[: LONGEST_NAME - len(end)])
    return path.with_name(stem + end)


def write_whole(
    path: Path, parts: Iterable[bytes | bytearray | memoryview], *, keep_same: bool = False
) -> None:
    """Write a file; it and its name are on disk when this returns. keep_same: as in whole_file."""
    with whole_file(path, keep_same=keep_same) as file:
        for part in parts:
            file.write(part)


@contextmanager
def whole_file(path: Path, *, keep_same: bool = False) -> Iterator[IO[bytes]]:
    """A file to write to, which becomes `path` if all went well, and is removed otherwise.

    keep_same: where `path` has the same bytes already it stays, with its time: whoever read it and
    knows it by its time need not read it again.
    """
    partial, file = _claimed(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # Before the lock ends: the next owner finds the name gone.
            if keep_same and path.is_file() and filecmp.cmp(partial, path, shallow=False):
                partial.unlink()
            else:
                partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _claimed(path: Path) -> tuple[Path, IO[bytes]]:
    """An empty file of our own: a killed writer's, if no other writer uses it."""
    usual = beside(path, "mq3")
    file = os.fdopen(os.open(usual, os.O_WRONLY | os.O_CREAT, 0o666), "wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), usual.stat()):
            file.truncate(0)
            return usual, file
    except (BlockingIOError, FileNotFoundError):
        pass  # another writer has it, or has just renamed it
    except OSError:  # this file system has no locks
        usual.unlink(missing_ok=True)
    file.close()
    own = beside(path)
    return own, own.open("xb")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `path` if all went well, and is removed otherwise.

    The caller syncs its files. ConfigError where `path` exists, before or at the end.
    """
    if os.path.lexists(path):
        raise ConfigError(f"{path} exists; remove it, or choose another name")
    partial = beside(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync(partial)
        try:
            partial.rename(path)  # would replace an empty folder: nothing is lost
        except OSError as error:
            raise ConfigError(
                f"{path} was made by someone else meanwhile ({error.strerror}); choose another name"
            ) from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(path.parent)


def make(folder: Path) -> None:
    """Make a folder and its parents; the names of new ones are on disk when this returns."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def sync_tree(folder: Path) -> None:
    """Flush every file and name below a folder to disk."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            sync(path)
    sync(folder)


def sync(folder: Path) -> None:
    """Flush the names in a folder, or the content of a file, to disk."""

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
