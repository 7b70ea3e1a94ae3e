"""A group of inputs on its way from units to shards, and the inventory of all groups.

    if not is_done(job, group):
        open_units(job, group)           # those that are still to be tokenized
        plan_pieces(job, group)          # the shards to write, when all units are done
        close_group(job, group, cells)   # when all shards are: the mark of the group
    finish(job)                          # the inventory, once every group is done

What is done is known from files that appear whole, so a run that was killed goes on from there.
"""

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cells import Cell
from data_prep.documents import Problem
from data_prep.inventory import Inventory, read_inventory, write_inventory
from data_prep.json_files import VERSION, json_bytes, read_json, write_json
from data_prep.labels import LENGTHS, Labels
from data_prep.seal import is_sealed, read_seal
from data_prep.tokenization.plan import Unit
from data_prep.tokenization.spill import InputSection, Section, SpilledRun
from data_prep.tokenization.work import KeyRange, ShardPiece, TokenizeJob, piece_mark, unit_mark
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.whole import write_whole

IN_MEMORY_TOKENS = 1 << 26  # of one combination of labels, which are sorted at once
_NOTE_BYTES_PER_TOKEN = 4  # as many as a token itself takes, or there are more parts
SHARDS_OF_GROUP = 16  # or more where `shard_tokens` asks for it, so that processes can share them
SHARDS_OF_ALL = 36_000  # and fewer where groups are many, for the sake of file systems
_CHANGED = "the folder was changed from outside; remove it and start again"


@dataclass(frozen=True)
class TokenizeReport:
    """What became of the inputs. problems: how many lines were not taken, by kind."""

    inventory: Inventory
    lines: int
    problems: Counter[str]


class _UnitMark(NamedTuple):
    unit: Unit
    lines_before: int
    content: dict[str, Any]


def is_done(job: TokenizeJob, group: int) -> bool:
    return _group_mark(job, group).exists()


def open_units(job: TokenizeJob, group: int) -> list[Unit]:
    """The group's units that no run has tokenized yet."""
    folder = job.work_folder(group)
    folder.mkdir(parents=True, exist_ok=True)
    return [unit for unit in job.plan.units(group) if not unit_mark(folder, unit).exists()]


def plan_pieces(job: TokenizeJob, group: int) -> list[ShardPiece]:
    """The group's shards: all combinations of labels, one after another, in as few as are allowed.

    Where documents are packed, those of all lengths together."""
    sources: dict[Labels, list[InputSection]] = {}
    for unit, lines_before, mark in _unit_marks(job, group):
        for run in (SpilledRun(*row) for row in mark["runs"]):
            path = str(job.work_folder(group) / run.name)
            for section in (Section(*row) for row in run.sections):
                base, length = divmod(section.labels, len(LENGTHS))
                of = "" if job.plan.settings.pack else LENGTHS[length]
                labels = Labels._make([*mark["labels"][base], of])
                source = InputSection(
                    path, run.tokens, run.documents, section, unit.input, lines_before
                )
                sources.setdefault(labels, []).append(source)
    if job.plan.settings.apart:
        return [
            piece
            for labels in sorted(sources)
            for piece in _cut(job, group, labels, sources[labels])
        ]
    return _in_shards(job.plan.settings.most_tokens, group, len(job.plan.groups), sources)


def written(job: TokenizeJob, group: int, piece: ShardPiece) -> Sequence[Cell] | None:
    """The cells of a piece, if its shards are whole already."""
    if job.plan.settings.apart and job.plan.settings.pack:
        mark = piece_mark(job.work_folder(group), piece)
        rows = read_json(mark, _CHANGED)["shards"] if mark.exists() else None
        return None if rows is None else [Cell.from_json(row) for row in rows]
    prefix = job.out / piece.path
    return read_seal(prefix).cells if is_sealed(prefix) else None


def close_group(job: TokenizeJob, group: int, cells: Sequence[Cell]) -> None:
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
        "shards": [cell.as_json() for cell in cells],
    }
    write_json(_group_mark(job, group), content)


def clean_up(job: TokenizeJob, group: int) -> None:
    """Remove the runs of a group that is done; the last one takes the work folder along."""
    shutil.rmtree(job.work_folder(group), ignore_errors=True)
    with contextlib.suppress(OSError):
        job.work_folder(group).parent.rmdir()


