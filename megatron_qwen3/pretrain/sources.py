"""[[data.sources]] as sources of a mixture, without a curriculum file."""

import math
import os
from dataclasses import replace

import numpy as np

from data_prep.curriculum import Source
from data_prep.fingerprint import mark
from data_prep.indexed import IndexedReader
from data_prep.packed import Packed
from data_prep.stretches import ShardFile
from megatron_qwen3.config import ConfigError
from megatron_qwen3.settings import DataConfig, SourceConfig

_WEIGHT_UNIT = 1 << 40  # weights are exact to a millionth of a millionth of the mixture


def simple_sources(data: DataConfig) -> list[tuple[Source, int]]:
    """Every source with its weight as a whole number.

    ConfigError where none is given, or one is given twice, missing, cut short or too small.
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
    """One source, divided: its training tokens first, then data.held_out of it, in whole rows."""
    where = f"data.sources.{config.name}"
    try:
        reader = IndexedReader(config.path)
        shard = ShardFile(config.path, len(reader.tokens), mark(config.path))
    except ConfigError as error:
        raise ConfigError(f"{where}.path: {error}") from None
    whole = Source(config.name, "", (shard,), packed=_packed(reader))
    if refusal := whole.refusal(data.sequence_length):
        length = f"data.sequence_length = {data.sequence_length:,}"
        raise ConfigError(f"{length}: {where} ({config.path}): {refusal}")
    needed = data.sequence_length + (0 if whole.packed else 1)
    window = f"one window of data.sequence_length{'' if whole.packed else ' + 1'} = {needed:,}"
    tokens, row = whole.tokens, whole.row_length
    held_out = row * math.ceil(tokens * data.held_out / row)
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
    return replace(whole, held_out=held_out)


def _packed(reader: IndexedReader) -> Packed | None:
    if not reader.row_length:
        return None
    text = int(reader.text_R.sum(dtype=np.int64))
    return Packed(reader.row_length, len(reader.tokens) - text, {})
