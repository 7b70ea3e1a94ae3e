"""The first step: reads documents from files, each task its shares of them, and notes problems.

plan.begin(settings, plan.find_files(settings))
ReadDocuments(settings).run(None, rank=3)     # documents with `source`, `file` and labels
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import IO, Any

import msgspec
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep import documents
from data_prep.clean.plan import InputShare, is_text, read_shares
from data_prep.clean.settings import CleanSettings
from data_prep.documents import DocumentBatch, FilePart, Problem
from data_prep.domains import is_code_file
from data_prep.labels import said
from data_prep.noted import Scalar
from data_prep.pool import Tick, ticking, unheard
from data_prep.remote import opened
from data_prep.tokenizer_file import cut_note
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.whole import whole_file

_OURS = frozenset((*documents.NAMES, "file", "safety", "reason", "kept"))  # a field's name as ours
_TextFile = documents.document_type({})
_LONGEST_TEXT_BYTES = 1 << 28  # a file of plain text is one document


class ReadDocuments(PipelineStep):  # type: ignore[misc]
    """Documents of this task's share; its problems go to problems/TASK.jsonl.

    OSError where a file cannot be read at all, ConfigError at a problem if on_error is `stop`.
    """

    name, type = "Read", "📖 - READER"

    def __init__(self, settings: CleanSettings) -> None:
        super().__init__()
        self.settings = settings
        self.tick: Tick = unheard

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        assert world_size == self.settings.tasks, "settings.tasks is the number of tasks"
        with whole_file(_made(self.settings.file("work/problems", rank, ".jsonl"))) as problems:
            yield from self._read(read_shares(self.settings, rank), problems)

    def _read(self, shares: list[InputShare], problems: IO[bytes]) -> Iterator[Document]:
        for share in shares:
            lines = 0
            for batch in ticking(_batches(share.part, self.settings), share.part, self.tick):
                for problem in batch.problems:
                    problems.write(msgspec.json.encode(self._noted(share.part, problem)) + b"\n")
                fields: Iterable[Mapping[str, Scalar]] = batch.fields or repeat({})
                for document, position, more in zip(
                    batch.documents, batch.positions, fields, strict=False
                ):
                    yield _document(document, share, position, more)
                lines += batch.num_lines
                if batch.left_out:
                    self.stat_update("fields too large to keep", value=batch.left_out)
            end = {"file": _name(share.part), "start": share.part.start, "lines": lines}
            problems.write(msgspec.json.encode(end) + b"\n")

    def _noted(self, part: FilePart, problem: Problem) -> dict[str, Any]:
        if self.settings.on_error == "stop":
            within = f" (from byte {part.start})" if part.start else ""
            raise ConfigError(
                f"{shown(part.path)}{within}, line {problem.line}: {problem.kind}: {problem.detail}"
            )
        line, kind, detail = problem
        found = {"line": line, "kind": kind, "detail": shown(detail)}
        return {"file": _name(part), "start": part.start, **found}


def tokenizer_note(settings: CleanSettings) -> str:
    """Settings left aside of the tokenizer that evaluation data are compared with, or ""."""
    return cut_note(settings.tokenizer) if settings.tokenizer else ""


def _batches(part: FilePart, settings: CleanSettings) -> Iterator[DocumentBatch]:
    if not is_text(part.path):
        names = {"text": settings.text_field} if settings.text_field != "text" else {}
        return documents.read(part, names, settings.keep_fields)
    return iter([_text_file(part)])


def _text_file(part: FilePart) -> DocumentBatch:
    if part.end > _LONGEST_TEXT_BYTES:
        fault = Problem(1, "file too long", f"over {_LONGEST_TEXT_BYTES >> 20} MiB of plain text")
        return DocumentBatch([], [], [], [fault], 0, 1.0)
    with opened(part.path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return DocumentBatch([], [], [], [Problem(line, "invalid UTF-8", str(error))], line, 1.0)
    if not text.strip():
        fault = Problem(1, "empty document", "its text has no characters")
        return DocumentBatch([], [], [], [fault], 1, 1.0)
    domain = "code" if is_code_file(part.path) else None
    made = _TextFile(text=text, id=_name(part), domain=domain)
    return DocumentBatch([made], [1], [0], [], 1, 1.0)


def _document(
    read: Any, share: InputShare, position: int, fields: Mapping[str, Scalar]
) -> Document:
    """With its labels, or those of the input.

    fields: its further ones; where a name is one of those that cleaning writes, under another.
    """
    labels = said(read, share.input.source, domain=share.input.domain)._asdict()
    file = _name(share.part)
    name = f"{file}:{position}" if read.id is None else str(read.id)
    kept = {
        f"input_{name}" if name in _OURS or name[:1] == "_" else name: value
        for name, value in fields.items()
    }
    return Document(text=read.text, id=name, metadata={**kept, **labels, "file": file})


def _name(part: FilePart) -> str:
    r"""The file's name as any reader of JSON takes it: bytes that are no UTF-8 as \udcXX."""
    return part.path.encode("utf-8", "backslashreplace").decode()


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
