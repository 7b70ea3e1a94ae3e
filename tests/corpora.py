"""Corpora of tests: their words, a tokenization that is killed, and the files in its folder."""

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

from data_prep.tokenization.corpus import CorpusOptions, tokenize
from data_prep.tokenization.plan import Settings

WORDS = ["river", "town", "hills", "sea", "water", "mill", "children", "la", "rivière", "город"]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def dies_after(writes: int, corpus: Path, out: Path, chosen: Settings) -> bool:
    """Tokenize in a process that is killed at a random moment of its n-th write or renaming."""
    child = os.fork()
    if not child:
        try:
            left = [writes]
            for owner, name in (
                (os, "fsync"),
                (os, "replace"),
                (Path, "replace"),
                (Path, "unlink"),
            ):
                setattr(owner, name, dying(getattr(owner, name), left))
            tokenize([corpus], out, chosen, CorpusOptions())
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def dying(function: Any, left: list[int]) -> Any:
    """`function`, but the process is killed before or after the call that makes `left` zero."""

    def call(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return call
