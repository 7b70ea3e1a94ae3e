"""Keeps the results on disk after every word of a case: gpu.json, written whole each time.

record = Record.begun(folder, how)     # with all that an earlier call has left there
record.put(case, status="passed", seconds=3.1)
"""

import json
from pathlib import Path
from typing import Any

from megatron_qwen3.settings import ConfigError
from megatron_qwen3.storage.whole import make, write_whole
from on_gpu.cases import Case

FILE = "gpu.json"
RUNNING, PASSED, FAILED, ERROR = "running", "passed", "failed", "error"
TIMED_OUT, DIED, LEFT_OUT, NOT_BEGUN = "timed out", "died", "left out", "not begun"
OVER = (PASSED, FAILED, ERROR, TIMED_OUT, DIED, LEFT_OUT)
"""A case with one of these is not run again by a later call."""


class Record:
    """Everything known of a machine; `how` are the options that numbers depend on."""

    def __init__(self, folder: Path, how: dict[str, Any]) -> None:
        self.path, self.how = folder / FILE, how
        self.parts: dict[str, dict[str, dict[str, Any]]] = {}
        self.aims: list[dict[str, Any]] = []

    @classmethod
    def begun(cls, folder: Path, how: dict[str, Any]) -> "Record":
        """A new one, or the one that is there. ConfigError where that was made otherwise, or the
        folder cannot be written to."""
        record = cls(folder, how)
        try:
            make(folder)
            if record.path.exists():
                record.parts = _parts_of(record.path, how)
            record.write()
        except OSError as error:
            raise ConfigError(
                f"--out {folder} cannot be written to ({error.strerror}); choose another --out"
            ) from None
        return record

    def of(self, case: Case) -> dict[str, Any]:
        """All that is known of a case; {} before it began."""
        return self.parts.get(case.part, {}).get(case.name, {})

    def is_over(self, case: Case) -> bool:
        """Whether a case need not be run again."""
        return self.of(case).get("status") in OVER

    def begin(self, case: Case) -> None:
        """Forget the results of a case in a call that was interrupted."""
        self.parts.setdefault(case.part, {})[case.name] = {}
        self.put(case, status=RUNNING)

    def put(self, case: Case, **values: Any) -> None:
        """Add to the results of a case, and write them to disk."""
        self.parts.setdefault(case.part, {}).setdefault(case.name, {}).update(values)
        self.write()

    def add(self, case: Case, message: dict[str, Any]) -> None:
        """A message of a Report."""
        known = self.of(case)
        self.put(case, **{name: known.get(name, {}) | new for name, new in message.items()})

    def write(self) -> None:
        """Have all of it on the disk."""
        text = json.dumps({"how": self.how, "aims": self.aims, "parts": self.parts}, indent=1)
        write_whole(self.path, [text.encode()])


def _parts_of(path: Path, how: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """The results of an earlier call; ConfigError where it ran otherwise, or it is none of ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before, parts = found["how"], found["parts"]
        differing = [
            f"{name} {before[name]}, now {now}" for name, now in how.items() if before[name] != now
        ]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{path} is no record of this program ({error}); choose another --out"
        ) from None
    if differing:
        raise ConfigError(f"{path} was made with {', '.join(differing)}; choose another --out")
    return parts
