"""Where a run stands, besides weights and optimizer: what a checkpoint's progress.json holds.

With seed and settings this is all: the learning rate, the data and every random number are
functions of the step.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

FILE_NAME = "progress.json"


class LeftOut(NamedTuple):
    """Steps first … last, counted from 0, whose batches are not trained, and why."""

    first: int
    last: int
    reason: str


def steps_of(left_out: Iterable[LeftOut]) -> set[int]:
    """All steps, counted from 0, that are left out."""
    return {n for first, last, _ in left_out for n in range(first, last + 1)}


class Progress(NamedTuple):
    """step: steps done, those left out included; recent: (loss, gradient norm) of the last ones."""

    step: int = 0
    left_out: tuple[LeftOut, ...] = ()
    recent: tuple[tuple[float, float], ...] = ()

    @property
    def updates(self) -> int:
        """Updates that the optimizer has made."""
        return self.step - len([n for n in steps_of(self.left_out) if n < self.step])

    def to_json(self) -> str:
        """Floats come back to the bit."""
        left_out = [entry._asdict() for entry in self.left_out]
        values = {"step": self.step, "left_out": left_out, "recent": self.recent}
        return json.dumps(values) + "\n"

    @classmethod
    def read(cls, checkpoint: Path) -> "Progress":
        values = json.loads((checkpoint / FILE_NAME).read_text(encoding="utf-8"))
        left_out = (LeftOut(**entry) for entry in values["left_out"])
        recent = ((loss, norm) for loss, norm in values["recent"])
        return cls(values["step"], tuple(left_out), tuple(recent))
