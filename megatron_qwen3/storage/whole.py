"""Files and folders that are there whole or not at all, also where two write them at once.

    write_whole(path, [header, body])                    # bytes in pieces
    with whole_file(path) as file: file.write(...)       # a binary file that grows
    with whole_folder(path) as beside: ...               # a new folder; an existing one is refused
    make(folder)                                         # with its parents

What is being written has a name that ends in `.partial`; one rename at the end, after everything is
on the disk, gives it its own. Two writers of one name do not meet: each has a partial file that it
locked or that nobody else can know, the last rename wins, and each of the two was whole. What a
killed writer left is written over by the next one. Nothing here imports torch.
"""

from __future__ import annotations

import fcntl
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
    """Where `path` is while it is written: a free name that nobody else will take, or `tag`'s."""
    end = f".{tag or f'{os.getpid()}-{secrets.token_hex(4)}'}{SUFFIX}"
    stem = os.fsdecode(os.fsencode(path.name)[: LONGEST_NAME - len(end)])
    return path.with_name(stem + end)


def write_whole(path: Path, parts: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write a file; it and its name are on the disk when this returns."""
    with whole_file(path) as file:
        for part in parts:
            file.write(part)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which becomes `path` when all went well, and else goes away."""
    partial, file = _claimed(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)  # before the lock ends: who gets it next finds the name gone
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _claimed(path: Path) -> tuple[Path, IO[bytes]]:
    """An empty file of our own: the one that a killed writer left, where nobody writes to it."""
    usual = beside(path, "mq3")
    file = os.fdopen(os.open(usual, os.O_WRONLY | os.O_CREAT, 0o666), "wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), usual.stat()):
            file.truncate(0)
            return usual, file
    except (BlockingIOError, FileNotFoundError):
        pass  # another writer has it, or has just renamed it
    except OSError:  # there are no locks here
        usual.unlink(missing_ok=True)
    file.close()
    own = beside(path)
    return own, own.open("xb")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `path` when all went well, and else goes away.

    Who writes files there syncs them. ConfigError where `path` exists, before or at the end.
    """
    if os.path.lexists(path):
        raise ConfigError(f"{path} exists; remove it, or choose another name")
    partial = beside(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync(partial)
        try:
            partial.rename(path)  # an empty folder of that name would be replaced: nothing is lost
        except OSError as error:
            raise ConfigError(
                f"{path} was made by someone else meanwhile ({error.strerror}); choose another name"
            ) from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(path.parent)


def make(folder: Path) -> None:
    """A folder, with those that it lies in; the names of all that were missing are on the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def sync_tree(folder: Path) -> None:
    """Have every file and name below a folder on the disk."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            sync(path)
    sync(folder)


def sync(folder: Path) -> None:
    """Have the names in a folder, or what is in a file, on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
