"""Tokenizes files of dialogs into one set: the work of `mq3 data dialogs`.

    report = tokenize(["chat.jsonl"], Path("data/chat"), "tokenizer", Choices(), DialogOptions())

Parts of the files (`data_prep.tokenization.plan`) are tokenized independently, each to a small set
in PREFIX.work, and then joined in the order of the files. So the bytes do not depend on the
workers, memory does not grow with the files, and a stopped run resumes with the parts it has. A
file whose name, size or time changed counts as another file.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.documents import PARQUET, SUFFIXES_IN_FOLDERS, not_read
from data_prep.engines import AUTO
from data_prep.fingerprint import file_sha256
from data_prep.json_files import json_bytes, read_json, write_json
from data_prep.lifetime import errors_for_people
from data_prep.pool import Pool, Tick, ticking
from data_prep.tokenization import plan
from data_prep.tokenization.corpus import say_notes
from data_prep.tokenization.plan import TokenizeInput, Unit
from data_prep.tokenization.work import Problems
from data_prep.tokenizer_file import tokenizer_json
from megatron_qwen3.bar import Bar, in_megabytes
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.dialogs.dialog_set import (
    FILES,
    MODES,
    SAMPLE,
    VERSION,
    DialogSet,
    DialogSetWriter,
    Stretch,
)
from megatron_qwen3.posttrain.dialogs.encoder import ChatEncoder
from megatron_qwen3.posttrain.dialogs.limits import last_only, limited
from megatron_qwen3.posttrain.dialogs.lines import DialogBatch, read
from megatron_qwen3.posttrain.dialogs.samples import Choices, check_choices
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.lock import owned, shared
from megatron_qwen3.storage.whole import write_whole

SUFFIXES = tuple(suffix for suffix in SUFFIXES_IN_FOLDERS if suffix != PARQUET)
UNITS_SHARE = 0.95  # of the progress bar; joining takes the rest
STRETCH_TOKENS = 1 << 22  # tokens that are joined at a time
MOST_SOURCES = 1 << 16
LISTED_PROBLEMS = 100_000  # of a set; further ones are only counted
_GONE = "it was removed just now"


@dataclass(frozen=True)
class DialogOptions:
    """How the work is done; none of it changes a byte of the set.

    workers: processes. stop_on_error: the first bad line ends the run; otherwise such lines are
    counted and left out.
    """

    workers: int = 1
    engine: str = AUTO
    stop_on_error: bool = False


@dataclass(frozen=True)
class DialogReport:
    """Summary of a run. counts: of dialogs and samples, and of changes made to them; problems:
    lines that were left out, by kind; table: samples, tokens and trained tokens of each source and
    mode."""

    lines: int
    counts: Counter[str]
    problems: Counter[str]
    table: list[tuple[str, str, int, int, int]]


@dataclass(frozen=True)
class DialogJob:
    """The task, as sent to every process. tokenizer: its tokenizer.json; engine: by name."""

    prefix: Path
    inputs: tuple[TokenizeInput, ...]
    choices: Choices
    tokenizer: Path
    tokenizer_sha256: str
    engine: str
    stop_on_error: bool

    @property
    def work(self) -> Path:
        """The folder of the parts that are done."""
        return Path(f"{self.prefix}.work")

    def piece(self, unit: Unit) -> Path:
        """The prefix of a unit's small set."""
        return self.work / f"{unit.number:05}"


def tokenize(
    paths: Sequence[str | Path],
    prefix: Path,
    tokenizer: str,
    choices: Choices,
    options: DialogOptions,
) -> DialogReport:
    """Write the set, or the parts of it that are missing.

    ConfigError names the fault of inputs, choices or tokenizer, or why the run had to stop.
    """
    check_choices(choices)
    if options.workers < 1:
        raise ConfigError(f"workers = {options.workers}: at least one process must do the work")
    inputs = plan.find_inputs(paths, suffixes=SUFFIXES)
    plan.check_apart(prefix, paths)
    with errors_for_people(prefix), Bar("", sum(file.size for file in inputs), in_megabytes) as bar:
        if note := not_read(paths, SUFFIXES):
            bar.say(note)
        path = tokenizer_json(tokenizer)
        encoder = ChatEncoder(path, options.engine)
        say_notes(encoder.documents, path, bar)
        if encoder.note:
            bar.say(encoder.note)
        job = DialogJob(
            prefix,
            inputs,
            choices,
            path,
            file_sha256(str(path)),
            encoder.documents.engine,
            options.stop_on_error,
        )
        if is_done(job):
            return report_of(prefix)
        _check_free(job)
        with owned(job.work):
            _settle(job)
            _tokenize_units(job, options.workers, bar)
            _join(job, bar)
        shutil.rmtree(job.work, ignore_errors=True)
        return report_of(prefix)


