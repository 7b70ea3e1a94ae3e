"""What one process does for a corpus: it tokenizes a unit, or writes a shard.

    tokenize_unit(job, group, unit, tick)     # documents -> sorted runs, and a mark
    write_piece(job, piece, tick)             # runs -> one shard, its cells in their order

Either may be killed at any moment and done again: a file has its real name only when it is whole,
and what says that all are there is written last.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.cells import Cell
from data_prep.documents import Document, DocumentBatch, Problem, read
from data_prep.indexed import token_dtype
from data_prep.json_files import VERSION, write_json
from data_prep.kept_fields import notes
from data_prep.labels import LENGTH_BOUNDS_TOKENS, LENGTHS, UNKNOWN, Labels, level, said
from data_prep.lines import lines_before
from data_prep.pool import Tick, ticking
from data_prep.seal import is_sealed, read_seal
from data_prep.shards import Content, write_shard
from data_prep.tokenization.plan import DEFAULTED, TokenizePlan, Unit
from data_prep.tokenization.rows import in_rows
from data_prep.tokenization.spill import (
    ROW,
    InputSection,
    SpilledRun,
    TokenTable,
    chunks,
    keys,
    read_piece,
    write_run,
)
from data_prep.tokenizer import DocumentTokenizer
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.lock import shared

RUN_BYTES = (
    1 << 26
)  # of token ids and provenance that are collected before they are sorted and written
LISTED_PROBLEMS = 1000  # of a unit; more are counted only
MOST_LABELS = 10_000  # combinations in a unit


@dataclass(frozen=True)
class TokenizeJob:
    """What all processes of a run must know.

    plan_sha256: of OUT/plan.json. tokenizer: what the inventory says of it. engine: by name. task:
    of those that share the folder, this one. stop_on_error: the first bad line ends the run.
    """

    plan: TokenizePlan
    out: Path
    plan_sha256: str
    tokenizer: dict[str, Any]
    vocab_size: int
    engine: str
    task: int = 0
    stop_on_error: bool = False

    def work_folder(self, group: int) -> Path:
        return self.out / "work" / f"{group:05}"

    @property
    def dtype(self) -> np.dtype[Any]:
        return token_dtype(self.vocab_size)


class KeyRange(NamedTuple):
    """Of all documents with these labels those in the part-th of `parts` equal ranges of keys.

    Of a job that packs documents of all lengths share rows: the length in `labels` is "".
    """

    labels: Labels
    sources: list[InputSection]
    part: int = 0
    parts: int = 1

    @property
    def tokens(self) -> int:
        """About how many."""
        return sum(source.section.tokens for source in self.sources) // self.parts

    @property
    def text_bytes(self) -> int:
        """About how many."""
        return sum(source.section.bytes for source in self.sources) // self.parts


class ShardPiece(NamedTuple):
    """What is written at a time, of some ranges in their order. path: as in Cell.

    One shard. Of a job that packs and keeps labels apart each length that a row's longest text has
    makes a shard, and the path is that of none of them.
    """

    path: str
    ranges: list[KeyRange]

    @property
    def text_bytes(self) -> int:
        return sum(range.text_bytes for range in self.ranges)


class WrittenPiece(NamedTuple):
    """What a piece has become. path: the piece's."""

    path: str
    cells: Sequence[Cell]


def unit_mark(folder: Path, unit: Unit) -> Path:
    """The file that appears when all runs of a unit are there."""
    return folder / f"{unit.number:05}.json"


def piece_mark(folder: Path, piece: ShardPiece) -> Path:
    """The file that appears when all shards of a piece are there, where it makes several."""
    path = folder / "pieces" / f"{piece.path}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def tokenize_unit(job: TokenizeJob, group: int, unit: Unit, tick: Tick) -> None:
    """Read the unit's documents and leave them as runs in the group's work folder.

    ConfigError at the first bad line, if the job asks for it. OSError: unreadable input, full disk.
    """
    folder = job.work_folder(group)
    with shared(folder):
        problems = Problems(unit, job.stop_on_error)
        book = LabelBook(job.plan.settings.defaults)
        runs: list[SpilledRun] = []
        waiting: list[TokenTable] = []
        lines = 0
        settings = job.plan.settings
        for batch in ticking(
            read(unit.part, settings.names, settings.keep_fields), unit.part, tick
        ):
            problems.add(batch.problems)
            lines += batch.num_lines
            if batch.documents:
                waiting.append(_table(batch, job, book, unit.input))
            if sum(table.tokens.nbytes + table.ids.nbytes for table in waiting) >= RUN_BYTES:
                runs.append(write_run(_run_path(folder, unit, len(runs)), waiting))
                waiting = []
        if waiting:
            runs.append(write_run(_run_path(folder, unit, len(runs)), waiting))
        found = {"lines": lines, "problems": problems.listed, "counts": problems.counts}
        content = {"version": VERSION, "labels": book.names, "runs": runs, **found}
        write_json(unit_mark(folder, unit), content)


