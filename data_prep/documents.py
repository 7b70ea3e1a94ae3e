"""Reads documents as cleaning writes them and as people bring them: JSONL, maybe compressed,
Parquet.

A document is an object with `text`, maybe `id`, and labels beside them or within `metadata` (as in
datatrove): `source`, `language`, `domain`, and `quality` and `education` from 0 to 1.

    for batch in read(FilePart("a.jsonl.gz", 0, size), {"text": "content"}):
        batch.documents, batch.lines      # typed and checked, and the line (row) each stands in
        batch.problems                    # lines that could not be read

A fault of a line costs that line, a fault of a compressed stream its rest. Fields that nobody asks
for are passed over, whatever their values; so are `metadata` that is no object, and NaN. An `id`
that is neither text nor a whole number is the JSON that it is written in.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec

from data_prep.damaged import DamagedFile
from data_prep.kept_fields import NONE, KeptFields
from data_prep.labels import LABEL_FIELDS, LONGEST_LABEL
from data_prep.lines import blocks, first_line
from data_prep.noted import Scalar
from data_prep.parquet import LongRow, ParquetTable
from megatron_qwen3.shown import shown

LONGEST_LINE_BYTES = 1 << 26  # a longer one is a problem: memory must not depend on the input
NAMES = ("text", "id", *LABEL_FIELDS, "metadata")
COMPRESSED = (".gz", ".zst")
PARQUET = ".parquet"
Label = Annotated[str, msgspec.Meta(max_length=LONGEST_LABEL)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_DEEPEST = 100  # levels of JSON; deeper ones would depend on how deep the caller stands
_NAMED_FIELDS = 20  # in an error
_LONGEST_NUMBER = 4000  # digits; Python takes up to 4,300
_HALF = re.compile("[\ud800-\udfff]")  # of a pair of UTF-16, or an invalid byte
# Of a text that does not end, too, the rest is one token: else each of its quotes looks for an end.
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]+|[\]}]+', re.DOTALL)
_JSON_LINES = tuple(name + end for name in (".jsonl", ".ndjson") for end in ("", *COMPRESSED))
SUFFIXES_IN_FOLDERS = (*_JSON_LINES, ".json.gz", ".json.zst", PARQUET)
SUFFIXES = (*SUFFIXES_IN_FOLDERS, ".json")  # beside documents, .json is mostly something else


class FilePart(NamedTuple):
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
class DocumentBatch:
    """Some of a part's documents, and the problems between them.

    lines: of each document, from 1, within the part. positions: of each, the byte at which its line
    begins, in the file or in its decompressed stream; or its row, from 0. So they are the same
    however the file is cut into parts. num_lines: of the batch. progress: the share that is read.
    fields: further kept fields of each document, [] where none are kept; left_out: the number of
    those that were too large.
    """

    documents: list[Document]
    lines: list[int]
    positions: list[int]
    problems: list[Problem]
    num_lines: int
    progress: float
    fields: list[dict[str, Scalar]] = field(default_factory=list)
    left_out: int = 0


def files_within(folder: str | os.PathLike[str], hidden: bool = False) -> Iterator[Path]:
    """All files of a folder, in order, links to folders followed; each folder once.

    hidden: those too whose names, or whose folders' names within, begin with a dot, as
    .ipynb_checkpoints and files that editors and file systems leave behind.
    """
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # or a link to a folder above has no end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if hidden or name[0] != ".")
        chosen = sorted(name for name in names if hidden or name[0] != ".")
        yield from (path for name in chosen if (path := Path(place, name)).is_file())


def not_read(paths: Iterable[str | os.PathLike[str]], known: tuple[str, ...]) -> str:
    """Files of folders that are passed over for the ends of their names, for people; or ""."""
    folders = [path for path in paths if os.path.isdir(path)]
    others = [f for folder in folders for f in files_within(folder) if not f.name.endswith(known)]
    if not others:
        return ""
    ends = Counter(path.suffix or path.name for path in others)
    kinds = ", ".join(f"{count:,} {shown(end)}" for end, count in ends.most_common(5))
    more = ", …" if len(ends) > 5 else ""
    return f"not read for the ends of their names: {kinds}{more}; the first is {shown(others[0])}"


def is_splittable(path: str) -> bool:
    """Whether a part of the file can be read without the bytes before it."""
    return not path.endswith((*COMPRESSED, PARQUET))


def read(
    part: FilePart, names: Mapping[str, str], keep: Sequence[str] = (NONE,)
) -> Iterator[DocumentBatch]:
    """The documents of a part, some MB at a time. OSError where the file cannot be read.

    names: names of fields in the file, where they are not those of NAMES; keep: which of the others
    are kept (`kept_fields.py`).
    """
    kind, kept = document_type(names), KeptFields(keep, names)
    if part.path.endswith(PARQUET):
        return _read_parquet(part, kind, kept)
    return _read_json(part, kind, kept)


def document_type(names: Mapping[str, str]) -> Any:
    """A struct as Document; names: as of `read`."""
    labels: list[Any] = [(name, Label | None, None) for name in ("source", "language", "domain")]
    labels += [(name, Share | None, None) for name in ("quality", "education")]
    metadata = msgspec.defstruct("Metadata", labels, rename=dict(names), gc=False)
    fields: list[Any] = [("text", str), ("id", str | int | None, None), *labels]
    fields.append(("metadata", metadata | None, None))
    return msgspec.defstruct("Document", fields, rename=dict(names), gc=False)


@lru_cache(maxsize=8)
def _called(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The name of each field in the file."""
    return {field.name: field.encode_name for field in msgspec.structs.fields(kind)}


