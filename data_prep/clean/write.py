"""Ends the first and the last stage: writes documents, puts dropped ones aside, counts all.

WriteLabelled   work/labelled/TASK.jsonl.zst: documents kept so far; dropped/TASK.jsonl.zst: the
                others, with reasons; work/contamination/TASK.jsonl: hits of evaluation sets
WriteKept       documents/TASK.jsonl.zst: the result, without documents like another one
                (or Parquet, or elsewhere: `result.py`);
                duplicates/TASK.jsonl.zst: those, with the document kept instead
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.clean.dedup.removed import RemovedDuplicate, removed_of, save_instead
from data_prep.clean.files import new_documents, read_documents
from data_prep.clean.result import FieldsFound, new_result
from data_prep.clean.settings import PARQUET, CleanSettings
from data_prep.languages import UNKNOWN
from megatron_qwen3.storage.whole import write_whole

KEPT = "kept"
EQUAL, NEAR = "equal to another", "much like another"
MOST_ROWS = 10_000
_OTHERS = "(others)"
_SHOWN = 300  # characters of a dropped document that are put aside


class Tally:
    """Documents and bytes of text by source, language and outcome.

    Beyond MOST_ROWS of them, as where each document has a source of its own, all sources and
    languages that come first then are counted together.
    """

    def __init__(self) -> None:
        self._documents: Counter[tuple[str, str, str]] = Counter()
        self._bytes: Counter[tuple[str, str, str]] = Counter()

    def add(self, document: Document, outcome: str) -> None:
        labels = document.metadata
        key = (labels["source"], labels.get("language") or UNKNOWN, outcome)
        if len(self._documents) >= MOST_ROWS and key not in self._documents:
            key = (_OTHERS, UNKNOWN, outcome)
        self._documents[key] += 1
        self._bytes[key] += len(document.text.encode())

    def write(self, path: Path) -> None:
        """As rows of (source, language, outcome, documents, bytes)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(*key, count, self._bytes[key]) for key, count in self._documents.items()]
        write_whole(path, [msgspec.json.encode(rows)])


class WriteLabelled(PipelineStep):  # type: ignore[misc]
    """The end of the first stage."""

    name, type = "Write labelled", "💽 - WRITER"

    def __init__(self, settings: CleanSettings) -> None:
        super().__init__()
        self.settings = settings

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        tally, hits, fields = Tally(), list[bytes](), FieldsFound()
        with (
            new_documents(self.settings.file("work/labelled", rank, ".jsonl.zst")) as passed,
            new_documents(self.settings.file("dropped", rank, ".jsonl.zst")) as dropped,
        ):
            for document in data:
                reason = document.metadata.get("_dropped")
                for hit in document.metadata.get("_hits", ()):
                    hits.append(msgspec.json.encode(hit) + b"\n")
                if reason:
                    tally.add(document, reason)
                    dropped.write(_set_aside(document, reason=reason))
                else:
                    passed.write(document)
                    if self.settings.format == PARQUET:
                        fields.add(document)
                self.stat_update(reason or KEPT)
        path = self.settings.file("work/contamination", rank, ".jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, hits)
        if self.settings.format == PARQUET:
            fields.write(self.settings, rank)
        tally.write(self.settings.file("work/counts/label", rank, ".json"))
        yield from ()


class WriteKept(PipelineStep):  # type: ignore[misc]
    """The last stage but one, which reads the files of the first one."""

    name, type = "Write kept", "💽 - WRITER"

    def __init__(self, settings: CleanSettings, equal_tasks: int) -> None:
        super().__init__()
        self.settings, self.equal_tasks = settings, equal_tasks

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        removed = removed_of(self.settings, rank, self.equal_tasks)
        gone, instead = next(removed, None), list[RemovedDuplicate]()
        tally = Tally()
        with (
            new_result(self.settings, rank) as kept,
            new_documents(self.settings.file("duplicates", rank, ".jsonl.zst")) as duplicates,
        ):
            source = self.settings.file("work/labelled", rank, ".jsonl.zst")
            for number, document in enumerate(read_documents(source)):
                outcome = KEPT
                if gone and gone.document == number:
                    outcome = EQUAL if gone.is_equal else NEAR
                    duplicates.write(_set_aside(document, reason=outcome, kept=gone.kept))
                    if self.settings.keep_index:
                        instead.append(gone)
                    gone = next(removed, None)
                else:
                    kept.write(document)
                tally.add(document, outcome)
        if self.settings.keep_index:
            save_instead(self.settings, rank, instead)
        tally.write(self.settings.file("work/counts/write", rank, ".json"))
        yield from ()


def _set_aside(document: Document, **labels: str) -> Document:
    """Its beginning, for people who want to see the documents that a rule drops."""
    return Document(
        text=document.text[:_SHOWN],
        id=document.id,
        metadata={**document.metadata, **labels},
    )
