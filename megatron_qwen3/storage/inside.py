"""Opens only plain files within a folder that is not trusted: `inside(folder, name)`.

A name in a table, or a link, can point anywhere: at a private file, at a pipe that never ends. Only
plain files of the folder itself are opened in a checkpoint or a model. The cache of the Hugging
Face hub, where a snapshot's files are links to the blobs of the same model, counts as one folder.
Nothing here imports torch.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from megatron_qwen3.settings import ConfigError
from megatron_qwen3.shown import shown

JSON_BYTES = 1 << 28  # an index or a tokenizer of the largest models has some 20 MB
_DEEPEST_JSON = "nested deeper than any file of a model is"


def inside(folder: Path, name: str) -> Path:
    """The path of a plain file in `folder`, or further down in it. ConfigError where it is not one.

    OSError where it does not exist or cannot be looked at.
    """
    path = folder / name
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
        raise ConfigError(f"{shown(folder)}: {shown(name)!r} is no file of this folder; refused")
    found = _real(path)
    if not found.is_relative_to(_own(folder)):
        raise _leaves(path)
    if not stat.S_ISREG(os.stat(found).st_mode):
        raise ConfigError(f"{shown(path)}: not a plain file; refused")
    return path


def check_links(folder: Path) -> None:
    """ConfigError where a link in `folder`, or in its tokenizer/, leads out of it; OSError where it
    cannot be read."""
    for parent in (folder, folder / "tokenizer"):
        if not parent.is_dir():
            continue
        for entry in os.scandir(parent):
            if entry.is_symlink() and not os.path.exists(entry.path):
                continue  # a dangling link: opening it reports it
            if entry.is_symlink() and not _real(Path(entry.path)).is_relative_to(_own(folder)):
                raise _leaves(Path(entry.path))


def _real(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except RuntimeError:  # Python 3.11's error
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None


def _leaves(path: Path) -> ConfigError:
    return ConfigError(
        f"{shown(path)}: a link to {shown(path.resolve())}, which leaves the folder; refused "
        "(copy the file there, if it belongs to it)"
    )


def _own(folder: Path) -> Path:
    """The folder that a folder's links may point into."""
    real = folder.resolve()
    is_cache = real.parent.name == "snapshots" and (real.parents[1] / "blobs").is_dir()
    return real.parents[1] if is_cache else real


def read_small(path: Path, limit: int = JSON_BYTES) -> bytes:
    """A whole file. ConfigError where it is no plain file or longer than `limit`; OSError."""
    # Non-blocking, since opening a pipe would wait for a writer.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{shown(path)}: not a plain file; refused")
        if status.st_size > limit:
            raise ConfigError(
                f"{shown(path)}: {status.st_size:,} bytes; at most {limit:,} are read of it"
            )
        return file.read(limit)


def parse_json(data: bytes | str) -> Any:
    """`json.loads`, with ValueError for deep nesting as for every other fault."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError(_DEEPEST_JSON) from None


def fault_of(error: Exception) -> str:
    """What is wrong with a file's content, in the words of people: the exception that came of
    reading it, without its name and quotes."""
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON: {error}"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return str(error)
