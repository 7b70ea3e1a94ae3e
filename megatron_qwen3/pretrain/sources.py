"""[[data.sources]] as sources of a mixture: the simple way, without a curriculum file."""

from __future__ import annotations

import math
import os

from data_prep.curriculum import ShardFile, Source
from data_prep.fingerprint import mark
from data_prep.indexed import IndexedReader
from megatron_qwen3.config import ConfigError, DataConfig, SourceConfig

_WEIGHT_UNIT = 1 << 40  # weights are kept to a millionth of a millionth of the mixture


def simple_sources(data: DataConfig) -> list[tuple[Source, int]]:
    """Every source with its weight as a whole number.

    ConfigError where none is given, one is given twice, or one is missing, cut short or too small.
    """
    if not data.sources:
        raise ConfigError(
            "data.sources is empty: a run needs at least one [[data.sources]], or data.curriculum"
        )
    files: dict[str, SourceConfig] = {}
    for source in data.sources:
        first = files.setdefault(os.path.realpath(f"{source.path}.bin"), source)
        if first is not source:
            raise ConfigError(
                f"data.sources: {first.name} ({first.path}) and {source.name} ({source.path}) are "
                "the same file; name it once, with the sum of the weights"
            )
    scale = _WEIGHT_UNIT / math.fsum(source.weight for source in data.sources)
    weights = [max(1, round(source.weight * scale)) for source in data.sources]
    return [(_source(s, data), weight) for s, weight in zip(data.sources, weights, strict=True)]


def _source(config: SourceConfig, data: DataConfig) -> Source:
    """One source, divided: its training tokens first, then data.held_out of it."""
    where = f"data.sources.{config.name}"
    try:
        shard = ShardFile(config.path, len(IndexedReader(config.path).tokens), mark(config.path))
    except ConfigError as error:
        raise ConfigError(f"{where}.path: {error}") from None
    needed = data.sequence_length + 1
    window = f"one window of data.sequence_length + 1 = {needed:,}"
    tokens = shard.tokens
    held_out = math.ceil(tokens * data.held_out)
    if tokens - held_out < needed:
        raise ConfigError(
            f"{where}: {config.path} has {tokens - held_out:,} training tokens, fewer than "
            f"{window}; shorten the sequences or give it more text"
        )
    if 0 < held_out < needed:
        raise ConfigError(
            f"{where}: data.held_out = {data.held_out} of the {tokens:,} tokens of "
            f"{config.path} is {held_out:,}, fewer than {window}; "
            f"valid: 0, or at least {1.05 * needed / tokens:.2g}"
        )
    return Source(config.name, "", (shard,), held_out)
