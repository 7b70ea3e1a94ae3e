"""Counts how often runs have read, or curricula will read, some tokens of shards: arithmetic.

    for reader in readers([Path("runs")], {"data/tokens/shards/00000/00000": [(17, 350)]}):
        reader.path, reader.what, reader.least, reader.most, reader.at_work

A run's reading up to its newest checkpoint follows from its data.json, that planned by a
curriculum's stages from the manifest. A shard is recognised by its place, or by its mark.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep import curriculum
from data_prep.curriculum import Source
from data_prep.fingerprint import first_mark
from data_prep.stretches import ShardFile
from megatron_qwen3.config import ConfigError
from megatron_qwen3.pretrain.record import FILE_NAME, RunRecord, Start
from megatron_qwen3.pretrain.stream import Cursor, Range, Stream
from megatron_qwen3.storage import folder, lock

Ranges = Mapping[str, Sequence[Range]]  # by prefix of a shard: tokens of it
_HEAD_BYTES = 1 << 16  # of a manifest, within which its stages begin


@dataclass(frozen=True)
class Reader:
    """A run or a curriculum with some of the tokens among its sources.

    what: its step, or the stage; verb: "has read" or the like; least, most: how often, over the
    ranges; at_work: who runs it now, or "".
    """

    path: Path
    what: str
    verb: str
    least: int
    most: int
    at_work: str = ""


def readers(paths: Iterable[Path], ranges: Ranges) -> Iterator[Reader]:
    """The runs and curricula, in these paths and folders, with these tokens among their sources.

    ConfigError where a path is none of them.
    """
    shards = _Shards(ranges)
    for path in dict.fromkeys(found for given in paths for found in _found(given)):
        if path.name == FILE_NAME:
            yield from _of_run(path.parent, shards)
        else:
            yield from _of_curriculum(path, shards)


class _Shards:
    """The shards with the tokens, wherever a run found them."""

    def __init__(self, ranges: Ranges) -> None:
        self._by_path = {os.path.realpath(prefix): some for prefix, some in ranges.items()}
        self._by_mark = {first_mark(prefix): some for prefix, some in ranges.items()}

    def in_source(self, source: Source) -> list[Range]:
        """The ranges as tokens of a source, if they lie in it."""
        found, before = [], 0
        for shard in source.shards:
            for first, last in self._of(source, shard):
                first, last = max(first - shard.start, 0), min(last - shard.start, shard.tokens)
                if first < last:
                    found.append((before + first, before + last))
            before += shard.tokens
        return found

    def _of(self, source: Source, shard: ShardFile) -> Sequence[Range]:
        """The ranges of a shard, by its place or else by its content."""
        if shard.mark and shard.mark not in self._by_mark:
            return ()  # without checking the place of each of tens of thousands
        path = os.path.realpath(os.path.join(source.folder, shard.path))
        return self._by_path.get(path) or self._by_mark.get(shard.mark, ())


def times(source: Source, start: Start, before: Cursor, ranges: Sequence[Range]) -> list[int]:
    """How often each range, or a part of it, was read between `before` and the start's cursor.

    Held-out text is never read.
    """
    key = start.key or source.identity
    stream = Stream.of_rows(key, source.training_tokens, start.seed, source.row_length)
    unread = min([before.position, *(first for first, _ in before.gaps)])
    epochs = range(unread // stream.tokens, -(-start.cursor.position // stream.tokens))
    counts = []
    for first, last in ranges:
        last = min(last, stream.tokens)
        read = (
            sum(
                start.cursor.read_of(*place) - before.read_of(*place)
                for place in stream.places(first, last, epoch)
            )
            for epoch in (epochs if first < last else ())
        )
        counts.append(sum(tokens > 0 for tokens in read))
    return counts


def _of_run(run: Path, shards: _Shards) -> Iterator[Reader]:
    record = RunRecord.read(run)
    if record is None:
        return
    sources = record.sources()
    in_source = {key: shards.in_source(source) for key, source in sources.items()}
    if not any(in_source.values()):
        return
    newest = folder.newest(run)
    step = folder.step_of(newest) if newest else 0
    first = {key: start.cursor for key, (_, start) in record.idle.items()}
    for part in reversed(record.parts):  # each source's starting point when it was first read
        first |= {feed.key: feed.start.cursor for feed in part.feeds}
    counts: list[int] = []
    for key, start in record.starts_after(step).items():
        counts += times(sources[key], start, first[key], in_source[key])
    least, most = min(counts, default=0), max(counts, default=0)
    yield Reader(run, f"up to step {step:,}", "has read", least, most, lock.owner_of(run))


def _of_curriculum(path: Path, shards: _Shards) -> Iterator[Reader]:
    plan = curriculum.read(path)
    for stage in plan.stages:
        counts: list[int] = []
        for share in stage.shares:
            if share.tokens and (ranges := shards.in_source(share.source)):
                start = Start(plan.seed, Cursor(share.cursor + share.tokens))
                counts += times(share.source, start, Cursor(share.cursor), ranges)
        if counts:
            yield Reader(path, f"stage {stage.name}", "reads", min(counts), max(counts))


def _found(path: Path) -> Iterator[Path]:
    """The data.json of runs, and curricula."""
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise ConfigError(f"--runs {path} does not exist")
    for place, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "checkpoints")
        for name in sorted(names):
            file = Path(place, name)
            if name == FILE_NAME or (name.endswith(".json") and _is_curriculum(file)):
                yield file


def _is_curriculum(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return all(name in head for name in (b'"version"', b'"folder"', b'"seed"', b'"stages"'))
