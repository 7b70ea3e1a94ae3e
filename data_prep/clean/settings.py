"""The settings of a cleaning, and the places of its files.

    settings = CleanSettings(inputs=(CleaningInput("web", "dumps/2024"),), out="out", tasks=8)
    settings.validate()                             # ConfigError with every fault
    settings.file("documents", 3, ".jsonl.zst")     # task 3's file there

The same object goes, pickled, to every task on every machine. `recipe.py` reads and writes as TOML
those settings that are about documents.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.bounds import QualityBounds
from data_prep.classifiers import model_files
from data_prep.clean.differences import changed_files, differences
from data_prep.json_files import write_json
from data_prep.kept_fields import ALL, NONE, fault_of
from data_prep.labels import LONGEST_LABEL
from data_prep.minhash import Signing
from data_prep.remote import files_below, is_url
from megatron_qwen3.config import ConfigError
from megatron_qwen3.fields import setting
from megatron_qwen3.toml import did_you_mean

SETTINGS, REPORT, LOCK = "settings.json", "report.json", "lock"
ON_ERROR = ("skip", "stop")
JSONL, PARQUET = "jsonl", "parquet"
MODELS = ("language", "domain", "quality", "education", "safety")
STEPS = ("domain", "normalize", "language", "quality", "scores", "contamination")
_MODELS_HELP = f"Classifiers (fastText, ONNX; language: glotlid) by {', '.join(MODELS)}."
_STEPS = ", ".join(STEPS)
# Settings that are no part of a recipe.
OF_A_RUN = ("inputs", "out", "tasks", "hidden", "documents", "against", "keep_index")
# Older names of settings, which folders that were begun with them still have, and the values of
# settings that they do not name.
_NAMES_BEFORE = {"resemblance": "similarity", "evaluation": "decontaminate_against"}
_VALUES_BEFORE: Mapping[str, Any] = {"hidden": True, "keep_fields": [NONE]}


class CleaningInput(NamedTuple):
    """A file or folder. source, domain: labels of documents that have none of their own."""

    source: str
    path: str
    domain: str | None = None


@dataclass(frozen=True)
class CleanSettings:
    """inputs: files to read; out: the folder of the result; tasks: number of parts of the work.

    hidden: whether files and folders of a folder whose names begin with a dot are read, as in
    cleanings that began before there was a choice. documents: folder or URL of the result, where
    that is not OUT/documents.
    against: folders of earlier cleanings, whose documents count as those that are kept; keep_index:
    whether this one leaves the index that later ones need for that. All others are keys of a
    recipe, by these names, which explains them.
    """

    inputs: tuple[CleaningInput, ...]
    out: str
    tasks: int = 1
    hidden: bool = False
    documents: str = ""
    against: tuple[str, ...] = ()
    keep_index: bool = False
    format: str = setting(JSONL, "of the result: jsonl, as .jsonl.zst, or parquet")
    text_field: str = setting("text", "name of the text in the files")
    keep_fields: tuple[str, ...] = setting(
        (ALL,), "which stay with documents besides their labels: names, all or none"
    )
    on_error: str = setting("skip", "skip a bad line, or stop at it")
    steps: tuple[str, ...] = setting(STEPS, "in their order; module:Name is a step of your own")
    languages: tuple[str, ...] = setting((), "those kept; none named: all 119")
    language_sample: int = setting(
        600, "characters of three places that the language is read from; fewer: faster"
    )
    undetermined: bool = setting(False, "whether `und` is kept too")
    filters: bool = setting(True, "whether documents that break a bound of [quality] are dropped")
    min_safety: float = setting(0.5, "the least that the safety model must say")
    decontaminate_against: tuple[str, ...] = setting((), "files whose passages are to be absent")
    contamination_run: int = setting(13, "units, or tokens of `tokenizer`, that are a passage")
    tokenizer: str = setting("", "in whose tokens passages are compared; none: in words")
    similarity: float = setting(
        0.75, "documents this much alike are duplicates; over 1: equal ones"
    )
    signatures: Signing = field(
        default=Signing(), metadata={"help": "Signatures by which near-duplicates are found."}
    )
    models: Mapping[str, str] = field(default_factory=dict, metadata={"help": _MODELS_HELP})
    top_scores: Mapping[str, float] = field(
        default_factory=dict,
        metadata={"help": "Best output of models that give one number: 5 of marks to 5."},
    )
    quality: QualityBounds = field(
        default_factory=QualityBounds,
        metadata={"help": "Bounds, with the reasons for dropping; 0 or inf leaves one out."},
    )
    options: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict, metadata={"help": "Options of steps of your own, by their names."}
    )

    def folder(self, name: str) -> Path:
        """A folder of intermediate or final files."""
        return Path(self.out) / name

    def file(self, folder: str, task: int, suffix: str) -> Path:
        """A task's own file."""
        return self.folder(folder) / f"{task:05d}{suffix}"

    def validate(self) -> None:
        """Raise ConfigError with every fault that can be seen before anything is read."""
        if faults := "\n".join(self._faults()):
            raise ConfigError(faults)

    def _faults(self) -> Iterator[str]:
        yield from self._input_faults()
        yield from self._place_faults()
        yield from self._file_faults()
        yield from self._value_faults()
        yield from self._step_faults()
        yield from self.signatures.faults()
        yield from self.quality.faults()
        yield from self._model_faults()

    def _input_faults(self) -> Iterator[str]:
        if not self.inputs:
            yield "no input is given"
        for given in self.inputs:
            for label in filter(None, (given.source, given.domain)):
                if len(label) > LONGEST_LABEL:
                    yield f"the label {label!r} has over {LONGEST_LABEL} characters"
            if not is_url(given.path) and not os.path.exists(given.path):
                yield f"{given.path} does not exist"  # for URLs the search for files reports it

    def _place_faults(self) -> Iterator[str]:
        """Folders that lie within each other, however their paths are spelt."""
        out, documents = Path(self.out).resolve(), _here(self.documents)
        for given in self.inputs:
            place = _here(given.path)
            if place and out.is_relative_to(place):
                yield (
                    f"out = {self.out} lies within the input {given.path}, which would be read "
                    "while it grows; take a folder beside it"
                )
            elif place and place.is_relative_to(out):
                yield f"the input {given.path} lies within out = {self.out}; take another folder"
            if place and documents and documents.is_relative_to(place):
                yield (
                    f"documents = {self.documents} lies within the input {given.path}; take "
                    "another folder"
                )
        if documents is None or documents == out / "documents":
            return
        if documents.is_relative_to(out):
            yield (
                f"documents = {self.documents} lies within out = {self.out}, which keeps files of "
                "its own there; take a folder beside it, or leave it out for OUT/documents"
            )
        elif out.is_relative_to(documents):
            yield (
                f"out = {self.out} lies within documents = {self.documents}, which takes the "
                "result alone; take a folder beside it"
            )

    def _file_faults(self) -> Iterator[str]:
        from data_prep.tokenizer_file import tokenizer_json

        for path in self.decontaminate_against:
            if not os.path.isfile(path):
                yield f"evaluation set {path} does not exist, or is no file"
        if self.tokenizer and not tokenizer_json(self.tokenizer).is_file():
            yield f"tokenizer {tokenizer_json(self.tokenizer)} does not exist"

    def _value_faults(self) -> Iterator[str]:
        from data_prep.languages import LANGUAGES

        for code in self.languages:
            if code not in LANGUAGES:
                yield (
                    f"language {code!r} is none of the 119; valid: the codes in "
                    "data_prep/languages.csv, such as eng_Latn"
                )
        if self.on_error not in ON_ERROR:
            yield f"on_error = {self.on_error!r}; valid: {', '.join(ON_ERROR)}"
        if self.format not in (JSONL, PARQUET):
            yield f"format = {self.format!r}; valid: {JSONL}, {PARQUET}"
        if fault := fault_of(self.keep_fields):
            yield fault
        if self.tasks < 1:
            yield f"tasks = {self.tasks}; at least 1 is needed"
        if self.similarity <= 0.5:
            yield f"similarity = {self.similarity}: documents as unlike as that are no duplicates"
        if self.contamination_run < 5:
            yield f"contamination_run = {self.contamination_run}; shorter than 5 means nothing"
        if self.language_sample < 1:
            yield f"language_sample = {self.language_sample}; valid: 1 or more"
        if self.keep_index and self.similarity > 1:
            yield f"keep_index: similarity = {self.similarity} looks for equal documents only"

    def _model_faults(self) -> Iterator[str]:
        for name, path in self.models.items():
            if name not in MODELS:
                yield f"{name!r} is no label with a model; valid: {', '.join(MODELS)}"
            try:
                model_files(path)
            except ConfigError as error:
                yield f"the {name} model {error}"
        for name, top in self.top_scores.items():
            if name not in MODELS[2:] or not top > 0:
                yield (
                    f"top_scores.{name} = {top}; valid: numbers over 0 of {', '.join(MODELS[2:])}"
                )

    def _step_faults(self) -> Iterator[str]:
        for step in self.steps:
            if step not in STEPS and not all(step.partition(":")):
                guess = did_you_mean(step, STEPS)
                yield (
                    f"step {step!r} is not known{guess or f'; valid: {_STEPS}'}, or "
                    "module:Name for one of your own"
                )
            if self.steps.count(step) > 1 and step in STEPS:
                yield f"step {step} stands twice in steps"
        for name in self.options:
            if name not in self.steps:
                yield f"options.{name}: no step of this name is in steps"
        of_models = {name: name if name in STEPS[:3] else "scores" for name in self.models}
        needed = [
            ("decontaminate_against", bool(self.decontaminate_against), "contamination"),
            ("languages", bool(self.languages), "language"),
            *((f"models.{name}", True, step) for name, step in of_models.items()),
        ]
        for name, is_given, step in needed:
            if is_given and step not in self.steps:
                yield f"{name} is given, but steps does not name {step}, which heeds it"

    def own_steps(self) -> list[str]:
        """Steps of the user's own."""
        return [step for step in self.steps if step not in STEPS]

    def claim(self, files: Mapping[str, list[int]]) -> None:
        """Note these settings in `out`; ConfigError where another cleaning began there.

        files: size and time of every input. Tasks are stretches of their bytes, so tasks that are
        done and those to come must find the same files.
        """
        path = self.folder(SETTINGS)
        asked = {**as_tree(self), "files": dict(files)}
        if path.exists():
            there = _begun(path)
            changed = [name for name in asked if there.get(name) != asked[name]]
            if changed == ["files"]:
                names = changed_files(there.get("files", {}), asked["files"])
                raise ConfigError(
                    f"{self.out}: since this cleaning began its inputs have changed ({names}); "
                    "take another folder, or remove it"
                )
            if changed:
                raise ConfigError(
                    f"{self.out} holds a cleaning with other settings "
                    f"({differences(there, asked)}); take another folder, or remove it"
                )
            return
        self.check_folder()
        Path(self.out).mkdir(parents=True, exist_ok=True)
        write_json(path, asked)

    def check_folder(self) -> None:
        """Raise ConfigError where `out` has something else in it."""
        if self.folder(SETTINGS).exists():
            return
        if any(path.name != LOCK for path in Path(self.out).glob("*")):
            raise ConfigError(f"{self.out} is not empty, and no cleaning began there")
        if self.documents and _has_files(self.documents):
            raise ConfigError(
                f"documents = {self.documents} is not empty, and files there would be written "
                "over; choose another place"
            )

    def as_begun(self) -> CleanSettings:
        """These settings with the files that a cleaning begun in `out` chose to read, and, of one
        that began when no fields could be kept, without any where none were asked for by name."""
        path = self.folder(SETTINGS)
        if not path.exists():
            return replace(self, hidden=False)
        settings = replace(self, hidden=bool(_begun(path)["hidden"]))
        if "keep_fields" not in _read(path) and self.keep_fields == (ALL,):
            return replace(settings, keep_fields=(NONE,))
        return settings


