"""What a run is fed from, and the record of it that its folder keeps: data.json.

The order of samples is a formula of their number as long as mixture, sequence length and batch stay
what they are: a `Part` of the run. Where one of them changes, whether in the middle of a run or
with the next stage, a new part begins, and every source goes on in it from the token where it
stood. So nothing unseen is lost and nothing is seen again before its time, also when a stage ends
earlier than planned.

    record = prepare(config, step)      # parts so far, the last being the one from `step` on
    record.write(config.run_dir)        # once, by the rank that writes
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep import curriculum
from data_prep.curriculum import Source
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.pretrain.order import Interleave, apportion
from megatron_qwen3.pretrain.sources import simple_sources
from megatron_qwen3.pretrain.stream import Cursor, Reading, Stream
from megatron_qwen3.storage.whole import write_whole

FILE_NAME = "data.json"


@dataclass(frozen=True)
class Start:
    """Where a source goes on: its cursor in the order that `seed` gives it."""

    seed: int
    cursor: Cursor = Cursor()


@dataclass(frozen=True)
class Feed:
    """A source in a part. share: its tokens of a planned stage, or else a relative weight."""

    source: Source
    share: int
    start: Start

    def reading(self, sequence_length: int, sequences: int | None) -> Reading:
        source, start = self.source, self.start
        stream = Stream(source.identity, source.training_tokens, start.seed)
        return Reading(stream, start.cursor, sequence_length, sequences)


@dataclass(frozen=True)
class Part:
    """Steps of a run that are fed alike. sequences: of all feeds together; None is without end."""

    first_step: int
    global_batch: int
    sequence_length: int
    sequences: int | None
    feeds: tuple[Feed, ...]

    @property
    def step_tokens(self) -> int:
        return self.global_batch * self.sequence_length

    def quotas(self) -> list[int]:
        """Sequences of each feed, for a part without end those of one period."""
        shares = [feed.share for feed in self.feeds]
        return shares if self.sequences is None else apportion(shares, self.sequences)

    def readings(self) -> list[Reading]:
        ends = self.quotas() if self.sequences is not None else [None] * len(self.feeds)
        feeds = zip(self.feeds, ends, strict=True)
        return [feed.reading(self.sequence_length, end) for feed, end in feeds]

    def starts_after(self, step: int) -> dict[str, Start]:
        """Where each source stands when the run has done `step` steps."""
        samples = (step - self.first_step) * self.global_batch
        counts = Interleave(self.quotas()).counts(samples)
        return {
            feed.source.identity: replace(feed.start, cursor=reading.cursor(done))
            for feed, reading, done in zip(self.feeds, self.readings(), counts, strict=True)
        }

    def is_like(self, other: Part) -> bool:
        """Whether both are the same mixture in the same portions."""
        return self._mixture() == other._mixture()

    def _mixture(self) -> tuple[Any, ...]:
        return self.global_batch, self.sequence_length, self.sequences is None, self.shares()

    def shares(self) -> list[tuple[str, int]]:
        """What it takes of each source, by `Source.identity`."""
        return [(feed.source.identity, feed.share) for feed in self.feeds]


@dataclass(frozen=True)
class Record:
    """The parts of a run in order. idle: where sources of stages before stand that have no part."""

    parts: tuple[Part, ...]
    idle: Mapping[str, Start] = field(default_factory=dict)

    def part_of(self, step: int) -> Part:
        """The part that step `step`, counted from 0, belongs to."""
        return max((p for p in self.parts if p.first_step <= step), key=lambda p: p.first_step)

    def starts_after(self, step: int) -> dict[str, Start]:
        """Where every source that was ever read stands after `step` steps."""
        starts = dict(self.idle)
        for part, last in self.lasting(step):
            starts |= part.starts_after(last)
        return starts

    def tokens_after(self, step: int) -> int:
        """Tokens trained on in `step` steps of this run."""
        return sum((last - part.first_step) * part.step_tokens for part, last in self.lasting(step))

    def lasting(self, step: int) -> Iterator[tuple[Part, int]]:
        """The parts that have begun before `step`, and the step at which each has ended."""
        parts = [part for part in self.parts if part.first_step < step]
        ends = [part.first_step for part in parts[1:]] + [step]
        return zip(parts, ends, strict=False)

    def change(self, step: int) -> str:
        """What a person should know where the part of `step` begins with it; "" elsewhere."""
        part = self.part_of(step)
        again = curriculum.known_otherwise((feed.source for feed in part.feeds), self.idle)
        lines = ["another mixture from here on; every source goes on where it stood"] * bool(step)
        if again:
            lines.append(
                f"{curriculum.listed(again)} are put together otherwise than before: what was read "
                "of them comes again"
            )
        return "\n".join(lines) if part.first_step == step else ""

    def write(self, run_dir: Path) -> None:
        write_whole(run_dir / FILE_NAME, [json.dumps(_record_json(self)).encode()])

    @classmethod
    def read(cls, run_dir: Path) -> Record | None:
        """None where the folder has none; ConfigError where it cannot be read."""
        path = run_dir / FILE_NAME
        if not path.exists():
            return None
        try:
            return _record(json.loads(path.read_bytes()))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} is not a record of what a run read: {error!r}") from None


def prepare(config: Config, step: int, before: tuple[Path, int] | None = None) -> Record:
    """The record of a run that has done `step` steps, its last part being fed from now on.

    before: run folder and steps done of the stage that a fresh run goes on from. ConfigError where
    the sources are not there, or the stage has fewer tokens than the run asks for.
    """
    wanted = _wanted(config)
    old = Record.read(config.run_dir) if step else None
    if old is None:
        earlier = Record.read(before[0]) if before else None
        starts = earlier.starts_after(before[1]) if before and earlier else {}
        return _checked(config, Record((_going_on(wanted, starts),), _idle(wanted, starts)))
    kept = tuple(part for part in old.parts if part.first_step < step or not part.first_step)
    old = replace(old, parts=kept)
    if kept[-1].is_like(wanted):
        return _checked(config, old)
    if wanted.sequences is not None:
        asked = max(0, config.steps - step) * config.train.global_batch
        wanted = replace(wanted, sequences=min(asked, _left(wanted, old, step)))
    starts = old.starts_after(step)
    part = replace(_going_on(wanted, starts), first_step=step)
    return _checked(config, Record((*kept, part), _idle(part, starts)))


def _wanted(config: Config) -> Part:
    """What the settings ask for, as if the run began with it."""
    data, train = config.data, config.train
    if not data.curriculum:
        start = Start(config.run.seed)
        feeds = [Feed(source, share, start) for source, share in simple_sources(data)]
        return Part(0, train.global_batch, data.sequence_length, None, tuple(feeds))
    plan = curriculum.read(data.curriculum)
    stage = plan.stage(data.stage, data.curriculum)
    shares = [share for share in stage.shares if share.tokens]
    planned = tuple(
        Feed(share.source, share.tokens, Start(plan.seed, Cursor(share.cursor))) for share in shares
    )
    sequences = stage.tokens // data.sequence_length
    return Part(0, train.global_batch, data.sequence_length, sequences, planned)


def _left(wanted: Part, old: Record, step: int) -> int:
    """Sequences of a planned stage that the run has not read when it has done `step` steps."""
    read = sum(
        (last - part.first_step) * part.step_tokens
        for part, last in old.lasting(step)
        if part.shares() == wanted.shares()
    )
    planned = sum(feed.share for feed in wanted.feeds)
    return max(0, planned - read) // wanted.sequence_length


def _going_on(part: Part, starts: Mapping[str, Start]) -> Part:
    """The part with its sources where they stand; those never read start as planned."""
    for feed in part.feeds:
        text = feed.source.identity.rpartition("-")[0]
        for identity in starts if feed.source.identity not in starts else ():
            if identity.rpartition("-")[0] == text:
                raise ConfigError(
                    f"source {feed.source.name}: {feed.source.held_out:,} tokens are held out, but "
                    f"{identity.rpartition('-')[2]} were when it was trained on before; keep "
                    "data.held_out, or what was held out is trained on and the other way round"
                )
    return replace(
        part,
        feeds=tuple(replace(f, start=starts.get(f.source.identity, f.start)) for f in part.feeds),
    )


def _idle(part: Part, starts: Mapping[str, Start]) -> dict[str, Start]:
    read = {feed.source.identity for feed in part.feeds}
    return {identity: start for identity, start in starts.items() if identity not in read}


def _checked(config: Config, record: Record) -> Record:
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
        raise ConfigError(
            f"train.steps = {config.steps:,} asks for {asked:,} sequences of "
            f"{part.sequence_length:,} tokens, but stage {config.data.stage} of "
            f"{config.data.curriculum} has {part.sequences:,}{left}; valid: at most {most:,} steps "
            f"({record.tokens_after(most):,} tokens), or mix a longer stage"
        )
    return record


def _record_json(record: Record) -> dict[str, Any]:
    sources = {feed.source.identity: feed.source for part in record.parts for feed in part.feeds}
    return {
        "version": 1,
        "sources": {
            identity: {"name": source.name, "folder": source.folder, **source.as_json()}
            for identity, source in sources.items()
        },
        "parts": [
            {
                **{name: value for name, value in vars(part).items() if name != "feeds"},
                "feeds": [[f.source.identity, f.share, *_start_json(f.start)] for f in part.feeds],
            }
            for part in record.parts
        ],
        "idle": {identity: _start_json(start) for identity, start in record.idle.items()},
    }


def _record(content: Mapping[str, Any]) -> Record:
    sources = {
        identity: Source.from_json(row["name"], row["folder"], row)
        for identity, row in content["sources"].items()
    }
    parts = []
    for row in content["parts"]:
        feeds = (Feed(sources[key], share, _start(start)) for key, share, *start in row["feeds"])
        parts.append(Part(**{**row, "feeds": tuple(feeds)}))
    idle = {identity: _start(row) for identity, row in content["idle"].items()}
    return Record(tuple(parts), idle)


def _start_json(start: Start) -> list[Any]:
    return [start.seed, start.cursor.position, start.cursor.gaps]


def _start(row: list[Any]) -> Start:
    seed, position, gaps = row
    return Start(seed, Cursor(position, tuple((first, last) for first, last in gaps)))
