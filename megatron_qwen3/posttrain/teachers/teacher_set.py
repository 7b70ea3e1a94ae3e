"""A teacher's probabilities for each trained token of a set of dialogs, on disk.

    write(dialogs, about, 64, score)                  # a killed run resumes where it stopped
    targets = TeacherSet(dialogs).read(17, top_k=32)

PREFIX.teacher/ lies beside a set at PREFIX and is bound to it by its fingerprint. For each trained
label, in order, it holds a record of 8 K + 4 bytes: the teacher's K most probable ids (int32), in
falling order, their log p (float32), and log p of all other ids together (float32). Half floats
would save only a quarter, since ids take as much, and a step with stored targets would no longer
equal the step with the teacher in memory.

    teacher.json      version, fingerprint, the teacher, top_k, temperature, counts; written first
    part_00000.npy    records of consecutive samples, `part_labels` or a few more in each file
    samples.npy       int64 [N + 1]: the first record of each sample, counted through all parts
    parts.npy         int64 [parts + 1]: the first record of each part

While it is written, the folder's name ends in .partial; the parts that it has are whole. No torch.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.json_files import read_json, write_json
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.dialogs.dialog_set import DialogSample, DialogSet
from megatron_qwen3.storage.lock import owned
from megatron_qwen3.storage.whole import SUFFIX, sync, whole_file

VERSION = 1
PART_LABELS = 1 << 18
_NAME, _SAMPLES, _PARTS = "teacher.json", "samples.npy", "parts.npy"
_AGAIN = "have the teacher score the set again"


class Targets(NamedTuple):
    """Of T labels: ids int32 [T, K], log_probs float32 [T, K], falling, log_rest float32 [T]."""

    ids: npt.NDArray[np.int32]
    log_probs: npt.NDArray[np.float32]
    log_rest: npt.NDArray[np.float32]


class Unscored(ConfigError):
    """The teacher refused some of the samples that it was given; it may score others.

    count: how many it refuses; is_all: whether it scored none of several.
    """

    def __init__(self, reason: str, count: int, is_all: bool) -> None:
        super().__init__(reason)
        self.count, self.is_all = count, is_all


# Targets of the trained labels of each sample, in order; Unscored where the teacher refuses some.
Score = Callable[[Sequence[DialogSample]], Sequence[Targets]]


def as_extra(ids: Any, log_probs: Any, log_rest: Any) -> dict[str, Any]:
    """Targets as extras of a batch, which `distill.distilled` reads."""
    return {"ids": ids, "teacher_log_probs": log_probs, "teacher_log_rest": log_rest}


def trained_labels(sample: DialogSample) -> npt.NDArray[np.int64]:
    """The positions whose label, the token after, is trained."""
    return np.flatnonzero(sample.trained[1:])


def folder_of(prefix: str | os.PathLike[str]) -> Path:
    return Path(f"{os.fspath(prefix)}.teacher")


def check_absent(dialogs: DialogSet) -> Path:
    """The folder for the set's targets. ConfigError where it exists."""
    target = folder_of(dialogs.prefix)
    if target.exists():
        raise ConfigError(f"{target} exists; remove it to have the set scored anew")
    return target


def write(
    dialogs: DialogSet,
    about: Mapping[str, Any],
    top_k: int,
    score: Score,
    done: Callable[[int], None] = lambda samples: None,
    part_labels: int | None = None,
) -> Path:
    """Have a teacher score a whole set; returns the folder.

    about: the settings of the teacher that change targets. done: called with a number of samples
    when they are stored. part_labels: labels per part, the most that a stop or a refused sample
    loses. ConfigError where the set has targets already, where other settings were begun, and, once
    all other samples are stored, where the teacher refuses samples.
    """
    target = check_absent(dialogs)
    work = target.with_name(target.name + SUFFIX)
    with owned(work):
        said = {"fingerprint": dialogs.fingerprint, "top_k": top_k, **about}
        samples_N1, parts = _places(dialogs, _begin(work, said, part_labels or PART_LABELS))
        refused: list[Unscored] = []
        for number, (first, last) in enumerate(parts):
            path = work / _part(number)
            try:
                if not path.exists():
                    _write_part(path, dialogs, range(first, last), top_k, score)
            except Unscored as error:
                if error.is_all:  # the fault is not in the samples
                    raise
                refused.append(error)
            done(last - first)
        if refused:
            count = sum(error.count for error in refused)
            raise ConfigError(
                f"{count:,} of {len(dialogs):,} samples are refused, the first: {refused[0]}; the "
                f"parts without such a one are kept in {work}"
            )
        _write_array(work / _SAMPLES, samples_N1)
        _write_array(work / _PARTS, samples_N1[[*(first for first, _ in parts), len(dialogs)]])
        sync(work)
        work.rename(target)
    (target / "lock").unlink(missing_ok=True)
    sync(target.parent)
    return target


