"""Texts to search: `Corpus.read("corpus.jsonl").search("tall towers", 3)`, best matches first.

A line is {"id": "eiffel", "text": "…"}. Ranking is BM25 (Lucene's, k1 = 1.5, b = 0.75) by bm25s.
Words are lower-cased runs of letters and digits; in Chinese and Japanese, which are written without
spaces, each character is a word.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from megatron_qwen3.config import ConfigError

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


class Corpus:
    """Texts by id, and their index."""

    def __init__(self, texts: dict[str, str]) -> None:
        try:
            import bm25s
        except ImportError:
            raise ConfigError(
                "rollouts.agent.environment = 'search' needs bm25s, which is not installed: "
                "pip install 'megatron_qwen3[posttrain]'"
            ) from None
        self._rows = list(texts.items())
        self._index: Any = bm25s.BM25()
        self._index.index([words(text) for text in texts.values()], show_progress=False)

    @classmethod
    def read(cls, path: str) -> Corpus:
        """Read a corpus. ConfigError, in one line, for a bad line or a repeated id."""
        texts: dict[str, str] = {}
        try:
            with Path(path).open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        name, text = _row(line, f"rollouts.agent.corpus = {path}:{number}")
                        if name in texts:
                            raise ConfigError(f"{path}:{number}: id {name!r:.80} stands twice")
                        texts[name] = text
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"rollouts.agent.corpus = {path} cannot be read: {error}") from None
        if not any(map(words, texts.values())):
            raise ConfigError(f"rollouts.agent.corpus = {path} has no text")
        return cls(texts)

    def search(self, query: str, most: int) -> list[tuple[str, str]]:
        """(id, text) of texts that have words of the query, best first; ties in file order."""
        known = [word for word in words(query) if word in self._index.vocab_dict]
        if not known:
            return []
        scores_N = self._index.get_scores(known)
        best = np.argsort(-scores_N, kind="stable")[:most]
        return [self._rows[n] for n in best if scores_N[n] > 0]


def words(text: str) -> list[str]:
    """The words of a text by which it is found."""
    return _WORD.findall(text.lower())


def _row(line: str, place: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is no JSON: {error}") from None
    name, text = (row.get("id"), row.get("text")) if isinstance(row, dict) else (None, None)
    if not isinstance(name, str | int) or not isinstance(text, str):
        raise ConfigError(f'{place}: {line.strip()!r:.80}; valid: {{"id": …, "text": "…"}}')
    return str(name), text
