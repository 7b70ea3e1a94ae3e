"""Traces a row of a training step back to its text: source, shard, document and input file.

for origin in locate("runs/8b/pretrain_1_general", step=1200, row=7):
    origin.shard, origin.document, origin.file, origin.line
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.indexed import IndexedReader
from data_prep.noted import Scalar
from data_prep.shards import Origin, origin
from megatron_qwen3.config import ConfigError
from megatron_qwen3.pretrain.data import Mixture, SamplePlace
from megatron_qwen3.pretrain.record import RunRecord


@dataclass(frozen=True)
class RowPiece:
    """The part of a row from one document: its tokens [position, position + len(tokens)).

    place: of its first token in the shard; file, line, id: the document's input, from the shard's
    .docs file, or "" and 0 without one; fields: the document's other fields.
    """

    position: int
    tokens: npt.NDArray[np.int64]
    shard: str
    place: int
    document: int
    file: str = ""
    line: int = 0
    id: str = ""
    fields: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class RowOrigin:
    """A row: its global sample number within its part of the run, its place, and its pieces."""

    sample: int
    source: str
    epoch: int
    pieces: list[RowPiece]


def locate(run_dir: str | Path, step: int, row: int) -> RowOrigin:
    """Row `row` (from 0) of the global batch of step `step` (from 1, as the log counts).

    Rank r of D data ranks trains rows [r·G/D, (r + 1)·G/D). ConfigError where the folder has no
    record, or no such step or row.
    """
    record = RunRecord.read(Path(run_dir))
    if record is None:
        raise ConfigError(f"{run_dir}: no data.json in this folder; name the folder of a run")
    if step < 1:
        raise ConfigError(f"step {step}: steps count from 1")
    part = record.part_of(step - 1)
    if not 0 <= row < part.global_batch:
        raise ConfigError(f"row {row}: a step has rows 0 to {part.global_batch - 1}")
    mixture = Mixture(part)
    sample = mixture.first_sample(step - 1) + row
    if part.sequences is not None and sample >= part.sequences:
        last = part.first_step + part.sequences // part.global_batch
        raise ConfigError(f"step {step}: the data of this run end with step {last}")
    place = mixture.locate(sample)
    return RowOrigin(
        sample, mixture.names[place.source], place.epoch, list(_pieces(mixture, place))
    )


def _pieces(mixture: Mixture, place: SamplePlace) -> Iterator[RowPiece]:
    files, position = mixture.files[place.source], 0
    for first, last in place.ranges:
        starts = [first, *files.document_starts(first + 1, last), last]
        for begin, end in zip(starts, starts[1:], strict=False):
            shard, in_shard = files.place(begin)
            tokens = files.read(begin, end).astype(np.int64)
            document = IndexedReader(shard).document_of(in_shard)
            yield RowPiece(position, tokens, shard, in_shard, document, *_origin(shard, document))
            position += end - begin


def _origin(shard: str, document: int) -> Origin:
    if not Path(f"{shard}.docs").exists():
        return Origin("", 0, "")
    return origin(shard, document)