def _read_json(
    part: FilePart, kind: type[msgspec.Struct], kept: KeptFields
) -> Iterator[DocumentBatch]:
    taker = _Taker(msgspec.json.Decoder(kind).decode, kind, kept)
    number = 1
    position = first_line(part.path, part.start) if is_splittable(part.path) else 0
    try:
        for lines, progress in blocks(part.path, part.start, part.end, LONGEST_LINE_BYTES):
            starts = list(
                accumulate(map(len, lines), lambda at, size: at + size + 1, initial=position)
            )
            position = starts.pop()
            yield taker.batch(lines, number, starts, progress)
            number += len(lines)
    except DamagedFile as error:
        yield DocumentBatch([], [], [], [Problem(number, "damaged file", str(error))], 0, 1.0)


def _read_parquet(
    part: FilePart, kind: type[msgspec.Struct], kept: KeptFields
) -> Iterator[DocumentBatch]:
    called, done = _called(kind), 0
    labels = [called[name] for name in LABEL_FIELDS]
    taker = _Taker(partial(msgspec.convert, type=kind), kind, kept)
    try:
        with ParquetTable(part.path, LONGEST_LINE_BYTES) as table:
            if called["text"] not in table.names:
                fault = Problem(1, "missing or wrong field", _absent(called["text"], table.names))
                yield DocumentBatch([], [], [], [fault], table.num_rows, 1.0)
                return
            inner = table.labelled(called["metadata"], labels)
            more = table.single(called["metadata"], kept.is_kept) if kept else []
            for rows in table.rows([called["text"], called["id"], *labels, *inner], more):
                positions = list(range(done, done + len(rows)))
                progress = min(1.0, (done + len(rows)) / max(1, table.num_rows))
                yield taker.batch(rows, done + 1, positions, progress)
                done += len(rows)
    except DamagedFile as error:
        yield DocumentBatch([], [], [], [Problem(done + 1, "damaged file", str(error))], 0, 1.0)


@dataclass
class _Taker:
    """Turns lines into documents. A line is bytes of JSON, or a row's values; decode: makes a
    `kind`."""

    decode: Callable[[Any], Any]
    kind: type[msgspec.Struct]
    kept: KeptFields

    def batch(
        self, lines: list[Any], first_line: int, positions: list[int], progress: float
    ) -> DocumentBatch:
        """Take all lines at once where all are sound, which is fast, or one by one."""
        left_out = self.kept.left_out
        batch = self._at_once(lines, first_line, positions)
        if batch is None:
            batch = DocumentBatch([], [], [], [], 0, 0.0)
            for number, (line, position) in enumerate(
                zip(lines, positions, strict=True), first_line
            ):
                fault = self._take(line, batch)
                if fault is None:
                    batch.lines.append(number)
                    batch.positions.append(position)
                elif fault:
                    batch.problems.append(Problem(number, *fault))
        batch.num_lines, batch.progress = len(lines), progress
        batch.left_out = self.kept.left_out - left_out
        return batch

    def _at_once(
        self, lines: list[Any], first_line: int, positions: list[int]
    ) -> DocumentBatch | None:
        try:
            documents = list(map(self.decode, lines))
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
            return None
        fit = max(map(len, lines), default=0) <= LONGEST_LINE_BYTES  # a row has as many columns
        if not fit or not all(document.text for document in documents):
            return None
        numbers = list(range(first_line, first_line + len(lines)))
        fields = list(map(self._fields, lines)) if self.kept else []
        return DocumentBatch(documents, numbers, positions, [], 0, 0.0, fields)

    def _fields(self, line: Any) -> dict[str, Scalar]:
        if isinstance(line, bytes):
            return self.kept.of_line(line, _loosely)
        return self.kept.of_row(line)

    def _take(self, line: Any, batch: DocumentBatch) -> tuple[str, str] | tuple[()] | None:
        """None when the line's document was appended, () for a blank line, or (kind, detail)."""
        if isinstance(line, bytes) and not line.strip():
            return ()
        if isinstance(line, LongRow) or (
            isinstance(line, bytes) and len(line) > LONGEST_LINE_BYTES
        ):
            return "line too long", f"over {LONGEST_LINE_BYTES >> 20} MiB"
        try:
            document = _decoded(line, self.decode, self.kind)
        except (MemoryError, OSError):
            raise
        except msgspec.ValidationError as error:
            return "missing or wrong field", str(error)
        except UnicodeError as error:
            return "invalid UTF-8", str(error)
        except Exception as error:  # of any kind: the fault is this record's
            if wrong := not_utf8(line):
                return "invalid UTF-8", wrong
            broken = "broken JSON" if isinstance(line, bytes) else "missing or wrong field"
            return broken, str(error) or type(error).__name__
        if not document.text:
            return "empty document", "its text has no characters"
        batch.documents.append(document)
        if self.kept:
            batch.fields.append(self._fields(line))
        return None