def _begin(work: Path, said: dict[str, Any], part_labels: int) -> int:
    """Write the settings of the targets first; returns the labels per part of the folder.
    ConfigError where it was begun with other settings."""
    content = {"version": VERSION, **said}
    if not (work / _NAME).exists():
        write_json(work / _NAME, {**content, "part_labels": part_labels})
    begun = read_json(work / _NAME, f"remove {work}", VERSION)
    if others := [name for name in content if begun.get(name) != content[name]]:
        listed = ", ".join(f"{n} = {begun.get(n)!r}, now {content[n]!r}" for n in sorted(others))
        raise ConfigError(f"{work} was begun with {listed}; go on as it was begun, or remove it")
    return int(begun.get("part_labels", PART_LABELS))


def _places(
    dialogs: DialogSet, part_labels: int
) -> tuple[npt.NDArray[np.int64], list[tuple[int, int]]]:
    """The first record of each sample, [N + 1], and the samples of each part."""
    counts = [len(trained_labels(dialogs.read(n))) for n in range(len(dialogs))]
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    borders = [0]
    while borders[-1] < len(dialogs):
        wanted = starts[borders[-1]] + part_labels
        borders.append(min(int(np.searchsorted(starts, wanted)), len(dialogs)))
    return starts, list(zip(borders, borders[1:], strict=False))


def _write_part(path: Path, dialogs: DialogSet, numbers: range, top_k: int, score: Score) -> None:
    samples = [dialogs.read(n) for n in numbers]
    records = []
    for n, sample, targets in zip(numbers, samples, score(samples), strict=True):
        rows = np.zeros(len(trained_labels(sample)), _record(top_k))
        if targets.ids.shape != rows["ids"].shape or np.isnan(targets.log_probs).any():
            raise ValueError(f"sample {n}: targets of shape {targets.ids.shape}, or NaN")
        for name, x in targets._asdict().items():
            rows[name] = x
        records.append(rows)
    _write_array(path, np.concatenate(records))


class TeacherSet:
    """The targets of a set. ConfigError where they are missing, damaged, or of another set.

    top_k: ids stored for each label; temperature: by which the teacher's logits were divided;
    vocab_size: an upper bound of all ids; teacher: its name.
    """

    def __init__(self, dialogs: DialogSet) -> None:
        self.folder = folder_of(dialogs.prefix)
        advice = "mq3 data build teacher SET --teacher MODEL writes it"
        content = read_json(self.folder / _NAME, advice, VERSION)
        if content.get("fingerprint") != dialogs.fingerprint:
            raise ConfigError(
                f"{self.folder} belongs to another set than {dialogs.prefix} is now: its "
                f"fingerprint is {content.get('fingerprint')}, the set's {dialogs.fingerprint}; "
                f"{_AGAIN}"
            )
        try:
            self.top_k, self.vocab_size = int(content["top_k"]), int(content["vocab_size"])
            self.temperature = float(content["temperature"])
            self.teacher = str(content["teacher"])
            self._samples_N1 = np.load(self.folder / _SAMPLES, allow_pickle=False)
            self._parts = np.load(self.folder / _PARTS, allow_pickle=False)
            self._records = [self._mapped(number) for number in range(len(self._parts) - 1)]
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{self.folder} cannot be read ({error}); {_AGAIN}") from None
        if len(self._samples_N1) != len(dialogs) + 1:
            raise ConfigError(f"{self.folder}/{_SAMPLES} is of another set; {_AGAIN}")

    def read(self, n: int, top_k: int) -> Targets:
        """Targets of sample n's trained labels; stored ids beyond `top_k` are added to the rest."""
        start, end = (int(x) for x in self._samples_N1[n : n + 2])
        if start == end:
            return none(top_k)
        part = int(np.searchsorted(self._parts, start, side="right")) - 1
        first = int(self._parts[part])
        rows = self._records[part][start - first : end - first]
        return shortened(Targets(rows["ids"], rows["log_probs"], rows["log_rest"]), top_k)

    def _mapped(self, number: int) -> npt.NDArray[Any]:
        path = self.folder / _part(number)
        rows: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        wanted = int(self._parts[number + 1] - self._parts[number])
        if rows.dtype != _record(self.top_k) or rows.shape != (wanted,):
            found = f"holds {rows.shape} of {rows.dtype}, not {wanted:,} records"
            raise ConfigError(f"{path} {found}; {_AGAIN}")
        return rows


def none(top_k: int) -> Targets:
    """Targets of a sample without trained labels."""
    record = np.zeros(0, _record(top_k))
    return Targets(record["ids"], record["log_probs"], record["log_rest"])


def shortened(targets: Targets, top_k: int) -> Targets:
    """The first `top_k` ids of each label; the mass of the others is added to the rest."""
    ids, log_probs, log_rest = targets
    if top_k == ids.shape[1]:
        return targets
    dropped = log_probs[:, top_k:].astype(np.float64)
    every = np.concatenate([dropped, log_rest[:, None].astype(np.float64)], 1)
    summed = np.logaddexp.reduce(every, axis=1).astype(np.float32)
    return Targets(ids[:, :top_k], log_probs[:, :top_k], summed)


def _record(top_k: int) -> np.dtype[Any]:
    return np.dtype([("ids", "<i4", (top_k,)), ("log_probs", "<f4", (top_k,)), ("log_rest", "<f4")])


def _part(number: int) -> str:
    return f"part_{number:05}.npy"


def _write_array(path: Path, x: npt.NDArray[Any]) -> None:
    with whole_file(path) as file:
        np.save(file, x, allow_pickle=False)
