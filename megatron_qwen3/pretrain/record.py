"""The data of a run, and their record in its folder: data.json.

The order of samples is a formula of their number as long as mixture, sequence length and batch stay
the same: a `RunPart` of the run. Where one of them changes, within a run or with the next stage, a
new part begins, and every source continues in it from the token that it had reached. So no unseen
text is lost and none is repeated before its time, even when a stage ends earlier than planned. A
source is recognised by its content (`known.py`): the record keeps the key from which its order was
drawn when it was first read, and the present place of its files.

    record = prepare(config, step)      # parts so far; the last one begins at `step`
    record.write(config.run_dir)        # once, by the rank that writes
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from data_prep import curriculum
from data_prep.curriculum import Source
from data_prep.stretches import ShardFile, Store, remove_others
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.pretrain import known
from megatron_qwen3.pretrain.order import Interleave, apportion
from megatron_qwen3.pretrain.sources import simple_sources
from megatron_qwen3.pretrain.stream import Cursor, Reading, Stream
from megatron_qwen3.storage.inside import fault_of, parse_json
from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.training.metrics_file import ALL_SOURCES

FILE_NAME = "data.json"


@dataclass(frozen=True)
class Start:
    """A source's starting point: its cursor in the order of `seed` and `key`.

    key: the source's identity when it was first read; "" stands for its present one.
    """

    seed: int
    cursor: Cursor = Cursor()
    key: str = ""


@dataclass(frozen=True)
class Feed:
    """A source in a part. share: its tokens in a planned stage, otherwise a relative weight."""

    source: Source
    share: int
    start: Start

    @property
    def key(self) -> str:
        """The source's key, the same in every part of a run and of later stages."""
        return self.start.key or self.source.identity

    def reading(self, sequence_length: int, sequences: int | None) -> Reading:
        source, start = self.source, self.start
        stream = Stream.of_rows(self.key, source.training_tokens, start.seed, source.row_length)
        return Reading(stream, start.cursor, sequence_length, sequences)


@dataclass(frozen=True)
class RunPart:
    """Steps of a run with one mixture. sequences: of all feeds together; None: endless."""

    first_step: int
    global_batch: int
    sequence_length: int
    sequences: int | None
    feeds: tuple[Feed, ...]

    @property
    def step_tokens(self) -> int:
        return self.global_batch * self.sequence_length

    def quotas(self) -> list[int]:
        """Sequences of each feed; in an endless part, those of one period."""
        shares = [feed.share for feed in self.feeds]
        return shares if self.sequences is None else apportion(shares, self.sequences)

    def readings(self) -> list[Reading]:
        ends = self.quotas() if self.sequences is not None else [None] * len(self.feeds)
        feeds = zip(self.feeds, ends, strict=True)
        return [feed.reading(self.sequence_length, end) for feed, end in feeds]

    def starts_after(self, step: int) -> dict[str, Start]:
        """The starting point of each source after `step` steps of the run."""
        samples = (step - self.first_step) * self.global_batch
        counts = Interleave(self.quotas()).counts(samples)
        return {
            feed.key: replace(feed.start, cursor=reading.cursor(done), key=feed.key)
            for feed, reading, done in zip(self.feeds, self.readings(), counts, strict=True)
        }

    def is_like(self, other: RunPart) -> bool:
        """Whether both have the same mixture in the same shares."""
        return self._mixture() == other._mixture()

    def _mixture(self) -> tuple[Any, ...]:
        return self.global_batch, self.sequence_length, self.sequences is None, self.shares()

    def shares(self) -> list[tuple[str, int]]:
        """Each source's share, by `Feed.key`."""
        return [(feed.key, feed.share) for feed in self.feeds]