def is_done(job: DialogJob) -> bool:
    """Whether the set is finished; ConfigError where another set has its name."""
    mark = Path(f"{job.prefix}.json")
    if not mark.exists():
        return False
    before = read_json(mark, _GONE, VERSION).get("about", {})
    plan.check_same(mark, before.get("identity", {"inputs": []}), _identity(job))
    return True


def report_of(prefix: Path) -> DialogReport:
    """The report that was stored with a set."""
    about = read_json(Path(f"{prefix}.json"), "the set is not whole", VERSION)["about"]
    table = [(row[0], row[1], row[2], row[3], row[4]) for row in about["table"]]
    return DialogReport(about["lines"], Counter(about["counts"]), Counter(about["problems"]), table)


def _identity(job: DialogJob) -> dict[str, Any]:
    """The values that must be equal for a set to be continued, or taken for this one."""
    settings = {**asdict(job.choices), "tokenizer_sha256": job.tokenizer_sha256}
    return {"version": VERSION, "settings": settings, "inputs": plan.identity_of(job.inputs)}


def _check_free(job: DialogJob) -> None:
    """ConfigError where files that no run of ours wrote have the set's names."""
    names = [f"{job.prefix}.{suffix}" for suffix in FILES]
    if (job.work / plan.PLAN).exists():  # a stopped run of ours left it
        return
    if others := [name for name in names if Path(name).exists()]:
        raise ConfigError(
            f"{', '.join(others)}: there without {job.prefix}.json, and would be written over; "
            "choose another name, or remove them"
        )


def _settle(job: DialogJob) -> None:
    """Check that the work folder belongs to this run. Remove its parts where none has a sample, so
    that a user can correct the files and start again."""
    path = job.work / plan.PLAN
    marks = job.work.glob("[0-9]*.json")
    if not any(read_json(mark, _GONE, VERSION).get("samples") for mark in marks):
        path.unlink(missing_ok=True)
        for piece in job.work.glob("[0-9]*"):
            piece.unlink()
    if path.exists():
        before = read_json(path, _GONE, VERSION)
        plan.check_same(job.work, before, _identity(job))
    else:
        write_json(path, _identity(job))


def _tokenize_units(job: DialogJob, workers: int, bar: Bar) -> None:
    units = _units(job)
    todo = [unit for unit in units if not Path(f"{job.piece(unit)}.json").exists()]
    whole, left = (sum(one.part.end - one.part.start for one in some) for some in (units, todo))
    bar.skip(UNITS_SHARE * (whole - left))
    bar.stage("tokenizing", left, UNITS_SHARE * left)
    with Pool(workers, job, __name__) as pool:
        for _ in pool.run(tokenize_unit, [(unit,) for unit in todo], bar.advance):
            pass


def _units(job: DialogJob) -> list[Unit]:
    return plan.units_of(job.inputs, range(len(job.inputs)))


def tokenize_unit(job: DialogJob, unit: Unit, tick: Tick) -> None:
    """Write the unit's small set. ConfigError at the first bad line, if the job asks for it."""
    with shared(job.work):
        encoder, sources = _encoder(job.tokenizer, job.engine), _Sources()
        problems, counts, lines = Problems(unit, job.stop_on_error), Counter[str](), 0
        with _writer(job, job.piece(unit), encoder.vocab_size) as writer:
            for batch in ticking(read(unit.part, job.choices), unit.part, tick):
                problems.add(batch.problems)
                counts.update(batch.counts)
                lines += batch.num_lines
                encoded = encoder.encode([sample.turns for sample in batch.samples])
                if job.choices.kind == "pairs":
                    encoded = last_only(encoded)
                kept = limited(encoded, job.choices, encoder, counts)
                rows = _rows(batch, sources)[kept.samples]
                writer.add(kept.encoded.tokens, kept.encoded.lengths, kept.encoded.trained, rows)
            writer.sources += sources.numbers
            found = {"problems": problems.listed, "problem_counts": problems.counts}
            writer.about.update({"lines": lines, "counts": counts, **found})


def _writer(job: DialogJob, prefix: Path, vocab_size: int) -> DialogSetWriter:
    return DialogSetWriter(prefix, job.choices.kind, vocab_size, job.tokenizer_sha256)


@lru_cache(maxsize=1)
def _encoder(tokenizer: Path, engine: str) -> ChatEncoder:
    return ChatEncoder(tokenizer, engine, compare=False)  # the run's first process compared


class _Sources:
    """Numbers the names of sources in order of appearance."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        """The name's number. ConfigError where there are more names than a set can have."""
        number = self.numbers.setdefault(name, len(self.numbers))
        if number >= MOST_SOURCES:
            raise ConfigError(
                f"more than {MOST_SOURCES:,} sources, the last {shown(name)}: a source is one of "
                "few names, whose losses are reported apart"
            )
        return number


