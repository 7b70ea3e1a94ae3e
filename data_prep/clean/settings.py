"""What a cleaning is asked to do, and where its files lie.

    settings = CleanSettings(inputs=(Input("web", "dumps/2024"),), out="runs/clean", tasks=8)
    settings.validate()                             # ConfigError with all that is wrong
    settings.file("documents", 3, ".jsonl.zst")     # what task 3 writes there

The same object goes, pickled, to every task on every machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.kept_fields import ALL, NONE, fault_of
from data_prep.labels import LONGEST_LABEL
from data_prep.shards import write_json
from megatron_qwen3.config import ConfigError

SETTINGS, REPORT, LOCK = "settings.json", "report.json", "lock"
ON_ERROR = ("skip", "stop")
MODELS = ("language", "domain", "quality", "education", "safety")


# Settings that cleanings have who do not name them.
_OF_OLD: Mapping[str, Any] = {"hidden": True, "keep_fields": [NONE]}


class Input(NamedTuple):
    """A file or folder. source, domain: labels of documents that have none of their own."""

    source: str
    path: str
    domain: str | None = None


@dataclass(frozen=True)
class CleanSettings:
    """inputs: what to read; out: the folder of the result; tasks: how many parts it is done in.

    languages: those kept, empty for all 119; undetermined: whether `und` is kept too.
    filters: whether documents that break a rule of quality are dropped.
    resemblance: from which on documents are near-duplicates, 0 to 1; over 1 only equal ones are.
    evaluation: files whose passages are to be absent; contamination_run: units, or tokens of
    `tokenizer` where it is given, that count as a passage.
    models: fastText files by MODELS; min_safety: the least that the safety model must say.
    on_error: skip a bad line or stop at it. text_field: what the text is called in the files.
    keep_fields: which fields of documents stay with them besides their labels (`kept_fields.py`).
    hidden: whether files and folders of a folder whose names begin with a dot are read, as
    cleanings do that began before there was a choice.
    """

    inputs: tuple[Input, ...]
    out: str
    tasks: int = 1
    languages: tuple[str, ...] = ()
    undetermined: bool = False
    filters: bool = True
    resemblance: float = 0.75
    evaluation: tuple[str, ...] = ()
    contamination_run: int = 13
    tokenizer: str = ""
    models: tuple[tuple[str, str], ...] = ()
    min_safety: float = 0.5
    on_error: str = "skip"
    text_field: str = "text"
    keep_fields: tuple[str, ...] = (ALL,)
    hidden: bool = False

    def folder(self, name: str) -> Path:
        """A folder of intermediate or final files."""
        return Path(self.out) / name

    def file(self, folder: str, task: int, suffix: str) -> Path:
        """A task's own file."""
        return self.folder(folder) / f"{task:05d}{suffix}"

    def validate(self) -> None:
        """ConfigError with every fault that can be seen before anything is read."""
        if faults := "\n".join(self._faults()):
            raise ConfigError(faults)

    def _faults(self) -> Iterator[str]:
        from data_prep.languages import LANGUAGES
        from data_prep.tokenizer_file import tokenizer_json

        if not self.inputs:
            yield "no input is given"
        for given in self.inputs:
            for label in filter(None, (given.source, given.domain)):
                if len(label) > LONGEST_LABEL:
                    yield f"the label {label!r} has over {LONGEST_LABEL} characters"
            if not os.path.exists(given.path):
                yield f"{given.path} does not exist"
            elif Path(self.out).resolve().is_relative_to(Path(given.path).resolve()):
                yield (
                    f"out = {self.out} lies within the input {given.path}, which would be read "
                    "while it grows; take a folder beside it"
                )
        for path in self.evaluation:
            if not os.path.isfile(path):
                yield f"evaluation set {path} does not exist, or is no file"
        if self.tokenizer and not tokenizer_json(self.tokenizer).is_file():
            yield f"tokenizer {tokenizer_json(self.tokenizer)} does not exist"
        for code in self.languages:
            if code not in LANGUAGES:
                yield (
                    f"language {code!r} is none of the 119; valid: the codes in "
                    "data_prep/languages.csv, such as eng_Latn"
                )
        if self.on_error not in ON_ERROR:
            yield f"on_error = {self.on_error!r}; valid: {', '.join(ON_ERROR)}"
        if fault := fault_of(self.keep_fields):
            yield fault
        if self.tasks < 1:
            yield f"tasks = {self.tasks}; at least 1 is needed"
        if self.resemblance <= 0.5:
            yield f"resemblance = {self.resemblance}: documents as unlike as that are no duplicates"
        if self.contamination_run < 5:
            yield f"contamination_run = {self.contamination_run}; shorter than 5 means nothing"
        for name, path in self.models:
            if name not in MODELS:
                yield f"{name!r} is no label with a model; valid: {', '.join(MODELS)}"
            if not os.path.isfile(path):
                yield f"the {name} model {path} does not exist"

    def claim(self, files: Mapping[str, list[int]]) -> None:
        """Note these settings in `out`; ConfigError where another cleaning began there.

        files: size and time of all that is read. Tasks are stretches of their bytes, so those that
        were done and those to come must find the same.
        """
        path = self.folder(SETTINGS)
        asked = json.loads(json.dumps({**asdict(self), "files": files}))
        if path.exists():
            there = {**_OF_OLD, **_read(path)}
            changed = [name for name in asked if there.get(name) != asked[name]]
            if changed == ["files"]:
                names = _differences(there.get("files", {}), asked["files"])
                raise ConfigError(
                    f"{self.out}: since this cleaning began its inputs have changed ({names}); "
                    "take another folder, or remove it"
                )
            if changed:
                raise ConfigError(
                    f"{self.out} holds a cleaning with other settings ({', '.join(changed)}); "
                    "take another folder, or remove it"
                )
            return
        self.check_folder()
        Path(self.out).mkdir(parents=True, exist_ok=True)
        write_json(path, asked)

    def check_folder(self) -> None:
        """ConfigError where `out` has something else in it."""
        others = any(path.name != LOCK for path in Path(self.out).glob("*"))
        if others and not self.folder(SETTINGS).exists():
            raise ConfigError(f"{self.out} is not empty, and no cleaning began there")

    def as_begun(self) -> CleanSettings:
        """These settings with the files that a cleaning begun in `out` chose to read, and, of one
        that began when nothing was kept, without other fields."""
        path = self.folder(SETTINGS)
        if not path.exists():
            return replace(self, hidden=False)
        begun = {**_OF_OLD, **_read(path)}
        keep = self.keep_fields if begun["keep_fields"] != [NONE] else (NONE,)
        return replace(self, hidden=bool(begun["hidden"]), keep_fields=keep)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}); take another folder") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings; take another folder")
    return content


def check_result(path: Path) -> None:
    """ConfigError where the folder is that of a cleaning, whose result is within, or not yet whole.

    Beside the result lies what was dropped, and documents are there before all of them are.
    """
    if _is_cleaning(path):
        raise ConfigError(
            f"{path} is the folder of a cleaning, with all that it dropped; "
            f"its result is {path / 'documents'}"
        )
    folder = path.absolute().parent
    if path.name == "documents" and _is_cleaning(folder) and not (folder / REPORT).exists():
        raise ConfigError(
            f"{path}: the cleaning of {folder} has not ended; let it, or start it again"
        )


def _is_cleaning(folder: Path) -> bool:
    return all((folder / name).exists() for name in (SETTINGS, "dropped"))


def _differences(before: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> str:
    """The first files that are new, gone or not what they were."""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
