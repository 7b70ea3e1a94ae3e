"""Stores a judge's newest replies on disk: `with KeptReplies(path, most_bytes) as kept`.

    kept.add(key, answers)
    kept.answers(key)                # [] if none are stored, or no longer

Replies are needed when a batch is scored again after a kill, and when the same answer comes again.
A long run has more replies than a disk holds, so two files take turns: new replies go into one, and
the one before it is removed when the next is begun. No torch.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from megatron_qwen3.posttrain.building.answer_log import AnswerLog
from megatron_qwen3.posttrain.generators.answers import Answer


class KeptReplies:
    """path: of the newer file; the older one lies beside it. most_bytes: of both, about."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path, self._most = path, most_bytes // 2
        self._before = path.with_name(f"{path.stem}_before{path.suffix}")

    def __enter__(self) -> Self:
        self._logs = [AnswerLog(self._path).__enter__()]
        if self._before.exists():
            self._logs.append(AnswerLog(self._before).__enter__())
        return self

    def __exit__(self, *_: object) -> None:
        for log in self._logs:
            log.close()

    def answers(self, key: str) -> list[Answer]:
        """All answers to a request, in order of arrival."""
        return [answer for log in reversed(self._logs) for answer in log.answers(key)]

    def add(self, key: str, answers: Sequence[Answer]) -> None:
        """Store answers, not errors. OSError where writing fails."""
        self._logs[0].add(key, answers)
        if self._logs[0].bytes > self._most:
            os.replace(self._path, self._before)
            fresh = AnswerLog(self._path).__enter__()
            for log in self._logs[1:]:
                log.close()
            self._logs = [fresh, self._logs[0]]
