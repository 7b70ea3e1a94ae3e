"""Where a run stands, besides weights and optimizer: what a checkpoint's progress.json holds.

With seed and settings this is all: the learning rate, the data and every random number are
functions of the step.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from megatron_qwen3.settings import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.inside import parse_json, read_small

FILE_NAME = "progress.json"
_LONGEST_GAP = 1 << 20  # steps that a person may have left out at once


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
        missing, counted = 0, 0
        for first, last, _ in sorted(self.left_out):
            begin, end = max(first, counted), min(last + 1, self.step)
            missing += max(0, end - begin)
            counted = max(counted, end)
        return self.step - missing

    def to_json(self) -> str:
        """Floats come back to the bit."""
        left_out = [entry._asdict() for entry in self.left_out]
        values = {"step": self.step, "left_out": left_out, "recent": self.recent}
        return json.dumps(values) + "\n"

    @classmethod
    def read(cls, checkpoint: Path) -> "Progress":
        """ConfigError where the file is not what `to_json` writes."""
        path = checkpoint / FILE_NAME
        try:
            values = parse_json(read_small(path))
            left_out = tuple(
                LeftOut(_count(entry["first"]), _count(entry["last"]), str(entry["reason"]))
                for entry in values["left_out"]
            )
            if any(entry.last - entry.first > _LONGEST_GAP for entry in left_out):
                raise ValueError("endless")
            recent = tuple((float(loss), float(norm)) for loss, norm in values["recent"])
            return cls(_count(values["step"]), left_out, recent)
        except OSError as error:
            raise ConfigError(f"{shown(path)}: cannot be read ({error.strerror})") from None
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            raise ConfigError(f"{shown(path)}: damaged, not where a run stood") from None


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("no number of steps")
    return value