@dataclass(frozen=True)
class RunRecord:
    """The parts of a run in order.

    idle: by key, sources of earlier stages that have no part, and their starting points; news: log
    lines on this start.
    """

    parts: tuple[RunPart, ...]
    idle: Mapping[str, tuple[Source, Start]] = field(default_factory=dict)
    news: tuple[str, ...] = field(default=(), compare=False)

    def part_of(self, step: int) -> RunPart:
        """The part that step `step`, counted from 0, belongs to."""
        return max((p for p in self.parts if p.first_step <= step), key=lambda p: p.first_step)

    def starts_after(self, step: int) -> dict[str, Start]:
        """By key, the starting point after `step` steps of every source that was ever read."""
        starts = {key: start for key, (_, start) in self.idle.items()}
        for part, last in self.lasting(step):
            starts |= part.starts_after(last)
        return starts

    def sources(self) -> dict[str, Source]:
        """By key, every source that was ever read."""
        idle = {key: source for key, (source, _) in self.idle.items()}
        return idle | {feed.key: feed.source for part in self.parts for feed in part.feeds}

    def tokens_after(self, step: int, left_out: Collection[int] = ()) -> int:
        """Tokens trained on in `step` steps of this run, without those of steps `left_out`."""
        return sum(
            (last - part.first_step - sum(part.first_step <= n < last for n in left_out))
            * part.step_tokens
            for part, last in self.lasting(step)
        )

    def lasting(self, step: int) -> Iterator[tuple[RunPart, int]]:
        """The parts that have begun before `step`, and the step at which each ended."""
        parts = [part for part in self.parts if part.first_step < step]
        ends = [part.first_step for part in parts[1:]] + [step]
        return zip(parts, ends, strict=False)

    def lying_at(self, part: RunPart) -> RunRecord:
        """The record with the present places of the sources in `part`."""
        now = {feed.key: feed.source for feed in part.feeds}

        def moved(part: RunPart) -> RunPart:
            feeds = (replace(feed, source=now.get(feed.key, feed.source)) for feed in part.feeds)
            return replace(part, feeds=tuple(feeds))

        return replace(self, parts=tuple(map(moved, self.parts)))

    def write(self, run_dir: Path) -> None:
        path = run_dir / FILE_NAME
        rows, beside = curriculum.sources_json(path, self.sources())
        write_whole(path, [json.dumps(_record_json(self, rows) | beside).encode()])
        remove_others(run_dir, path.stem, beside.get("stretches", ""))

    @classmethod
    def read(cls, run_dir: Path) -> RunRecord | None:
        """Read a run's record; None without one. ConfigError where it cannot be read."""
        path = run_dir / FILE_NAME
        if not path.exists():
            return None
        try:
            content = parse_json(path.read_bytes())
            if (version := content.get("version", 1)) not in curriculum.READ:
                raise ConfigError(f"{path} is of version {version!r:.40}; known: 1 to 4")
            return _record(content, curriculum.store_of(path, content))
        except ConfigError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{path} is not a record of a run's data: {fault_of(error)}"
            ) from None


class ReadBefore(NamedTuple):
    """By key, the sources that a run and earlier stages have read, and their starting points."""

    sources: Mapping[str, Source] = {}
    starts: Mapping[str, Start] = {}

    @classmethod
    def of(cls, record: RunRecord, step: int) -> ReadBefore:
        """The sources read after `step` steps."""
        starts, sources = record.starts_after(step), record.sources()
        return cls({key: sources[key] for key in starts}, starts)

    def tokens(self, sources: Sequence[Source]) -> dict[str, int]:
        """By name of a continued source with the same division, the tokens read of it."""
        keys = known.recognised(sources, self.sources)
        return {
            source.name: self.starts[key].cursor.tokens_read
            for source in sources
            if (key := keys.get(source.name)) and self.sources[key].held_out == source.held_out
        }

    def idle(self, keys: Mapping[str, str]) -> dict[str, tuple[Source, Start]]:
        """The sources that `keys` does not continue."""
        gone_on = set(keys.values())
        rest = (key for key in self.starts if key not in gone_on)
        return {key: (self.sources[key], self.starts[key]) for key in rest}


