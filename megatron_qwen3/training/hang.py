"""Ends a run that hangs, with a report on where: a heartbeat on every rank.

    with Heartbeat(seconds, run_dir, rank) as heartbeat:
        heartbeat.beat("step 12")          # after every step, evaluated batch and piece of a save
        with heartbeat.paused(): ...       # work without a time limit

When no beat comes for `seconds`, a thread prints one line, with the place in the program and the
collective that the rank waits for, writes the stacks of all its threads and torch's flight recorder
to {run folder}/hang/, and ends the process with status HUNG, so that a launcher starts the ranks
again. Each rank reports itself: a rank that is stopped or dead reports nothing, and a rank that is
in no collective is the one that the others wait for.
"""

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

from megatron_qwen3.shown import shown

HUNG = 70  # EX_SOFTWARE of sysexits.h
_PACKAGE = str(Path(__file__).parents[1])
# torch keeps one flight recorder for NCCL and one for all other backends; a build without NCCL
# lacks the first.
_RECORDERS = ("_dump_nccl_trace_json", "_dump_fr_trace_json")


class Heartbeat:
    """Watches the thread that makes it. seconds = 0 watches nothing."""

    def __init__(self, seconds: float, run_dir: Path, rank: int) -> None:
        self.seconds, self.folder, self.rank = seconds, run_dir / "hang", rank
        self._watched = threading.get_ident()
        self._last, self._doing = time.monotonic(), "the start"
        self._over, self._pauses = threading.Event(), 0

    def beat(self, done: str) -> None:
        """Record a sign of life."""
        self._last, self._doing = time.monotonic(), done

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Suspends the watch: loading has no beats, and takes as long as its files are big."""
        self._pauses += 1
        try:
            yield
        finally:
            self.beat("a pause")
            self._pauses -= 1

    def __enter__(self) -> Self:
        if self.seconds:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.seconds / 10)):
            if not self._pauses and time.monotonic() - self._last > self.seconds:
                self._end()

    def _end(self) -> None:
        try:
            frame = sys._current_frames().get(self._watched)
            waiting = active_collective()
            with contextlib.suppress(OSError, ValueError):  # standard error may be closed
                print(
                    shown(
                        f"hung: rank {self.rank} on {socket.gethostname()}: nothing for "
                        f"{self.seconds:g} s since {self._doing}; in {place(frame)}"
                        + (f", waits for {waiting}" if waiting else ", in no collective")
                    ),
                    file=sys.stderr,
                    flush=True,
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"rank_{self.rank}.txt").open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
                file.write(f"\n{json.dumps(recorded(), indent=1)}\n")
            # The others notice at about the same time, and their collectives fail once this one
            # is gone: let them report first.
            time.sleep(min(10.0, 1.0 + self.seconds))
        finally:
            os._exit(HUNG)


def place(frame: FrameType | None) -> str:
    """The innermost line of this package in a stack, and the innermost of all."""
    if frame is None:
        return "no Python code"
    stack = traceback.extract_stack(frame)
    ours = [entry for entry in stack if entry.filename.startswith(_PACKAGE)]
    lines = [*ours[-1:], stack[-1]] if ours and ours[-1] is not stack[-1] else [stack[-1]]
    return ", at ".join(
        f"{Path(line.filename).name}:{line.lineno} {line.name} ({line.line})" for line in lines
    )


def active_collective() -> str:
    """This rank's oldest unfinished collective, as text; "" without one."""
    active = [entry for entry in recorded() if not entry.get("retired", True)]
    if not active:
        return ""
    entry = active[0]
    group, about = entry["process_group"]
    name = entry["profiling_name"].partition(":")[2]
    number, sizes = entry["collective_seq_id"], entry["input_sizes"]
    return f"{name} number {number} of group {about or group}, {sizes}"


def recorded() -> list[dict[str, Any]]:
    """torch's flight recorders: the last collectives of this rank, in the order of their start.

    [] without a record. Recorders are asked for all collectives, not only for active ones.
    """
    import torch._C._distributed_c10d as c10d

    entries: list[dict[str, Any]] = []
    for name in _RECORDERS:
        # A failure here must not matter: other builds of torch may lack it or write another form.
        with contextlib.suppress(Exception):
            entries += json.loads(getattr(c10d, name)(True, False)).get("entries", [])
    return sorted(entries, key=lambda entry: entry.get("time_created_ns", 0))