def _rows(batch: DialogBatch, sources: _Sources) -> npt.NDArray[Any]:
    rows = np.zeros(len(batch.samples), SAMPLE)
    rows["weight"] = [sample.weight for sample in batch.samples]
    rows["margin"] = [sample.margin for sample in batch.samples]
    rows["mode"] = [MODES.index(sample.mode) for sample in batch.samples]
    rows["source"] = [sources.number(sample.source) for sample in batch.samples]
    rows["dialog"] = batch.lines
    return rows


def _join(job: DialogJob, bar: Bar) -> None:
    """Join the small sets to one, with their counts and problems."""
    units = _units(job)
    share = (1 - UNITS_SHARE) * sum(file.size for file in job.inputs)
    bar.stage("joining", len(units), share)
    joined = _Joined(job)
    vocab_size = DialogSet(job.piece(units[0])).vocab_size
    with _writer(job, job.prefix, vocab_size) as writer:
        for unit in units:
            joined.add(unit, DialogSet(job.piece(unit)), writer)
            bar.advance(1)
        if not joined.samples:
            raise ConfigError(f"no sample among {joined.lines:,} lines: {joined.reasons()}")
        problems = Path(f"{job.prefix}.problems.jsonl")
        problems.unlink(missing_ok=True)
        if joined.listed:
            write_whole(problems, joined.listed)
        writer.sources += joined.sources.numbers
        writer.about.update(joined.about())


class _Joined:
    """Joins small sets one after another and sums up their counts."""

    def __init__(self, job: DialogJob) -> None:
        self.sources = _Sources()
        self.counts, self.problems = Counter[str](), Counter[str]()
        self.listed: list[bytes] = []
        self.first_problem = ""
        self.lines = self.samples = 0
        self._job = job
        self._lines_of = [0] * len(job.inputs)
        self._sums: dict[tuple[int, int], npt.NDArray[np.int64]] = {}

    def add(self, unit: Unit, piece: DialogSet, writer: DialogSetWriter) -> None:
        """Append a small set."""
        numbers = np.array([self.sources.number(name) for name in piece.sources], np.uint16)
        for stretch in piece.stretches(STRETCH_TOKENS):
            rows = stretch.rows.copy()
            rows["source"] = numbers[rows["source"]]
            rows["dialog"] += self.lines
            writer.add(stretch.tokens, stretch.lengths, stretch.trained, rows)
            self._sum(stretch._replace(rows=rows))
        self._list(unit, piece.about["problems"])
        self.counts.update(piece.about["counts"])
        self.problems.update(piece.about["problem_counts"])
        self.samples += len(piece)
        self.lines += piece.about["lines"]
        self._lines_of[unit.input] += piece.about["lines"]

    def reasons(self) -> str:
        """Why lines have no samples: counts by kind, and the first such line."""
        kinds = [*self.problems.most_common(), *self.counts.most_common()]
        told = ", ".join(f"{count:,} {shown(kind)}" for kind, count in kinds)
        return f"{told or 'there is no text in them'}{self.first_problem}"

    def about(self) -> dict[str, Any]:
        """The entries of PREFIX.json about inputs, counts and problems."""
        names = list(self.sources.numbers)
        table = [
            (names[source], MODES[mode], *map(int, sums))
            for (source, mode), sums in sorted(self._sums.items())
        ]
        inputs = zip((file.name for file in self._job.inputs), self._lines_of, strict=True)
        counts = {"counts": self.counts, "problems": self.problems, "table": table}
        own = {"identity": _identity(self._job), "inputs": list(inputs), "lines": self.lines}
        return {**own, **counts}

    def _sum(self, stretch: Stretch) -> None:
        starts = np.cumsum(stretch.lengths) - stretch.lengths
        trained = np.add.reduceat(stretch.trained.astype(np.int64), starts)
        of_sample = np.stack([np.ones_like(trained), stretch.lengths, trained])
        keys = stretch.rows["source"].astype(np.int64) * len(MODES) + stretch.rows["mode"]
        for key in np.unique(keys):
            place = divmod(int(key), len(MODES))
            sums = of_sample[:, keys == key].sum(axis=1)
            self._sums[place] = self._sums.get(place, 0) + sums

    def _list(self, unit: Unit, problems: list[list[Any]]) -> None:
        name, before = self._job.inputs[unit.input].name, self._lines_of[unit.input]
        for line, kind, detail in problems[: LISTED_PROBLEMS - len(self.listed)]:
            row = {"file": name, "line": before + line, "kind": kind, "detail": detail}
            self.listed.append(json_bytes(row) + b"\n")
            if not self.first_problem:
                where = f"{shown(name)}:{row['line']}"
                self.first_problem = f"; the first: {where}: {shown(detail)}"