def prepare(config: Config, step: int, before: tuple[Path, int] | None = None) -> RunRecord:
    """The record of a run that has done `step` steps; its last part begins now.

    before: run folder and steps done of the stage that a new run continues. ConfigError where
    sources are missing, or the stage has fewer tokens than the run needs.
    """
    wanted = _wanted(config)
    old = RunRecord.read(config.run_dir) if step else None
    if old is None:
        earlier = RunRecord.read(before[0]) if before else None
        read = ReadBefore.of(earlier, before[1]) if before and earlier else ReadBefore()
        part, keys, news = _going_on(wanted, read)
        return _checked(config, RunRecord((part,), read.idle(keys), news))
    kept = tuple(part for part in old.parts if part.first_step < step or not part.first_step)
    old = replace(old, parts=kept)
    read = ReadBefore.of(old, step)
    part, keys, news = _going_on(wanted, read)
    old = replace(old.lying_at(part), news=news)
    if old.parts[-1].is_like(part):
        return _checked(config, old)
    if not config.data.curriculum:
        fresh = [feed.source for feed in part.feeds if feed.source.name not in keys]
        known.other_contents(fresh, (feed.source for p in kept for feed in p.feeds))
    if part.sequences is not None:
        asked = max(0, config.steps - step) * config.train.global_batch
        part = replace(part, sequences=min(asked, _left(part, old, step)))
    news = ("another mixture from here on; every source read before goes on where it stood", *news)
    parts = (*old.parts, replace(part, first_step=step))
    return _checked(config, RunRecord(parts, read.idle(keys), news))


def _wanted(config: Config) -> RunPart:
    """The part that the settings describe, as if the run began with it."""
    data, train = config.data, config.train
    if not data.curriculum:
        start = Start(config.run.seed)
        feeds = [Feed(source, share, start) for source, share in simple_sources(data)]
        _check_names(feeds, "data.sources")
        return RunPart(0, train.global_batch, data.sequence_length, None, tuple(feeds))
    plan = curriculum.read(data.curriculum)
    stage = plan.stage(data.stage, data.curriculum)
    shares = [share for share in stage.shares if share.tokens]
    planned = tuple(
        Feed(share.source, share.tokens, Start(plan.seed, Cursor(share.cursor))) for share in shares
    )
    _check_names(planned, data.curriculum)
    for feed in planned:
        if refusal := feed.source.refusal(data.sequence_length):
            where = f"data.sequence_length = {data.sequence_length:,}: source {feed.source.name}"
            raise ConfigError(f"{where} of {data.curriculum}: {refusal}")
    sequences = stage.tokens // data.sequence_length
    return RunPart(0, train.global_batch, data.sequence_length, sequences, planned)


def _check_names(feeds: Iterable[Feed], origin: str) -> None:
    if any(feed.source.name == ALL_SOURCES for feed in feeds):
        raise ConfigError(
            f'{origin}: a source is named "{ALL_SOURCES}", as held-out results name all sources '
            "together; give it another name, it goes on where it stood"
        )


def _left(wanted: RunPart, old: RunRecord, step: int) -> int:
    """Sequences of a planned stage that the run has not read after `step` steps."""
    read = sum(
        (last - part.first_step) * part.step_tokens
        for part, last in old.lasting(step)
        if part.shares() == wanted.shares()
    )
    planned = sum(feed.share for feed in wanted.feeds)
    return max(0, planned - read) // wanted.sequence_length