def finish(job: TokenizeJob) -> TokenizeReport | None:
    """Write the inventory if all groups are done; None if other tasks are still at work.

    ConfigError where not one document could be taken.
    """
    groups = range(len(job.plan.groups))
    if not all(is_done(job, group) for group in groups):
        return None
    problems, lines, count = Counter[str](), 0, 0
    for mark in _group_marks(job):
        if mark["plan_sha256"] != job.plan_sha256:
            raise ConfigError(f"{job.out}: runs with other settings began there at the same time")
        problems.update(mark["problems"])
        lines, count = lines + mark["lines"], count + len(mark["shards"])
    if not count:
        why = ", ".join(f"{kind} {n:,}" for kind, n in problems.items()) or "the inputs are empty"
        raise ConfigError(f"no document among {lines:,} lines: {why}{_first_problem(job)}")
    names = tuple(file.name for file in job.plan.inputs)
    cells: Iterable[Cell]
    cells = (Cell.from_json(row) for mark in _group_marks(job) for row in mark["shards"])
    if job.plan.settings.apart or len(groups) > 10**5:  # then they are not in the order of paths
        cells = sorted(cells, key=lambda cell: cell.place)
    write_inventory(Inventory(job.out, job.tokenizer, job.vocab_size, names, ()), cells)
    return TokenizeReport(read_inventory(job.out), lines, problems)


def _group_marks(job: TokenizeJob) -> Iterator[dict[str, Any]]:
    for group in range(len(job.plan.groups)):
        yield read_json(_group_mark(job, group), _CHANGED)


def _first_problem(job: TokenizeJob) -> str:
    for path in sorted((job.out / "problems").glob("*.jsonl")):
        with path.open("rb") as file:
            row = json.loads(file.readline())
        return f"; the first: {shown(row['file'])}:{row['line']}: {shown(row['detail'])}"
    return ""


def _group_mark(job: TokenizeJob, group: int) -> Path:
    return job.out / "groups" / f"{group:05}.json"


def _unit_marks(job: TokenizeJob, group: int) -> Iterator[_UnitMark]:
    """The marks of a group's units, in order, with the lines of the same input before each."""
    folder, input, lines_before = job.work_folder(group), -1, 0
    for unit in job.plan.units(group):
        mark = read_json(unit_mark(folder, unit), _CHANGED)
        lines_before = lines_before if unit.input == input else 0
        yield _UnitMark(unit, lines_before, mark)
        input, lines_before = unit.input, lines_before + mark["lines"]


def _cut(
    job: TokenizeJob, group: int, labels: Labels, sources: list[InputSection]
) -> Iterator[ShardPiece]:
    """One combination of labels in shards of its own."""
    for number, range in enumerate(_key_ranges(labels, sources, job.plan.settings.most_tokens)):
        yield ShardPiece(f"{labels.folder}/{group:05}-{number:05}", [range])


def _in_shards(
    most: int, group: int, groups: int, sources: Mapping[Labels, list[InputSection]]
) -> list[ShardPiece]:
    """All combinations of labels end to end, cut into shards of at most about `most` tokens.

    Smaller ones where the group, one of `groups`, is small.
    """
    wanted = min(SHARDS_OF_GROUP, -(-SHARDS_OF_ALL // groups))
    tokens = sum(source.section.tokens for of in sources.values() for source in of)
    size = min(most, max(IN_MEMORY_TOKENS, -(-tokens // wanted)))
    shards: list[list[KeyRange]] = []
    room = 0
    for labels in sorted(sources):
        for range in _key_ranges(labels, sources[labels], min(size, IN_MEMORY_TOKENS)):
            if not shards or range.tokens > room:
                shards.append([])
                room = size
            shards[-1].append(range)
            room -= range.tokens
    return [ShardPiece(f"shards/{group:05}/{k:05}", ranges) for k, ranges in enumerate(shards)]


def _key_ranges(labels: Labels, sources: list[InputSection], most: int) -> Iterator[KeyRange]:
    tokens, notes = (
        sum(getattr(source.section, name) for source in sources)
        for name in ("tokens", "note_bytes")
    )
    parts = -(-max(tokens, notes // _NOTE_BYTES_PER_TOKEN) // most)
    for part in range(parts):
        yield KeyRange(labels, sources, part, parts)
