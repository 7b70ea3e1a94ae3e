"""Reads a file of dialogs as batches of samples, some MB at a time, with reasons for skipped lines.

for batch in read(part, choices):     # a part of data_prep.tokenization.plan
    batch.samples, batch.lines        # rendered; the line of each, from 0, within the part
    batch.problems, batch.counts      # lines that were refused; further counts
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from data_prep.damaged import DamagedFile
from data_prep.documents import LONGEST_LINE_BYTES, FilePart, Problem, not_utf8
from data_prep.lines import blocks
from megatron_qwen3.posttrain.dialogs.samples import (
    Choices,
    DialogLine,
    LineRefused,
    Rendered,
    decoder,
    samples_of,
)

DIALOGS, SPLIT = "dialogs", "dialogs that became several samples, one for each query"
IS_PAIR = "; a line with chosen and rejected is one of --kind pairs"


class DialogBatch(NamedTuple):
    """num_lines: of the batch. progress: the share of the part read so far."""

    samples: list[Rendered]
    lines: list[int]
    problems: list[Problem]
    counts: Counter[str]
    num_lines: int
    progress: float


def read(part: FilePart, choices: Choices) -> Iterator[DialogBatch]:
    """Yields all batches of a part. OSError where the file cannot be read."""
    decode, done = decoder(choices.kind).decode, 0
    try:
        for lines, progress in blocks(part.path, part.start, part.end, LONGEST_LINE_BYTES):
            batch = DialogBatch([], [], [], Counter(), len(lines), progress)
            for number, line in enumerate(lines, done):
                _take(line, number, decode, choices, batch)
            yield batch
            done += len(lines)
    except DamagedFile as error:
        problem = Problem(done + 1, "damaged file", str(error))
        yield DialogBatch([], [], [problem], Counter(), 0, 1.0)


def _take(
    line: bytes,
    number: int,
    decode: Callable[[bytes], DialogLine],
    choices: Choices,
    batch: DialogBatch,
) -> None:
    """Add the samples of line `number` of the part, from 0, to the batch, or its problem."""
    if not line.strip():
        return
    name = ""
    try:
        if len(line) > LONGEST_LINE_BYTES:
            raise LineRefused("line too long", f"over {LONGEST_LINE_BYTES >> 20} MiB")
        dialog = _decoded(line, decode)
        name = "" if dialog.id is None else f"id {dialog.id!s:.80}: "
        samples = samples_of(dialog, choices)
    except LineRefused as error:
        hint = IS_PAIR if choices.kind == "dialogs" and _is_pair(line) else ""
        batch.problems.append(Problem(number + 1, error.kind, f"{name}{error}{hint}"))
        return
    batch.samples.extend(samples)
    batch.lines.extend([number] * len(samples))
    batch.counts[choices.kind] += 1
    if choices.kind == "dialogs" and len(samples) > 1:
        batch.counts[SPLIT] += 1
    for sample in samples:
        if sample.remark:
            batch.counts[sample.remark] += 1


def _is_pair(line: bytes) -> bool:
    """Whether the line has the fields of a pair; within a text their quotes would be escaped."""
    return b'"chosen"' in line and b'"rejected"' in line


def _decoded(line: bytes, decode: Callable[[bytes], DialogLine]) -> DialogLine:
    try:
        return decode(line)
    except msgspec.ValidationError as error:
        raise LineRefused("missing or wrong field", str(error)) from None
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        if wrong := not_utf8(line):
            raise LineRefused("invalid UTF-8", wrong) from None
        raise LineRefused("broken JSON", str(error) or type(error).__name__) from None
