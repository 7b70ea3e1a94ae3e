"""Reads and writes the curriculum manifest: the tokens of each shard for each stage of a
pretraining.

`mq3 data mix` writes it from an inventory of shards and a recipe, a run takes it by
data.curriculum and data.stage. One JSON file; the folder of shards is named relative to it, so that
both can move together. Version 1, which is still read, has no marks of shards; version 3 is one
with text in rows (`lay_out.py`), which readers of version 2 would train on with its filler; version
4 takes stretches of shards, of which many stand in a file beside it (`stretches.py`).

    curriculum = read("runs/data/curriculum.json")
    stage = curriculum.stage("reasoning")
    for share in stage.shares:      # share.source.shards, share.tokens, share.cursor
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from data_prep.packed import Packed
from data_prep.stretches import (
    INLINE,
    CollectedStretches,
    Known,
    ShardFile,
    ShardStretches,
    Store,
    path_of,
    remove_others,
)
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.inside import fault_of
from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.toml import did_you_mean

VERSION, VERSION_PACKED, VERSION_STRETCHES = 2, 3, 4
READ = (1, VERSION, VERSION_PACKED, VERSION_STRETCHES)


@dataclass(frozen=True)
class Source:
    """Shards, or stretches of them, in a row that are drawn from as one text.

    folder: the paths of shards are relative to it; held_out: tokens at the end of the row that are
    never trained on; labels: those that all its documents share; packed: of text in rows, of which
    a sequence must hold a whole number.
    """

    name: str
    folder: str
    shards: Sequence[ShardFile]
    held_out: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    packed: Packed | None = None

    @cached_property
    def tokens(self) -> int:
        if isinstance(self.shards, ShardStretches):
            return self.shards.tokens
        return sum(shard.tokens for shard in self.shards)

    @property
    def training_tokens(self) -> int:
        """Tokens that are inputs.

        The one before the held-out end is a label alone; but rows have all their labels in them.
        """
        return self.tokens - self.held_out - (0 if self.packed else 1)

    @property
    def row_length(self) -> int:
        """Of text in rows; 1 where sequences may begin at any token."""
        return self.packed.row_length if self.packed else 1

    def refusal(self, sequence_length: int) -> str:
        """Why it cannot be read in sequences of this length, and valid lengths; or ""."""
        if sequence_length % self.row_length == 0:
            return ""
        return (
            f"its documents are packed in rows of {self.row_length:,} tokens, which sequences of "
            f"{sequence_length:,} would cut; valid: {self.row_length:,}, a multiple of it, or text "
            "that was tokenized without --pack"
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the contents, the same in any folder; "" where a shard has no mark."""
        if isinstance(self.shards, ShardStretches) and self.shards.fingerprint:
            return self.shards.fingerprint
        digest = hashlib.blake2b(digest_size=8)
        for shard in self.shards:
            if not shard.mark:
                return ""
            start = f":{shard.start}" if shard.start else ""
            digest.update(f"{shard.tokens}:{shard.mark}{start}\n".encode())
        return digest.hexdigest()

    @property
    def identity(self) -> str:
        """Name and contents, the seed of its order; no path but in version 1."""
        return f"{self.name}:{self.fingerprint}" if self.fingerprint else self.identity_by_path

    @property
    def identity_by_path(self) -> str:
        """The identity of version 1: its first shard's path there, and its sizes."""
        return f"{self.shards[0].path}:{self.tokens}-{self.held_out}"

    def as_json(self, kept: CollectedStretches | None = None) -> dict[str, Any]:
        """kept: takes the shards, where there are too many to stand in the row."""
        row = {"labels": dict(self.labels), "tokens": self.tokens, "held_out": self.held_out}
        if kept:
            row |= {"stretches": kept.add(self.shards), "fingerprint": self.fingerprint}
        else:
            row["shards"] = [shard.as_row() for shard in self.shards]
        return row | ({"packed": self.packed.as_json()} if self.packed else {})

    @classmethod
    def from_json(
        cls, name: str, folder: str, row: Mapping[str, Any], store: Store | None = None
    ) -> Source:
        """folder: "" where paths may lead anywhere. ValueError, TypeError, KeyError: it is none."""
        shards: Sequence[ShardFile]
        try:
            if store and "stretches" in row:
                shards = ShardStretches.of_row(store, row, is_within=bool(folder))
            else:
                shards = tuple(ShardFile.from_row(s, bool(folder)) for s in row["shards"])
        except ValueError as error:
            raise ValueError(f"source {name}: {error}") from None
        packed = Packed.from_json(row["packed"]) if "packed" in row else None
        return cls(name, folder, shards, row["held_out"], row["labels"], packed)


@dataclass(frozen=True)
class StageShare:
    """A stage's part of a source: `tokens` of its epochs, which go on at place `cursor`."""

    source: Source
    tokens: int
    cursor: int

    @property
    def epochs(self) -> float:
        """Times that this stage reads the source."""
        return self.tokens / self.source.training_tokens

    @property
    def epochs_before(self) -> float:
        return self.cursor / self.source.training_tokens

    @property
    def epochs_after(self) -> float:
        return self.epochs_before + self.epochs


@dataclass(frozen=True)
class Stage:
    """One stage: the tokens of its shares are whole sequences of `sequence_length`.

    max_epochs: how often a source may have been read when it ends; shares: of all sources, also
    of those that it takes nothing of.
    """

    name: str
    sequence_length: int
    max_epochs: float
    shares: tuple[StageShare, ...]

    @property
    def tokens(self) -> int:
        return sum(share.tokens for share in self.shares)