def write_piece(job: TokenizeJob, piece: ShardPiece, tick: Tick) -> WrittenPiece:
    """Write its shards; none where chance left no document in its ranges of keys."""
    folder = Path(piece.ranges[0].sources[0].path).parent
    settings = job.plan.settings
    with shared(folder):
        contents = _contents(job, piece, tick)
        if settings.apart and settings.pack:
            return WrittenPiece(piece.path, _write_apart(job, piece, contents, folder))
        first = next(contents, None)
        if first is None:
            return WrittenPiece(piece.path, ())
        cells = write_shard(job.out, piece.path, job.dtype, chain([first], contents))
        return WrittenPiece(piece.path, cells)


def _contents(job: TokenizeJob, piece: ShardPiece, tick: Tick) -> Iterator[Content]:
    for range in piece.ranges:
        yield from _in_range(job, range)  # no more than one of them is held in memory
        tick(range.text_bytes)


def _in_range(job: TokenizeJob, range: KeyRange) -> Iterator[Content]:
    row_length = job.plan.settings.pack
    filler = [job.tokenizer["end_of_document"]] * row_length
    table, inputs = read_piece(range.sources, job.dtype, range.part, range.parts, filler)
    if not len(table.rows):
        return
    if row_length:
        for cell, text_R, rows, files in in_rows(table, inputs, range.labels, row_length):
            yield Content(cell, chunks(rows, files), text_R)
        return
    tokens, text_bytes = (
        int(table.rows[name].sum(dtype=np.int64)) for name in ("length", "text_bytes")
    )
    cell = Cell("", range.labels, len(table.rows), tokens, text_bytes)
    yield Content(cell, chunks(table, inputs))


def _write_apart(
    job: TokenizeJob, piece: ShardPiece, contents: Iterator[Content], folder: Path
) -> Sequence[Cell]:
    """Each content as a shard of its own."""
    cells: list[Cell] = []
    for content in contents:
        path = f"{content.cell.labels.folder}/{Path(piece.path).name}"
        if is_sealed(job.out / path):  # written by a run that was killed
            cells += read_seal(job.out / path).cells
        else:
            cells += write_shard(job.out, path, job.dtype, [content])
    mark = {"version": VERSION, "shards": [cell.as_json() for cell in cells]}
    write_json(piece_mark(folder, piece), mark)
    return cells


class Problems:
    """The bad lines of a unit: all counted by kind, the first ones kept."""

    def __init__(self, unit: Unit, stops: bool) -> None:
        self.listed: list[Problem] = []
        self.counts: Counter[str] = Counter()
        self._unit, self._stops = unit, stops

    def add(self, problems: list[Problem]) -> None:
        if problems and self._stops:
            line, kind, detail = problems[0]
            part = self._unit.part
            line += lines_before(part.path, part.start)
            raise ConfigError(f"{shown(part.path)}:{line}: {kind}: {shown(detail)}")
        self.counts.update(problem.kind for problem in problems)
        self.listed += problems[: LISTED_PROBLEMS - len(self.listed)]


class LabelBook:
    """Numbers for the combinations of labels that occur in a unit, but for the length."""

    def __init__(self, defaults: Mapping[str, str]) -> None:
        self._defaults = {name: defaults.get(name, UNKNOWN) for name in DEFAULTED}
        self._numbers: dict[tuple[str, ...], int] = {}

    @property
    def names(self) -> list[tuple[str, ...]]:
        return list(self._numbers)

    def number(self, document: Document) -> int:
        *words, quality, education = said(document, **self._defaults)
        labels = (*map(str, words), level(quality), level(education))
        number = self._numbers.setdefault(labels, len(self._numbers))
        if number >= MOST_LABELS:
            raise ConfigError(
                f"more than {MOST_LABELS:,} combinations of labels, the last {labels}: "
                "a label is one of few words; see --field"
            )
        return number


@lru_cache(maxsize=1)
def _tokenizer(path: str, engine: str) -> DocumentTokenizer:
    return DocumentTokenizer(path, engine, compare=False)  # the run's first process did


def _run_path(folder: Path, unit: Unit, number: int) -> Path:
    return folder / f"{unit.number:05}-{number:05}.run"


def _table(batch: DocumentBatch, job: TokenizeJob, book: LabelBook, input: int) -> TokenTable:
    settings = job.plan.settings
    texts = [document.text for document in batch.documents]
    brought = notes(("" if d.id is None else str(d.id) for d in batch.documents), batch.fields)
    tokens, lengths = _tokenizer(settings.tokenizer, job.engine).encode_flat(texts)
    labels = np.array([book.number(document) for document in batch.documents])
    ids = np.frombuffer(b"".join(brought), np.uint8)
    rows = np.empty(len(texts), ROW)
    rows["length"] = lengths
    rows["start"] = np.cumsum(lengths) - lengths
    rows["line"] = batch.lines
    rows["text_bytes"] = _utf8_sizes(texts)
    rows["id_bytes"] = list(map(len, brought))
    rows["id_start"] = np.cumsum(rows["id_bytes"], dtype=np.int64) - rows["id_bytes"]
    rows["labels"] = labels * len(LENGTHS) + np.searchsorted(
        LENGTH_BOUNDS_TOKENS, lengths, side="right"
    )
    return TokenTable(
        tokens.astype(job.dtype), keys(settings.seed, input, batch.positions), rows, ids
    )


def _utf8_sizes(texts: list[str]) -> list[int]:
    return [len(text) if text.isascii() else len(text.encode()) for text in texts]
