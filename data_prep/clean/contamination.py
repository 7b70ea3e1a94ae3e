"""Drops documents with passages of evaluation sets, and reports all hits.

    sets = EvaluationSets(settings)
    sets(document)       # "contaminated" or None; the hits are in document.metadata["_hits"]

`data_prep/passages.py` defines passages.
"""

from __future__ import annotations

from datatrove.data import Document

from data_prep.clean.settings import CleanSettings
from data_prep.passages import Passages


class EvaluationSets:
    """All passages of the evaluation files, read at the first document of each process."""

    def __init__(self, settings: CleanSettings) -> None:
        self.passages = Passages(
            settings.decontaminate_against, settings.contamination_run, settings.tokenizer
        )

    def __call__(self, document: Document) -> str | None:
        hits = self.passages.hits(document.text, document.metadata.get("_units"))
        if not hits:
            return None
        document.metadata["_hits"] = [
            {"document": document.id, "file": document.metadata["file"], **hit} for hit in hits
        ]
        return "contaminated"
