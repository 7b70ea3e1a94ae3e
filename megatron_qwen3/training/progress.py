"""A run's progress, besides weights and optimizer: the content of a checkpoint's progress.json.

With the seed and settings this determines the rest: learning rate, data and every random number
are functions of the step.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from megatron_qwen3.settings import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.inside import parse_json, read_small

FILE_NAME = "progress.json"
_LONGEST_GAP = 1 << 20  # most steps that one entry may leave out


class LeftOut(NamedTuple):
    """Steps first … last, counted from 0, whose batches are left out, and the reason."""

    first: int
    last: int
    reason: str


def steps_of(left_out: Iterable[LeftOut]) -> set[int]:
    """All steps, counted from 0, that are left out."""
    return {n for first, last, _ in left_out for n in range(first, last + 1)}


class Progress(NamedTuple):
    """step: steps done, with left-out ones; recent: (loss, gradient norm) of the last ones."""

    step: int = 0
    left_out: tuple[LeftOut, ...] = ()
    recent: tuple[tuple[float, float], ...] = ()

    @property
    def updates(self) -> int:
        """Number of optimizer updates."""
        missing, counted = 0, 0
        for first, last, _ in sorted(self.left_out):
            begin, end = max(first, counted), min(last + 1, self.step)
            missing += max(0, end - begin)
            counted = max(counted, end)
        return self.step - missing

    def to_json(self) -> str:
        """As JSON, from which floats are restored to the bit."""
        left_out = [entry._asdict() for entry in self.left_out]
        values = {"step": self.step, "left_out": left_out, "recent": self.recent}
        return json.dumps(values) + "\n"

    @classmethod
    def read(cls, checkpoint: Path) -> "Progress":
        """Read a checkpoint's. ConfigError where the file is damaged."""
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
            raise ConfigError(f"{shown(path)}: damaged, no progress of a run") from None


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("no number of steps")
    return value
