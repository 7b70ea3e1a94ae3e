"""Numbers documents over all tasks: those of earlier cleanings first, so that they are the kept.

    numbering = numbering_of(settings)
    numbering.places[numbering.place_of(numbers)]     # which task's files each is in
    earlier = EarlierIndex.of(Path("runs/clean-2024"))       # the index of an earlier cleaning

A place is a task of this cleaning or of an earlier one; `work/` of the one and `index/` of the
other have the same files: signatures, digests, bands, ids and id_ends, each TASK's own.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.clean.files import load, save
from data_prep.clean.settings import REPORT, CleanSettings
from data_prep.json_files import write_json
from megatron_qwen3.config import ConfigError

Numbers = npt.NDArray[np.int64]  # of documents, counted over all places
INDEX = "index"
KEPT_FOR_LATER = ("signatures", "digests", "bands", "ids", "id_ends")  # folders of `work`
_CONTENT, _SIZES = "index/index.json", "work/sizes.npy"
_VERSION = 1


class TaskFiles(NamedTuple):
    """Where a task's files are: FOLDER/KIND/TASK.suffix."""

    folder: Path
    task: int

    def file(self, kind: str, suffix: str = ".npy") -> Path:
        """Its file of a kind, as `bands`."""
        return self.folder / kind / f"{self.task:05d}{suffix}"


@dataclass(frozen=True)
class Numbering:
    """places: in the order of their documents; starts [places + 1]: the number of each one's
    first document, and at last the total; own: the index of this cleaning's first task."""

    places: tuple[TaskFiles, ...]
    starts: Numbers
    own: int

    @cached_property
    def first_own(self) -> int:
        """The number of this cleaning's first document."""
        return int(self.starts[self.own])

    @property
    def total(self) -> int:
        """Number of all documents."""
        return int(self.starts[-1])

    def place_of(self, numbers: Numbers) -> Numbers:
        """The index of each one's place."""
        return np.searchsorted(self.starts, numbers, "right") - 1

    def by_place(self, numbers: Numbers) -> Iterator[tuple[int, Numbers]]:
        """(place, those of the numbers that are there) for each place that has some."""
        places = self.place_of(numbers)
        order = np.argsort(places, kind="stable")
        cuts = np.flatnonzero(np.diff(places[order])) + 1
        for some in np.split(order, cuts) if len(order) else ():
            yield int(places[some[0]]), some


@dataclass(frozen=True)
class EarlierIndex:
    """The index of an earlier cleaning: documents of each of its tasks, and its signatures."""

    out: Path
    documents: tuple[int, ...]
    signatures: dict[str, int]
    against: tuple[str, ...]

    @classmethod
    def of(cls, out: Path) -> EarlierIndex:
        """Read it. ConfigError where the cleaning has not ended, or left none."""
        if not (out / REPORT).exists():
            raise ConfigError(f"against: {out} holds no cleaning that has ended")
        if not (out / _CONTENT).exists():
            raise ConfigError(
                f"against: the cleaning {out} left no index; clean it again with --keep-index"
            )
        try:
            read = json.loads((out / _CONTENT).read_bytes())
            if read["version"] != _VERSION:
                raise ValueError(f"its version is {read['version']}, not {_VERSION}")
            return cls(
                out, tuple(read["documents"]), dict(read["signatures"]), tuple(read["against"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"against: {out / _CONTENT} is damaged ({error})") from None


def write_index(settings: CleanSettings) -> None:
    """Turn `work/` of a cleaning that is about to end into its `index/`; it may be called again."""
    settings.folder(INDEX).mkdir(exist_ok=True)
    if not settings.folder(_CONTENT).exists():
        numbering = numbering_of(settings)
        content = {
            "version": _VERSION,
            "documents": np.diff(numbering.starts[numbering.own :]).tolist(),
            "signatures": asdict(settings.signatures),
            "against": [str(Path(path).resolve()) for path in settings.against],
        }
        write_json(settings.folder(_CONTENT), content)
    for kind in KEPT_FOR_LATER:
        with contextlib.suppress(FileNotFoundError):  # it went there already
            settings.folder("work").joinpath(kind).rename(settings.folder(INDEX) / kind)


def earlier_documents(settings: CleanSettings) -> tuple[int, int]:
    """Tasks and documents of earlier cleanings; ConfigError where one does not match this one."""
    named = {str(Path(path).resolve()) for path in settings.against}
    indices = [EarlierIndex.of(Path(path)) for path in settings.against]
    for index in indices:
        if index.signatures != asdict(settings.signatures):
            raise ConfigError(
                f"against: {index.out} was signed with {index.signatures}, and this cleaning with "
                f"{asdict(settings.signatures)}; they must be the same"
            )
        if missing := [other for other in index.against if other not in named]:
            raise ConfigError(
                f"against: {index.out} leaves out documents of {', '.join(missing)}; name that too"
            )
    return sum(len(i.documents) for i in indices), sum(sum(i.documents) for i in indices)


def count_documents(settings: CleanSettings) -> None:
    """work/sizes.npy: the number of documents that each task signed, for all later tasks."""
    own = (TaskFiles(settings.folder("work"), task) for task in range(settings.tasks))
    sizes = [len(load(place.file("signatures"))) for place in own]
    save(settings.folder(_SIZES), np.array(sizes, np.int64))


def numbering_of(settings: CleanSettings) -> Numbering:
    """The numbering of signed documents; `count_documents` has counted those of this cleaning."""
    places, sizes = list[TaskFiles](), list[int]()
    for index in map(EarlierIndex.of, map(Path, settings.against)):
        places += [TaskFiles(index.out / INDEX, task) for task in range(len(index.documents))]
        sizes += index.documents
    own = [TaskFiles(settings.folder("work"), task) for task in range(settings.tasks)]
    sizes += load(settings.folder(_SIZES)).tolist()
    return Numbering(tuple(places + own), _starts(sizes), len(places))


def _starts(sizes: Sequence[int]) -> Numbers:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
