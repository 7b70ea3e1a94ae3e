"""A group of inputs on its way from units to shards, and the inventory of all groups.

    if not is_done(job, group):
        open_units(job, group)           # those that are still to be tokenized
        plan_pieces(job, group)          # the shards to write, when all units are done
        close_group(job, group, shards)  # when all shards are: the mark of the group
    finish(job)                          # the inventory, once every group is done

What is done is known from files that appear whole, so a run that was killed goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.documents import Problem
from data_prep.labels import LENGTHS, Labels
from data_prep.shards import (
    VERSION,
    Inventory,
    Shard,
    json_bytes,
    read_json,
    read_shard,
    shard_from_json,
    write_inventory,
    write_json,
)
from data_prep.tokenization.plan import Unit
from data_prep.tokenization.spill import Run, Section, Source
from data_prep.tokenization.work import Job, Piece, piece_mark, unit_mark
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.whole import write_whole

_CHANGED = "the folder was changed from outside; remove it and start again"


@dataclass(frozen=True)
class Report:
    """What became of the inputs. problems: how many lines were not taken, by kind."""

    shards: tuple[Shard, ...]
    lines: int
    problems: Counter[str]


class _UnitMark(NamedTuple):
    unit: Unit
    lines_before: int
    content: dict[str, Any]


def is_done(job: Job, group: int) -> bool:
    return _group_mark(job, group).exists()


def open_units(job: Job, group: int) -> list[Unit]:
    """The group's units that no run has tokenized yet."""
    folder = job.work_folder(group)
    folder.mkdir(parents=True, exist_ok=True)
    return [unit for unit in job.plan.units(group) if not unit_mark(folder, unit).exists()]


def plan_pieces(job: Job, group: int) -> list[Piece]:
    """The group's shards: each combination of labels in as few as `shard_tokens` allows.

    Where documents are packed, those of all lengths together."""
    sources: dict[Labels, list[Source]] = {}
    for unit, lines_before, mark in _unit_marks(job, group):
        for run in (Run(*row) for row in mark["runs"]):
            path = str(job.work_folder(group) / run.name)
            for section in (Section(*row) for row in run.sections):
                base, length = divmod(section.labels, len(LENGTHS))
                of = "" if job.plan.settings.pack else LENGTHS[length]
                labels = Labels._make([*mark["labels"][base], of])
                source = Source(path, run.tokens, run.documents, section, unit.input, lines_before)
                sources.setdefault(labels, []).append(source)
    return [
        piece for labels in sorted(sources) for piece in _cut(job, group, labels, sources[labels])
    ]


def written(job: Job, group: int, piece: Piece) -> list[Shard] | None:
    """The shards of a piece, if they are whole already."""
    if job.plan.settings.pack:
        mark = piece_mark(job.work_folder(group), piece)
        rows = read_json(mark, _CHANGED)["shards"] if mark.exists() else None
        return None if rows is None else [shard_from_json(row) for row in rows]
    prefix = job.out / piece.path
    return [read_shard(prefix)] if Path(f"{prefix}.json").exists() else None


def close_group(job: Job, group: int, shards: Sequence[Shard]) -> None:
    """Mark the group as done and remove what is not needed any more."""
    lines, counts, listed = 0, Counter[str](), []
    for unit, lines_before, mark in _unit_marks(job, group):
        lines += mark["lines"]
        counts.update(mark["counts"])
        name = job.plan.inputs[unit.input].name
        for line, kind, detail in (Problem(*row) for row in mark["problems"]):
            row = {"file": name, "line": lines_before + line, "kind": kind, "detail": detail}
            listed.append(json_bytes(row) + b"\n")
    if listed:
        (job.out / "problems").mkdir(exist_ok=True)
        write_whole(job.out / "problems" / f"{group:05}.jsonl", listed)
    _group_mark(job, group).parent.mkdir(exist_ok=True)
    content = {
        "version": VERSION,
        "plan_sha256": job.plan_sha256,
        "lines": lines,
        "problems": counts,
        "shards": [shard.as_json() for shard in shards],
    }
    write_json(_group_mark(job, group), content)


def clean_up(job: Job, group: int) -> None:
    """Remove the runs of a group that is done; the last one takes the work folder along."""
    shutil.rmtree(job.work_folder(group), ignore_errors=True)
    with contextlib.suppress(OSError):
        job.work_folder(group).parent.rmdir()


def finish(job: Job) -> Report | None:
    """Write the inventory if all groups are done; None if other tasks are still at work.

    ConfigError where not one document could be taken.
    """
    groups = range(len(job.plan.groups))
    if not all(is_done(job, group) for group in groups):
        return None
    marks = [read_json(_group_mark(job, group), _CHANGED) for group in groups]
    if any(mark["plan_sha256"] != job.plan_sha256 for mark in marks):
        raise ConfigError(f"{job.out}: runs with other settings began there at the same time")
    shards = tuple(shard_from_json(row) for mark in marks for row in mark["shards"])
    problems = Counter[str]()
    for mark in marks:
        problems.update(mark["problems"])
    report = Report(shards, sum(mark["lines"] for mark in marks), problems)
    if not shards:
        raise ConfigError(
            f"no document among {report.lines:,} lines: {dict(problems)}{_first_problem(job)}"
        )
    names = tuple(file.name for file in job.plan.inputs)
    inventory = Inventory(job.out, job.tokenizer, job.vocab_size, names, shards)
    write_inventory(inventory)
    return report


def _first_problem(job: Job) -> str:
    for path in sorted((job.out / "problems").glob("*.jsonl")):
        with path.open("rb") as file:
            row = json.loads(file.readline())
        return f"; the first: {shown(row['file'])}:{row['line']}: {shown(row['detail'])}"
    return ""


def _group_mark(job: Job, group: int) -> Path:
    return job.out / "groups" / f"{group:05}.json"


def _unit_marks(job: Job, group: int) -> Iterator[_UnitMark]:
    """The marks of a group's units, in order, with the lines of the same input before each."""
    folder, input, lines_before = job.work_folder(group), -1, 0
    for unit in job.plan.units(group):
        mark = read_json(unit_mark(folder, unit), _CHANGED)
        lines_before = lines_before if unit.input == input else 0
        yield _UnitMark(unit, lines_before, mark)
        input, lines_before = unit.input, lines_before + mark["lines"]


def _cut(job: Job, group: int, labels: Labels, sources: list[Source]) -> Iterator[Piece]:
    tokens = sum(source.section.tokens for source in sources)
    pieces = -(-tokens // job.plan.settings.shard_tokens)
    for k in range(pieces):
        yield Piece(f"{group:05}-{k:05}", labels, sources, k, pieces)