def _going_on(part: RunPart, read: ReadBefore) -> tuple[RunPart, dict[str, str], tuple[str, ...]]:
    """The part with its sources continued where they were; new ones start as planned.

    Also the keys of those read before, by name, and log lines.
    """
    sources = [feed.source for feed in part.feeds]
    keys = known.recognised(sources, read.sources)
    feeds, taken = [], set(read.starts)
    for feed in part.feeds:
        key = keys.get(feed.source.name)
        if key:
            known.check_held_out(feed.source, read.sources[key])
            start = read.starts[key]
        else:
            key = feed.source.identity
            while key in taken:  # by a source that was renamed since
                key += "+"
            start = replace(feed.start, key=key)
        taken.add(key)
        feeds.append(replace(feed, start=start))
    news = known.news(sources, read.sources, keys)
    return replace(part, feeds=tuple(feeds)), keys, news


def _checked(config: Config, record: RunRecord) -> RunRecord:
    part = record.parts[-1]
    if config.train.tokens and len({p.step_tokens for p in record.parts}) > 1:
        done = record.tokens_after(part.first_step)
        steps = part.first_step + max(0, config.train.tokens - done) // part.step_tokens
        raise ConfigError(
            f"train.tokens = {config.train.tokens:,}, but this run's steps have not all had "
            f"{part.step_tokens:,} tokens; say its length in steps: train.tokens=0 and "
            f"train.steps={steps} are as many tokens"
        )
    asked = (config.steps - part.first_step) * part.global_batch
    if part.sequences is not None and asked > part.sequences:
        most = part.first_step + part.sequences // part.global_batch
        left = " left" if part.first_step else ""
        tokens = config.train.tokens
        setting = f"train.tokens = {tokens:,}" if tokens else f"train.steps = {config.steps:,}"
        valid = f"at most {most:,} steps ({record.tokens_after(most):,} tokens)"
        if not most:  # not one batch fits
            valid = f"a train.global_batch of at most {part.sequences:,}, not {part.global_batch:,}"
        if not most and not part.sequences:
            valid = "a shorter data.sequence_length"
        raise ConfigError(
            f"{setting} asks for {asked:,} sequences of "
            f"{part.sequence_length:,} tokens, but stage {config.data.stage} of "
            f"{config.data.curriculum} has {part.sequences:,}{left}; valid: {valid}, "
            "or mix a longer stage"
        )
    return record


def _record_json(record: RunRecord, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The record as JSON. rows: of its sources, by key."""
    sources = record.sources()
    return {
        "version": curriculum.version_of(sources.values()),
        "sources": {
            key: {"name": source.name, "folder": source.folder, **rows[key]}
            for key, source in sources.items()
        },
        "parts": [
            {
                **{name: value for name, value in vars(part).items() if name != "feeds"},
                "feeds": [[f.key, f.share, *_start_json(f.start)] for f in part.feeds],
            }
            for part in record.parts
        ],
        "idle": {key: _start_json(start) for key, (_, start) in record.idle.items()},
    }


def _record(content: Mapping[str, Any], store: Store | None) -> RunRecord:
    """The record from JSON; also of version 1, where keys are paths and idle sources have no
    more."""
    sources = {
        key: Source.from_json(row["name"], row["folder"], row, store)
        for key, row in content["sources"].items()
    }
    parts = []
    for row in content["parts"]:
        feeds = (
            Feed(sources[key], share, _start(key, start)) for key, share, *start in row["feeds"]
        )
        parts.append(RunPart(**{**row, "feeds": tuple(feeds)}))
    idle = {
        key: (sources.get(key) or _source_by_path(key), _start(key, row))
        for key, row in content["idle"].items()
    }
    return RunRecord(tuple(parts), idle)


def _source_by_path(key: str) -> Source:
    """An idle source in version 1: PATH:TOKENS-HELD_OUT of its first shard."""
    path, _, sizes = key.rpartition(":")
    tokens, _, held_out = sizes.partition("-")
    return Source("", "", (ShardFile(path, int(tokens)),), int(held_out))


def _start_json(start: Start) -> list[Any]:
    return [start.seed, start.cursor.position, start.cursor.gaps]


def _start(key: str, row: list[Any]) -> Start:
    seed, position, gaps = row
    return Start(seed, Cursor(position, tuple((first, last) for first, last in gaps)), key)
