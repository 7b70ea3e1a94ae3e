"""Documents as cleaning writes them and as people bring them: JSONL, plain or compressed, Parquet.

A document is an object with `text`, maybe `id`, and labels beside them or within `metadata` (as in
datatrove): `source`, `language`, `domain`, and `quality` and `education` from 0 to 1.

    for batch in read(Part("a.jsonl.gz", 0, size), {"text": "content"}):
        batch.documents, batch.lines      # typed and checked, and the line (row) each stands in
        batch.problems                    # what could not be taken, line by line

What is wrong with a line costs that line, what is wrong with a compressed stream its rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec

from data_prep.labels import LONGEST_LABEL
from data_prep.lines import DamagedFile, blocks, first_line
from megatron_qwen3.config import ConfigError

LONGEST_LINE_BYTES = 1 << 26  # a longer one is a problem: memory must not depend on the input
ROWS = 256  # of Parquet at a time
NAMES = ("text", "id", "source", "language", "domain", "quality", "education", "metadata")
COMPRESSED = (".gz", ".zst")
PARQUET = ".parquet"
_JSON_LINES = tuple(name + end for name in (".jsonl", ".ndjson") for end in ("", *COMPRESSED))
SUFFIXES_IN_FOLDERS = (*_JSON_LINES, ".json.gz", ".json.zst", PARQUET)
SUFFIXES = (*SUFFIXES_IN_FOLDERS, ".json")  # beside documents, .json is mostly something else


class Part(NamedTuple):
    """The lines that begin in [start, end) bytes of a plain file; another file as a whole."""

    path: str
    start: int
    end: int


class Problem(NamedTuple):
    """Why a line was not taken. line: from 1, within the part; kind: one of few, to be counted."""

    line: int
    kind: str
    detail: str


class Document(Protocol):
    """A document of an input file; a label that it does not have is None."""

    text: str
    id: str | int | None
    source: str | None
    language: str | None
    domain: str | None
    quality: float | None
    education: float | None
    metadata: Any  # None, or an object with the same labels


@dataclass
class Batch:
    """Some of a part's documents, and what else stood between them.

    lines: of each document, from 1, within the part. positions: of each, the byte of the file, or
    of what is compressed in it, at which its line begins; or its row, from 0. So they are the same
    however the file is cut into parts. num_lines: of the batch. progress: the share that is read.
    """

    documents: list[Document]
    lines: list[int]
    positions: list[int]
    problems: list[Problem]
    num_lines: int
    progress: float


def files_within(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """All files of a folder, in order, links to folders followed; each folder once."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # or a link to a folder above has no end
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(place, name)).is_file())


def is_splittable(path: str) -> bool:
    """Whether a part of the file can be read without what comes before it."""
    return not path.endswith((*COMPRESSED, PARQUET))


def read(part: Part, names: Mapping[str, str]) -> Iterator[Batch]:
    """The documents of a part, some MB at a time. OSError where the file cannot be read.

    names: what fields are called in the file, where that is not their name in NAMES.
    """
    kind = _document_type(names)
    return _read_parquet(part, kind) if part.path.endswith(PARQUET) else _read_json(part, kind)


def _document_type(names: Mapping[str, str]) -> type[msgspec.Struct]:
    label = Annotated[str, msgspec.Meta(max_length=LONGEST_LABEL)]
    share = Annotated[float, msgspec.Meta(ge=0, le=1)]
    labels: list[Any] = [(name, label | None, None) for name in ("source", "language", "domain")]
    labels += [(name, share | None, None) for name in ("quality", "education")]
    metadata = msgspec.defstruct("Metadata", labels, rename=dict(names), gc=False)
    fields: list[Any] = [("text", str), ("id", str | int | None, None), *labels]
    fields.append(("metadata", metadata | None, None))
    return msgspec.defstruct("Document", fields, rename=dict(names), gc=False)