def as_tree(settings: CleanSettings) -> dict[str, Any]:
    """All of them, as JSON and TOML have them."""
    tree: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return tree


def _has_files(place: str) -> bool:
    return bool(files_below(place) if is_url(place) else next(Path(place).glob("*"), None))


def _here(place: str) -> Path | None:
    """The path of a folder of this machine, links followed; None of one elsewhere, or none."""
    scheme, _, below = place.partition("://")
    if not place or (is_url(place) and scheme not in ("file", "local")):
        return None
    return Path(below if is_url(place) else place).resolve()


def tasks_begun(out: Path) -> int | None:
    """Number of tasks of the cleaning that began in a folder; None where none did."""
    path = out / SETTINGS
    return int(_begun(path)["tasks"]) if path.exists() else None


def documents_of(out: Path) -> str:
    """Where the result lies of the cleaning that began in a folder."""
    path = out / SETTINGS
    return (_begun(path)["documents"] if path.exists() else "") or str(out / "documents")


def _begun(path: Path) -> dict[str, Any]:
    """The settings of a cleaning that began, by the names that they have now."""
    found = {_NAMES_BEFORE.get(name, name): value for name, value in _read(path).items()}
    if isinstance(models := found.get("models"), list):
        found["models"] = dict(models)
    return {**as_tree(CleanSettings((), "")), **_VALUES_BEFORE, **found}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}); take another folder") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings; take another folder")
    return content


def check_result(path: Path) -> None:
    """Raise ConfigError where the folder is that of a cleaning, not of its result, or not yet
    whole.

    Dropped documents lie beside the result, which has some documents before it is whole.
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
