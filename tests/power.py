"""Plays a power cut: ranks note their syncs, and a folder is set back to the synced state.

    record(folder, journal)        # in a rank, before it runs: every fsync under `folder` is noted
    events = read(journal)         # afterwards, those of all ranks in the order of time
    cut(folder, events)            # the folder has only what these events synced
    keep_names(folder, events)     # it keeps its names as they stand, files only what was synced

A file's contents are kept as they were when it was synced last, a name as it was when its folder
was. All else is gone after `cut`. Disks may keep more, names without contents most of all: that is
`keep_names`. `journal` lies on the same file system.
"""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path


def record(folder, journal):
    """Note every sync of this process under `folder` from now on, in files of `journal`."""
    journal.mkdir(parents=True, exist_ok=True)
    notes = open(journal / f"{os.getpid()}.jsonl", "a", buffering=1)  # noqa: SIM115
    fsync = os.fsync

    def noting(file):
        descriptor = file if isinstance(file, int) else file.fileno()
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        kept = _kept(descriptor, journal) if path.is_relative_to(folder) else None
        fsync(file)
        if kept:
            note(**kept)

    def note(**event):
        notes.write(json.dumps({"at": time.monotonic_ns(), **event}) + "\n")

    os.fsync = noting
    return note


def _kept(descriptor, journal):
    """The state that a sync which begins now is sure to keep."""
    about = os.fstat(descriptor)
    if os.path.isdir(f"/proc/self/fd/{descriptor}"):
        names = {}
        for name in os.listdir(descriptor):
            with contextlib.suppress(FileNotFoundError):  # renamed by another rank just now
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                names[name] = [found.st_ino, os.path.stat.S_ISDIR(found.st_mode)]
        return {"inode": about.st_ino, "names": names}
    copy = journal / f"{os.getpid()}_{time.monotonic_ns()}"
    with open(f"/proc/self/fd/{descriptor}", "rb") as file:  # it may be open for writing alone
        copy.write_bytes(file.read())
    with contextlib.suppress(OSError):  # as long as it has a name, its inode's number is taken
        os.link(os.readlink(f"/proc/self/fd/{descriptor}"), f"{copy}.held")
    return {"inode": about.st_ino, "contents": str(copy)}


def read(journal):
    """All ranks' events, in the order of time."""
    lines = [line for path in journal.glob("*.jsonl") for line in path.read_text().splitlines()]
    events = []
    for line in lines:
        with contextlib.suppress(ValueError):  # a rank that was killed while it wrote the last
            events.append(json.loads(line))
    return sorted(events, key=lambda event: event["at"])


def cut(folder, events):
    """Set `folder` back to the files that the events kept; nothing else is there."""
    names = {event["inode"]: event["names"] for event in events if "names" in event}
    contents = {event["inode"]: event["contents"] for event in events if "contents" in event}
    root = folder.stat().st_ino
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    _build(folder, root, names, contents)


def _build(folder, inode, names, contents):
    for name, (child, is_folder) in names.get(inode, {}).items():
        path = folder / name
        if is_folder:
            path.mkdir()
            _build(path, child, names, contents)
        else:
            path.write_bytes(Path(contents[child]).read_bytes() if child in contents else b"")


def keep_names(folder, events):
    """Set every file back to its contents when it was synced last; to nothing, if it never was."""
    contents = {event["inode"]: event["contents"] for event in events if "contents" in event}
    for path in [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]:
        kept = contents.get(path.stat().st_ino)
        path.write_bytes(Path(kept).read_bytes() if kept else b"")
