"""Runs a command that may not outlive its starter: `python leash.py PARENT FOLDER COMMAND…`.

vLLM's server is three processes or more; when one is killed the others live on and keep their
memory. So they run in a session of their own, led by this script: when the command ends, or the
process PARENT is gone for any reason, the whole session is killed. FOLDER, which holds weights in
memory, is removed when PARENT is gone.

Shared memory (/dev/shm) of a killed process stays. Python starts a tracker process that knows these
names and removes them once all their users are gone; `end` leaves it time for that.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

POLL_SECONDS = 0.2
_TRACKER = b"multiprocessing.resource_tracker"
_TRACKER_SECONDS, _TRACKER_POLL_SECONDS = 20.0, 0.02


def main(parent: int, folder: str, command: list[str]) -> None:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while child.poll() is None and os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    if os.getppid() != parent:
        shutil.rmtree(folder, ignore_errors=True)
        os.write(2, b"== was left by who started it\n")
    else:
        os.write(2, b"== ended with status %d\n" % child.returncode)
    end(os.getpid())
    os.killpg(0, signal.SIGKILL)


def end(group: int) -> None:
    """Kill a group's processes except its leader, and wait until their shared memory is removed."""
    for pid, is_tracker in _members(group):
        if not is_tracker:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + _TRACKER_SECONDS
    while any(is_tracker for _, is_tracker in _members(group)) and time.monotonic() < until:
        time.sleep(_TRACKER_POLL_SECONDS)


def _members(group: int) -> Iterator[tuple[int, bool]]:
    """(process, whether it is a tracker) of the group's live processes, without the leader."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, own = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(own) == group != int(folder.name) and state != "Z":
                yield int(folder.name), _TRACKER in (folder / "cmdline").read_bytes()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
