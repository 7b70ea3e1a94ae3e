"""Stores answers on disk as they arrive, so that none is paid for twice: `AnswerLog(path)`.

    with AnswerLog(out / "answers.jsonl") as log:
        key = key_of(generator.label, request)
        missing = request.samples - log.count(key)
        log.add(key, answers)               # on the disk when this returns
        log.answers(key)[: request.samples]

A line has answers to one request, or a note on a model. A line that a kill cut short is removed
when the file is opened; a damaged one is skipped and counted, and its request is sent again. The
key of a request does not depend on its place among others, on its purpose, or on the model's
address: answers stay valid under other filters, more samples or another address.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Self

from megatron_qwen3.posttrain.generators.answers import Answer, Request
from megatron_qwen3.storage.whole import sync


class _Line(NamedTuple):
    start: int
    size: int
    answers: int


class AnswerLog:
    """One file; damaged: number of its lines that could not be read."""

    def __init__(self, path: Path) -> None:
        self.path, self.damaged = path, 0
        self._lines: dict[str, list[_Line]] = defaultdict(list)
        self._notes: dict[str, list[str]] = defaultdict(list)

    def __enter__(self) -> Self:
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        sync(self.path.parent)
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, for callers that use no `with`."""
        self._file.close()

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return os.fstat(self._file.fileno()).st_size

    def count(self, key: str) -> int:
        """Number of stored answers."""
        return sum(line.answers for line in self._lines.get(key, ()))

    def answers(self, key: str) -> list[Answer]:
        """All answers to a request, in order of arrival."""
        found: list[Answer] = []
        for line in self._lines.get(key, ()):
            data = os.pread(self._file.fileno(), line.size, line.start)
            found += [Answer(text, finish) for text, finish in json.loads(data)["answers"]]
        return found

    def add(self, key: str, answers: Sequence[Answer]) -> None:
        """Store answers, not errors. OSError where writing fails: then none of them is stored."""
        kept = [(answer.text, answer.finish) for answer in answers if answer.finish != "error"]
        if not kept:
            return
        start, size = self._append({"key": key, "answers": kept})
        self._lines[key].append(_Line(start, size, len(kept)))

    def note(self, label: str, notes: Sequence[str]) -> None:
        """Store warnings about a model's answers, each once."""
        for note in notes:
            if note not in self._notes[label]:
                self._append({"model": label, "note": note})
                self._notes[label].append(note)

    def notes(self, label: str) -> list[str]:
        """All notes on a model, of this run and earlier ones."""
        return list(self._notes.get(label, ()))

    def _append(self, row: dict[str, Any]) -> tuple[int, int]:
        """Write one line to disk; returns its offset and size in bytes."""
        data = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        start = self.bytes
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), start)
            raise
        return start, len(data)

    def _read(self) -> None:
        start = 0
        self._file.seek(0)
        with open(self.path, "rb") as lines:
            for data in lines:
                if not data.endswith(b"\n"):
                    os.ftruncate(self._file.fileno(), start)
                    break
                if known := _known(data):
                    key, answers = known
                    self._lines[key].append(_Line(start, len(data), answers))
                elif noted := _noted(data):
                    self._notes[noted[0]].append(noted[1])
                else:
                    self.damaged += 1
                start += len(data)


def key_of(label: str, request: Request) -> str:
    """The key of an answer: a digest of the model and of the request without its sample count."""
    asked = asdict(request) | {"samples": 0, "model": label}
    content = json.dumps(asked, sort_keys=True, default=dict)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _known(data: bytes) -> tuple[str, int] | None:
    """Key and number of answers of a whole line of answers; else None."""
    try:
        row: Any = json.loads(data)
        answers = row["answers"]
        for text, finish in answers:
            if not isinstance(text, str) or finish not in ("stop", "length"):
                return None
        return str(row["key"]), len(answers)
    except (ValueError, RecursionError, TypeError, KeyError):
        return None


def _noted(data: bytes) -> tuple[str, str] | None:
    """The model and the note of a line with a note; else None."""
    try:
        row: Any = json.loads(data)
        found = row["model"], row["note"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return found if all(isinstance(text, str) for text in found) else None
