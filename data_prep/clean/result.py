"""Writes the result of a cleaning: JSON lines or Parquet, in OUT/documents or elsewhere.

    with new_result(settings, task) as kept: kept.write(document)

Parquet has a column for each label and each field that documents brought, the same ones in every
file: `FieldsFound` notes a task's fields, `MergeFields` (one task, before the results are written)
makes columns of them. A field that is not of one kind in all documents is text. Where `documents`
is a URL (`remote.py`), a file is written here first and then copied whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.clean.files import DocumentWriter, labels_of, new_documents, read_json
from data_prep.clean.settings import JSONL, PARQUET, CleanSettings
from data_prep.labels import LABEL_FIELDS
from data_prep.noted import Scalar
from data_prep.remote import is_url, upload
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.whole import whole_file, write_whole

MOST_FIELDS = 1000
_ENDS = {JSONL: ".jsonl.zst", PARQUET: ".parquet"}
_COLUMNS = "work/columns.json"
_OURS = {"id": "text", "text": "text"} | dict.fromkeys((*LABEL_FIELDS[:3], "file"), "text")
_OURS |= dict.fromkeys(LABEL_FIELDS[3:], "number")
_GROUP_BYTES = 1 << 24  # of text that is written at a time
_GROUP_ROWS = 1 << 14
_WHOLE = range(-(1 << 63), 1 << 63)  # the numbers that a column of whole numbers holds
_KINDS = {bool: "flag", int: "whole", float: "number", str: "text"}


@contextmanager
def new_result(settings: CleanSettings, task: int) -> Iterator[DocumentWriter | TableWriter]:
    """The task's file of the result, there whole when the block ends well."""
    end, target = _ENDS[settings.format], settings.documents
    outgoing = settings.file("work/outgoing", task, end)
    here = outgoing if is_url(target) else _folder(settings) / f"{task:05d}{end}"
    if settings.format == PARQUET:
        with new_table(here, columns(settings)) as table:
            yield table
    else:
        with new_documents(here) as lines:
            yield lines
    if is_url(target):
        upload(here, f"{target.rstrip('/')}/{task:05d}{end}")
        here.unlink()


def _folder(settings: CleanSettings) -> Path:
    return Path(settings.documents) if settings.documents else settings.folder("documents")


class FieldsFound:
    """The kinds of values by name, of the documents of a task; ConfigError at too many: the
    names may be as many as the values."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}

    def add(self, document: Document) -> None:
        for name, value in labels_of(document).items():
            self._kinds[name] = _joint(self._kinds.get(name), _kind(value))
        _check_number(self._kinds)

    def write(self, settings: CleanSettings, task: int) -> None:
        path = settings.file("work/columns", task, ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, [msgspec.json.encode(self._kinds)])


class MergeFields(PipelineStep):  # type: ignore[misc]
    """One task: the columns of all files. ConfigError where there are too many."""

    name, type = "Columns", "💽 - WRITER"

    def __init__(self, settings: CleanSettings) -> None:
        super().__init__()
        self.settings = settings

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        kinds: dict[str, str] = {}
        for task in range(self.settings.tasks):
            path = self.settings.file("work/columns", task, ".json")
            for name, kind in read_json(path).items():
                kinds[name] = _joint(kinds.get(name), kind)
            _check_number(kinds)
        ordered = {name: kinds[name] for name in sorted(kinds) if name not in _OURS}
        write_whole(self.settings.folder(_COLUMNS), [msgspec.json.encode(_OURS | ordered)])
        yield from ()


def _check_number(kinds: Mapping[str, str]) -> None:
    if len(kinds) > MOST_FIELDS:
        raise ConfigError(
            f"documents have {len(kinds):,} different fields, a table at most {MOST_FIELDS:,} "
            "columns: name those that matter by --keep-fields, in another folder"
        )


def columns(settings: CleanSettings) -> dict[str, str]:
    """The kind of each column, by name."""
    found: dict[str, str] = read_json(settings.folder(_COLUMNS))
    return found


class TableWriter:
    """Documents as rows of Parquet, some MB at a time. columns: kinds by name."""

    def __init__(self, file: Any, columns: Mapping[str, str]) -> None:
        import pyarrow
        from pyarrow import parquet

        kinds = {
            "text": pyarrow.string(),
            "whole": pyarrow.int64(),
            "number": pyarrow.float64(),
            "flag": pyarrow.bool_(),
        }
        self._columns = columns
        self._schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
        self._file = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._size = 0

    def write(self, document: Document) -> None:
        row = {"id": document.id, "text": document.text, **labels_of(document)}
        self._rows.append({name: _as(value, self._columns[name]) for name, value in row.items()})
        self._size += len(document.text)
        if self._size >= _GROUP_BYTES or len(self._rows) >= _GROUP_ROWS:
            self._flush()

    def finish(self) -> None:
        """Write the waiting rows, and the end of the file."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        import pyarrow

        if self._rows:
            self._file.write_table(pyarrow.Table.from_pylist(self._rows, self._schema))
        self._rows, self._size = [], 0


@contextmanager
def new_table(path: Path, kinds: Mapping[str, str]) -> Iterator[TableWriter]:
    """A file of Parquet, there whole when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        writer = TableWriter(file, kinds)
        yield writer
        writer.finish()


def _kind(value: Scalar) -> str:
    if type(value) is int and value not in _WHOLE:
        return "text"
    return _KINDS.get(type(value), "text")


def _joint(one: str | None, other: str) -> str:
    """The kind that values of both have."""
    if one is None or one == other:
        return other
    return "number" if {one, other} == {"whole", "number"} else "text"


def _as(value: Any, kind: str) -> Any:
    if value is None or kind != "text" or isinstance(value, str):
        return float(value) if kind == "number" and value is not None else value
    return msgspec.json.encode(value).decode()
