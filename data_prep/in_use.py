"""Finds processes of this machine that have files mapped, as each reader of a shard has its .bin.

    for process in mapping({"/data/tokens/web.bin"}): process.number, process.command, process.path

Only Linux tells it, and the processes of other users only to root.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    number: int
    command: str
    path: str


def mapping(paths: Collection[str | os.PathLike[str]]) -> Iterator[Process]:
    """Other processes that have one of these files mapped, each once."""
    wanted = {os.path.realpath(path) for path in paths}
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        try:
            maps = (folder / "maps").read_text(errors="surrogateescape")
            command = (folder / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
        except OSError:  # it has ended, or is not ours
            continue
        places = (line.split(maxsplit=5) for line in maps.splitlines())
        found = {_unescaped(place[5]) for place in places if len(place) == 6} & wanted
        if found:
            yield Process(int(folder.name), command, min(found))


def _unescaped(path: str) -> str:
    """A path with its newlines, which the kernel escapes."""
    return path.replace("\\012", "\n")
