"""The record of a batch of rollouts: RUN_DIR/rollouts/NNNNNN/, written whole, read by every rank.

    RolloutRecord.of(batch, step, groups, judged, state, …).write(folder_of(run_dir, 7), samples)
    record = RolloutRecord.read(folder_of(run_dir, 7))  # ConfigError, one line, where it is damaged
    clean(run_dir, step)                            # on resume: removes batches sampled later

An update is a function of the record and the weights, so a run killed within a batch resumes with
the same rollouts and rewards. `rollouts.npz` has arrays, no pickles; `record.json` has tasks,
counts, seconds, the loop's state, and checksums; `samples.jsonl` some rollouts as text, for
reading; `rates.json` pass rates of single tasks, where a curriculum uses them. `old.npz` is added
later: log-probs before the batch's first update. No torch here.

Legend: N rollouts, T their tokens one after another, P parts of a reward.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_qwen3.posttrain.rollouts.record_files import (
    ARRAYS_FILE,
    OLD_FILE,
    RATES_FILE,
    RECORD_FILE,
    SAMPLES_FILE,
    SUMS,
    TASK_RATES,
    apart,
    check_own_sum,
    check_sum,
    damaged,
    packed,
    read_arrays,
    sum_of,
)
from megatron_qwen3.posttrain.rollouts.rollout import ABORT, ERROR, LENGTH, STOP, Rollout
from megatron_qwen3.pretrain.order import Shuffle, epoch_key
from megatron_qwen3.settings import ConfigError
from megatron_qwen3.storage.inside import inside, parse_json, read_small
from megatron_qwen3.storage.whole import beside, sync, whole_folder, write_whole

VERSION = 1
FINISHES = (STOP, LENGTH, ABORT, ERROR)  # finish_N has their numbers
_DTYPES: Mapping[str, type] = {
    "ids": np.int32,
    "prompt_lengths_N": np.int32,
    "lengths_N": np.int32,
    "log_probs": np.float32,
    "sampled": np.bool_,
    "group_N": np.int32,
    "task_N": np.int32,
    "finish_N": np.uint8,
    "versions_N2": np.int64,
    "thinking_N": np.bool_,
    "seed_N": np.int64,
    "turns_N": np.int32,
    "reward_N": np.float32,
    "advantage_N": np.float32,
    "parts_NP": np.float32,
    "is_trained_N": np.bool_,
}
Array = npt.NDArray[Any]
_DECIDING, _HALF = ("verifier", "judge"), 0.5


class TaskName(NamedTuple):
    """The task that a rollout answers. mode: thinking or non-thinking."""

    id: str
    source: str
    mode: str


@dataclass(frozen=True, eq=False)
class RolloutRecord:
    """A batch of rollouts.

    batch: its number; first_step: of its first update; sampled_step: number of updates of the
    weights that sampled it.
    ids: prompt and tokens of each rollout; prompt_lengths_N, lengths_N: the length of each;
    log_probs, sampled: of all tokens, as in `Rollout`; group_N ascends; task_N: numbers in
    `tasks`; finish_N: numbers in FINISHES; reward_N, parts_NP: NaN where there is no score;
    counts: asked, filtered, …; seconds: rollout, reward, …; state: of the loop after the batch,
    without pass rates of single tasks if it was read (`read_state` has them). refit: metrics of the
    transfer of weights to servers, {} without one.
    """

    batch: int
    first_step: int
    sampled_step: int
    parts: tuple[str, ...]
    tasks: tuple[TaskName, ...]
    ids: Array
    prompt_lengths_N: Array
    lengths_N: Array
    log_probs: Array
    sampled: Array
    group_N: Array
    task_N: Array
    finish_N: Array
    versions_N2: Array
    thinking_N: Array
    seed_N: Array
    turns_N: Array
    reward_N: Array
    advantage_N: Array
    parts_NP: Array
    is_trained_N: Array
    counts: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    refit: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths_N)

    @cached_property
    def ends_N(self) -> Array:
        """The end of each rollout's tokens among all tokens, int64."""
        return np.cumsum(self.lengths_N, dtype=np.int64)

    @cached_property
    def id_ends_N(self) -> Array:
        """The end of each rollout's prompt and tokens in `ids`, int64."""
        return np.cumsum(self.lengths_N + self.prompt_lengths_N, dtype=np.int64)

    def prompt(self, n: int) -> Array:
        """The ids of rollout n's prompt, [prompt_lengths_N[n]]."""
        end = int(self.id_ends_N[n] - self.lengths_N[n])
        return self.ids[end - int(self.prompt_lengths_N[n]) : end]

    def tokens(self, n: int) -> Array:
        """The ids of rollout n's answer, [lengths_N[n]]."""
        end = int(self.id_ends_N[n])
        return self.ids[end - int(self.lengths_N[n]) : end]

    def places(self, n: int) -> slice:
        """The places of rollout n's tokens in `log_probs` and `sampled`."""
        end = int(self.ends_N[n])
        return slice(end - int(self.lengths_N[n]), end)

    @property
    def trained_tokens_N(self) -> Array:
        """Tokens of each rollout that are trained, int64."""
        counts_N = np.zeros(len(self), np.int64)
        of_T = np.repeat(np.arange(len(self)), self.lengths_N)
        np.add.at(counts_N, of_T[self.sampled], 1)
        return counts_N * self.is_trained_N

    @property
    def passed_N(self) -> Array:
        """Whether each answer passed, 1 or 0, float32; NaN where unknown. See `passed`."""
        found_N = np.where(np.isnan(self.reward_N), np.nan, self.reward_N > 0)
        for name in reversed(_DECIDING):
            if name in self.parts:
                part_N = self.parts_NP[:, self.parts.index(name)]
                found_N = np.where(np.isnan(part_N), found_N, part_N >= _HALF)
        return found_N.astype(np.float32)

    @property
    def is_truncated_N(self) -> Array:
        return self.finish_N == FINISHES.index(LENGTH)

    def updates(self, count: int, seed: int) -> list[list[int]]:
        """The trained rollouts of each of `count` updates: whole groups, in an order that the batch
        keeps. Updates have equally many groups, up to one; with too few groups some have none.

        seed: of the order, if the record has none: a record keeps its seed, whatever run.seed is
        when the run resumes.
        """
        is_trained_N = self.trained_tokens_N > 0
        groups = np.unique(self.group_N[is_trained_N])
        own = self.state.get("seed", seed)
        order = Shuffle(len(groups), epoch_key(own, "updates", self.batch))
        shares: list[list[int]] = [[] for _ in range(count)]
        for place in range(len(groups)):
            is_own_N = (self.group_N == groups[order[place]]) & is_trained_N
            shares[place * count // len(groups)] += np.flatnonzero(is_own_N).tolist()
        return shares

    def write(self, folder: Path, samples: Iterable[Mapping[str, Any]] = ()) -> None:
        """Write the folder whole, in place of an earlier one. ValueError: not a record."""
        if fault := self._fault():
            raise ValueError(f"not a record: {fault}")
        remove(folder)
        with whole_folder(folder) as partial:
            arrays = packed({n: getattr(self, n) for n in _DTYPES})
            write_whole(partial / ARRAYS_FILE, [arrays])
            lines = (json.dumps(s, ensure_ascii=False).encode() + b"\n" for s in samples)
            write_whole(partial / SAMPLES_FILE, lines)
            about, rates = apart(self._about())
            about[SUMS] = {ARRAYS_FILE: sum_of(arrays)}
            if rates:
                about[SUMS][RATES_FILE] = sum_of(rates)
                write_whole(partial / RATES_FILE, [rates])
            about[SUMS][RECORD_FILE] = sum_of(json.dumps(about).encode())
            write_whole(partial / RECORD_FILE, [json.dumps(about).encode()])

    @classmethod
    def read(cls, folder: Path) -> RolloutRecord:
        """Read a record. ConfigError, in one line: it is missing, damaged or of another version."""
        about = read_about(folder)
        try:
            arrays = read_arrays(folder / ARRAYS_FILE, _DTYPES)
            tasks = tuple(TaskName(*map(str, task)) for task in about["tasks"])
            numbers = (int(about[name]) for name in ("batch", "first_step", "sampled_step"))
            record = cls(
                *numbers,
                tuple(map(str, about["parts"])),
                tasks,
                **arrays,
                counts=about["counts"],
                seconds=about["seconds"],
                state=about["state"],
                refit=about.get("refit", {}),
            )
            if fault := record._fault():
                raise ValueError(fault)
            check_sum(folder, ARRAYS_FILE, about)
        except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
            raise damaged(folder, error) from None
        return record

    def _about(self) -> dict[str, Any]:
        names = ("batch", "first_step", "sampled_step", "parts", "tasks", "counts", "seconds")
        about = {"version": VERSION, **{n: getattr(self, n) for n in names}, "state": self.state}
        return about | ({"refit": self.refit} if self.refit else {})

    def _fault(self) -> str:
        """How the arrays disagree; "" where they agree."""
        N, T = len(self), int(self.lengths_N.sum())
        shapes: dict[str, tuple[int, ...]] = {name: (N,) for name in _DTYPES if name.endswith("_N")}
        shapes |= {"log_probs": (T,), "sampled": (T,), "versions_N2": (N, 2)}
        shapes |= {"ids": (T + int(self.prompt_lengths_N.sum()),), "parts_NP": (N, len(self.parts))}
        for name, shape in shapes.items():
            found = getattr(self, name)
            if found.shape != shape or found.dtype != _DTYPES[name]:
                wanted = f"{[*shape]} of {np.dtype(_DTYPES[name])}"
                return f"{name} is {[*found.shape]} of {found.dtype}, and should be {wanted}"
        if N and not (self.task_N.min() >= 0 and self.task_N.max() < len(self.tasks)):
            return f"task_N names tasks beyond its {len(self.tasks)}"
        if N and self.finish_N.max() >= len(FINISHES):
            return f"finish_N has numbers beyond its {len(FINISHES)}"
        if N and (self.prompt_lengths_N.min() < 1 or self.lengths_N.min() < 0):
            return "a prompt is empty, or a length below 0"
        return "" if (np.diff(self.group_N) >= 0).all() else "group_N does not ascend"


def passed(total: float | None, parts: Mapping[str, float | None]) -> bool | None:
    """Whether an answer passed, by its verifier; without one by its judge, from half of its scale
    on; without both by a reward above 0. None where it is unknown."""
    for name in _DECIDING:
        if (score := parts.get(name)) is not None:
            return score >= _HALF
    return None if total is None else total > 0


def of_groups(groups: Sequence[Sequence[Rollout]], tasks: Sequence[TaskName]) -> dict[str, Any]:
    """The fields of a RolloutRecord that follow from rollouts; tasks: of each group."""
    rollouts = [rollout for group in groups for rollout in group]
    sizes = [len(group) for group in groups]

    def joined(name: str, dtype: type) -> Array:
        parts = [np.array(getattr(each, name), dtype) for each in rollouts]
        return np.concatenate([np.zeros(0, dtype), *parts])

    def column(name: str, dtype: type) -> Array:
        return np.array([getattr(each, name) for each in rollouts], dtype)

    distinct = list(dict.fromkeys(tasks))
    number = {task: n for n, task in enumerate(distinct)}
    ids = [np.array(part, np.int32) for r in rollouts for part in (r.prompt, r.tokens)]
    return {
        "tasks": tuple(distinct),
        "ids": np.concatenate([np.zeros(0, np.int32), *ids]),
        "prompt_lengths_N": np.array([len(r.prompt) for r in rollouts], np.int32),
        "lengths_N": np.array([len(r.tokens) for r in rollouts], np.int32),
        "log_probs": joined("log_probs", np.float32),
        "sampled": joined("sampled", np.bool_),
        "group_N": np.repeat(np.arange(len(groups), dtype=np.int32), sizes),
        "task_N": np.repeat(np.array([number[t] for t in tasks], np.int32), sizes),
        "finish_N": np.array([FINISHES.index(r.finish) for r in rollouts], np.uint8),
        "versions_N2": column("versions", np.int64).reshape(-1, 2),
        "thinking_N": column("thinking", np.bool_),
        "seed_N": column("seed", np.int64),
        "turns_N": column("turns", np.int32),
    }


def home(run_dir: Path) -> Path:
    """The folder of all records of a run."""
    return run_dir / "rollouts"


def folder_of(run_dir: Path, batch: int) -> Path:
    return home(run_dir) / f"{batch:06d}"


def batches(run_dir: Path) -> list[int]:
    """The numbers of the existing batches, ascending."""
    if not home(run_dir).is_dir():
        return []
    names = (path.name for path in home(run_dir).iterdir())
    return sorted(int(name) for name in names if len(name) >= 6 and name.isdecimal())


def read_about(folder: Path) -> dict[str, Any]:
    """The content of record.json. ConfigError as in `RolloutRecord.read`."""
    try:
        about = parse_json(read_small(inside(folder, RECORD_FILE)))
        version = about["version"]
        if version == VERSION:
            check_own_sum(about)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise damaged(folder, error) from None
    if version != VERSION:
        raise ConfigError(
            f"{folder} is a record of rollouts of version {version!r:.40}, known: {VERSION}; "
            "remove it and all later ones, and its tasks are asked again"
        )
    return dict(about)


def read_state(folder: Path) -> dict[str, Any]:
    """The loop's state for the next batch, with pass rates of single tasks. ConfigError as in
    `RolloutRecord.read`."""
    about = read_about(folder)
    state = dict(about["state"])
    if RATES_FILE not in about.get(SUMS, {}):
        return state
    try:
        check_sum(folder, RATES_FILE, about)
        rates = parse_json(read_small(inside(folder, RATES_FILE)))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise damaged(folder, error) from None
    return state | {"asking": {**state["asking"], TASK_RATES: rates}}


def any_beyond(ids: Array, places_N: Array, known: int) -> Array:
    """Bool [N]: whether a rollout has an id of `known` or above. A model with more rows than its
    tokenizer has tokens may sample such ids.

    ids: of all rollouts, one after another; places_N: number of ids of each, prompt included.
    """
    of_ids = np.repeat(np.arange(len(places_N)), places_N)
    return np.bincount(of_ids, ids >= known, minlength=len(places_N)) > 0


def clean(run_dir: Path, step: int) -> list[int]:
    """Remove batches sampled by weights of more than `step` updates, and at step 0 all; returns
    their numbers. A record that cannot be read is removed with all later ones. A batch whose first
    update is still to come loses its log-probs before it, which other weights may have computed."""
    gone, is_later = [], step == 0
    for batch in batches(run_dir):
        folder = folder_of(run_dir, batch)
        try:
            about = read_about(folder)
            is_later = is_later or about["sampled_step"] > step
        except ConfigError:
            is_later = True
        if is_later:
            remove(folder)
            gone.append(batch)
        elif about["first_step"] >= step:
            (folder / OLD_FILE).unlink(missing_ok=True)
    for path in home(run_dir).glob("*.partial") if home(run_dir).is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)
    return gone


def remove(folder: Path) -> None:
    """Remove a record at once: its name never stands for a part of it."""
    if not folder.exists():
        return
    partial = beside(folder)
    folder.rename(partial)
    sync(folder.parent)
    shutil.rmtree(partial)
