"""Tokenizes a corpus of documents into shards: the run that `mq3 data tokenize` starts.

    report = tokenize(["documents"], out, Settings("tokenizer"), CorpusOptions(workers=8))

Group by group its units are tokenized, its shards written, its mark set (groups.py); processes do
the work (pool.py, work.py). Several runs may share a folder, each as one task of many.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.cells import Cell
from data_prep.documents import SUFFIXES_IN_FOLDERS, not_read
from data_prep.engines import AUTO
from data_prep.lifetime import errors_for_people
from data_prep.pool import Pool
from data_prep.tokenization import groups
from data_prep.tokenization.plan import (
    Settings,
    TokenizePlan,
    as_begun,
    check_apart,
    make_plan,
    settle,
)
from data_prep.tokenization.work import TokenizeJob, tokenize_unit, write_piece
from data_prep.tokenizer import DocumentTokenizer
from data_prep.tokenizer_file import cut_note, tokenizer_json
from megatron_qwen3.bar import Bar, in_megabytes
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.lock import owned
from megatron_qwen3.storage.whole import write_whole

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
UNITS_SHARE = 0.85  # of a group's time; its shards take the rest


@dataclass(frozen=True)
class CorpusOptions:
    """How the work is done; none of it changes a byte of the result.

    workers: processes. task: this run does the groups task, task + tasks, … of the folder.
    stop_on_error: the first bad line ends the run; otherwise such lines are counted and left out.
    """

    workers: int = 1
    engine: str = AUTO
    task: int = 0
    tasks: int = 1
    stop_on_error: bool = False


def tokenize(
    paths: Sequence[str | os.PathLike[str]], out: Path, settings: Settings, options: CorpusOptions
) -> groups.TokenizeReport | None:
    """Do this task's part. The report on all tasks where all are done, else None.

    Raises ConfigError with the fault of inputs, settings or folder, or why the run had to stop.
    """
    if not 0 <= options.task < options.tasks:
        raise ConfigError(f"task {options.task} of {options.tasks}: tasks are numbered from 0")
    if options.workers < 1:
        raise ConfigError(f"workers = {options.workers}: at least one process must do the work")
    plan = make_plan(paths, as_begun(settings, out))
    check_apart(out, paths)
    with errors_for_people(out):
        mine = range(options.task, len(plan.groups), options.tasks)
        total = sum(_group_bytes(plan, group) for group in mine)
        with Bar("", total, in_megabytes) as bar:
            if note := not_read(paths, SUFFIXES_IN_FOLDERS):
                bar.say(note)
            job = _settled(plan, out, options, bar)
            if options.tasks > len(plan.groups):
                bar.say(
                    f"{len(plan.groups)} groups of inputs are less than {options.tasks} tasks, of "
                    "which the last have nothing to do; smaller groups share the work out"
                )
            with Pool(options.workers, job, __name__) as pool:
                for group in mine:
                    _do_group(job, group, pool, bar)
        return groups.finish(job)


def _do_group(job: TokenizeJob, group: int, pool: Pool[TokenizeJob], bar: Bar) -> None:
    size = _group_bytes(job.plan, group)
    with owned(job.work_folder(group)):
        if groups.is_done(job, group):
            bar.skip(size)
        else:
            units = groups.open_units(job, group)
            todo = sum(unit.part.end - unit.part.start for unit in units)
            bar.skip(UNITS_SHARE * (size - todo))
            bar.stage("tokenizing", todo, UNITS_SHARE * todo)
            for _ in pool.run(tokenize_unit, [(group, unit) for unit in units], bar.advance):
                pass
            cells = _write_shards(job, group, pool, bar, (1 - UNITS_SHARE) * size)
            groups.close_group(job, group, cells)
    groups.clean_up(job, group)


def _write_shards(
    job: TokenizeJob, group: int, pool: Pool[TokenizeJob], bar: Bar, share_bytes: float
) -> list[Cell]:
    """The cells of all shards of the group in their order, those of earlier runs among them."""
    pieces = groups.plan_pieces(job, group)
    cells = {piece.path: groups.written(job, group, piece) for piece in pieces}
    todo = [piece for piece in pieces if cells[piece.path] is None]
    bar.stage("writing shards", sum(piece.text_bytes for piece in todo), share_bytes)
    for piece in pool.run(write_piece, [(piece,) for piece in todo], bar.advance):
        cells[piece.path] = piece.cells
    return [cell for of_piece in cells.values() for cell in of_piece or ()]


def _group_bytes(plan: TokenizePlan, group: int) -> int:
    return sum(plan.inputs[k].size for k in plan.groups[group])


def _settled(plan: TokenizePlan, out: Path, options: CorpusOptions, bar: Bar) -> TokenizeJob:
    """The tokenizer is read, and OUT belongs to this plan, with a copy of the tokenizer in it."""
    path = tokenizer_json(plan.settings.tokenizer)
    tokenizer = DocumentTokenizer(path, options.engine)
    say_notes(tokenizer, path, bar)
    plan_sha256 = settle(plan, out)
    (out / "tokenizer").mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        source = path.parent / name if path.name == TOKENIZER_FILES[0] else path
        if source.exists():
            write_whole(out / "tokenizer" / name, [source.read_bytes()])
    about = {
        "path": "tokenizer",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "end_of_document": tokenizer.end_of_document,
    }
    return TokenizeJob(
        plan,
        out,
        plan_sha256,
        about,
        tokenizer.vocab_size,
        tokenizer.engine,
        options.task,
        options.stop_on_error,
    )


def say_notes(tokenizer: DocumentTokenizer, path: Path, bar: Bar) -> None:
    """Print settings of the file that are left aside, and why a faster engine is not used."""
    if note := cut_note(path):
        bar.say(note)
    if tokenizer.engine_note:
        bar.say(f"tokenizing with {tokenizer.engine}, which is slower: {tokenizer.engine_note}")