def not_utf8(line: Any) -> str:
    """Why the bytes of a line are no text; "" where they are, and for anything but bytes.

    Of a line that msgspec refuses: its releases name this fault by different errors.
    """
    try:
        if isinstance(line, bytes):
            line.decode()
    except UnicodeError as error:
        return str(error)
    return ""


def _decoded(line: Any, decode: Callable[[Any], Any], kind: type[msgspec.Struct]) -> Any:
    """A document; where the usual way fails, of the needed fields alone."""
    if isinstance(line, Exception):
        raise line
    try:
        return decode(line)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        try:
            values = _loosely(line) if isinstance(line, bytes) else line
        except (ValueError, RecursionError):
            raise error from None
    return _of_needed_fields(values, kind)


def _loosely(line: bytes) -> Any:
    """JSON with the extensions of Python's reader (NaN, halves of characters), not too deep."""
    text = _shallow(line).decode("utf-8", "surrogateescape")
    return json.loads(text, parse_int=_whole_number)


def _whole_number(digits: str) -> int | str:
    return int(digits) if len(digits) < _LONGEST_NUMBER else digits


def _shallow(line: bytes) -> bytes:
    """The same JSON with null in place of values deeper than _DEEPEST levels."""
    depth, kept, parts = 0, 0, []
    for token in _TOKENS.finditer(line):
        brackets = token[0]
        if brackets[:1] in b"[{":
            if depth <= _DEEPEST < depth + len(brackets):
                parts += [line[kept : token.start() + _DEEPEST - depth], b"null"]
            depth += len(brackets)
        elif brackets[:1] in b"]}":
            if depth > _DEEPEST >= depth - len(brackets):
                kept = token.start() + depth - _DEEPEST
            depth -= len(brackets)
    return b"".join([*parts, line[kept:]]) if depth <= _DEEPEST else b""


def _of_needed_fields(values: Any, kind: type[msgspec.Struct]) -> Any:
    """A document of a record's values; raises the fault of any of them."""
    if not isinstance(values, dict):
        raise msgspec.ValidationError(f"Expected `object`, got `{type(values).__name__}`")
    called = _called(kind)
    if called["text"] not in values:
        raise msgspec.ValidationError(_absent(called["text"], list(values)))
    labels = [called[name] for name in LABEL_FIELDS]
    kept = _present(values, [called["text"], *labels])
    kept[called["id"]] = _id(values.get(called["id"]))
    inner = values.get(called["metadata"])
    if isinstance(inner, list) and all(isinstance(pair, tuple) for pair in inner):
        inner = _labels_of_map(dict(inner), [called["quality"], called["education"]])
    if isinstance(inner, dict):
        kept[called["metadata"]] = _present(inner, labels)
    return msgspec.convert(kept, kind)


def _present(values: Mapping[Any, Any], names: Sequence[str]) -> dict[str, Any]:
    """Values of these names, without NaN, which stands for an absent number in tables."""
    found = {name: values[name] for name in names if name in values}
    return {name: _sound(value) for name, value in found.items() if value == value}


def _labels_of_map(labels: dict[Any, Any], numbers: Sequence[str]) -> dict[Any, Any]:
    """A map of Parquet has values of one type, mostly text."""
    read = {k: float(labels[k]) for k in numbers if isinstance(labels.get(k), str) and labels[k]}
    return {name: value for name, value in {**labels, **read}.items() if value != ""}


def _sound(value: Any) -> Any:
    """A needed value; raises where it is an error, or no text in UTF-8."""
    if isinstance(value, Exception):
        raise value
    if isinstance(value, bytes):  # tables of old have texts without their kind
        return value.decode()
    if isinstance(value, str) and (half := _HALF.search(value)):
        if half[0] >= "\udc80" and half[0] <= "\udcff":  # a byte that was none of UTF-8's
            raise UnicodeError(f"invalid byte at character {half.start()}")
        raise ValueError(f"half of a character at character {half.start()}")
    return value


def _id(value: Any) -> str | int | None:
    """An id in a form that every file can hold: text, or a whole number."""
    if isinstance(value, Exception) or value is None or value != value:
        return None
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return str(value).encode(errors="backslashreplace").decode()


def _absent(field: str, there: Sequence[str]) -> str:
    """The missing field, and those that are there."""
    names = ", ".join(map(shown, there[:_NAMED_FIELDS]))
    some = names + (", …" if len(there) > _NAMED_FIELDS else "")
    return f"no field `{field}`; there are: {some or 'none'}"
