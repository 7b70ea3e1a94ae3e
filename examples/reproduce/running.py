"""Runs parts of a plan beside each other, each when those that it needs are done.

    failed = run(parts, folder, at_once=2, say=print)

A part is a row of commands. Its output is in FOLDER/parts/NAME.log; FOLDER/parts/NAME.json has the
time of each command that ended well, and none of those is run again. A part that fails holds up
those that need it and no other; the next start goes on with the command that failed, which itself
goes on from what it left. So it is after a stop, which ends what runs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.lifetime import ended_by_signals
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.whole import write_whole

ROOT = Path(__file__).resolve().parents[2]
Say = Callable[[str], None]
_SURE = 10  # minutes of a core


@dataclass(frozen=True)
class Part:
    """name: one word for files; needs: names of parts before it; commands: argument lists, one
    after the other; minutes: of one idle core, about, from which the time left follows."""

    name: str
    title: str
    needs: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    minutes: float


class PartFailed(Exception):
    """A command ended badly: its line, its status and the end of its output."""


def done(folder: Path, part: Part) -> dict[str, Any] | None:
    """What a whole part noted, None where it is not done. ConfigError where others were its
    commands."""
    said = _noted(folder, part)
    return said if len(said["cpu_seconds"]) == len(part.commands) else None


def _noted(folder: Path, part: Part) -> dict[str, Any]:
    """The part's commands, and processor seconds of those that have ended well."""
    note = _note(folder, part)
    if not note.exists():
        return {"commands": list(part.commands), "seconds": 0.0, "cpu_seconds": []}
    try:
        said: dict[str, Any] = json.loads(note.read_text())
        commands = [tuple(command) for command in said["commands"]]
        said["seconds"] + sum(said["cpu_seconds"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{note}: no note of a part that is done; delete it") from None
    if commands != list(part.commands):
        raise ConfigError(
            f"{folder}: {part.name} was made by other commands than this version's; take another "
            f"--out, or delete {note} and all that was made from it"
        )
    return said


def run(parts: Sequence[Part], folder: Path, at_once: int, say: Say) -> list[str]:
    """Run what is not done; names of parts that failed or were held up, in their order."""
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    left = [part for part in parts if done(folder, part) is None]
    whole = {part.name for part in parts} - {part.name for part in left}
    clock = _Clock(left, at_once)
    running: dict[Future[None], Part] = {}
    children = Children()
    with ThreadPoolExecutor(at_once) as pool, children.ended_by_signals():
        while True:
            for part in [p for p in left if set(p.needs) <= whole][: at_once - len(running)]:
                left.remove(part)
                say(f"{part.title} …  {clock.left()}")
                running[pool.submit(_run_part, part, folder, children)] = part
            if not running:
                return [part.name for part in parts if part.name not in whole]
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                part = running.pop(ended)
                try:
                    ended.result()
                except PartFailed as error:
                    say(f"{part.title}: failed: {error}")
                else:
                    whole.add(part.name)
                    clock.ended(part)
                    say(f"{part.title}: done  {clock.left()}")


class _Clock:
    """The time left, from the minutes that parts are to take and the pace so far, in which
    `_SURE` minutes at the pace of idle cores weigh against a few that were short by chance."""

    def __init__(self, parts: Iterable[Part], at_once: int) -> None:
        self.start, self.at_once = time.monotonic(), at_once
        self.ahead = sum(part.minutes for part in parts)
        self.behind = 0.0

    def ended(self, part: Part) -> None:
        self.ahead -= part.minutes
        self.behind += part.minutes

    def left(self) -> str:
        spent = (time.monotonic() - self.start) / 60
        pace = (spent + _SURE / self.at_once) / (self.behind + _SURE)
        return f"about {max(1, round(self.ahead * pace)):,} minutes left"


class Children:
    """Commands that run, each with what it starts in a group of its own."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []
        self._is_stopped = False

    def add(self, child: "subprocess.Popen[bytes]") -> None:
        """One more, which ends at once where all have been told to."""
        self._started.append(child)
        if self._is_stopped:
            self._end(child)

    @contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        """Signals that would kill come as an exception, with which all are told to end."""
        try:
            with ended_by_signals():
                yield
        except KeyboardInterrupt:
            self._is_stopped = True  # before those that are there end and others follow them
            for child in self._started:
                self._end(child)
            raise

    def _end(self, child: "subprocess.Popen[bytes]") -> None:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)


def _run_part(part: Part, folder: Path, children: Children) -> None:
    """Run the commands that have not ended well yet, and note each."""
    said, log = _noted(folder, part), folder / "parts" / f"{part.name}.log"
    for command in part.commands[len(said["cpu_seconds"]) :]:
        start = time.monotonic()
        said["cpu_seconds"].append(_run_command(command, log, children))
        said["seconds"] += time.monotonic() - start
        write_whole(_note(folder, part), [json.dumps(said, indent=1).encode()])


def _run_command(command: Sequence[str], log: Path, children: Children) -> float:
    """Processor seconds of the command and of all that it started."""
    with log.open("ab") as output:
        output.write(f"\n$ {' '.join(command)}\n".encode())
        output.flush()
        child = subprocess.Popen(
            _resolved(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(),
            start_new_session=True,
        )
        children.add(child)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise PartFailed(f"{' '.join(command)} ended with {child.returncode}; {_end_of(log)}")
    return usage.ru_utime + usage.ru_stime


def _resolved(command: Sequence[str]) -> list[str]:
    """mq3 and python of the environment that this program runs in, installed or not."""
    programs = {"mq3": [sys.executable, "-m", "megatron_qwen3"], "python": [sys.executable]}
    return [*programs.get(command[0], command[:1]), *command[1:]]


def _environment() -> dict[str, str]:
    """One thread a process, as parts run beside each other; modules of this checkout."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    more = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": path, "PATH": programs}
    return {**os.environ, **more}


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{log} ends with: {lines[-1] if lines else 'nothing'}"


def _note(folder: Path, part: Part) -> Path:
    return folder / "parts" / f"{part.name}.json"