def _read_json(part: Part, kind: type[msgspec.Struct]) -> Iterator[Batch]:
    decode = msgspec.json.Decoder(kind).decode
    number = 1
    position = first_line(part.path, part.start) if is_splittable(part.path) else 0
    try:
        for lines, progress in blocks(part.path, part.start, part.end, LONGEST_LINE_BYTES):
            starts = list(
                accumulate(map(len, lines), lambda at, size: at + size + 1, initial=position)
            )
            position = starts.pop()
            yield _batch(lines, decode, number, starts, progress)
            number += len(lines)
    except DamagedFile as error:
        yield Batch([], [], [], [Problem(number, "damaged file", str(error))], 0, 1.0)


def _read_parquet(part: Part, kind: type[msgspec.Struct]) -> Iterator[Batch]:
    parquet = _import_parquet()
    done = 0
    try:
        with parquet.ParquetFile(part.path) as file:
            wanted = {field.encode_name for field in msgspec.structs.fields(kind)}
            columns = [name for name in file.schema_arrow.names if name in wanted]
            for rows in file.iter_batches(ROWS, columns=columns):
                singles = [rows.slice(k, 1) for k in range(len(rows))]
                positions = list(range(done, done + len(rows)))
                progress = (done + len(rows)) / file.metadata.num_rows
                yield _batch(singles, lambda row: _row(row, kind), done + 1, positions, progress)
                done += len(rows)
    except (OSError, ValueError) as error:  # among the latter is Arrow's own ArrowInvalid
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield Batch([], [], [], [Problem(done + 1, "damaged file", str(error))], 0, 1.0)


def _row(row: Any, kind: type[msgspec.Struct]) -> Any:
    """A row as a document."""
    (values,) = row.to_pylist()
    return msgspec.convert(_present(values), kind)


def _present(values: dict[str, Any]) -> dict[str, Any]:
    """Without NaN, which is how tables say that a number is absent."""
    kept = {name: value for name, value in values.items() if value == value}
    return {name: _present(v) if isinstance(v, dict) else v for name, v in kept.items()}


def _import_parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            "reading Parquet needs pyarrow, which is not installed: python -m pip install pyarrow"
        ) from None
    return parquet


def _batch(
    lines: list[Any],
    decode: Callable[[Any], Any],
    first_line: int,
    positions: list[int],
    progress: float,
) -> Batch:
    """The lines as documents; at once where all are good, which is fast, or one by one."""
    try:
        documents = list(map(decode, lines))
        fit = max(map(len, lines), default=0) <= LONGEST_LINE_BYTES  # a row of Parquet counts 1
        if fit and all(document.text for document in documents):
            numbers = list(range(first_line, first_line + len(lines)))
            return Batch(documents, numbers, positions, [], len(lines), progress)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    batch = Batch([], [], [], [], len(lines), progress)
    for number, (line, position) in enumerate(zip(lines, positions, strict=True), first_line):
        fault = _take(line, decode, batch.documents)
        if fault is None:
            batch.lines.append(number)
            batch.positions.append(position)
        elif fault:
            batch.problems.append(Problem(number, *fault))
    return batch


def _take(
    line: Any, decode: Callable[[Any], Any], documents: list[Document]
) -> tuple[str, str] | tuple[()] | None:
    """None when the line's document was appended, () for a blank line, or (kind, detail)."""
    if isinstance(line, bytes) and not line.strip():
        return ()
    if isinstance(line, bytes) and len(line) > LONGEST_LINE_BYTES:
        return "line too long", f"over {LONGEST_LINE_BYTES >> 20} MiB"
    try:
        document = decode(line)
    except msgspec.ValidationError as error:
        return "missing or wrong field", str(error)
    except UnicodeDecodeError as error:
        return "invalid UTF-8", str(error)
    except msgspec.DecodeError as error:
        return "broken JSON", str(error)
    if not document.text:
        return "empty document", "its text has no characters"
    documents.append(document)
    return None