@dataclass(frozen=True)
class Curriculum:
    """The stages in order; tokenizer and vocab_size as the inventory has them."""

    seed: int
    tokenizer: Mapping[str, Any]
    vocab_size: int
    stages: tuple[Stage, ...]

    def stage(self, name: str, origin: str) -> Stage:
        """The stage of a name; ConfigError where there is none; `origin` is the file it is from."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [stage.name for stage in self.stages]
        guess = did_you_mean(name, names)
        raise ConfigError(
            f'data.stage = "{name}" is no stage of {origin}{guess}; valid: {", ".join(names)}'
        )


def put_together_otherwise(sources: Iterable[Source], others: Iterable[Source]) -> list[str]:
    """Names of `sources` that have text of one of `others`.

    The progress through those does not apply to these, so their text may be read again.
    """
    sources, others = list(sources), list(others)
    if not (sources and others):  # mostly so; they may have millions of stretches
        return []
    known = Known(shard for other in others for shard in other.shards)
    return [source.name for source in sources if any(map(known.has, source.shards))]


def version_of(sources: Iterable[Source]) -> int:
    """The version of a file that names these sources."""
    sources = list(sources)
    if any(isinstance(s.shards, ShardStretches) or any(f.of for f in s.shards) for s in sources):
        return VERSION_STRETCHES
    return VERSION_PACKED if any(source.packed for source in sources) else VERSION


def listed(names: Sequence[str]) -> str:
    """The number of sources, and the first of them."""
    return f"{len(names):,} sources ({', '.join(names[:3])}{', …' if names[3:] else ''})"


def write(curriculum: Curriculum, path: str | os.PathLike[str]) -> None:
    """Write the manifest, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sources = {share.source.name: share.source for s in curriculum.stages for share in s.shares}
    folder = next(iter(sources.values())).folder
    rows, beside = sources_json(path, sources)
    content = {
        "version": version_of(sources.values()),
        **beside,
        "folder": os.path.relpath(folder, path.parent),
        "seed": curriculum.seed,
        "tokenizer": curriculum.tokenizer,
        "vocab_size": curriculum.vocab_size,
        "stages": {stage.name: _stage_json(stage) for stage in curriculum.stages},
        "sources": rows,
    }
    write_whole(path, [_lines(content).encode()])
    remove_others(path.parent, path.stem, beside.get("stretches", ""))


def sources_json(
    path: Path, sources: Mapping[str, Source]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """(their rows, further entries that the manifest `path` needs to read them).

    Writes the file of stretches where there are many.
    """
    few = sum(len(source.shards) for source in sources.values()) <= INLINE
    kept = None if few else CollectedStretches()
    rows = {key: source.as_json(kept) for key, source in sources.items()}
    return rows, {"stretches": kept.write(path.parent, path.stem)} if kept else {}


def store_of(path: Path, content: Mapping[str, Any]) -> Store | None:
    """The store of stretches that the rows of a manifest's sources point into, if they do."""
    if "stretches" not in content:
        return None
    return Store.read(path_of(path.parent, content["stretches"]))


def read(path: str | os.PathLike[str]) -> Curriculum:
    """ConfigError where the file is missing or no manifest. Read again only where it changed."""
    try:
        found = os.stat(path)
    except OSError:
        raise ConfigError(f"{path} does not exist; mq3 data mix writes a curriculum") from None
    return _read(Path(path), found.st_mtime_ns, found.st_size, found.st_ino)


@lru_cache(maxsize=1)
def _read(path: Path, *identity: int) -> Curriculum:
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_distinct)
        if content["version"] not in READ:
            raise ConfigError(f"{path} is of version {content['version']}; known: 1 to {READ[-1]}")
        folder = os.path.normpath(path.parent / content["folder"])
        rows, store = content["sources"].items(), store_of(path, content)
        sources = {name: Source.from_json(name, folder, row, store) for name, row in rows}
        return Curriculum(
            seed=content["seed"],
            tokenizer=content["tokenizer"],
            vocab_size=content["vocab_size"],
            stages=tuple(_stage(name, row, sources) for name, row in content["stages"].items()),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not a curriculum: {fault_of(error)}") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of whose sources none may hide another of the same name."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return row


def _stage_json(stage: Stage) -> dict[str, Any]:
    return {
        "sequence_length": stage.sequence_length,
        "tokens": stage.tokens,
        "max_epochs": stage.max_epochs,
        "sources": {
            share.source.name: {
                "tokens": share.tokens,
                "cursor": share.cursor,
                "epochs": [round(share.epochs_before, 6), round(share.epochs_after, 6)],
            }
            for share in stage.shares
        },
    }


def _stage(name: str, row: Mapping[str, Any], sources: Mapping[str, Source]) -> Stage:
    shares = (
        StageShare(sources[source], share["tokens"], share["cursor"])
        for source, share in row["sources"].items()
    )
    return Stage(name, row["sequence_length"], row["max_epochs"], tuple(shares))


def _lines(content: Mapping[str, Any]) -> str:
    """JSON with a line for each source, so that two manifests can be compared line by line."""
    parts = []
    for key, value in content.items():
        if key == "stages":
            parts.append(f'"stages": {{\n{_rows(value, "  ", nested=True)}\n}}')
        elif key == "sources":
            parts.append(f'"sources": {{\n{_rows(value, " ")}\n}}')
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _rows(rows: Mapping[str, Any], indent: str, nested: bool = False) -> str:
    def text(value: Any) -> str:
        if not nested:
            return json.dumps(value, ensure_ascii=False)
        head = {key: item for key, item in value.items() if key != "sources"}
        opened = json.dumps(head)[:-1]
        return f'{opened}, "sources": {{\n{_rows(value["sources"], indent + "  ")}\n{indent}}}}}'

    lines = (f"{indent}{json.dumps(k, ensure_ascii=False)}: {text(v)}" for k, v in rows.items())
    return ",\n".join(lines)
